"""The appearance of the training images. It is stored with the model, to warn of scans that look different."""

import numpy as np

from utils.preparation.prepared import volume_paths
from utils.preparation.roi import prediction_region
from utils.volumes.mhd import open_volume
from utils.volumes.vendors import OTHER, VENDORS

_OTHER_DEVICE = "the scan is of a device that the model may never have seen"
_SLICES = 12  # of each training case, evenly spaced
_MARGIN = 1.5  # a scan's distance in grey values may exceed the farthest training case's by this factor
_SMALLEST_DISTANCE = 4.0  # grey values; smallest value for that distance, since few or synthetic cases may be alike
_SPACING_MARGIN = 1.25  # factor beyond the training cases' spacings
_USUAL_Z_MM = 0.25  # between B-scans; many devices' volumes have 0.24
_ROI_MARGIN = 2.0  # factor beyond the training cases' shares of retina


class Appearance:
    """Collects the grey values and the share of retina of a scan's preprocessed B-scans."""

    def __init__(self):
        self._counts, self._roi_pixels, self.n_slices = np.zeros(256, np.int64), 0, 0

    def add(self, slice_, region):
        """Add a preprocessed B-scan (rows, columns; uint8, 0 = invalid) and its `prediction_region`."""
        self._counts += np.bincount(slice_.ravel(), minlength=256)
        self._roi_pixels += np.count_nonzero(region)
        self.n_slices += 1

    def values(self):
        """(shares of the grey values 1 to 255, float (255,), share of the region), both of the valid pixels."""
        n_valid = max(1, int(self._counts[1:].sum()))
        return self._counts[1:] / n_valid, self._roi_pixels / n_valid


def training_appearance(rows, preprocessed_folder):
    """The appearance of the cases in `rows` (`SliceRow`s), for JSON and `unlike_training`: {vendor: {...}}."""
    cases = sorted({(row.vendor, row.image_name, str(row.folder or preprocessed_folder)) for row in rows})
    found = {}
    for vendor, name, folder in cases:
        volume, spacing_mm = open_volume(volume_paths(folder, vendor, name)[0])
        appearance = Appearance()
        for index in np.unique(np.linspace(0, len(volume) - 1, _SLICES).astype(int)):
            slice_ = np.array(volume[index])
            appearance.add(slice_, prediction_region(slice_))  # the same region as for the scans that are compared
        z_mm = spacing_mm[2] if len(volume) > 1 else np.nan  # a single B-scan has none
        found.setdefault(vendor, []).append((*appearance.values(), spacing_mm[0], z_mm))
    return {vendor: _summary(*zip(*of_vendor, strict=True)) for vendor, of_vendor in found.items()}


def _summary(grey_values, roi_shares, x_mm, z_mm):
    mean, known_z_mm = np.mean(grey_values, axis=0), [value for value in z_mm if not np.isnan(value)]
    return {
        "cases": len(grey_values),
        "grey_values": mean.round(6).tolist(),
        "largest_distance": max(_distance(of_case, mean) for of_case in grey_values),
        "roi_share": [min(roi_shares), max(roi_shares)],
        "spacing_x_z_mm": [[limit(x_mm), limit(known_z_mm, default=None)] for limit in (min, max)],
    }


def unlike_training(training, vendor, spacing_mm, appearance, neighbours):
    """Warnings (sentences) about how a scan differs from the training images.

    `training` is the model's `training_appearance`, or None. `appearance` is the scan's `Appearance`, `spacing_mm` its
    (x, y, z). Between B-scans the distance matters to a model that sees `neighbours`.
    """
    if not training:
        return [] if vendor in VENDORS else [f"{_OTHER_DEVICE}; what the model was trained on is not recorded"]
    if vendor == OTHER and vendor not in training:
        return [f"{_OTHER_DEVICE}; it was trained on scans of {', '.join(training)}"]
    if vendor not in training:
        return [f"the model has not been trained on {vendor} scans, but on those of {', '.join(training)}"]
    known, (grey_values, roi_share) = training[vendor], appearance.values()
    warnings = []
    distance, usual = _distance(grey_values, known["grey_values"]), known["largest_distance"]
    if distance > _MARGIN * max(usual, _SMALLEST_DISTANCE):
        warnings.append(
            f"grey values are {distance:.0f} levels away from the training scans', which differ by up to {usual:.0f}"
        )
    least, most = known["roi_share"]
    if not least / _ROI_MARGIN <= roi_share <= min(1.0, most * _ROI_MARGIN):
        warnings.append(
            f"retina not found as usual: {roi_share:.0%} of the pixels look like it, in training {least:.0%} to "
            f"{most:.0%}"
        )
    for axis, value, low, high in zip("xz", spacing_mm[::2], *known["spacing_x_z_mm"], strict=True):
        if axis == "z" and (low is None or appearance.n_slices == 1 or not neighbours):
            continue
        most = max(high * _SPACING_MARGIN, _USUAL_Z_MM if axis == "z" else 0)
        if not low / _SPACING_MARGIN <= value <= most:
            warnings.append(f"spacing {axis} is {value:.3g} mm, in training {low:.3g} to {high:.3g} mm")
    return warnings


def _distance(first, second):
    """Earth mover's distance in grey values between two distributions (shares of equally spaced grey values)."""
    return float(np.abs(np.cumsum(first) - np.cumsum(second)).sum())
