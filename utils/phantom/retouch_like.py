"""Phantoms like RETOUCH's volumes: three vendors' matrices, spacings, element types, and amounts of fluid.

Vendors take turns (Cirrus, Spectralis, Topcon with 885 rows, Topcon with 650). The fluids of a case and their amounts
follow the RETOUCH training volumes. With fewer slices than the vendor's, the volume is a slab through the fluids of a
full-depth eye; its slices equal those of the full volume byte for byte. The same seed gives the same bytes.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np

from utils.phantom.anatomy import (
    CHOROID_DEPTHS_MM,
    IRF,
    LAYERS,
    PED,
    SRF,
    create_eye,
    filled_columns,
    haze_above,
    in_quadrature,
)
from utils.volumes.vendors import VENDORS

VENDOR_TURNS = (("Cirrus", 1024), ("Spectralis", 496), ("Topcon", 885), ("Topcon", 650))

# Among RETOUCH's training volumes: share of volumes with the fluid; median and maximum mm3 of those that have it.
FLUID_STATISTICS = {
    "Cirrus": {IRF: (18 / 24, 0.23, 1.11), SRF: (12 / 24, 0.24, 2.44), PED: (12 / 24, 0.33, 3.07)},
    "Spectralis": {IRF: (20 / 24, 0.35, 2.05), SRF: (14 / 24, 0.53, 1.89), PED: (12 / 24, 0.40, 1.17)},
    "Topcon": {IRF: (17 / 22, 0.14, 0.50), SRF: (11 / 22, 0.03, 0.75), PED: (9 / 22, 0.15, 3.24)},
}
MOST_SLICES = max(scanner.slices for scanner in VENDORS.values())
WHITE, BLACK = 1, 2  # padding of two kinds
NOISE_EXPONENT = 0.7  # of an exponentially distributed number: 1 exponential, 0.5 Rayleigh
CASES_PER_BLOCK = 4  # cases of one vendor; every block holds about the right share of cases with each fluid


@dataclass(frozen=True)
class ScannerLook:
    """How a vendor's exports differ from the grey values of `utils.phantom.anatomy`, a Spectralis's."""

    speckle: float  # 0: none, 1: fully developed (one exposure, no averaging)
    grain_columns: float  # standard deviation of the speckle's blur along the B-scan, in pixels
    grain_mm: float  # and along the depth, in mm
    noise: float  # mean grey of the detector noise, which adds to the signal in quadrature
    black_level: float  # grey value of the raw signal that is exported as 0
    roll_off_per_mm: float  # share of the signal lost per mm of depth
    contrast: float  # exported grey values per grey value
    offset: float  # exported grey value of black


SCANNER_LOOKS = {
    "Cirrus": ScannerLook(0.90, 0.7, 0.0025, 30, 7, 0.10, 0.80, 0),
    "Spectralis": ScannerLook(0.65, 0.8, 0.0040, 26, 7, 0.06, 1.00, 0),
    "Topcon": ScannerLook(0.85, 0.8, 0.0030, 28, 5, 0.14, 0.72, 35),
}


@dataclass(frozen=True)
class PlannedCase:
    """A synthetic case before it is drawn."""

    name: str  # TRAIN001, ...
    vendor: str
    rows: int
    fluid_mm3: dict  # {label: volume at full slice count, 0 for none}


def draw_cases(cases, seed):
    """The first `cases` cases of `seed`, as a list of `PlannedCase`; nothing is rendered.

    Each vendor's cases come in blocks of four, and in each block a fluid is present as often as keeps the running share
    at the table's. Volumes are log-normal around the median (a tenth of it at least, the maximum at most), drawn along
    a golden-ratio sequence: small sets hold small and large bodies too.
    """
    drawn = []
    done = dict.fromkeys(VENDORS, 0)
    present_before = {(vendor, label): 0 for vendor in VENDORS for label in (IRF, SRF, PED)}
    for index in range(cases):
        vendor, rows = VENDOR_TURNS[index % len(VENDOR_TURNS)]
        present = fluids_present(vendor, done[vendor], seed)
        fluid_mm3 = {}
        for label, (_, median_mm3, maximum_mm3) in FLUID_STATISTICS[vendor].items():
            start = np.random.default_rng([seed, list(VENDORS).index(vendor), label]).random()
            quantile = (start + present_before[vendor, label] * (np.sqrt(5) - 1) / 2) % 1
            volume_mm3 = fluid_volume_mm3(quantile, median_mm3, maximum_mm3)
            fluid_mm3[label] = volume_mm3 if label in present else 0
            present_before[vendor, label] += label in present
        drawn.append(PlannedCase(f"TRAIN{index + 1:03d}", vendor, rows, fluid_mm3))
        done[vendor] += 1
    return drawn


def fluids_present(vendor, index, seed):
    """Labels that the `index`-th case (from 0) of `vendor` holds.

    The three fluids take overlapping stretches of one shuffled order of the block's cases, so that they occur alone and
    together.
    """
    block, place = divmod(index, CASES_PER_BLOCK)
    order = np.random.default_rng([seed, list(VENDORS).index(vendor), 100 + block]).permutation(CASES_PER_BLOCK)
    present = set()
    for first, (label, (share, _, _)) in enumerate(FLUID_STATISTICS[vendor].items()):
        until_now, before = (int(CASES_PER_BLOCK * share * blocks + 0.5) for blocks in (block + 1, block))
        if place in order[(first + np.arange(until_now - before)) % CASES_PER_BLOCK]:
            present.add(label)
    return present


def fluid_volume_mm3(quantile, median_mm3, maximum_mm3):
    """Volume at `quantile` of a log-normal whose 96 % quantile, about the largest of 20, is `maximum_mm3`."""
    sigma = np.log(maximum_mm3 / median_mm3) / NormalDist().inv_cdf(0.96)
    volume_mm3 = median_mm3 * np.exp(sigma * NormalDist().inv_cdf(np.clip(quantile, 1e-6, 1 - 1e-6)))
    return float(np.clip(volume_mm3, median_mm3 / 10, maximum_mm3))


def generate_phantom(vendor, rows, slices=None, seed=0, fluid_mm3=None, **look):
    """Generate one volume as `vendor` exports it, at a height of `rows`.

    `slices`: number of slices, None or more than the vendor's for all of them. `seed`: an int or a sequence of ints.
    `fluid_mm3`: {label: volume in mm3 of the full-depth eye}; None takes the vendor's median of each fluid.
    `look` are further arguments of `draw_phantom`.

    Returns voxels (slices, rows, columns; uint8 or uint16), reference (same shape, uint8, labels 0-3) and the spacing
    (x, y, z) in mm. Raises ValueError for an unknown vendor or height, no slices, or more fluid than its maximum.
    """
    if (vendor, rows) not in VENDOR_TURNS:
        raise ValueError(f"expected vendor and rows to be one of {VENDOR_TURNS}, got {(vendor, rows)}")
    if fluid_mm3 is None:
        fluid_mm3 = {label: median_mm3 for label, (_, median_mm3, _) in FLUID_STATISTICS[vendor].items()}
    most_mm3 = {label: maximum_mm3 for label, (_, _, maximum_mm3) in FLUID_STATISTICS[vendor].items()}
    if not all(0 <= volume_mm3 <= most_mm3.get(label, -1) for label, volume_mm3 in fluid_mm3.items()):
        raise ValueError(f"expected at most {most_mm3} mm3 of each label in {vendor}, got {fluid_mm3}")
    return draw_phantom(vendor, rows, slices, seed, fluid_mm3, **look)[:3]


def draw_phantom(vendor, rows, slices, seed, fluid_mm3, padded_wedges=False, circular_crop=False, haze=0.0):
    """As `generate_phantom` with `fluid_mm3` of any amount, and the `Eye` and the index of the first slice in it.

    `padded_wedges` whitens two corners, as beside a tilted scan; `circular_crop` blackens all outside a circle; `haze`
    is the grey value of haze above the retina, which ends 0.05 to 0.3 mm above it.
    """
    scanner = VENDORS[vendor]
    slices = scanner.slices if slices is None else min(slices, scanner.slices)
    if slices < 1:
        raise ValueError(f"expected at least one slice, got {slices}")
    seed = list(np.atleast_1d(seed))
    rng = np.random.default_rng(seed)
    spacing_mm = (
        round(rng.uniform(*scanner.spacing_x_mm), 6),
        scanner.spacing_y_mm[scanner.rows.index(rows)],
        round(rng.uniform(*scanner.spacing_z_mm), 6),
    )
    eye = create_eye(rng, rows * spacing_mm[1], scanner.slices, scanner.columns, spacing_mm, fluid_mm3)
    invalid = invalid_pixels(rng, rows, scanner.columns, padded_wedges, circular_crop)
    first, last = slab_through_fluids(eye, slices)
    haze_look = haze and (haze, rng.uniform(0.05, 0.3), 0.01)
    voxels = np.empty((last - first, rows, scanner.columns), scanner.element_type)
    reference = np.empty(voxels.shape, np.uint8)
    for place, slice_index in enumerate(range(first, last)):
        slice_rng = np.random.default_rng([*seed, 1 + slice_index])
        image = render_b_scan(slice_rng, eye, slice_index, rows, spacing_mm, SCANNER_LOOKS[vendor], haze_look)
        image[invalid == WHITE] = 255 - slice_rng.integers(0, 6, (invalid == WHITE).sum())
        image[invalid == BLACK] = 0
        voxels[place] = np.rint(image * (np.iinfo(voxels.dtype).max / 255))
        reference[place] = np.where(invalid, 0, label_b_scan(eye, slice_index, rows, spacing_mm[1]))
    return voxels, reference, spacing_mm, eye, first


def slab_through_fluids(eye, slices):
    """First and last (exclusive) slice of the slab that shows the worst shown fluid best; the middle without fluid."""
    full = eye.boundaries_mm.shape[1]
    scores = -1e-6 * np.abs(np.arange(full - slices + 1) - (full - slices) / 2)
    shares = []
    for label in {fluid.label for fluid in eye.fluids}:
        area = sum((fluid.bottom_mm - fluid.top_mm).sum(axis=1) for fluid in eye.fluids if fluid.label == label)
        in_slab = np.convolve(area, np.ones(slices), "valid")
        if in_slab.max() > 0:
            shares.append(in_slab / in_slab.max())
    if shares:
        scores = scores + np.min(shares, axis=0)
    first = int(np.argmax(scores))
    return first, first + slices


def render_b_scan(rng, eye, slice_index, rows, spacing_mm, appearance, haze=None):
    """B-scan (rows, columns; float32, 0-255) of one slice of `eye`, as a scanner of this `appearance` exports it.

    `haze` are grey value, height and softness of `haze_above`.
    """
    row_mm = spacing_mm[1]
    boundaries_px = eye.boundaries_mm[:, slice_index] / row_mm
    image = filled_columns(boundaries_px, eye.greys[:, slice_index], rows)
    if haze:
        image = np.maximum(image, haze_above(boundaries_px[LAYERS.index("nerve fibre layer")], rows, row_mm, *haze))
    image = cv2.GaussianBlur(image, (0, 0), 1.0, sigmaY=0.0045 / row_mm)

    plane = slice_index * spacing_mm[2] / 0.11  # planes of texture are 0.11 mm apart
    share = np.float32(plane % 1)
    texture = (1 - share) * eye.texture[int(plane)] + share * eye.texture[int(plane) + 1]
    texture = cv2.resize(texture, image.shape[::-1], interpolation=cv2.INTER_CUBIC)
    choroid_px = boundaries_px[-len(CHOROID_DEPTHS_MM) :]
    strength = np.repeat(np.float32([[0.03], [0.30], [0.12]]), image.shape[1], axis=1)
    image *= 1 + filled_columns(choroid_px[[2, 8]], strength, rows) * np.clip(texture, -2, 1.2)

    add_foci(image, eye, slice_index, spacing_mm)
    for fluid in eye.fluids:
        top_px, bottom_px = fluid.top_mm[slice_index] / row_mm, fluid.bottom_mm[slice_index] / row_mm
        if (bottom_px > top_px).any():
            fill = np.zeros((3, image.shape[1]), np.float32)
            fill[1] = 1
            fraction = filled_columns(np.stack([top_px, bottom_px]), fill, rows)
            fraction = cv2.GaussianBlur(fraction, (0, 0), 0.7, sigmaY=0.003 / row_mm)
            image += fraction * (fluid.grey[slice_index] * (1 + 0.15 * texture) - image)

    # Fully developed speckle has a Rayleigh-distributed amplitude (mean 1 here); the optics' point spread blurs it.
    rayleigh = np.sqrt(rng.standard_exponential(image.shape, dtype=np.float32)) * np.float32(2 / np.sqrt(np.pi))
    rayleigh = cv2.GaussianBlur(rayleigh, (0, 0), appearance.grain_columns, sigmaY=appearance.grain_mm / row_mm)
    image *= 1 + appearance.speckle * (rayleigh - 1)
    depth_mm = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) * row_mm
    image *= np.exp(-appearance.roll_off_per_mm * depth_mm)
    # A Weibull distribution between exponential and Rayleigh, so that no noise in the vitreous is as bright as retina.
    noise = rng.standard_exponential(image.shape, dtype=np.float32) ** NOISE_EXPONENT
    image = in_quadrature(image, appearance.noise / math.gamma(1 + NOISE_EXPONENT) * noise) - appearance.black_level
    return np.clip(appearance.contrast * image, 0, 255 - appearance.offset) + appearance.offset


def add_foci(image, eye, slice_index, spacing_mm):
    """Brighten `image` in place at hyperreflective foci that lie within half a slice or a radius of this slice."""
    slices, columns = eye.boundaries_mm.shape[1:]
    slice_mm = (slice_index - (slices - 1) / 2) * spacing_mm[2]
    for x_mm, z_mm, depth_mm, radius_mm in eye.foci_mm:
        if abs(z_mm - slice_mm) > max(radius_mm, spacing_mm[2] / 2):
            continue
        column, row = x_mm / spacing_mm[0] + (columns - 1) / 2, depth_mm / spacing_mm[1] - 0.5
        reach_columns, reach_rows = (int(np.ceil(2 * radius_mm / spacing)) for spacing in spacing_mm[:2])
        top, left = max(round(row) - reach_rows, 0), max(round(column) - reach_columns, 0)
        patch = image[top : round(row) + reach_rows + 1, left : round(column) + reach_columns + 1]
        y, x = np.ogrid[: patch.shape[0], : patch.shape[1]]
        distance = np.hypot((y + top - row) * spacing_mm[1], (x + left - column) * spacing_mm[0]) / radius_mm
        patch += (235 - patch) * np.exp(-(distance**2)).astype(np.float32)


def label_b_scan(eye, slice_index, rows, row_mm):
    """Labels (rows, columns; uint8) of one slice. A pixel belongs to the fluid in which its centre lies."""
    labels = np.zeros((rows + 1, eye.boundaries_mm.shape[2]), np.int8)
    columns = np.arange(labels.shape[1])
    for fluid in eye.fluids:
        edges = (np.ceil(edge_mm[slice_index] / row_mm - 0.5) for edge_mm in (fluid.top_mm, fluid.bottom_mm))
        top, bottom = (np.clip(edge, 0, rows).astype(int) for edge in edges)
        labels[top, columns] += fluid.label
        labels[bottom, columns] -= fluid.label
    return np.cumsum(labels[:-1], axis=0).astype(np.uint8)


def invalid_pixels(rng, rows, columns, padded_wedges, circular_crop):
    """Map (rows, columns; uint8) of exported pixels that were never scanned: 0 for valid, WHITE or BLACK."""
    invalid = np.zeros((rows, columns), np.uint8)
    row, column = np.ogrid[:rows, :columns]
    upper, lower = rng.uniform(0.02, 0.05) * rows, rng.uniform(0.04, 0.11) * rows
    mirrored = rng.random() < 0.5
    if padded_wedges:
        along = (columns - 1 - column if mirrored else column) / (columns - 1)
        invalid[(row < upper * (1 - 1.5 * along)) | (row >= rows - lower * (1.5 * along - 0.5))] = WHITE
    if circular_crop:
        centre_distance = np.hypot(row - (rows - 1) / 2, column - (columns - 1) / 2)
        invalid[centre_distance > 0.45 * np.hypot(rows, columns)] = BLACK
    return invalid
