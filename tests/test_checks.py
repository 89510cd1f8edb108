"""Everything that is wrong with raw cases is found, all at once; what a data set holds is summed up."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
import SimpleITK
from helpers import noise

from utils.errors import InputError
from utils.preparation.cases import Case, find_cases
from utils.preparation.checks import (
    CaseFacts,
    Finding,
    check_facts,
    check_headers,
    findings_table,
    read_facts,
    read_facts_or_finding,
    summary_text,
    vendor_summary,
)
from utils.volumes.mhd import write_volume

SPACING_MM = (0.0117, 0.003872, 0.12)
SHAPE = (2, 12, 10)


def write_scan(folder, voxels, spacing_mm=SPACING_MM):
    write_volume(folder / "oct.mhd", voxels, spacing_mm)


def write_reference(folder, *labels, dtype="uint8", spacing_mm=SPACING_MM, shape=SHAPE):
    """Labels in the first row, 0 elsewhere; written by SimpleITK, as labs do, in any type."""
    reference = np.zeros(shape, dtype)
    reference[0, 0, : len(labels)] = labels
    image = SimpleITK.GetImageFromArray(reference)
    image.SetSpacing(spacing_mm)
    SimpleITK.WriteImage(image, str(folder / "reference.mhd"))


def write_case(folder, seed=0, dtype="uint8"):
    write_scan(folder, noise(SHAPE, seed=seed).astype(dtype) * (257 if dtype == "uint16" else 1))
    write_reference(folder, 1, 2, 3)


def edit_header(folder, old, new):
    path = folder / "oct.mhd"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def set_spacing(folder, *spacing_mm):
    edit_header(folder, "ElementSpacing = 0.0117 0.003872 0.12", f"ElementSpacing = {' '.join(map(str, spacing_mm))}")


def remove_slices(folder):
    edit_header(folder, "DimSize = 10 12 2", "DimSize = 10 12 0")
    (folder / "oct.raw").write_bytes(b"")


def damage_compressed(folder):
    image = SimpleITK.GetImageFromArray(np.tile(noise((1, 60, 50), seed=99), (2, 1, 1)))
    image.SetSpacing(SPACING_MM)
    SimpleITK.WriteImage(image, str(folder / "oct.mhd"), useCompression=True)
    write_reference(folder, 1, shape=(2, 60, 50))
    compressed = bytearray((folder / "oct.zraw").read_bytes())
    compressed[500:900] = bytes(400)
    (folder / "oct.zraw").write_bytes(compressed)


def fill_b_scan(folder):
    reference = np.zeros(SHAPE, np.uint8)
    reference[0, :6] = 1  # half of the B-scan, which is not too much
    reference[1, :7] = 1
    write_volume(folder / "reference.mhd", reference, SPACING_MM)


# name of the case: (how to break it, what is found, expected, what to do)
HEADER_FAULTS = {
    "Cirrus/no reference": (
        lambda folder: (folder / "reference.mhd").unlink(),
        "reference.mhd is missing",
        "beside oct.mhd",
        "add it",
    ),
    "Cirrus/no scan": (lambda folder: (folder / "oct.mhd").unlink(), "^oct.mhd: no such file", "", "copy or export"),
    "Cirrus/no header": (
        lambda folder: (folder / "oct.mhd").write_text("nothing"),
        r"^oct.mhd: cannot be read",
        "",
        "copy or export",
    ),
    "Cirrus/truncated": (
        lambda folder: (folder / "oct.raw").write_bytes(b"short"),
        "^oct.raw: 5 bytes$",
        "^240 by oct.mhd$",
        "^copy or export the case again$",
    ),
    "Cirrus/no slices": (remove_slices, "10 x 12 x 0 voxels", "at least one", "export"),
    "Cirrus/other size": (
        lambda folder: write_reference(folder, shape=(2, 12, 11)),
        "reference.mhd has 11 x 12 x 2 voxels",
        "10 x 12 x 2 voxels as in oct.mhd",
        "one grid",
    ),
    "Cirrus/reference without spacing": (
        lambda folder: write_reference(folder, spacing_mm=(1, 1, 1)),
        "reference.mhd has a spacing of 1 x 1 x 1 mm",
        "0.0117 x 0.003872 x 0.12 mm as in oct.mhd",
        "ElementSpacing",
    ),
    "Cirrus/float": (
        lambda folder: write_scan(folder, noise(SHAPE).astype("float32")),
        "oct.mhd holds float32",
        "^uint8 or uint16$",
        "convert",
    ),
    "nobody/unknown": (
        lambda folder: None,
        "vendor unknown: .*10 x 12 uint8 pixels",
        "Cirrus, Spectralis, Topcon",
        "folder named",
    ),
}
SPACING_FAULTS = {  # both files get it, so that they agree
    (1, 1, 1): "a default",
    (11.7, 3.872, 120): "micrometres",
    (0.003872, 0.0117, 0.12): "axes swapped",
    (0.047, 0.001955, 0.0117): "axes swapped",  # a Cirrus scan's
    (0.0117, 0, 0.12): "device's own",
    (0.0117, -0.003872, 0.12): "device's own",
    ("nan", 0.003872, 0.12): "device's own",
}
VOXEL_FAULTS = {
    "Cirrus/damaged": (damage_compressed, "^oct.zraw: damaged", "", "copy or export the case again"),
    "Cirrus/constant": (
        lambda folder: write_scan(folder, np.full(SHAPE, 9, np.uint8)),
        "every voxel of oct.mhd is 9",
        "an image",
        "export",
    ),
    "Spectralis/8 bits": (
        lambda folder: write_scan(folder, noise(SHAPE, high=256, seed=90).astype("uint16")),
        "16-bit, and its largest grey value 25. fits into 8 bits",
        "0 to 65535",
        "save it as uint8",
    ),
    "Spectralis/12 bits": (
        lambda folder: write_scan(folder, noise(SHAPE, high=256, seed=91).astype("uint16") * 16),
        "fits into 12 bits",
        "0 to 65535",
        "multiply the grey values by 16$",
    ),
    "Topcon/inverted": (
        lambda folder: write_scan(folder, 255 - noise(SHAPE, high=160, seed=92)),
        "brighter than 150",
        "dark background",
        "invert",
    ),
    "Cirrus/0 and 255": (
        lambda folder: write_reference(folder, 255, 255),
        "reference.mhd: holds 0 and 255$",
        "labels 0 to 3",
        "replace 255 by that class's label",
    ),
    "Cirrus/label 4": (
        lambda folder: write_reference(folder, 1, 4, 10),
        "holds 0, 1, 4, 10$",
        "3 PED",
        "replace the labels",
    ),
    "Cirrus/label -1": (lambda folder: write_reference(folder, -1, dtype="int16"), "holds -1, 0$", "3 PED", "replace"),
    "Cirrus/label 257": (
        lambda folder: write_reference(folder, 257, 514, dtype="uint16"),
        "holds 0, 257, 514$",
        "3 PED",
        "replace",
    ),
    "Cirrus/half labels": (
        lambda folder: write_reference(folder, 0.5, 1, np.nan, dtype="float32"),
        "holds 0, 0.5, 1, nan$",
        "3 PED",
        "replace",
    ),
    "Cirrus/many labels": (
        lambda folder: write_reference(folder, *range(10, 20)),
        "holds 0, 10, 11, 12, 13, 14, 15, 16, 17, ...$",
        "3 PED",
        "replace",
    ),
    "Cirrus/filled": (fill_b_scan, "fills more than half of slice 1$", "all else 0", "swapped"),
}


def all_findings(root, **arguments):
    """Findings as a script collects them: voxels are read of the cases alone whose headers are good."""
    cases = find_cases(root)
    findings = check_headers(cases, **arguments)
    bad = {finding.case for finding in findings}
    results = {case: read_facts_or_finding(case) for case in cases if case not in bad}
    findings += [result for result in results.values() if isinstance(result, Finding)]
    return findings + check_facts({case: result for case, result in results.items() if isinstance(result, CaseFacts)})


@pytest.mark.parametrize("faults", [HEADER_FAULTS, VOXEL_FAULTS], ids=["headers", "voxels"])
def test_every_fault_is_found_once_and_all_at_once(tmp_path, faults):
    for number, (name, (break_case, *_)) in enumerate(faults.items()):
        write_case(tmp_path / name, seed=number)
        break_case(tmp_path / name)
    write_case(tmp_path / "Cirrus" / "good", seed=80)
    write_case(tmp_path / "Spectralis" / "good", seed=81, dtype="uint16")
    findings = all_findings(tmp_path)
    assert sorted(finding.case.root for finding in findings) == sorted(faults)
    findings = {finding.case.root: finding for finding in findings}
    for name, (_, found, expected, remedy) in faults.items():
        finding = findings[name]
        assert re.search(found, finding.found), finding
        assert re.search(expected, finding.expected), finding
        assert re.search(remedy, finding.remedy), finding
        assert all((finding.found, finding.expected, finding.remedy)), finding


@pytest.mark.parametrize("spacing_mm", SPACING_FAULTS)
def test_implausible_spacing(tmp_path, spacing_mm):
    write_case(tmp_path / "Cirrus" / "a")
    (tmp_path / "Cirrus" / "a" / "reference.mhd").unlink()
    set_spacing(tmp_path / "Cirrus" / "a", *spacing_mm)
    (finding,) = check_headers(find_cases(tmp_path), need_reference=False)
    assert "oct.mhd has a spacing of" in finding.found
    assert finding.expected == "x 0.0005 to 0.045, y 0.0005 to 0.01, z 0.0005 to 2 mm"
    assert SPACING_FAULTS[spacing_mm] in finding.remedy


@pytest.mark.parametrize(
    "spacing_mm",
    [
        (0.011742, 0.001955, 0.0469),  # RETOUCH's extremes, Cirrus, Spectralis, Topcon
        (0.0109, 0.003872, 0.116),
        (0.0120, 0.003872, 0.129),
        (0.01172, 0.0035, 0.04688),
        (0.00195, 0.00195, 0.00195),  # a dense swept-source cube
        (0.045, 0.005, 1.0),  # 200 A-scans over 9 mm; a flat image
    ],
)
def test_spacing_of_real_devices_passes(tmp_path, spacing_mm):
    write_scan(tmp_path / "Cirrus" / "a", noise(SHAPE), spacing_mm)
    write_reference(tmp_path / "Cirrus" / "a", 1, spacing_mm=[value * 1.005 for value in spacing_mm])  # rounded
    assert all_findings(tmp_path) == []


def test_headers_are_checked_without_reading_voxels(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    damage_compressed(tmp_path / "Cirrus" / "a")
    assert check_headers(find_cases(tmp_path)) == []


def test_reference_may_be_allowed_to_be_absent(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    (tmp_path / "Cirrus" / "a" / "reference.mhd").unlink()
    assert all_findings(tmp_path, need_reference=False) == []
    (case,) = find_cases(tmp_path)
    assert read_facts(case).label_counts is None


def test_same_name_within_a_vendor(tmp_path):
    for seed, name in enumerate(["Cirrus/a/x", "Cirrus/b/x", "Cirrus/c/x", "Topcon/x", "nobody/x", "nobody/a/x"]):
        write_case(tmp_path / name, seed=seed)
    findings = [finding for finding in all_findings(tmp_path) if "this name" in finding.found]
    assert [(finding.case.root, finding.found) for finding in findings] == [
        ("Cirrus/a/x", "Cirrus/b/x (and 1 more) is a Cirrus case of this name too"),
        ("Cirrus/b/x", "Cirrus/a/x (and 1 more) is a Cirrus case of this name too"),
        ("Cirrus/c/x", "Cirrus/a/x (and 1 more) is a Cirrus case of this name too"),
    ]


def test_same_voxels(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    write_case(tmp_path / "Topcon" / "b")  # another vendor's, but the same scan
    write_case(tmp_path / "Cirrus" / "c", seed=1)
    write_scan(tmp_path / "Cirrus" / "d", noise(SHAPE).reshape(2, 10, 12))  # the same bytes, but another image
    write_reference(tmp_path / "Cirrus" / "d", shape=(2, 10, 12))
    assert [(finding.case.root, finding.found) for finding in all_findings(tmp_path)] == [
        ("Cirrus/a", "oct.mhd holds the same voxels as that of Topcon/b"),
        ("Topcon/b", "oct.mhd holds the same voxels as that of Cirrus/a"),
    ]


def test_empty_scans_are_not_called_twins(tmp_path):
    for name in "ab":
        write_case(tmp_path / "Cirrus" / name)
        write_scan(tmp_path / "Cirrus" / name, np.zeros(SHAPE, np.uint8))
    assert [finding.found for finding in all_findings(tmp_path)] == ["every voxel of oct.mhd is 0"] * 2


def test_padding_does_not_make_a_scan_bright(tmp_path):
    voxels = noise(SHAPE)
    voxels[:, :9] = 255
    write_case(tmp_path / "Cirrus" / "a")
    write_scan(tmp_path / "Cirrus" / "a", voxels)
    assert all_findings(tmp_path) == []


def test_facts_of_an_8_bit_case(tmp_path):
    voxels = noise(SHAPE)
    write_scan(tmp_path / "Cirrus" / "a", voxels)
    write_reference(tmp_path / "Cirrus" / "a", 1, 1, 3)
    (case,) = find_cases(tmp_path)
    facts = read_facts(case)
    assert facts.shape == [2, 12, 10]
    assert facts.spacing_mm == pytest.approx(SPACING_MM)
    assert (facts.element_type, facts.minimum, facts.maximum) == ("uint8", voxels.min(), voxels.max())
    assert facts.grey_counts == np.histogram(voxels, bins=np.arange(257))[0].tolist()
    assert facts.label_counts == [[117, 2, 0, 1], [120, 0, 0, 0]]
    assert facts.other_labels == []


def test_grey_counts_of_16_bit_are_of_the_scan_as_8_bit(tmp_path):
    write_case(tmp_path / "Spectralis" / "a")
    write_scan(tmp_path / "Spectralis" / "a", noise(SHAPE).astype("uint16") * 257 + 100)  # 100 is rounded off
    (case,) = find_cases(tmp_path)
    facts = read_facts(case)
    assert facts.grey_counts == np.histogram(noise(SHAPE), bins=np.arange(257))[0].tolist()
    assert facts.maximum == 257 * int(noise(SHAPE).max()) + 100


def test_labels_are_counted_in_any_type(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    write_reference(tmp_path / "Cirrus" / "a", 1, 2, 258, -1, np.nan, dtype="float64")
    (case,) = find_cases(tmp_path)
    facts = read_facts(case)
    assert facts.label_counts == [[115, 1, 1, 0], [120, 0, 0, 0]]
    assert facts.other_labels == ["-1", "258", "nan"]


def test_facts_survive_json_and_findings_survive_a_worker_process(tmp_path):
    write_case(tmp_path / "Cirrus" / "a")
    (case,) = find_cases(tmp_path)
    facts = read_facts(case)
    assert CaseFacts(**json.loads(json.dumps(dataclasses.asdict(facts), allow_nan=False))) == facts
    (tmp_path / "Cirrus" / "a" / "oct.raw").write_bytes(b"short")
    with pytest.raises(InputError, match="5 bytes"):
        read_facts(case)
    finding = read_facts_or_finding(case)
    assert pickle.loads(pickle.dumps(finding)) == finding


def a_case(name, vendor="Cirrus", root=None):
    return Case(name, vendor, None, None, None, root or f"{vendor}/{name}")


def test_table():
    findings = [
        Finding(a_case("b"), "seven little words that must be wrapped", "fewer", "wrap them"),
        Finding(a_case("a"), "x", "y", "z"),
    ]
    assert findings_table(findings, width=74).splitlines() == [
        "case      found                 expected              what to do",
        "--------  --------------------  --------------------  --------------------",
        "Cirrus/a  x                     y                     z",
        "Cirrus/b  seven little words    fewer                 wrap them",
        "          that must be wrapped",
    ]
    assert max(map(len, findings_table(findings, width=150).splitlines())) <= 150


def facts_of(greys, label_counts, spacing_mm=(0.01, 0.002, 0.05), outlined=("IRF", "SRF", "PED")):
    """`CaseFacts` of two slices; a voxel is 1e-6 mm3 unless said otherwise."""
    counts = np.bincount(greys, minlength=256).tolist()
    labels = {"label_counts": label_counts, "not_judged": None, "outlined": outlined if label_counts else []}
    kind = {"element_type": "uint8", "voxel_hash": "", "minimum": min(greys), "maximum": max(greys)}
    return CaseFacts([2, 1, 1], list(spacing_mm), **kind, grey_counts=counts, **labels, other_labels=[], notes=[])


def test_summary_by_hand():
    greys = {"a": [10, 20, 30, 200], "b": [10] * 99 + [255], "c": [50, 60], "d": [7, 8]}
    facts = {
        a_case("a"): facts_of(greys["a"], [[0, 2000, 0, 0], [0, 1000, 500, 0]]),
        a_case("b"): facts_of(greys["b"], [[9, 0, 0, 0], [0, 5000, 0, 0]]),
        a_case("c"): facts_of(greys["c"], None),
        a_case("d", "Topcon"): facts_of(greys["d"], [[9, 0, 0, 0], [9, 0, 0, 700]], (0.02, 0.002, 0.05)),
    }
    summary = vendor_summary(list(facts), facts)
    table = summary.set_index("vendor")
    assert list(table.index) == ["Cirrus", "Topcon", "all"]
    expected = {
        "volumes": [3, 1, 4],
        "b_scans": [6, 2, 8],
        "volumes_with_IRF_percent": [100, 0, 66.7],  # c has no reference
        "volumes_with_SRF_percent": [50, 0, 33.3],
        "volumes_with_PED_percent": [0, 100, 33.3],
        "b_scans_with_IRF_percent": [75, 0, 50],
        "b_scans_with_SRF_percent": [25, 0, 16.7],
        "b_scans_with_PED_percent": [0, 50, 16.7],
        "IRF_median_mm3": [0.004, np.nan, 0.004],  # of 0.003 and 0.005
        "IRF_maximum_mm3": [0.005, np.nan, 0.005],
        "SRF_median_mm3": [0.0005, np.nan, 0.0005],
        "PED_median_mm3": [np.nan, 0.0014, 0.0014],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table[name].astype(float), values, err_msg=name)
    for vendor, names in {"Cirrus": "abc", "Topcon": "d", "all": "abcd"}.items():
        pooled = [grey for name in names for grey in greys[name]]
        for percent in (1, 50, 99):
            expected = np.percentile(pooled, percent, method="inverted_cdf")
            assert table.loc[vendor, f"grey_value_percentile_{percent}"] == expected
    lines = summary_text(summary).splitlines()
    assert lines[0].split() == ["Cirrus", "Topcon", "all"]
    assert lines[2].split() == ["b_scans", "6", "2", "8"]
    (irf_line,) = [line for line in lines if line.startswith("IRF_median_mm3")]
    assert irf_line.split() == ["IRF_median_mm3", "0.004", "-", "0.004"]


def test_summary_without_any_reference():
    facts = {a_case("a"): facts_of([1, 2], None)}
    summary = vendor_summary(list(facts), facts)
    assert summary["volumes"].tolist() == [1, 1]
    assert summary["volumes_with_IRF_percent"].isna().all()
    assert summary["IRF_maximum_mm3"].isna().all()
