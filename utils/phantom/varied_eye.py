"""The eye behind a varied phantom: layers, cysts and detachments in millimetres, drawn from `utils.phantom.ranges`.

Layers, subretinal fluid and detachments are boundaries over the lateral plane, as in `utils.phantom.anatomy`. Cysts are
bodies of any outline in the image plane. They are placed in the layers' own coordinates, so that they bend with the
retina.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from utils.labels import FLUIDS
from utils.phantom import anatomy
from utils.phantom.anatomy import CHOROID_DEPTHS_MM, healthy_thicknesses, smooth_field

IRF, SRF, PED = FLUIDS.values()
# (mm, rows) of a detachment. A thinner part, or a whole detachment with a lower peak, would look like the layers
# around it.
LEAST_DETACHED, LEAST_PEAK = (0.012, 3), (0.035, 5)
LEAST_ROWS, MOST_ROWS = 110, 900


def _with(greys, name, grey, before):
    """`greys` with one more layer `before` another."""
    items = list(greys.items())
    place = list(greys).index(before)
    return dict([*items[:place], (name, grey), *items[place:]])


LAYER_GREYS = _with(anatomy.LAYER_GREYS, "preretinal gap", 12, before="nerve fibre layer")
LAYER_GREYS = _with(LAYER_GREYS, "epiretinal membrane", 215, before="preretinal gap")
LAYER_GREYS = _with(LAYER_GREYS, "subretinal material", 165, before="retinal pigment epithelium")
LAYERS = tuple(LAYER_GREYS)
RETINA_TOP = LAYERS.index("nerve fibre layer")

# Hosts of cysts: upper and lower layer boundary.
HOSTS = {
    "inner nuclear": ("inner nuclear layer", "outer plexiform layer"),
    "outer nuclear": ("outer plexiform layer", "external limiting membrane"),
    "neuroretina": ("ganglion cell and inner plexiform layer", "external limiting membrane"),
}

# Kinds of cluster: host, least and most cysts, their half-width and half-height in mm (least, most).
CLUSTERS = (
    ("inner nuclear", 3, 22, (0.02, 0.06), (0.014, 0.040)),  # microcysts
    ("outer nuclear", 3, 22, (0.02, 0.09), (0.04, 0.17)),  # columns between Henle's fibres, the petals of the fovea
    ("neuroretina", 1, 8, (0.04, 0.16), (0.03, 0.13)),
    ("neuroretina", 2, 9, (0.06, 0.22), (0.05, 0.20)),
    ("neuroretina", 1, 3, (0.12, 0.42), (0.10, 0.34)),  # giant
    ("neuroretina", 1, 4, (0.15, 0.60), (0.08, 0.25)),
    ("neuroretina", 1, 6, (0.018, 0.05), (0.014, 0.045)),  # scattered
)


@dataclass(frozen=True)
class Cyst:
    """An ellipsoid in its host's coordinates; lengths in mm."""

    x: float
    z: float
    share: float  # depth of its centre between the host's boundaries, 0-1
    host: str
    half_width: float
    half_height: float
    lean: float  # rise of its middle over its half-width
    exponent: float  # 2: ellipse; more: fuller
    grey: float  # of the tissue around it


def bump(x_mm, z_mm, centre, half_width, exponent=1.0):
    """1 at `centre` (x, z), 0 beyond `half_width`: (1 - d^2)^exponent."""
    distance = np.hypot(x_mm - centre[0], z_mm - centre[1]) / half_width
    return np.clip(1 - distance**2, 0, None) ** exponent


def spanned(heights_mm, fall_mm):
    """The lowest surface over `heights_mm` (slices, columns) that falls by at most `fall_mm` from column to column."""
    fallen_mm = fall_mm * np.arange(heights_mm.shape[1], dtype=np.float32)
    rightwards = np.maximum.accumulate(heights_mm + fallen_mm, axis=1) - fallen_mm
    leftwards = np.maximum.accumulate(heights_mm[:, ::-1] + fallen_mm, axis=1) - fallen_mm
    return np.maximum(rightwards, leftwards[:, ::-1])


class VariedEye:
    """Anatomy and disease of one case, ready to be drawn slice by slice."""

    def __init__(self, knobs, x_mm, z_mm, spacing_mm):
        self.knobs, self.rng, self.x_mm, self.z_mm, self.spacing_mm = knobs, knobs.rng, x_mm, z_mm, spacing_mm
        self.shape = x_mm.shape
        self.cysts = self._draw_cysts() if knobs.has("IRF") else []
        self.thickness_mm = self._thicknesses()
        self.boundaries_mm, self.rows = self._placed(self.thickness_mm)

    def field(self, correlation_mm):
        return smooth_field(self.rng, self.x_mm, self.z_mm, correlation_mm)

    def place(self):
        """A random A-scan as (x, z) in mm."""
        slice_index, column = (self.rng.integers(size) for size in self.shape)
        return float(self.x_mm[slice_index, column]), float(self.z_mm[slice_index, column])

    def boundary(self, layer):
        """Depth of the top of a layer in mm, (slices, columns)."""
        return self.boundaries_mm[(*LAYERS, "choroid").index(layer)]

    # ---- Disease
    def _draw_cysts(self):
        cysts = []
        for _ in range(self.knobs.count("clusters")):
            host, least, most, widths, heights = CLUSTERS[self.rng.integers(len(CLUSTERS))]
            centre, spread = self.place(), self.rng.uniform(0.1, 0.9)
            grey = self.knobs("cyst_grey")
            lean = self.rng.normal(0, 0.3)
            taken = []
            for _ in range(int(self.rng.integers(least, most + 1))):
                half_width = math.exp(self.rng.uniform(*np.log(widths)))
                x = centre[0] + self.rng.normal(0, spread)
                share = self.rng.uniform(0.15, 0.85) if host == "neuroretina" else self.rng.uniform(0.35, 0.65)
                # Neighbours may touch, so that only a septum is left, but not swallow each other.
                if any(abs(x - x0) < 0.8 * max(half_width, w0) and abs(share - s0) < 0.4 for x0, w0, s0 in taken):
                    continue
                taken.append((x, half_width, share))
                cysts.append(
                    Cyst(
                        x=x,
                        z=centre[1] + self.rng.normal(0, 0.5) * half_width,
                        share=share,
                        host=host,
                        half_width=half_width,
                        half_height=math.exp(self.rng.uniform(*np.log(heights))),
                        lean=lean + self.rng.normal(0, 0.15),
                        exponent=self.rng.uniform(1.7, 3.2),
                        grey=float(np.clip(grey * math.exp(self.rng.normal(0, 0.15)), 0.03, 0.8)),
                    )
                )
        return cysts

    def _thicknesses(self):
        """Thickness of every layer, {layer: mm}, each (slices, columns)."""
        knobs, rng, x_mm, z_mm = self.knobs, self.rng, self.x_mm, self.z_mm
        eccentricity_mm = np.hypot(x_mm, z_mm)
        self.has_pit = not knobs.has("no pit")
        if not self.has_pit:
            eccentricity_mm = np.hypot(eccentricity_mm, rng.uniform(0.5, 1.5))
        nasal = rng.choice([-1, 1])
        thickness_mm = healthy_thicknesses(rng, eccentricity_mm, nasal * x_mm)
        scale = knobs("layer_scale")
        for layer in thickness_mm:
            if layer not in ("hyaloid", "retrohyaloid space"):
                thickness_mm[layer] = thickness_mm[layer] * scale * knobs("one_layer_scale")
                thickness_mm[layer] = thickness_mm[layer] * np.clip(1 + 0.10 * self.field(0.35), 0.5, 1.5)
        detached = knobs.has("detached hyaloid")
        gap_mm = rng.uniform(0.02, 0.5) * np.clip(0.6 + 0.5 * self.field(2.5), 0, None)
        thickness_mm["hyaloid"] = np.full_like(x_mm, rng.uniform(0.005, 0.014) * detached)
        thickness_mm["retrohyaloid space"] = gap_mm * detached

        membrane = float(knobs.has("epiretinal membrane"))
        thickness_mm["epiretinal membrane"] = membrane * knobs("membrane_mm") * np.clip(0.7 + self.field(1.0), 0, 1)
        lifted = np.clip(self.field(0.4) - rng.uniform(0, 1.2), 0, 2) * (thickness_mm["epiretinal membrane"] > 0.003)
        thickness_mm["preretinal gap"] = membrane * rng.uniform(0.01, 0.08) * lifted

        for host, (upper, lower) in HOSTS.items():
            self._make_room(thickness_mm, host, upper, lower)
        if self.cysts:
            centre = self.rng.choice([cyst.x for cyst in self.cysts]), self.rng.choice([cyst.z for cyst in self.cysts])
            swelling_mm = knobs("oedema_mm") * bump(x_mm, z_mm, centre, 2 * knobs("oedema_width_mm"), 1.5)
            for layer, part in (("outer nuclear layer", 0.6), ("inner nuclear layer", 0.25)):
                thickness_mm[layer] = thickness_mm[layer] + part * swelling_mm

        drusen_mm = np.zeros_like(x_mm)
        if knobs.has("drusen"):
            for _ in range(knobs.count("drusen")):
                radius_mm = knobs("druse_mm")
                mound = bump(x_mm, z_mm, self.place(), radius_mm, rng.uniform(0.5, 1.5))
                drusen_mm = np.maximum(drusen_mm, min(radius_mm * rng.uniform(0.3, 0.8), 0.075) * mound)
        thickness_mm["drusen"] = drusen_mm
        ped_mm = np.zeros_like(x_mm)
        if knobs.has("PED"):
            ped_mm = self._domes(knobs("ped_mm"), knobs("ped_width_mm"), rng.integers(1, 4))
        thickness_mm["pigment epithelial detachment"] = ped_mm
        material_mm = np.zeros_like(x_mm)
        if knobs.has("material"):
            for _ in range(rng.integers(1, 3)):
                mound = bump(x_mm, z_mm, self.place(), rng.uniform(0.1, 0.8))
                rough = np.clip(1 + 0.5 * self.field(0.06), 0.2, 2)
                material_mm = np.maximum(material_mm, knobs("material_mm") * mound * rough)
        thickness_mm["subretinal material"] = material_mm
        thickness_mm["subretinal fluid"] = np.zeros_like(x_mm)
        if knobs.has("SRF"):
            thickness_mm["subretinal fluid"] = self._subretinal_fluid(drusen_mm + ped_mm + material_mm)

        self.atrophy = np.zeros_like(x_mm)
        if knobs.has("atrophy"):
            self.atrophy = np.clip(3 * bump(x_mm, z_mm, self.place(), knobs("atrophy_mm")), 0, 1)
        remains = {"outer nuclear layer": 0.35, "external limiting membrane": 0.1, "myoid zone": 0.1}
        remains |= {"ellipsoid zone": 0.1, "outer segments": 0.1, "retinal pigment epithelium": 0.3}
        for layer, share in remains.items():
            thickness_mm[layer] = thickness_mm[layer] * (1 - (1 - share) * self.atrophy)
        # Outer segments over a detachment are shed or shaggy, and a low one is felt as a gap between them.
        shaggy_mm = knobs("roof_roughness_mm") * np.abs(self.field(0.04)) * (thickness_mm["subretinal fluid"] > 0)
        thickness_mm["outer segments"] = thickness_mm["outer segments"] * rng.uniform(0.4, 1.0) + shaggy_mm
        self._smooth_surface(thickness_mm)
        if knobs.has("hole"):
            self._open(thickness_mm)
        return thickness_mm

    def _smooth_surface(self, thickness_mm):
        """Adjust the inner layers so that the retina's surface is smoother than the layers that lift it."""
        inner = LAYERS[RETINA_TOP : LAYERS.index("external limiting membrane")]
        outer = LAYERS[LAYERS.index("external limiting membrane") :]
        inner_mm, outer_mm = (sum(thickness_mm[layer] for layer in layers) for layers in (inner, outer))
        sigma_columns = self.knobs("surface_mm") / self.spacing_mm[0]
        wanted_mm = cv2.GaussianBlur(inner_mm + outer_mm, (0, 0), sigma_columns, sigmaY=0.01) - outer_mm
        factor = np.clip(wanted_mm / np.maximum(inner_mm, 1e-3), 0.55, 2.0)
        for layer in inner:
            thickness_mm[layer] = thickness_mm[layer] * factor

    def _make_room(self, thickness_mm, host, upper, lower):
        """Thicken the layers of `host` where its cysts need it, with a smooth slope around."""
        needed_mm = np.zeros_like(self.x_mm)
        for cyst in self.cysts:
            if cyst.host == host:
                height_mm = (
                    2 * cyst.half_height * np.sqrt(bump(self.x_mm, self.z_mm, (cyst.x, cyst.z), 1.25 * cyst.half_width))
                )
                needed_mm = np.maximum(needed_mm, height_mm)
        if not needed_mm.any():
            return
        reach = round(self.rng.uniform(0.03, 0.15) / self.spacing_mm[0])
        needed_mm = cv2.dilate(needed_mm, np.ones((1, 2 * reach + 1)))
        needed_mm = cv2.GaussianBlur(needed_mm, (0, 0), reach, sigmaY=0.8)
        inside = LAYERS[LAYERS.index(upper) : LAYERS.index(lower)]
        has_mm = sum(thickness_mm[layer] for layer in inside)
        factor = np.maximum(1, (needed_mm + 0.012) / has_mm)
        for layer in inside:
            thickness_mm[layer] = thickness_mm[layer] * factor

    def _open(self, thickness_mm):
        """Thin the inner layers to a steep-walled pit or a hole, which the vitreous fills."""
        pit = np.clip(self.rng.uniform(1.2, 4) * bump(self.x_mm, self.z_mm, self.place(), self.knobs("hole_mm")), 0, 1)
        for layer in LAYERS[RETINA_TOP : LAYERS.index("subretinal fluid")]:
            thickness_mm[layer] = thickness_mm[layer] * (1 - self.rng.uniform(0.6, 1.0) * pit)

    def _domes(self, height_mm, half_width_mm, lobes):
        """Height map in mm of a detachment: merged domes, steep or flat, whose surface is uneven."""
        heights_mm = np.zeros_like(self.x_mm)
        centre = self.place()
        for lobe in range(lobes):
            shift = self.rng.normal(0, 1.2 * half_width_mm) if lobe else 0.0
            dome = bump(
                self.x_mm,
                self.z_mm,
                (centre[0] + shift, centre[1]),
                half_width_mm * (self.rng.uniform(0.3, 1.0) if lobe else 1),
                self.rng.uniform(0.45, 1.6),
            )
            heights_mm = np.maximum(heights_mm, min(height_mm * self.rng.uniform(0.6, 1), 0.8 * half_width_mm) * dome)
        heights_mm *= np.clip(1 + self.rng.uniform(0, 0.25) * self.field(0.15), 0.2, 2)
        return self._without_slits(heights_mm)

    def _subretinal_fluid(self, floor_mm):
        """Height map in mm of the fluid over what lifts the pigment epithelium by `floor_mm`: domes, pockets or both.

        A pocket lies under a retina that does not follow the floor's slopes, but hangs from peak to peak.
        """
        knobs, rng = self.knobs, self.rng
        domes_mm = self._domes(knobs("srf_mm"), knobs("srf_width_mm"), rng.integers(1, 3))
        if not knobs.has("pockets"):
            return domes_mm
        pockets_mm = spanned(floor_mm, knobs("pocket_slope") * self.spacing_mm[0]) - floor_mm
        pockets_mm = self._without_slits(pockets_mm)
        return pockets_mm if pockets_mm.any() and rng.random() < 0.6 else np.maximum(pockets_mm, domes_mm)

    def _without_slits(self, heights_mm):
        """`heights_mm` where fluid is thick enough to differ visibly from the layers around it, else 0."""
        least_mm, peak_mm = (max(mm, rows * self.spacing_mm[1]) for mm, rows in (LEAST_DETACHED, LEAST_PEAK))
        bodies, n_bodies = ndimage.label(heights_mm >= least_mm)
        peaks_mm = ndimage.maximum(heights_mm, bodies, np.arange(n_bodies + 1))
        seen = np.asarray(peaks_mm) >= peak_mm
        seen[0] = False  # what is thinner
        return np.where(seen[bodies], heights_mm, 0)

    # ---- Placement
    def _placed(self, thickness_mm):
        """Depth of every boundary in mm, (boundaries, slices, columns), and the number of rows that shows them."""
        knobs, rng = self.knobs, self.rng
        stacked = np.stack([thickness_mm[layer] for layer in LAYERS]).astype(np.float32)
        heights_mm = np.cumsum(stacked[::-1], axis=0)[::-1]  # of each layer's top above Bruch's membrane
        along = (self.x_mm - self.x_mm.mean()) / np.ptp(self.x_mm)  # -1/2 to 1/2
        bruch_mm = knobs("rise_mm") * along + 4 * knobs("sag_mm") * along**2
        bruch_mm = bruch_mm + knobs("undulation_mm") * self.field(0.8)
        bruch_mm = bruch_mm + rng.normal(0, knobs("motion_mm"), (self.shape[0], 1))
        if knobs.has("disorganised"):
            bruch_mm = bruch_mm + 0.004 * self.field(0.08)
        top_mm = (bruch_mm - heights_mm[RETINA_TOP]).min()
        above_mm = -rng.uniform(0, 0.15) if knobs.has("cut") else knobs("above_mm")
        bruch_mm = bruch_mm - top_mm + above_mm
        row_mm = self.spacing_mm[1]
        rows = int(np.clip((bruch_mm.max() + knobs("below_mm")) / row_mm, LEAST_ROWS, MOST_ROWS))
        if bruch_mm.max() + 0.06 > rows * row_mm:  # a bent retina that does not fit is cut at the top
            bruch_mm = bruch_mm - (bruch_mm.max() + 0.06 - rows * row_mm)
        tops_mm = bruch_mm - np.concatenate([heights_mm, np.zeros_like(heights_mm[:1])])
        return np.concatenate([tops_mm, tops_mm[-1] + CHOROID_DEPTHS_MM[1:, None, None]]).astype(np.float32), rows
