"""The retina's surfaces: rows that are known, and pictures that show none."""

import itertools

import numpy as np
import pytest
import skimage.data

from utils.phantom.retouch_like import generate_phantom
from utils.preparation.preprocessing import preprocessed_slices
from utils.segmentation.surfaces import retinal_surfaces, strongest_path

AXIAL_MM = 0.003872


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
    found = retinal_surfaces(layered(inner, outer), AXIAL_MM)
    assert np.abs(found.inner - inner).max() < 4
    assert np.abs(found.outer - outer).max() < 4
    assert found.is_retina


def test_a_retina_whose_top_is_cut_off_is_one():
    column = np.arange(300)
    found = retinal_surfaces(layered(np.full(300, -20.0), 60 + 10 * np.sin(column / 50)), AXIAL_MM)
    assert found.is_retina


@pytest.mark.parametrize(("vendor", "rows"), [("Cirrus", 1024), ("Spectralis", 496), ("Topcon", 885)])
def test_phantoms_of_every_vendor_show_a_retina(vendor, rows):
    voxels, _, spacing_mm = generate_phantom(vendor, rows, slices=3, seed=4)
    settings = {"axial_spacing_mm": AXIAL_MM, "reference_histogram": None}
    for slice_ in preprocessed_slices(voxels, spacing_mm, vendor, **settings):
        assert retinal_surfaces(slice_, AXIAL_MM).is_retina


@pytest.mark.parametrize("name", ["camera", "coins", "moon", "text", "page", "noise", "even", "empty"])
def test_other_pictures_show_none(name):
    others = {
        "noise": np.random.default_rng(0).integers(1, 256, (496, 512)).astype(np.uint8),
        "even": np.full((496, 512), 100, np.uint8),
        "empty": np.zeros((496, 512), np.uint8),
    }
    picture = others[name] if name in others else getattr(skimage.data, name)()
    assert not retinal_surfaces(np.ascontiguousarray(picture), AXIAL_MM).is_retina


def test_the_strongest_path_is_the_best_of_all():
    strength = np.random.default_rng(3).random((5, 6))
    paths = (
        path
        for path in itertools.product(range(5), repeat=6)
        if max(abs(a - b) for a, b in itertools.pairwise(path)) < 2
    )
    best = max(paths, key=lambda path: strength[list(path), range(6)].sum())
    np.testing.assert_array_equal(strongest_path(strength, 1), best)
