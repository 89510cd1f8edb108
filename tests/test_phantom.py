"""Synthetic volumes: the layout and sizes of RETOUCH, its share and size of fluids, and fluid where fluid can be."""

import hashlib
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
from helpers import run_python

from utils.errors import InputError
from utils.phantom.__main__ import main, write_phantoms
from utils.phantom.anatomy import IRF, LAYERS, PED, SRF, create_eye
from utils.phantom.retouch_like import (
    SCANNER_LOOKS,
    VENDOR_TURNS,
    draw_cases,
    draw_phantom,
    filled_columns,
    fluid_volume_mm3,
    fluids_present,
    generate_phantom,
    label_b_scan,
    render_b_scan,
    slab_through_fluids,
)
from utils.volumes.vendors import VENDORS

ROOT = Path(__file__).parent.parent

# columns, rows, numpy type, x, y, z spacing (smallest, largest) in mm: of the RETOUCH training volumes
EXPECTED = {
    "TRAIN001": ("Cirrus", 512, 1024, "uint8", (0.011742, 0.011742), 0.001955, (0.0469, 0.0472)),
    "TRAIN002": ("Spectralis", 512, 496, "uint16", (0.0109, 0.0120), 0.003872, (0.116, 0.129)),
    "TRAIN003": ("Topcon", 512, 885, "uint8", (0.01172, 0.01172), 0.0026, (0.04688, 0.04688)),
    "TRAIN004": ("Topcon", 512, 650, "uint8", (0.01172, 0.01172), 0.0035, (0.04688, 0.04688)),
}
# number of volumes, of those with IRF, SRF, PED; (median, maximum) mm3 of each: of the RETOUCH training volumes
RETOUCH = {
    "Cirrus": (24, (18, 12, 12), ((0.23, 1.11), (0.24, 2.44), (0.33, 3.07))),
    "Spectralis": (24, (20, 14, 12), ((0.35, 2.05), (0.53, 1.89), (0.40, 1.17))),
    "Topcon": (22, (17, 11, 9), ((0.14, 0.50), (0.03, 0.75), (0.15, 3.24))),
}


def spacing_mm(vendor, rows):
    scanner = VENDORS[vendor]
    return scanner.spacing_x_mm[0], scanner.spacing_y_mm[scanner.rows.index(rows)], scanner.spacing_z_mm[0]


def eye_of(vendor, rows, fluid_mm3, seed=0):
    spacing = spacing_mm(vendor, rows)
    rng = np.random.default_rng(seed)
    return create_eye(rng, rows * spacing[1], VENDORS[vendor].slices, VENDORS[vendor].columns, spacing, fluid_mm3)


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    return folder, write_phantoms(folder, cases=4, slices=2, seed=3)


@pytest.fixture(scope="module")
def full_spectralis():
    return generate_phantom("Spectralis", 496, seed=11)


def test_a_pixel_belongs_to_the_fluid_that_its_middle_lies_in():
    """From 1.2 to 3.7 rows: middles at 1.5, 2.5 and 3.5; in the second column no middle."""
    edges = {"top_mm": np.array([[0.0024, 0.0033]]), "bottom_mm": np.array([[0.0074, 0.0049]])}
    eye = SimpleNamespace(boundaries_mm=np.zeros((1, 1, 2)), fluids=[SimpleNamespace(label=3, **edges)])
    labels = label_b_scan(eye, 0, rows=6, row_mm=0.002)
    np.testing.assert_array_equal(labels[:, 0], [0, 3, 3, 3, 0, 0])
    np.testing.assert_array_equal(labels[:, 1], [0, 0, 0, 0, 0, 0])


def test_layout_sizes_spacings_and_types_are_those_of_the_vendors(written):
    folder, _ = written
    expected_files = {
        f"RETOUCH-TrainingSet-{vendor}/{name}/{stem}.{suffix}"
        for name, (vendor, *_) in EXPECTED.items()
        for stem in ("oct", "reference")
        for suffix in ("mhd", "raw")
    }
    assert set(digest(folder)) == expected_files
    for name, (vendor, columns, rows, element_type, x_mm, y_mm, z_mm) in EXPECTED.items():
        case = folder / f"RETOUCH-TrainingSet-{vendor}" / name
        scan, reference = (SimpleITK.ReadImage(str(case / f"{stem}.mhd")) for stem in ("oct", "reference"))
        assert scan.GetSize() == reference.GetSize() == (columns, rows, 2)
        assert scan.GetSpacing() == reference.GetSpacing()
        x, y, z = scan.GetSpacing()
        assert x_mm[0] <= x <= x_mm[1]
        assert y == y_mm
        assert z_mm[0] <= z <= z_mm[1]
        assert SimpleITK.GetArrayFromImage(scan).dtype == element_type
        labels = SimpleITK.GetArrayFromImage(reference)
        assert labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {0, 1, 2, 3}


def test_every_fluid_that_a_case_has_is_in_its_slab_and_no_other(written):
    folder, cases = written
    for case in cases:
        path = folder / f"RETOUCH-TrainingSet-{case.vendor}" / case.name / "reference.mhd"
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        present = {label for label, volume_mm3 in case.fluid_mm3.items() if volume_mm3 > 0}
        assert set(np.unique(labels)) - {0} == present


def test_files_hold_what_generate_phantom_returns_for_the_case(written):
    folder, cases = written
    voxels, reference, _ = generate_phantom("Spectralis", 496, 2, (3, 1), cases[1].fluid_mm3)
    case = folder / "RETOUCH-TrainingSet-Spectralis" / "TRAIN002"
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case / "oct.mhd"))), voxels)
    np.testing.assert_array_equal(np.fromfile(case / "reference.raw", np.uint8), reference.ravel())


def test_same_seed_same_bytes_and_other_seed_other_bytes(written, tmp_path):
    folder, _ = written
    write_phantoms(tmp_path / "same", cases=4, slices=2, seed=3)
    write_phantoms(tmp_path / "other", cases=4, slices=2, seed=4)
    assert digest(tmp_path / "same") == digest(folder)
    for name, content in digest(tmp_path / "other").items():
        if name.endswith("oct.raw"):
            assert content != digest(folder)[name]


def test_cases_do_not_depend_on_how_many_are_drawn():
    assert draw_cases(5, seed=1) == draw_cases(40, seed=1)[:5]
    assert [(case.vendor, case.rows) for case in draw_cases(6, seed=1)] == [
        ("Cirrus", 1024), ("Spectralis", 496), ("Topcon", 885), ("Topcon", 650), ("Cirrus", 1024), ("Spectralis", 496),
    ]  # fmt: skip


def test_few_slices_are_a_slab_of_the_full_volume(full_spectralis):
    voxels, reference, spacing = full_spectralis
    assert voxels.shape == (49, 496, 512)
    few_voxels, few_reference, few_spacing = generate_phantom("Spectralis", 496, slices=3, seed=11)
    assert few_spacing == spacing
    first = next(index for index in range(47) if np.array_equal(voxels[index], few_voxels[0]))
    np.testing.assert_array_equal(few_voxels, voxels[first : first + 3])
    np.testing.assert_array_equal(few_reference, reference[first : first + 3])


def test_full_volume_holds_the_fluid_that_was_asked_for(full_spectralis):
    _, reference, spacing = full_spectralis
    measured_mm3 = np.bincount(reference.ravel(), minlength=4)[1:] * np.prod(spacing)
    np.testing.assert_allclose(measured_mm3, [0.35, 0.53, 0.40], rtol=0.03)  # the medians of Spectralis


@pytest.mark.parametrize("seed", [0, 7])
def test_presence_and_volumes_follow_retouch(seed):
    cases = draw_cases(480, seed)
    for vendor, (volumes, with_fluid, statistics_mm3) in RETOUCH.items():
        drawn_mm3 = np.array([list(case.fluid_mm3.values()) for case in cases if case.vendor == vendor])
        np.testing.assert_allclose((drawn_mm3 > 0).mean(axis=0), np.array(with_fluid) / volumes, atol=0.02)
        for fluid_mm3, (median_mm3, maximum_mm3) in zip(drawn_mm3.T, statistics_mm3, strict=True):
            fluid_mm3 = fluid_mm3[fluid_mm3 > 0]
            assert np.median(fluid_mm3) == pytest.approx(median_mm3, rel=0.12)
            assert fluid_mm3.max() == maximum_mm3


def test_small_sets_hold_every_fluid_of_every_vendor():
    for seed in range(10):
        cases = draw_cases(16, seed)
        for vendor, expected in {"Cirrus": [3, 2, 2], "Spectralis": [3, 2, 2], "Topcon": [6, 4, 3]}.items():
            present = [
                [volume_mm3 > 0 for volume_mm3 in case.fluid_mm3.values()] for case in cases if case.vendor == vendor
            ]
            assert np.sum(present, axis=0).tolist() == expected


def test_fluids_occur_alone_and_together():
    for block in range(6):
        present = [fluids_present("Cirrus", index, seed=block) for index in range(4 * block, 4 * block + 4)]
        assert sorted(present, key=sorted) == [{IRF}, {IRF, SRF}, {IRF, SRF, PED}, {PED}]


def test_fluid_volume_is_log_normal_between_its_bounds():
    assert fluid_volume_mm3(0.5, 0.2, 1.8) == pytest.approx(0.2)
    assert fluid_volume_mm3(0.96, 0.2, 1.8) == pytest.approx(1.8)
    assert fluid_volume_mm3(0.5 + 0.46 / 2, 0.2, 1.8) < 1
    assert fluid_volume_mm3(0.999, 0.2, 1.8) == 1.8
    assert fluid_volume_mm3(0.0, 0.2, 1.8) == pytest.approx(0.02)


@pytest.mark.parametrize(("vendor", "rows"), VENDOR_TURNS)
def test_largest_fluids_together_fit_the_image(vendor, rows):
    largest_mm3 = {label: maximum for label, (_, maximum) in zip((IRF, SRF, PED), RETOUCH[vendor][2], strict=True)}
    eye = eye_of(vendor, rows, largest_mm3)
    assert eye.boundary_mm("nerve fibre layer").min() > 0.09
    assert eye.boundary_mm("choroid").max() < rows * spacing_mm(vendor, rows)[1] - 0.2
    assert (np.diff(eye.boundaries_mm, axis=0) > -1e-5).all()
    area_mm2 = spacing_mm(vendor, rows)[0] * spacing_mm(vendor, rows)[2]
    for label, volume_mm3 in largest_mm3.items():
        heights_mm = [fluid.bottom_mm - fluid.top_mm for fluid in eye.fluids if fluid.label == label]
        assert np.sum(heights_mm) * area_mm2 == pytest.approx(volume_mm3, rel=1e-3)


def test_strong_curvature_is_flattened_where_the_image_is_shallow():
    # As drawn, the bowl of this eye is too deep for 0.9 mm: it would end 0.3 mm below the image.
    eye = create_eye(np.random.default_rng(1), 0.9, 49, 512, spacing_mm("Spectralis", 496), {})
    assert eye.boundary_mm("nerve fibre layer").min() > 0.09
    assert eye.boundary_mm("choroid").max() < 0.9 - 0.2


def test_each_fluid_lies_between_its_layers():
    eye = eye_of("Cirrus", 1024, {IRF: 0.3, SRF: 0.2, PED: 0.3}, seed=2)
    between = {
        IRF: ("inner nuclear layer", "external limiting membrane"),
        SRF: ("outer segments", "retinal pigment epithelium"),
        PED: ("retinal pigment epithelium", "drusen"),
    }
    for fluid in eye.fluids:
        upper, lower = between[fluid.label]
        there = fluid.bottom_mm > fluid.top_mm
        assert there.any()
        assert (fluid.top_mm > eye.boundary_mm(upper) + 1e-4)[there].all()
        assert (fluid.bottom_mm < eye.boundary_mm(lower) + 1e-4)[there].all()


def test_fluids_are_stacked_and_dark_with_the_bright_rpe_between(full_spectralis):
    voxels, reference, _ = full_spectralis
    grey = voxels / 65535 * 255
    row = np.arange(496)[:, None]

    def rows_of(label):
        mask = reference == label
        return np.where(mask, row, 496).min(axis=1), np.where(mask, row, -1).max(axis=1)

    (_, irf_bottom), (srf_top, srf_bottom), (ped_top, _) = (rows_of(label) for label in (IRF, SRF, PED))
    assert (irf_bottom < srf_top)[(irf_bottom >= 0) & (srf_top < 496)].all()
    both = (srf_bottom >= 0) & (ped_top < 496)
    assert both.sum() > 50
    assert (srf_bottom < ped_top)[both].all()
    slices, columns = np.nonzero(ped_top < 496)
    above_ped = grey[slices, ped_top[slices, columns] - 3, columns]
    slices, columns = np.nonzero(srf_bottom >= 0)
    below_srf = grey[slices, srf_bottom[slices, columns] + 4, columns]
    for label, darker_than in ((IRF, 50), (SRF, 50), (PED, 90)):
        assert np.median(grey[reference == label]) < darker_than
        assert np.median(grey[reference == label]) > np.median(grey[:, :10])  # brighter than vitreous
    assert np.median(above_ped) > 150
    assert np.median(below_srf) > 150


def layer_medians(vendor, rows):
    """Median grey value of the middle half of every layer in the foveal B-scan of an eye without fluid."""
    eye = eye_of(vendor, rows, {}, seed=5)
    middle = VENDORS[vendor].slices // 2
    spacing = spacing_mm(vendor, rows)
    image = render_b_scan(np.random.default_rng(0), eye, middle, rows, spacing, SCANNER_LOOKS[vendor])
    depth_mm = (np.arange(rows)[:, None] + 0.5) * spacing[1]
    medians = {}
    for layer, below in zip(LAYERS, (*LAYERS[1:], "choroid"), strict=True):
        top_mm, bottom_mm = eye.boundary_mm(layer)[middle], eye.boundary_mm(below)[middle]
        quarter_mm = (bottom_mm - top_mm) / 4
        inside = (depth_mm > top_mm + quarter_mm) & (depth_mm < bottom_mm - quarter_mm)
        medians[layer] = np.median(image[inside]) if inside.any() else None
    bruch_mm = eye.boundary_mm("choroid")[middle]
    medians["choroid"] = np.median(image[(depth_mm > bruch_mm) & (depth_mm < bruch_mm + 0.1)])
    medians["deep choroid"] = np.median(image[(depth_mm > bruch_mm + 0.4)])
    medians["vitreous"] = np.median(image[depth_mm < eye.boundary_mm("hyaloid")[middle] - 0.02])
    return medians


@pytest.mark.parametrize(("vendor", "rows"), VENDOR_TURNS)
def test_layers_have_their_usual_relative_brightness(vendor, rows):
    grey = layer_medians(vendor, rows)
    descending = (
        ("retinal pigment epithelium", "ellipsoid zone", "outer plexiform layer", "inner nuclear layer"),
        ("nerve fibre layer", "ganglion cell and inner plexiform layer", "inner nuclear layer", "outer nuclear layer"),
        ("retinal pigment epithelium", "choroid", "deep choroid", "vitreous"),
    )
    for layers in descending:
        assert all(grey[upper] > grey[lower] + 4 for upper, lower in itertools.pairwise(layers)), grey
    if vendor == "Spectralis":  # what Cirrus and Topcon are matched to: above 128 is what marks the retina
        for layer in ("nerve fibre layer", "ganglion cell and inner plexiform layer", "ellipsoid zone"):
            assert grey[layer] > 132
        assert grey["vitreous"] < 40


def test_first_grey_percentile_is_35_in_topcon_and_0_elsewhere(written):
    folder, cases = written
    for case in cases:
        path = folder / f"RETOUCH-TrainingSet-{case.vendor}" / case.name / "oct.raw"
        voxels = np.fromfile(path, VENDORS[case.vendor].element_type)
        assert np.percentile(voxels, 1) == (35 if case.vendor == "Topcon" else 0)


def test_fluids_continue_over_slices():
    eye = eye_of("Cirrus", 1024, {IRF: 0.3, SRF: 0.2, PED: 0.3}, seed=4)
    first, last = slab_through_fluids(eye, 5)
    labels = np.stack([label_b_scan(eye, index, 1024, 0.001955) for index in range(first, last)])
    for label in (IRF, SRF, PED):
        for one, next_one in itertools.pairwise(labels == label):
            assert 2 * (one & next_one).sum() > 0.6 * (one.sum() + next_one.sum()) > 0


def test_slab_is_the_middle_where_there_is_no_fluid():
    assert slab_through_fluids(eye_of("Spectralis", 496, {}), 3) == (23, 26)


def test_filled_columns_share_a_cut_pixel_by_area():
    # The boundary at 1.25 leaves a quarter of row 1 above: 0.25 * 10 + 0.75 * 30 = 25.
    values = np.float32([[10], [30], [0]])
    np.testing.assert_allclose(filled_columns(np.array([[1.25], [3.0]]), values, rows=4)[:, 0], [10, 25, 30, 0])
    np.testing.assert_allclose(filled_columns(np.array([[-2.0], [9.0]]), values, rows=2)[:, 0], [30, 30], atol=0.1)


@pytest.mark.parametrize(("vendor", "rows"), [("Cirrus", 1024), ("Spectralis", 496)])
def test_padded_wedges_and_circular_crop_are_invalid_and_without_label(vendor, rows):
    plain, _, _ = generate_phantom(vendor, rows, slices=1, seed=1)
    wedges, wedge_labels, _ = generate_phantom(vendor, rows, slices=1, seed=1, padded_wedges=True)
    circle, circle_labels, _ = generate_phantom(vendor, rows, slices=1, seed=1, circular_crop=True)
    white = wedges != plain
    assert 0.01 < white.mean() < 0.1
    assert wedges[white].min() >= np.iinfo(wedges.dtype).max * 245 / 255
    assert white[0, 0, [0, -1]].sum() == white[0, -1, [0, -1]].sum() == 1  # one corner above, the opposite one below
    assert not wedge_labels[white].any()
    row, column = np.ogrid[:rows, :512]
    outside = np.hypot(row - (rows - 1) / 2, column - 255.5) > 0.45 * np.hypot(rows, 512)
    assert outside[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    assert not circle[0][outside].any()
    assert not circle_labels[0][outside].any()
    np.testing.assert_array_equal(circle[0][~outside], plain[0][~outside])


def test_haze_brightens_the_vitreous_alone():
    plain, labels, _ = generate_phantom("Spectralis", 496, slices=1, seed=1)
    hazy, hazy_labels, _, eye, first = draw_phantom("Spectralis", 496, 1, 1, {IRF: 0.35, SRF: 0.53, PED: 0.40}, haze=60)
    np.testing.assert_array_equal(labels, hazy_labels)
    retina = eye.boundary_mm("nerve fibre layer")[first] / 0.003872
    above = retina - np.arange(496)[:, None]
    near, far, below = ((above > 3) & (above < 10)), above > 0.35 / 0.003872, above < -3
    assert np.median(hazy[0][near]) > np.median(plain[0][near]) + 30 * 257
    for unchanged in (far, below):
        assert abs(np.median(hazy[0][unchanged] / 257.0) - np.median(plain[0][unchanged] / 257.0)) < 1


def test_fluid_outside_the_scanned_area_has_no_label(monkeypatch):
    left_half = np.repeat([[1, 0]], 256, axis=1).repeat(496, axis=0).astype(np.uint8)
    monkeypatch.setattr("utils.phantom.retouch_like.invalid_pixels", lambda *_: left_half)
    _, labels, _ = generate_phantom("Spectralis", 496, slices=1, seed=1)
    assert not labels[:, :, :256].any()
    assert labels[:, :, 256:].any()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"vendor": "Nidek", "rows": 496}, "Spectralis"),
        ({"vendor": "Topcon", "rows": 496}, "885"),
        ({"vendor": "Cirrus", "rows": 1024, "slices": 0}, "at least one slice"),
        ({"vendor": "Cirrus", "rows": 1024, "fluid_mm3": {IRF: 5.0}}, "1.11"),
        ({"vendor": "Cirrus", "rows": 1024, "fluid_mm3": {4: 0.1}}, "each label"),
    ],
)
def test_impossible_phantoms_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate_phantom(**arguments)


def test_writing_beside_other_cases_is_refused(written):
    folder, _ = written
    before = digest(folder)
    with pytest.raises(InputError, match="TRAIN003"):
        write_phantoms(folder, cases=2, slices=1)
    assert digest(folder) == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cases", "0"], "--cases 0: expected 1 to 999"),
        (["--slices", "129"], "--slices 129: expected 1 to 128"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
    ],
)
def test_arguments_out_of_range_are_named(tmp_path, arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        main(["--output", str(tmp_path), *arguments])


def test_module_writes_the_cases_that_it_is_asked_for(tmp_path):
    sizes = ("--cases", 2, "--slices", 1)
    run_python("-m", "utils.phantom", "--output", tmp_path, *sizes, "--padded-wedges", "--circular-crop")
    assert sorted(path.parent.name for path in tmp_path.glob("*/*/oct.mhd")) == ["TRAIN001", "TRAIN002"]


@pytest.mark.parametrize("arguments", [["--cases", "many"], ["--cases", "0"], []])
def test_module_reports_bad_arguments_on_one_line(tmp_path, arguments):
    output = ("--output", tmp_path) if arguments else ()
    _, stderr = run_python("-m", "utils.phantom", *arguments, *output, expected=2)
    assert len(stderr.strip().splitlines()) == 1
    assert "error:" in stderr
