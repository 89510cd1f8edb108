"""Varied phantoms: labels where the fluid is drawn, every knob in use and within its range, cases that prepare."""

import re

import numpy as np
import pytest
from helpers import run_python
from scipy import ndimage

from utils.errors import InputError
from utils.labels import FLUIDS
from utils.phantom.__main__ import MIRRORED_MARGIN, main, write_varied
from utils.phantom.ranges import RANGES, SHARES, Knobs, Range
from utils.phantom.varied import LEAST_PIXELS, generate_varied
from utils.phantom.varied_drawing import VariedDrawing
from utils.phantom.varied_eye import HOSTS, LAYERS, VariedEye, spanned
from utils.preparation.invalid import find_invalid
from utils.volumes.mhd import read_volume

IRF, SRF, PED = FLUIDS.values()
SPACING_MM = (0.0117, 0.0039, 0.06)


class Always(Knobs):
    """Knobs that have the named things and no others; every range is recorded."""

    def __init__(self, seed, *names):
        super().__init__(np.random.default_rng(seed))
        self.names, self.drawn = names, set()

    def __call__(self, name):
        self.drawn.add(name)
        return super().__call__(name)

    def count(self, name):
        self.drawn.add(name)
        return super().count(name)

    def has(self, name):
        self.drawn.add(name)
        return name in self.names


def eye(seed, *names, slices=1, columns=400):
    x_mm = (np.arange(columns) - (columns - 1) / 2) * SPACING_MM[0]
    z_mm = np.arange(slices) * SPACING_MM[2]
    x_mm, z_mm = np.meshgrid(x_mm.astype(np.float32), z_mm.astype(np.float32))
    return VariedEye(Always(seed, *names), x_mm, z_mm, SPACING_MM)


def depths(eye_, layer, rows):
    """Row of the top of a layer in every column, and each pixel's own."""
    return eye_.boundary(layer)[0] / SPACING_MM[1], np.arange(rows)[:, None] + 0.5


def test_a_range_is_drawn_evenly_or_with_even_logarithm():
    rng = np.random.default_rng(0)
    even = np.array([Range(1, 100, "").draw(rng) for _ in range(2000)])
    logarithmic = np.array([Range(1, 100, "", log=True).draw(rng) for _ in range(2000)])
    for drawn in (even, logarithmic):
        assert 1 <= drawn.min() < drawn.max() <= 100
    assert np.median(even) == pytest.approx(50.5, abs=3)
    assert np.median(logarithmic) == pytest.approx(10, abs=1.5)


@pytest.mark.parametrize("slices", [1, 3])
def test_equal_seeds_give_equal_cases_and_others_do_not(slices):
    voxels, reference, spacing_mm = generate_varied(slices, (5, 1))
    again, reference_again, _ = generate_varied(slices, (5, 1))
    np.testing.assert_array_equal(voxels, again)
    np.testing.assert_array_equal(reference, reference_again)
    assert voxels.shape == reference.shape
    assert len(voxels) == slices
    assert voxels.dtype == reference.dtype == np.uint8
    assert reference.max() <= 3
    assert all(
        RANGES[f"{name}_mm"].low <= value <= RANGES[f"{name}_mm"].high
        for name, value in zip(("column", "row", "slice"), spacing_mm, strict=True)
    )
    other, _, _ = generate_varied(slices, (5, 2))
    assert other.shape != voxels.shape or (other != voxels).mean() > 0.5


def test_a_case_of_no_slices_is_refused():
    with pytest.raises(ValueError, match="at least one slice"):
        generate_varied(0)


def test_fluids_are_as_frequent_as_the_table_says():
    present = np.array([np.isin(list(FLUIDS.values()), generate_varied(1, (8, seed))[1]) for seed in range(80)])
    for fluid, share in zip(FLUIDS, present.mean(axis=0), strict=True):
        # A body may lie out of sight: beyond a wedge, or thinner than a pixel.
        assert SHARES[fluid][0] - 0.2 < share < SHARES[fluid][0] + 0.15


@pytest.mark.parametrize("seed", range(6))
def test_cysts_lie_in_the_neuroretina_and_are_darker_than_it(seed):
    case = eye(seed, "IRF")
    image, labels = VariedDrawing(case).b_scan(0)
    assert set(np.unique(labels)) == {0, IRF}
    top, depth = depths(case, HOSTS["neuroretina"][0], case.rows)
    bottom, _ = depths(case, HOSTS["neuroretina"][1], case.rows)
    inside = (depth > top) & (depth < bottom)
    assert not labels[~inside].any()
    assert np.median(image[labels == IRF]) < 0.9 * np.median(image[inside & (labels == 0)])


@pytest.mark.parametrize(("label", "layer"), [(SRF, "subretinal fluid"), (PED, "pigment epithelial detachment")])
def test_detachments_fill_the_space_between_their_layers(label, layer):
    case = eye(3, "SRF", "PED")
    _, labels = VariedDrawing(case).b_scan(0)
    top, depth = depths(case, layer, case.rows)
    bottom, _ = depths(case, LAYERS[LAYERS.index(layer) + 1], case.rows)
    np.testing.assert_array_equal(labels == label, (depth >= top) & (depth < bottom))
    assert (labels == label).sum() > 100


def test_a_retina_hangs_from_peak_to_peak():
    floor_mm = np.array([[0, 0, 3, 0, 0, 0, 0, 2, 1], [0, 0, 0, 0, 0, 0, 0, 0, 5]], np.float32)
    expected_mm = [[1, 2, 3, 2, 1, 0, 1, 2, 1], [0, 0, 0, 0, 1, 2, 3, 4, 5]]
    np.testing.assert_allclose(spanned(floor_mm, 1.0), expected_mm, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_subretinal_fluid_fills_pockets(seed):
    case = eye(seed)
    floor_mm = np.zeros((1, 400), np.float32)
    floor_mm[0, 180:220] = 0.3
    case.knobs = Always(seed, "pockets")
    heights_mm = case._subretinal_fluid(floor_mm)[0]
    assert (heights_mm[[179, 220]] > 0.28).all()  # at the foot of a wall, for every slope


def test_a_body_goes_on_in_the_next_slice():
    drawing = VariedDrawing(eye(2, "SRF", slices=3))
    first, second = (drawing.b_scan(index)[1] == SRF for index in (0, 1))
    assert (first.any(axis=0) & second.any(axis=0)).sum() > 0.5 * first.any(axis=0).sum() > 5


@pytest.mark.parametrize("seed", range(4))
def test_without_fluid_nothing_is_labelled_whatever_else_there_is(seed):
    others = set(SHARES) - set(FLUIDS)
    _, labels = VariedDrawing(eye(seed, *others)).b_scan(0)
    assert not labels.any()


def test_no_label_is_smaller_than_what_a_reader_would_outline():
    for seed in range(12):
        for labels in generate_varied(1, (4, seed))[1]:
            for fluid in FLUIDS.values():
                bodies, _ = ndimage.label(labels == fluid)
                assert (np.bincount(bodies.ravel())[1:] >= LEAST_PIXELS).all()


def test_layers_are_in_order():
    case = eye(4, *SHARES)
    assert (np.diff(case.boundaries_mm, axis=0) >= -1e-5).all()


def test_what_the_export_hides_has_no_label():
    for seed in range(200):
        voxels, reference, _ = generate_varied(1, (2, seed))
        bodies, _ = ndimage.label(voxels[0] == 255)
        at_corners = bodies[[0, 0, -1, -1], [0, -1, 0, -1]]
        wedge = (bodies == at_corners.max()) & (bodies > 0)
        if wedge.mean() > 0.05:
            assert not reference[0, wedge].any()
            return
    pytest.fail("no case with a white wedge")


def test_every_range_and_share_is_used(monkeypatch):
    knobs = [Always(0, *SHARES), Always(1)]
    for one in knobs:
        monkeypatch.setattr("utils.phantom.varied.Knobs", lambda rng, one=one: one)
        generate_varied(2)
    assert set.union(*(one.drawn for one in knobs)) == set(RANGES) | set(SHARES)


def test_cases_of_one_to_three_slices_are_written_as_spectralis(tmp_path):
    write_varied(tmp_path, 4, seed=6)
    folder = tmp_path / "RETOUCH-TrainingSet-Spectralis"
    assert sorted(path.name for path in folder.iterdir()) == ["VARIED0001", "VARIED0002", "VARIED0003", "VARIED0004"]
    volumes = [read_volume(folder / f"VARIED000{number}" / "oct.mhd")[0] for number in (1, 2, 3, 4)]
    assert [len(volume) for volume in volumes] == [1, 2, 3, 1]
    rows, columns = MIRRORED_MARGIN
    for name, expected in zip(("oct", "reference"), generate_varied(2, (6, 1)), strict=False):
        written, _ = read_volume(folder / "VARIED0002" / f"{name}.mhd")
        scan = written[:, rows:, columns:-columns]
        np.testing.assert_array_equal(scan, expected)
        np.testing.assert_array_equal(written[:, :rows, columns:-columns], scan[:, rows - 1 :: -1])
        np.testing.assert_array_equal(written[:, rows:, -columns:], scan[:, :, : -columns - 1 : -1])


def test_every_case_may_have_a_wedge():
    for seed in range(6):
        voxels, reference, _ = generate_varied(1, (9, seed), padded_wedges=True)
        white = find_invalid(voxels)[0]
        assert white[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        assert white.mean() > 0.002
        assert not reference[0][white & (voxels[0] == 255)].any()


@pytest.mark.parametrize("option", ["--haze=40", "--circular-crop"])
def test_options_of_the_other_kind_are_refused(tmp_path, option):
    with pytest.raises(InputError, match=re.escape("--varied")):
        main(["--output", str(tmp_path), "--varied", option])
    assert not any(tmp_path.iterdir())


def test_varied_phantoms_are_prepared_as_any_case(tmp_path):
    data = tmp_path / "data"
    for command in (
        ["-m", "utils.phantom", "--varied", "--output", data, "--cases", "6", "--slices", "1"],
        ["prepare_data.py", "--set", f"DATA_ROOT={data}", "--set", f"OUTPUT_ROOT={tmp_path / 'output'}"],
    ):
        run_python(*command)
    assert len((tmp_path / "output" / "train_data.csv").read_text().splitlines()) > 2
