"""The retina's surfaces: rows that are known, and pictures that show none."""

import itertools

import cv2
import numpy as np
import pytest
import skimage.data

from utils.phantom.retouch_like import draw_phantom, generate_phantom
from utils.phantom.varied import draw_varied
from utils.preparation.preprocessing import preprocessed_slices
from utils.segmentation.surfaces import bruchs_membrane, retinal_surfaces, strongest_path

AXIAL_MM = 0.003872
SPACING_MM = (0.0117, AXIAL_MM)


def layered(inner, outer, rows=400, seed=0):
    """A B-scan: dark vitreous, grey retina from row `inner` on, bright from row `outer` on, then grey choroid."""
    rng = np.random.default_rng(seed)
    row = np.arange(rows)[:, None]
    grey = np.select([row < inner, row < outer, row < outer + 14], [15.0, 90.0, 220.0], 70.0)
    return np.clip(grey * rng.normal(1, 0.25, grey.shape), 1, 255).astype(np.uint8)


def test_surfaces_are_where_they_were_drawn():
    column = np.arange(300)
    inner = 120 + 25 * np.sin(column / 60) + 20 * np.exp(-(((column - 150) / 25) ** 2))
    outer = inner + 75 - 15 * np.exp(-(((column - 150) / 25) ** 2))
    found = retinal_surfaces(layered(inner, outer), SPACING_MM)
    assert np.abs(found.inner - inner).max() < 5
    assert np.abs(found.outer - outer).max() < 5
    assert found.is_retina


def bowl(columns=400):
    """(inner, outer) rows of a retina of 0.29 mm with a pit, which lies 60 rows higher at the sides."""
    column = np.arange(columns)
    outer = 220 - 60 * (column / columns * 2 - 1) ** 2
    return outer - 75 + 25 * np.exp(-(((column - columns / 2) / 25) ** 2)), outer


@pytest.mark.parametrize("where", ["above", "below", "cut at the side", "over the retina"])
def test_the_border_of_invalid_pixels_is_no_surface(where):
    """The vitreous is grey, so that the border of a black wedge is an edge."""
    inner, outer = bowl()
    grey = layered(inner, outer)
    row, column = np.arange(400)[:, None], np.arange(400)
    grey = np.where(row < inner - 2, np.maximum(grey, 45), grey)
    hidden = {
        "above": row < 110 - 0.2 * column,
        "below": row > 390 - 0.2 * column,
        "cut at the side": (column < 40) & (row >= 0),
        "over the retina": row < 190 - 1.3 * column,
    }[where]
    grey[hidden] = 0
    found = retinal_surfaces(grey, SPACING_MM)
    seen = column >= (90 if where == "over the retina" else 45)
    assert np.abs(found.inner - inner)[seen].max() < 6
    assert np.abs(found.outer - outer)[seen].max() < 6
    assert found.is_retina


@pytest.mark.parametrize("haze", [30, 45])
def test_haze_is_no_retina(haze):
    inner, outer = bowl()
    grey = layered(inner, outer)
    row = np.arange(400)[:, None]
    speckle = np.random.default_rng(1).normal(1, 0.25, grey.shape)
    grey = np.where((row < inner) & (row > inner - 50), np.clip(haze * speckle, 1, 255), grey).astype(np.uint8)
    found = retinal_surfaces(grey, SPACING_MM)
    assert np.abs(found.inner - inner).mean() < 4
    assert np.abs(found.outer - outer).mean() < 4


def test_a_bright_choroid_is_no_retina():
    """Its inner surface is not the pigment epithelium, although that is the sharpest edge."""
    inner, outer = bowl()
    grey = layered(inner, outer)
    row = np.arange(400)[:, None]
    grey = np.where((row > outer + 30) & (row < outer + 60), 20, grey).astype(np.uint8)  # then bright again
    found = retinal_surfaces(grey, SPACING_MM)
    assert np.abs(found.inner - inner).mean() < 4
    assert np.abs(found.outer - outer).mean() < 4


def test_surfaces_do_not_depend_on_the_columns_distance():
    inner, outer = bowl(800)
    found = retinal_surfaces(layered(inner, outer), (0.0058, AXIAL_MM))
    assert np.abs(found.inner - inner).max() < 6
    assert np.abs(found.outer - outer).max() < 6


@pytest.mark.parametrize(("height_mm", "width_mm"), [(0.1, 0.3), (0.3, 1.0), (0.5, 1.5), (0.9, 2.0)])
def test_bruchs_membrane_passes_below_a_detachment(height_mm, width_mm):
    """A tilted bowl of 6 mm with a dome on it; photoreceptors and pigment epithelium are 60 µm thick."""
    x_mm = (np.arange(512) - 255.5) * SPACING_MM[0]
    bowl_mm = 1.5 + 0.1 * x_mm - 0.02 * x_mm**2
    dome_mm = height_mm * np.clip(1 - ((x_mm - 0.4) / (width_mm / 2)) ** 2, 0, None)
    found = bruchs_membrane((bowl_mm - 0.06 - dome_mm) / AXIAL_MM, SPACING_MM)
    assert np.abs(found * AXIAL_MM - bowl_mm).max() < 0.1
    assert np.abs(found * AXIAL_MM - bowl_mm).mean() < 0.03


def test_a_few_columns_have_a_membrane_too():
    np.testing.assert_array_equal(bruchs_membrane(np.array([50, 51]), SPACING_MM), [65, 66])  # 60 µm are 15 rows


def test_a_retina_whose_top_is_cut_off_is_one():
    column = np.arange(300)
    found = retinal_surfaces(layered(np.full(300, -20.0), 60 + 10 * np.sin(column / 50)), SPACING_MM)
    assert found.is_retina


@pytest.mark.parametrize(("vendor", "rows"), [("Cirrus", 1024), ("Spectralis", 496), ("Topcon", 885)])
def test_phantoms_of_every_vendor_show_a_retina(vendor, rows):
    voxels, _, spacing_mm = generate_phantom(vendor, rows, slices=3, seed=4)
    settings = {"axial_spacing_mm": AXIAL_MM, "reference_histogram": None}
    for slice_ in preprocessed_slices(voxels, spacing_mm, vendor, **settings):
        assert retinal_surfaces(slice_, (spacing_mm[0], AXIAL_MM)).is_retina


def test_bright_haze_above_a_retina_is_told_from_it_by_what_lies_below_and_far_above():
    voxels, _, spacing_mm, eye, first = draw_phantom("Spectralis", 496, 1, (5, 3), {1: 0, 2: 0.4, 3: 0}, haze=90)
    settings = {"axial_spacing_mm": AXIAL_MM, "reference_histogram": None}
    (slice_,) = preprocessed_slices(voxels, spacing_mm, "Spectralis", **settings)
    found = retinal_surfaces(slice_, (spacing_mm[0], AXIAL_MM))
    inner = eye.boundary_mm("nerve fibre layer")[first] / AXIAL_MM
    assert np.abs(found.inner - inner).mean() * AXIAL_MM < 0.01


@pytest.mark.parametrize("seed", [20, 23, 25, 35])
def test_surfaces_of_ill_eyes(seed):
    """Varied phantoms in which no edge alone finds them."""
    voxels, _, spacing_mm, eye = draw_varied(1, (77, seed))
    settings = {"axial_spacing_mm": AXIAL_MM, "reference_histogram": None}
    (slice_,) = preprocessed_slices(voxels, spacing_mm, "Spectralis", **settings)
    found = retinal_surfaces(slice_, (spacing_mm[0], AXIAL_MM))
    inner, outer, epithelium = (
        eye.boundary(layer)[0] / AXIAL_MM
        for layer in ("nerve fibre layer", "ellipsoid zone", "retinal pigment epithelium")
    )
    assert np.abs(found.inner - inner).mean() * AXIAL_MM < 0.025
    assert np.minimum(np.abs(found.outer - outer), np.abs(found.outer - epithelium)).mean() * AXIAL_MM < 0.025
    assert found.is_retina


@pytest.mark.parametrize(
    "name", ["camera", "coins", "moon", "text", "page", "grass", "brick", "gravel", "noise", "cloudy", "even", "empty"]
)
def test_other_pictures_show_none(name):
    others = {
        "noise": np.random.default_rng(0).integers(1, 256, (496, 512)).astype(np.uint8),
        "cloudy": cv2.GaussianBlur(np.random.default_rng(0).integers(1, 256, (496, 512)).astype(np.uint8), (0, 0), 5),
        "even": np.full((496, 512), 100, np.uint8),
        "empty": np.zeros((496, 512), np.uint8),
    }
    picture = others[name] if name in others else getattr(skimage.data, name)()
    assert not retinal_surfaces(np.ascontiguousarray(picture), SPACING_MM).is_retina


def test_the_strongest_path_is_the_best_of_all():
    strength = np.random.default_rng(3).random((5, 6))
    paths = (
        path
        for path in itertools.product(range(5), repeat=6)
        if max(abs(a - b) for a, b in itertools.pairwise(path)) < 2
    )
    best = max(paths, key=lambda path: strength[list(path), range(6)].sum())
    np.testing.assert_array_equal(strongest_path(strength, 1), best)


def test_a_path_pays_for_each_row_that_it_rises_or_falls():
    """Two rows up and two down again for 1 more."""
    strength = np.zeros((3, 4))
    strength[2], strength[0, 2] = 0.5, 1.5
    assert strongest_path(strength, 2, 0.26).tolist() == [2, 2, 2, 2]
    assert strongest_path(strength, 2, 0.24).tolist() == [2, 2, 0, 2]
