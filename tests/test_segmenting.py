"""test.py as its users meet it: scans of all kinds, good and bad, and what it writes about them."""

import dataclasses
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK
import tifffile
from helpers import run_here, run_python
from PIL import Image
from stand_in import bright_scan, export_brightness_onnx
from vendor_writers import NAMES, write_xml

from utils.evaluation.held_out import segment_and_score
from utils.evaluation.pairs import Pair
from utils.labels import FLUIDS
from utils.networks.exported_model import BOX_MODEL, read_best
from utils.phantom.varied import generate_varied
from utils.segmentation import output as output_module
from utils.segmentation import predict
from utils.segmentation.decisions import Decisions, decisions_of_run
from utils.segmentation.output import Job, segment_to_files
from utils.segmentation.predict import load_network, prediction_digest, segment_volume
from utils.segmentation.wording import RESEARCH
from utils.volumes.mhd import read_volume, write_volume
from utils.volumes.scans import find_scans

PROJECT = Path(__file__).parents[1]
SPACING_MM = (0.0117, 0.003872, 0.12)


def run(*arguments, expected=0, limits=""):
    """Run test.py in this process, or in one that the shell command `limits` limits; returns its (stdout, stderr)."""
    if limits:
        before = ("bash", "-c", f'{limits}; exec "$@"', "bash")
        stdout, stderr = run_python("test.py", *arguments, expected=expected, before=before)
    else:
        stdout, stderr = run_here("test.py", *arguments, expected=expected)
    assert "Traceback" not in stderr
    return stdout, stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export_brightness_onnx(tmp_path_factory.mktemp("model"))


def job_of(model, output, **options):
    """A `Job`, as test.py makes it, for the folder `output`, which is made."""
    output.mkdir(exist_ok=True)
    return Job(str(output), (str(model),), prediction_digest(read_best(model)), **options)


def test_one_volume_in_every_format_gets_the_same_labels_in_two_processes(model, tmp_path):
    voxels, scans = bright_scan(), tmp_path / "Spectralis"
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_MM)
    scans.mkdir()
    for name in ("mha.mha", "mhd.mhd", "nifti.nii.gz"):
        SimpleITK.WriteImage(image, str(scans / name), True)
    tifffile.imwrite(scans / "tiff.tif", voxels.astype(np.uint16) * 257, photometric="minisblack")
    (scans / "png").mkdir()
    for index, slice_ in enumerate(voxels):
        Image.fromarray(slice_).save(scans / "png" / f"{index}.png")
    output = tmp_path / "out"
    stdout, _ = run(scans, "--output", output, "--model", model, "--set", "WORKERS=2")
    names = ["mha", "mhd", "nifti", "tiff", "png"]
    assert {path.stem for path in output.glob("*.mhd")} == {f"Spectralis_{name}" for name in names}
    for name in names:
        labels, spacing_mm = read_volume(output / f"Spectralis_{name}.mhd")
        np.testing.assert_array_equal(labels == 1, voxels == 230)
        if name in ("mha", "mhd", "nifti"):
            assert spacing_mm == pytest.approx(SPACING_MM)
        else:
            assert f"Spectralis_{name}" in stdout
    assert stdout.count("spacing x 0.01145 mm, y 0.003872 mm, z 0.1225 mm assumed") == 2
    assert len(pd.read_csv(output / "summary.csv")) == 5


def test_fluid_where_none_can_be_is_removed_and_counted(tmp_path):
    """The model calls bright pixels IRF: some of the retina's, and a block 0.5 mm below it."""
    model = export_brightness_onnx(tmp_path / "model", decisions={"only_possible": True})
    row, rng = np.arange(400)[:, None], np.random.default_rng(0)
    retina = np.select([row < 150, row < 220, row < 234], [15, 90, 170], 60) * np.ones(300)
    voxels = np.clip(retina * rng.normal(1, 0.05, (2, 400, 300)), 1, 255).astype(np.uint8)
    voxels[:, 180:190, 100:110] = 230
    voxels[1, 360:380, 100:120] = rng.integers(205, 250, (20, 20))
    write_volume(tmp_path / "scan.mhd", voxels, SPACING_MM)
    (files,) = find_scans([tmp_path / "scan.mhd"])
    record, _ = segment_to_files(files, job_of(model, tmp_path / "out", vendor="Spectralis"))
    lifting = decisions_of_run([read_best(model)], 0.5, given=True)  # --set THRESHOLD=0.5
    of_lifted, _ = segment_to_files(files, job_of(model, tmp_path / "lifted", vendor="Spectralis", decisions=lifting))
    labels, lifted = (read_volume(tmp_path / name / "Spectralis_scan.mhd")[0] for name in ("out", "lifted"))
    below = np.zeros(voxels.shape, bool)
    below[1, 355:385, 95:125] = True
    assert (lifted[below] == 1).sum() == 400
    np.testing.assert_array_equal(labels, np.where(below, 0, lifted))
    assert (labels[:, 180:190, 100:110] == 1).all()
    assert [fluid["removed_voxels"] for fluid in record["fluids"]] == [400, 0, 0]
    assert "removed_voxels" not in of_lifted["fluids"][0]
    assert record["facts"]["threshold"] == "0.5, only where fluid can be"


def test_everything_that_is_written_about_a_scan(model, tmp_path):
    voxels = bright_scan()
    write_volume(tmp_path / "right eye.mhd", voxels, SPACING_MM)
    output = tmp_path / "out"
    options = ("--vendor", "Topcon", "--fovea", 50, 1, "--mirrored", "--probabilities", "--model", model)
    run(tmp_path / "right eye.mhd", "--output", output, *options)
    labels, _ = read_volume(output / "Topcon_right eye.mhd")
    folder = output / "Topcon_right eye"
    assert sorted(path.name for path in output.iterdir() if path.name[0] != ".") == [
        "Topcon_right eye",
        *("Topcon_right eye.mhd", "Topcon_right eye.raw", "columns.csv", "index.html", "summary.csv"),
    ]
    for index, slice_ in enumerate(labels):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"mask_{index:03d}.png")), slice_)
        assert (folder / f"overlay_{index:03d}.png").exists()
    table = pd.read_csv(folder / "measurements.csv").set_index("fluid")
    irf = labels == 1
    assert table.volume_mm3["IRF"] == pytest.approx(irf.sum() * np.prod(SPACING_MM))
    assert table.thickness_um["IRF"] == pytest.approx(irf.sum(axis=1).max() * 3.872)
    assert table.lesions["IRF"] == 1
    assert table.circles_around["IRF"] == "the fovea as given: column 51, B-scan 2"  # from 1
    assert table.presence["IRF"] > 0.9
    assert table.uncertainty["IRF"] == pytest.approx(0, abs=1e-3)
    thickness = np.asarray(Image.open(folder / "thickness_IRF_um.tif"))
    np.testing.assert_allclose(thickness, irf.sum(axis=1) * 3.872, rtol=1e-6)
    assert Image.open(folder / "thickness.png").width > 500
    probability, _ = read_volume(folder / "probability_IRF.mhd")
    np.testing.assert_array_equal(probability > 127, irf)
    assert read_volume(folder / "uncertainty.mhd")[0].shape == voxels.shape
    assert "right eye" in (output / "index.html").read_text()
    assert Image.open(folder / "look_at.jpg").width == 320
    assert set(pd.read_csv(output / "columns.csv").column) > set(pd.read_csv(output / "summary.csv"))
    assert set(table.note) == {RESEARCH + " Which devices' scans the model has seen is not recorded."}
    record = json.loads((folder / "scan.json").read_text())
    assert record["facts"]["model_sha256"] in (folder / "report.html").read_text()


def test_a_threshold_that_is_asked_for_of_several_models_leaves_their_mean_calibration(tmp_path):
    """By the mean of the lines, offset -4 and slope 0.5, IRF is there by 37 %: the gates would leave nothing."""
    paths = []
    for offset in (-3.0, -5.0):
        line = {"presence_offsets": 3 * [offset], "presence_slopes": 3 * [0.5], "present_from": 3 * [0.5]}
        decisions = {"temperature": 1.5, "smallest_lesion_mm2": 1.0, **line}
        paths.append(export_brightness_onnx(tmp_path / f"model{offset}", decisions=decisions))
    write_volume(tmp_path / "Spectralis.mhd", bright_scan(1), SPACING_MM)
    options = ("--output", tmp_path / "out", "--model", *paths, "--set", "THRESHOLD=0.6")
    run(tmp_path / "Spectralis.mhd", *options)
    row = pd.read_csv(next((tmp_path / "out").glob("*/measurements.csv"))).set_index("fluid").loc["IRF"]
    assert row.threshold == "0.6, temperature 1.50"
    assert (row.lesions, row.presence) == (1, pytest.approx(1, abs=1e-3))
    probability = 1 / (1 + np.exp(4 - 0.5 * np.log(999)))  # scores above 0.999 count as 0.999
    assert row.highest_presence_probability == pytest.approx(probability)
    assert 0.8 * probability < row.expected_dice == row.confidence <= probability


def test_what_is_done_is_kept_until_something_changes(model, tmp_path):
    write_volume(tmp_path / "scan.mhd", bright_scan(), SPACING_MM)
    (files,) = find_scans([tmp_path / "scan.mhd"])
    job = job_of(model, tmp_path / "out", vendor="Cirrus")
    first, _ = segment_to_files(files, job)
    again, _ = segment_to_files(files, job)
    assert again == {**first, "kept": True}
    assert "kept" not in segment_to_files(files, dataclasses.replace(job, mirrored=True))[0]
    decided = dataclasses.replace(job, decisions=Decisions(0.5, (0.4, 0.5, 0.6)))
    assert "kept" not in segment_to_files(files, decided)[0]
    assert segment_to_files(files, decided)[0]["kept"]
    write_volume(tmp_path / "scan.mhd", bright_scan(2), SPACING_MM)
    assert "kept" not in segment_to_files(files, job)[0]
    assert not (tmp_path / "out" / "Cirrus_scan" / "mask_002.png").exists()
    assert read_volume(tmp_path / "out" / "Cirrus_scan.mhd")[0].shape == (2, 130, 140)
    write_volume(tmp_path / "elsewhere" / "scan.mhd", bright_scan(), SPACING_MM)
    record, (complaint,) = segment_to_files(find_scans([tmp_path / "elsewhere"])[0], job)
    assert record is None
    assert "use another --output" in complaint
    record, (complaint,) = segment_to_files(files, dataclasses.replace(job, fovea=(999, 0)))
    assert "outside of its 140 columns" in complaint


def test_a_heyex_export_is_done_again_where_a_picture_of_it_changes(model, tmp_path):
    path = write_xml(tmp_path / "export", bright_scan(2)[:, :, :100])
    (tmp_path / "export" / "note.png").write_bytes(b"not of the export")
    (files,) = find_scans([path])
    job = job_of(model, tmp_path / "out")
    segment_to_files(files, job)
    assert segment_to_files(files, job)[0]["kept"]
    (tmp_path / "export" / "note.png").unlink()
    assert segment_to_files(files, job)[0]["kept"]
    os.utime(tmp_path / "export" / f"{NAMES[1]}.tif", ns=(0, 0))
    assert "kept" not in segment_to_files(files, job)[0]


def test_what_was_done_by_other_settings_of_the_model_or_other_code_is_done_again(tmp_path, monkeypatch):
    """The weights are the same each time."""
    write_volume(tmp_path / "scan.mhd", bright_scan(), SPACING_MM)
    (files,) = find_scans([tmp_path / "scan.mhd"])

    def segment(**details):
        model = export_brightness_onnx(tmp_path, **details)
        return segment_to_files(files, job_of(model, tmp_path / "out", vendor="Cirrus"))[0]

    segment()
    assert segment()["kept"]
    assert "kept" not in segment(threshold=0.9)
    assert "kept" not in segment(reference_histogram=[1] * 256)
    assert segment(reference_histogram=[1] * 256)["kept"]
    for module in (output_module, predict):
        with monkeypatch.context() as changed:
            changed.setattr(module, "code_digest", lambda *names: "of other code")
            assert "kept" not in segment(reference_histogram=[1] * 256)


def test_two_scans_that_turn_out_to_have_one_name_do_not_mix(model, tmp_path):
    """Only their files tell the vendor; here the second begins while the first is being segmented."""
    for folder, slices in (("a", 3), ("b", 2)):
        write_volume(tmp_path / folder / "scan.mhd", bright_scan(slices), SPACING_MM)
    first, second = (find_scans([tmp_path / folder])[0] for folder in "ab")
    job = job_of(model, tmp_path / "out", vendor="Cirrus")
    refused = []

    def meanwhile(number, of):
        if number == 1:
            refused.append(segment_to_files(second, job))

    record, complaints = segment_to_files(first, job, meanwhile)
    assert complaints == []
    ((none, (complaint,)),) = refused
    assert none is None
    assert complaint.startswith(f"{tmp_path / 'b' / 'scan.mhd'}: another scan is being written to")
    assert record["path"] == str(tmp_path / "a" / "scan.mhd")
    assert read_volume(tmp_path / "out" / "Cirrus_scan.mhd")[0].shape == bright_scan(3).shape
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "Cirrus_scan",
        *("Cirrus_scan.mhd", "Cirrus_scan.raw"),
    ]


def test_the_summary_tells_the_model_of_each_scan_and_that_they_are_several(model, tmp_path):
    output = tmp_path / "out"
    other = export_brightness_onnx(tmp_path / "other", epoch=7, threshold=0.25)
    for name in ("first", "second"):
        write_volume(tmp_path / f"{name}.mhd", bright_scan(), SPACING_MM)
    options = ("--output", output, "--vendor", "Cirrus", "--model")
    stdout, _ = run(tmp_path / "first.mhd", *options, model)
    assert "warning: These scans" not in stdout
    assert 'class="warning"' not in (output / "index.html").read_text()
    stdout, _ = run(tmp_path / "second.mhd", *options, other)
    table = pd.read_csv(output / "summary.csv").set_index("scan")
    assert table.model_sha256.to_dict() == {
        "first": read_best(model)["sha256"],
        "second": read_best(other)["sha256"],
    }
    assert table.model["second"] == "segmentation step, epoch 7"
    assert table.threshold.to_dict() == {"first": 0.5, "second": 0.25}
    page = (output / "index.html").read_text()
    for text in (page, stdout):
        assert "These scans were segmented with 2 model(s) and 2 threshold(s)" in text
    assert f"Model: segmentation step, epoch 7, {read_best(other)['sha256'][:8]}. Decisions: 0.25. 1 scans." in page


def test_what_is_wrong_with_a_scan_costs_no_other(model, tmp_path):
    scans = tmp_path / "Spectralis"
    voxels = bright_scan()
    write_volume(scans / "good.mhd", voxels, SPACING_MM)
    write_volume(scans / "truncated.mhd", voxels, SPACING_MM)
    os.truncate(scans / "truncated.raw", 1000)
    (scans / "text.nii.gz").write_text("no scan")
    (scans / "colour").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3)).astype(np.uint8)).save(
        scans / "colour" / "photograph.jpg"
    )
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels * 1e3), str(scans / "fractions.mha"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels.astype(np.int16) - 500), str(scans / "negative.mha"))
    output = tmp_path / "out"
    _, stderr = run(scans, "--output", output, "--model", model, expected=2)
    messages = {
        "truncated.raw": "1000 bytes, expected",
        "text.nii.gz": "cannot be read",
        "photograph.jpg": "in colour",
        "fractions.mha": "values from 140000 to 230000",
        "negative.mha": "values from -3",
    }
    lines = [line for line in stderr.splitlines() if line.startswith("test.py: error: ")]
    assert len(lines) == len(messages)
    for name, message in messages.items():
        (line,) = [line for line in lines if name in line]
        assert message in line
    assert [path.stem for path in output.glob("*.mhd")] == ["Spectralis_good"]
    assert [path.name for path in output.iterdir() if path.is_dir()] == ["Spectralis_good"]


class NanWhereBright:
    """A network that yields NaN for tiles with a bright pixel, else what `model` says."""

    def __init__(self, model):
        self.model, self.input_shape, self.output = model, model.input_shape, model.output

    def predict_on_batch(self, images):
        (probabilities,) = self.model.predict_on_batch(images)
        return probabilities * np.where(images.max() > 0.7, np.nan, 1).astype(np.float32)


def test_a_network_that_yields_nan_fails_that_scan_alone(model, tmp_path, monkeypatch):
    network = load_network(model)
    network = dataclasses.replace(network, model=NanWhereBright(network.model))
    monkeypatch.setattr(output_module, "_network", lambda job: network)
    bright, dark = bright_scan(), np.minimum(bright_scan(), 180)
    complaints = {}
    pairs = [Pair("Cirrus", name, *(tmp_path / part / f"{name}.mhd" for part in "prs")) for name in ("bright", "dark")]
    for pair, voxels in zip(pairs, (bright, dark), strict=True):
        write_volume(pair.oct_path, voxels, SPACING_MM)
        write_volume(pair.reference_path, (voxels == 230).astype(np.uint8), SPACING_MM)
        (files,) = find_scans([pair.oct_path])
        _, complaints[pair.name] = segment_to_files(files, job_of(model, tmp_path / "out", vendor="Cirrus"))
    assert complaints["dark"] == []
    (line,) = complaints["bright"]
    assert line.startswith(f"{pairs[0].oct_path}: the network's output is NaN or infinite in ")
    assert [path.name for path in (tmp_path / "out").glob("*.mhd")] == ["Cirrus_dark.mhd"]
    table, _, failed = segment_and_score(network, pairs, Decisions(0.5), workers=0)
    assert failed == [line]
    assert table.case.unique().tolist() == ["dark"]


def test_scans_of_odd_sizes_and_contents_have_defined_results(model, tmp_path):
    rng = np.random.default_rng(0)
    odd = {
        "single": bright_scan(1),
        "tiny": np.full((2, 9, 5), 150, np.uint8),
        "black": np.zeros((2, 260, 130), np.uint8),
        "constant": np.full((2, 260, 130), 200, np.uint8),
        "wide": rng.integers(140, 180, (1, 260, 4096)).astype(np.uint8),
        "not_a_number": np.where(bright_scan() == 230, 230.0, np.nan),
    }
    scans = tmp_path / "Cirrus"
    scans.mkdir()
    for name, voxels in odd.items():
        image = SimpleITK.GetImageFromArray(voxels.astype(np.float32) if voxels.dtype.kind == "f" else voxels)
        image.SetSpacing(SPACING_MM)
        SimpleITK.WriteImage(image, str(scans / f"{name}.mha"))
    output = tmp_path / "out"
    stdout, _ = run(scans, "--output", output, "--model", model)
    for name, voxels in odd.items():
        labels, _ = read_volume(output / f"Cirrus_{name}.mhd")
        assert labels.shape == voxels.shape
        if name in ("tiny", "black", "constant", "wide"):
            assert labels.max() == 0, name
    assert "values that are not finite taken for 0" in stdout


@pytest.mark.parametrize("suffix", [".keras", ".onnx"])
def test_the_model_in_the_box_outlines_each_fluid(suffix):
    """In synthetic B-scans that it has not seen. When it was put there the Dice were 0.90, 0.91 and 0.92."""
    for fluid, number in (("IRF", 2), ("SRF", 0), ("PED", 3)):
        voxels, reference, spacing_mm = generate_varied(1, (77, number))
        labels, _ = segment_volume(voxels, spacing_mm, "Spectralis", BOX_MODEL.with_suffix(suffix))
        found, true = labels == FLUIDS[fluid], reference == FLUIDS[fluid]
        assert 2 * np.count_nonzero(found & true) / (found.sum() + true.sum()) > 0.8


def test_where_nothing_was_trained_the_model_in_the_box_is_taken_and_said_what_it_is(tmp_path):
    write_volume(tmp_path / "scan.mhd", generate_varied(1, 0)[0], SPACING_MM)
    options = ("--vendor", "Spectralis", "--output", tmp_path / "out", "--set", f"OUTPUT_ROOT={tmp_path / 'none'}")
    stdout, _ = run(tmp_path / "scan.mhd", *options)
    assert "weights/oct_fluid.keras" in stdout
    assert f"note: {RESEARCH} The model has seen scans of Spectralis" in stdout
    record = json.loads((tmp_path / "out" / "Spectralis_scan" / "scan.json").read_text())
    best = json.loads((PROJECT / "weights" / "oct_fluid.json").read_text())
    assert record["facts"]["model_sha256"] == best["sha256"]


def test_what_stops_all_scans_is_one_line(model, tmp_path):
    write_volume(tmp_path / "a" / "Cirrus" / "oct.mhd", bright_scan(), SPACING_MM)
    one = (tmp_path / "a",)
    (tmp_path / "file").write_text("in the way")
    for inputs, options, message in (
        ((tmp_path / "nowhere",), ("--output", tmp_path / "out", "--model", model), "no such file or folder"),
        (one, ("--output", tmp_path / "file" / "out", "--model", model), "Not a directory"),
        (one, ("--output", tmp_path / "out", "--model", tmp_path / "none.keras"), "no such model"),
    ):
        _, stderr = run(*inputs, *options, expected=2)
        (line,) = stderr.strip().splitlines()
        assert line.startswith("test.py: error: ")
        assert message in line


def test_a_folder_of_everything_whose_names_no_locale_knows(model, tmp_path):
    """Two scans of one name, one of a Latin-1 name, a mask and a text: in a locale that knows ASCII alone."""
    scans = tmp_path / "Spectralis"
    for patient in ("P1", "M\u00fcller"):
        write_volume(scans / patient / "scan.mhd", bright_scan(), SPACING_MM)
    write_volume(scans / "P1" / "scan_mask.mhd", (bright_scan() > 200).astype(np.uint8), SPACING_MM)
    write_volume(scans / "P2" / "a.mhd", bright_scan(), SPACING_MM)
    (scans / "P2" / "a.mhd").rename(scans / "P2" / os.fsdecode(b"a\xfc.MHD"))
    (scans / "P2" / os.fsdecode(b"\xfcber.txt")).write_text("no scan")
    output = tmp_path / "out"
    locale = "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
    stdout, _ = run(scans, "--output", output, "--model", model, limits=locale)
    names = ["Spectralis_M\u00fcller_scan", "Spectralis_P1_scan", "Spectralis_a\u00fc"]
    assert sorted(path.stem for path in output.glob("*.mhd")) == names
    assert pd.read_csv(output / "summary.csv")["scan"].tolist() == [name.partition("_")[2] for name in names]
    left_out = pd.read_csv(output / "left_out.csv").set_index("path")["why"].to_dict()
    assert left_out == {
        str(scans / "P1" / "scan_mask.mhd"): "labels or a mask by its name",
        str(scans / "P2" / "\u00fcber.txt"): "of no format that is read",
    }
    assert stdout.count("left out: ") == 2
    for name in names:
        assert read_volume(output / f"{name}.mhd")[0].sum() == 3 * 20 * 40 - 20 * 10


@pytest.mark.slow
def test_a_full_disk_leaves_no_half_scan(model, tmp_path):
    """A limit on the size of files stands for a disk that is full."""
    write_volume(tmp_path / "scan.mhd", bright_scan(), SPACING_MM)
    output = tmp_path / "out"
    command = (tmp_path / "scan.mhd", "--output", output, "--vendor", "Cirrus", "--model", model)
    _, stderr = run(*command, expected=2, limits="ulimit -f 40; trap '' XFSZ")
    assert "File too large" in stderr
    assert sorted(path.name for path in output.iterdir()) == [".lock", "failed.csv", "index.html"]
    run(*command)
    assert (output / "Cirrus_scan.mhd").exists()


def test_labels_lie_on_the_scan(model, tmp_path):
    """A scan with a direction and an origin by SimpleITK, and one by nibabel, which counts to the right and front."""
    scans, output, voxels = tmp_path / "Spectralis", tmp_path / "out", bright_scan()
    scans.mkdir()
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_MM)
    image.SetDirection((1, 0, 0, 0, 0, 1, 0, -1, 0))
    image.SetOrigin((10, 20, 30))
    SimpleITK.WriteImage(image, str(scans / "placed.mhd"))
    affine = np.array([[0, 0, 0.12, 5], [0.0117, 0, 0, 6], [0, -0.003872, 0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), affine), scans / "nifti.nii.gz")
    run(scans, "--output", output, "--model", model, "--probabilities", "--mirrored")
    corners = [(0, 0, 0), (139, 0, 0), (0, 129, 0), (0, 0, len(voxels) - 1)]
    for name in ("{}", "{}/probability_IRF", "{}/uncertainty"):
        placed = SimpleITK.ReadImage(str(output / f"{name.format('Spectralis_placed')}.mhd"))
        nifti = SimpleITK.ReadImage(str(output / f"{name.format('Spectralis_nifti')}.mhd"))
        for index in corners:
            expected = image.TransformIndexToPhysicalPoint(index)
            assert placed.TransformIndexToPhysicalPoint(index) == pytest.approx(expected)
            right, front, up = nibabel.affines.apply_affine(affine, index)
            assert nifti.TransformIndexToPhysicalPoint(index) == pytest.approx((-right, -front, up), abs=1e-5)


def test_held_out_cases_are_scored_in_the_world_and_their_labels_lie_on_the_scan(model, tmp_path):
    """The reference is the bright square itself, stored with other axes, which SimpleITK leaves where they are."""
    image = SimpleITK.GetImageFromArray(bright_scan())
    image.SetSpacing(SPACING_MM)
    image.SetOrigin((10, 20, 30))
    reference = SimpleITK.Flip(SimpleITK.PermuteAxes(image == 230, (1, 2, 0)), (True, True, False))
    paths = [tmp_path / name for name in ("out/Spectralis_A.mhd", "reference.mha", "oct.mha")]
    for path, volume in zip(paths[1:], (reference, image), strict=True):
        SimpleITK.WriteImage(volume, str(path))
    pair = Pair("Spectralis", "A", *paths)
    table, reliability, complaints = segment_and_score(load_network(model), [pair], Decisions(0.5), workers=0)
    assert complaints == []
    irf = table.set_index("fluid").loc["IRF"]
    assert (irf.dice, irf.average_precision) == (1, pytest.approx(1))
    assert reliability.groupby("fluid").voxels.sum().to_dict() == dict.fromkeys(FLUIDS, bright_scan().size)
    labels = SimpleITK.ReadImage(str(paths[0]))
    for index in ((0, 0, 0), (139, 129, len(bright_scan()) - 1)):
        assert labels.TransformIndexToPhysicalPoint(index) == pytest.approx(image.TransformIndexToPhysicalPoint(index))
