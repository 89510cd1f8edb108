"""What is collected about a scan while it is segmented, B-scan by B-scan."""

import numpy as np

from utils.labels import FLUIDS
from utils.segmentation.appearance import Appearance
from utils.segmentation.confidence import Certainty, fluid_confidence
from utils.segmentation.fovea import find_fovea
from utils.segmentation.measurements import Measurements
from utils.segmentation.surfaces import retinal_surfaces


class Findings:
    """The findings of a `utils.volumes.scans.Scan`. Add B-scans in order: `add_preprocessed`, then `add`."""

    def __init__(self, scan, axial_spacing_mm):
        slices, _, columns = scan.voxels.shape
        self.measurements = Measurements(scan.voxels.shape, scan.spacing_mm, scan.z_mm)
        self.appearance, self.certainty = Appearance(), Certainty(slices)
        self.runs = []  # `utils.segmentation.page.label_runs` of each B-scan
        self.head_presence = None
        self._spacing_mm, self._axial_spacing_mm = scan.spacing_mm, axial_spacing_mm
        self._thickness_mm, self._is_retina = np.zeros((slices, columns)), []
        self._presence, self._disagreement = np.zeros(len(FLUIDS)), None

    def add_preprocessed(self, slice_, region):
        """Add the next B-scan as the network gets it, and its `prediction_region`, both uint8 (rows, columns)."""
        self.appearance.add(slice_, region)
        surfaces = retinal_surfaces(slice_, self._axial_spacing_mm)
        self._thickness_mm[len(self._is_retina)] = (surfaces.outer - surfaces.inner) * self._axial_spacing_mm
        self._is_retina.append(surfaces.is_retina)

    def add(self, index, labels, probabilities, scores):
        """Add the next B-scan: labels, probabilities (a fifth channel is disagreement), presence scores."""
        self.measurements.add(index, labels)
        self.certainty.add(index, labels, probabilities)
        self._presence = np.maximum(self._presence, scores)
        if probabilities.shape[-1] > 4:
            sums = [probabilities[labels == label, 4].sum(dtype=float) for label in FLUIDS.values()]
            self._disagreement = np.array(sums) + (0 if self._disagreement is None else self._disagreement)

    def fovea(self):
        """The `utils.segmentation.fovea.Fovea`, or None."""
        return find_fovea(self._thickness_mm, self._spacing_mm[0], self._spacing_mm[2])

    def retina_warnings(self):
        """A sentence if no retina is seen in most B-scans."""
        without = len(self._is_retina) - sum(self._is_retina)
        if 2 * without <= len(self._is_retina):
            return []
        return [f"no retina is seen in {without} of {len(self._is_retina)} B-scans; is this an OCT scan of the macula?"]

    def fluids(self, centre, decisions):
        """`Measurements.values`, with how sure the network is: see `utils.segmentation.confidence.fluid_confidence`.

        Also the detection scores, and the mean uncertainty of the fluid's pixels, if there is an ensemble.
        """
        rows = self.measurements.values(centre)
        highest_presence = decisions.presence_probability(self._presence)
        for index, row in enumerate(rows):
            row["presence"] = float(self._presence[index])
            if self.head_presence is not None:
                row["presence_head"] = float(self.head_presence[index])
            row |= fluid_confidence(self.certainty, index, float(highest_presence[index]))
            if self._disagreement is not None:
                pixels = int(self.measurements.pixels[index].sum())
                row["uncertainty"] = float(self._disagreement[index] / pixels) if pixels else None
        return rows
