"""The picture of what preparation did: which cases and B-scans it shows, and that it can be drawn of any."""

import numpy as np
from PIL import Image

from utils.plots import CLASS_COLOURS
from utils.preparation.cases import find_cases
from utils.preparation.checks import read_facts
from utils.preparation.overview import save_overview
from utils.preparation.prepare_case import Preparation, PreparedFiles, create_roi_mask, preprocess_case
from utils.volumes.mhd import write_volume

INVALID, ROI = (90, 60, 110), (94, 201, 98)


def write_case(folder, seed, labels=(0, 1, 3)):
    """Three slices of noise; slice n holds a square of `labels`[n], larger in later slices."""
    voxels = np.random.default_rng(seed).integers(1, 256, (3, 300, 140)).astype(np.uint8)
    voxels[:, :40] = 0
    write_volume(folder / "oct.mhd", voxels, (0.0117, 0.0035, 0.05))
    if labels is not None:
        reference = np.zeros(voxels.shape, np.uint8)
        for index, label in enumerate(labels):
            reference[index, 150 : 160 + 30 * index, 40:100] = label
        write_volume(folder / "reference.mhd", reference, (0.0117, 0.0035, 0.05))


def colours_of(pixels):
    """The colours (red, green, blue) in pixels (rows, columns, 3), as a set of tuples."""
    packed = np.unique(pixels.reshape(-1, 3).astype(np.int32) @ [1 << 16, 1 << 8, 1])
    return {(number >> 16, number >> 8 & 255, number & 255) for number in packed.tolist()}


def pictures_of(path, rows):
    """For each row of the overview its B-scan as exported and its preprocessed one, (rows, columns, 3) each."""
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"))
    fifth = pixels.shape[1] // 5  # two fifths each; the rest shows grey values
    above_legend = pixels[: -int(80 * 0.6)]
    return [(row[:, : 2 * fifth], row[:, 2 * fifth : 4 * fifth]) for row in np.array_split(above_legend, rows)]


def overview(tmp_path, name="overview.png"):
    preparation = Preparation(0.003872, np.ones(256, np.int64))
    facts = {case: read_facts(case) for case in find_cases(tmp_path / "data")}
    files = {}
    for case in facts:
        folder = tmp_path / "prepared" / case.vendor / case.name
        files[case] = PreparedFiles(*(folder / name for name in ("oct.mhd", "mask.mhd", "roi.mhd", "1.json", "2.json")))
        preprocess_case((case, files[case]), preparation)
        create_roi_mask((case, files[case]))
    save_overview(tmp_path / name, facts, files, preparation.reference_histogram)
    return tmp_path / name


def test_two_cases_a_vendor_with_their_fluids_and_padding(tmp_path):
    for number in range(3):
        write_case(tmp_path / "data" / "Topcon" / f"{number}", number)
    write_case(tmp_path / "data" / "Spectralis" / "a", 3)
    path = overview(tmp_path)
    with Image.open(path) as picture:
        assert picture.height == 80 * (2.6 * 3 + 0.6)  # three rows: two of Topcon's three cases and one of Spectralis
    irf, ped = (tuple(CLASS_COLOURS[label].tolist()) for label in (1, 3))
    for pictures in pictures_of(path, 3):
        as_exported, preprocessed = map(colours_of, pictures)
        assert ped in as_exported & preprocessed  # slice 2 has most fluid: PED alone, outlined in both
        assert irf not in as_exported | preprocessed
        assert INVALID in preprocessed - as_exported  # the 40 black rows
        assert ROI in preprocessed - as_exported


def test_cases_without_reference(tmp_path):
    write_case(tmp_path / "data" / "Cirrus" / "a", 0, labels=None)
    ((as_exported, preprocessed),) = pictures_of(overview(tmp_path), 1)
    fluids = {tuple(colour) for colour in CLASS_COLOURS[1:].tolist()}
    assert not fluids & (colours_of(as_exported) | colours_of(preprocessed))
    assert {INVALID, ROI} <= colours_of(preprocessed)
