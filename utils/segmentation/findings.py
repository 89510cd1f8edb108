"""What is collected about a scan while it is segmented, B-scan by B-scan."""

import numpy as np

from utils.labels import FLUIDS
from utils.segmentation.appearance import Appearance
from utils.segmentation.confidence import Certainty, fluid_confidence, uncalibrated_fluids
from utils.segmentation.fovea import find_fovea
from utils.segmentation.measurements import Measurements


class Findings:
    """The findings of a `utils.volumes.scans.Scan`. Add B-scans in order: `add_preprocessed`, then `add`."""

    def __init__(self, scan, axial_spacing_mm):
        self.measurements = Measurements(scan.voxels.shape, scan.spacing_mm, scan.z_mm)
        self.appearance, self.certainty = Appearance(), Certainty(len(scan.voxels))
        self.runs = []  # `utils.segmentation.page.label_runs` of each B-scan
        self.surfaces = []  # `utils.segmentation.surfaces.Surfaces` of each B-scan, as the network gets it
        self._axial_spacing_mm, self._x_mm = axial_spacing_mm, scan.spacing_mm[0]
        self.rows_per_row = axial_spacing_mm / scan.spacing_mm[1]  # of the scan, in one of the surfaces'
        self._removed, self._without = None, None
        self._presence, self._disagreement = np.zeros(len(FLUIDS)), None

    def add_preprocessed(self, slice_, region, surfaces):
        """Add the next B-scan as the network gets it, its `prediction_region`, both uint8 (rows, columns), and its
        surfaces."""
        self.appearance.add(slice_, region)
        self.surfaces.append(surfaces)

    def add_impossible(self, labels):
        """Add the labels (uint8; rows, columns) that the next B-scan would have if fluid could be anywhere."""
        self._without = labels

    def add(self, index, labels, probabilities, scores):
        """Add the next B-scan: labels, probabilities (a fifth channel is disagreement), presence scores."""
        if self._without is not None:
            removed = [((self._without == label) & (labels != label)).sum() for label in FLUIDS.values()]
            self._removed = np.array(removed) + (0 if self._removed is None else self._removed)
        self.measurements.add(index, labels)
        self.certainty.add(index, labels, probabilities)
        self._presence = np.maximum(self._presence, scores)
        if probabilities.shape[-1] > 4:
            sums = [probabilities[labels == label, 4].sum(dtype=float) for label in FLUIDS.values()]
            self._disagreement = np.array(sums) + (0 if self._disagreement is None else self._disagreement)

    def fovea(self):
        """The `utils.segmentation.fovea.Fovea`, or None."""
        thickness_mm = [
            (of.outer - of.inner) * self._axial_spacing_mm if of.is_retina else np.full(len(of.inner), np.nan)
            for of in self.surfaces
        ]
        return find_fovea(np.array(thickness_mm), self._x_mm, self.measurements.z_mm)

    def retina_warnings(self):
        """A sentence if no retina is seen in most B-scans."""
        without = sum(not of.is_retina for of in self.surfaces)
        if 2 * without <= len(self.surfaces):
            return []
        return [f"no retina is seen in {without} of {len(self.surfaces)} B-scans; is this an OCT scan of the macula?"]

    def notes(self):
        """A sentence on the B-scans in which fluid counts anywhere although it should count only where it can be."""
        without = [number for number, of in enumerate(self.surfaces, 1) if not of.is_retina]
        if self._removed is None or not without:
            return []
        return [
            f"no retina is seen in {len(without)} of {len(self.surfaces)} B-scans, such as B-scan {without[0]}: fluid "
            "counts anywhere there"
        ]

    def fluids(self, centre, decisions):
        """`Measurements.values`, with how sure the network is: see `utils.segmentation.confidence.fluid_confidence`.

        Also whether that is ``calibrated``; the detection scores; ``removed_voxels``, those that lie where the fluid
        cannot be, if that is decided; and the mean uncertainty of the fluid's pixels, if there is an ensemble.
        """
        rows = self.measurements.values(centre)
        highest_presence, uncalibrated = decisions.presence_probability(self._presence), uncalibrated_fluids(decisions)
        for index, row in enumerate(rows):
            row["presence"] = float(self._presence[index])
            if self._removed is not None:
                row["removed_voxels"] = int(self._removed[index])
            row |= fluid_confidence(self.certainty, index, float(highest_presence[index]), decisions)
            row["calibrated"] = row["fluid"] not in uncalibrated
            if self._disagreement is not None:
                pixels = int(self.measurements.pixels[index].sum())
                row["uncertainty"] = float(self._disagreement[index] / pixels) if pixels else None
        return rows
