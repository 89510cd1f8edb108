"""Varied phantoms: B-scans whose anatomy, disease and appearance are drawn anew from `utils.phantom_ranges`.

Where `utils.phantom` imitates three scanners and the challenge's volumes of fluid, this is what a network is trained on
that has to cope with scans nobody foresaw. A case is a slab of few slices. Layers, subretinal fluid and detachments are
boundaries over the lateral plane, as in `utils.phantom_anatomy`; cysts are bodies of any outline in the image plane,
placed in the layers' own coordinates so that they bend with the retina.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from utils.labels import FLUIDS
from utils.phantom_anatomy import CHOROID_DEPTHS_MM, LAYER_GREYS, filled_columns, healthy_thicknesses, smooth_field
from utils.phantom_ranges import Knobs

IRF, SRF, PED = FLUIDS.values()
DECLARED_ROW_MM = 0.003872  # what the header says, whatever the truth
# Of a detachment: what is thinner, in mm or in rows, nobody could tell from the layers around; nor a whole one whose
# peak is lower.
LEAST_DETACHED, LEAST_PEAK = (0.012, 3), (0.035, 5)
LEAST_PIXELS = 25  # of a body of fluid in a B-scan; what is smaller has no label, as no reader would outline it
LEAST_ROWS, MOST_ROWS = 110, 640


def _with(greys, name, grey, before):
    """`greys` with one more layer `before` another."""
    items = list(greys.items())
    place = list(greys).index(before)
    return dict([*items[:place], (name, grey), *items[place:]])


_GREYS = _with(LAYER_GREYS, "preretinal gap", 12, before="nerve fibre layer")
_GREYS = _with(_GREYS, "epiretinal membrane", 215, before="preretinal gap")
_GREYS = _with(_GREYS, "subretinal material", 165, before="retinal pigment epithelium")
LAYERS = tuple(_GREYS)
RETINA_TOP = LAYERS.index("nerve fibre layer")
MEAN_TISSUE_GREY = 125

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


def generate_varied(slices=1, seed=0):
    """One varied case: voxels (slices, rows, columns; uint8), reference (likewise, labels 0-3) and spacing in mm.

    The spacing is (x, y, z), of which y is always Spectralis' nominal one: the drawn one differs from it by up to a
    factor of three, as in exports that were rescaled. `seed` is an int or a sequence of ints; equal ones give equal
    cases. Raises ValueError for less than one slice.
    """
    if slices < 1:
        raise ValueError(f"expected at least one slice, got {slices}")
    rng = np.random.default_rng(seed)
    knobs = Knobs(rng)
    spacing_mm = (knobs("column_mm"), knobs("row_mm"), knobs("slice_mm"))
    columns = knobs.count("columns")
    x_mm, z_mm = _lateral_grid(knobs, slices, columns, spacing_mm)
    eye = VariedEye(knobs, x_mm, z_mm, spacing_mm)
    render = VariedScanner(knobs, eye.rows, columns, spacing_mm)
    b_scans, labels = zip(*(eye.b_scan(index) for index in range(slices)), strict=True)
    voxels = np.stack([render(b_scan) for b_scan in b_scans])
    reference = np.stack(labels)
    for hidden, grey in render.hidden:
        voxels[:, hidden] = grey
        reference[:, hidden] = 0
    for labels in reference:
        _leave_out_specks(labels)
    return voxels, reference, (round(spacing_mm[0], 6), DECLARED_ROW_MM, round(spacing_mm[2], 6))


def _leave_out_specks(labels):
    """Set bodies of fewer than `LEAST_PIXELS` in `labels` (rows, columns; uint8) to background, in place."""
    for fluid in FLUIDS.values():
        _, bodies, statistics, _ = cv2.connectedComponentsWithStats(np.uint8(labels == fluid), connectivity=4)
        small = statistics[:, cv2.CC_STAT_AREA] < LEAST_PIXELS
        small[0] = False  # the background
        labels[small[bodies]] = 0


def _lateral_grid(knobs, slices, columns, spacing_mm):
    """x and z of every A-scan relative to the fovea, each (slices, columns) float32."""
    x_mm = (np.arange(columns) - (columns - 1) / 2) * spacing_mm[0]
    z_mm = (np.arange(slices) - (slices - 1) / 2) * spacing_mm[2]
    x_mm, z_mm = np.meshgrid(x_mm.astype(np.float32), z_mm.astype(np.float32))
    return x_mm + np.float32(0.35 * knobs("eccentricity_mm")), z_mm + np.float32(0.35 * knobs("eccentricity_mm"))


def _bump(x_mm, z_mm, centre, half_width, exponent=1.0):
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
        thickness_mm = self._thicknesses()
        self.boundaries_mm, self.rows = self._placed(thickness_mm)
        self.greys = self._greys(thickness_mm)
        self.appearance = {
            name: knobs(name)
            for name in ("tissue_texture", "choroid_texture", "choroid_texture_mm", "vitreous_texture", "cyst_texture")
        }
        self.wall_px, self.septum_px = knobs("wall_px"), knobs("septum_px")
        self.roughness = knobs("cyst_roughness")
        self.foci = self._draw_foci() if knobs.has("foci") else []
        self.rings = self._draw_rings() if knobs.has("tubulation") else []
        self.strands = int(self.rng.integers(1, 6)) if knobs.has("strands") else 0

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
        if knobs.has("no pit"):
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
            swelling_mm = knobs("oedema_mm") * _bump(x_mm, z_mm, centre, 2 * knobs("oedema_width_mm"), 1.5)
            for layer, part in (("outer nuclear layer", 0.6), ("inner nuclear layer", 0.25)):
                thickness_mm[layer] = thickness_mm[layer] + part * swelling_mm

        drusen_mm = np.zeros_like(x_mm)
        if knobs.has("drusen"):
            for _ in range(knobs.count("drusen")):
                radius_mm = knobs("druse_mm")
                mound = _bump(x_mm, z_mm, self.place(), radius_mm, rng.uniform(0.5, 1.5))
                drusen_mm = np.maximum(drusen_mm, min(radius_mm * rng.uniform(0.3, 0.8), 0.075) * mound)
        thickness_mm["drusen"] = drusen_mm
        ped_mm = np.zeros_like(x_mm)
        if knobs.has("PED"):
            ped_mm = self._domes(knobs("ped_mm"), knobs("ped_width_mm"), rng.integers(1, 4))
        thickness_mm["pigment epithelial detachment"] = ped_mm
        material_mm = np.zeros_like(x_mm)
        if knobs.has("material"):
            for _ in range(rng.integers(1, 3)):
                mound = _bump(x_mm, z_mm, self.place(), rng.uniform(0.1, 0.8))
                rough = np.clip(1 + 0.5 * self.field(0.06), 0.2, 2)
                material_mm = np.maximum(material_mm, knobs("material_mm") * mound * rough)
        thickness_mm["subretinal material"] = material_mm
        thickness_mm["subretinal fluid"] = np.zeros_like(x_mm)
        if knobs.has("SRF"):
            thickness_mm["subretinal fluid"] = self._subretinal_fluid(drusen_mm + ped_mm + material_mm)

        self.atrophy = np.zeros_like(x_mm)
        if knobs.has("atrophy"):
            self.atrophy = np.clip(3 * _bump(x_mm, z_mm, self.place(), knobs("atrophy_mm")), 0, 1)
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
        """Let the inner layers even out what lifts them: the retina's surface is smoother than what lies below."""
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
                    2
                    * cyst.half_height
                    * np.sqrt(_bump(self.x_mm, self.z_mm, (cyst.x, cyst.z), 1.25 * cyst.half_width))
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
        pit = np.clip(self.rng.uniform(1.2, 4) * _bump(self.x_mm, self.z_mm, self.place(), self.knobs("hole_mm")), 0, 1)
        for layer in LAYERS[RETINA_TOP : LAYERS.index("subretinal fluid")]:
            thickness_mm[layer] = thickness_mm[layer] * (1 - self.rng.uniform(0.6, 1.0) * pit)

    def _domes(self, height_mm, half_width_mm, lobes):
        """Height map in mm of a detachment: merged domes, steep or flat, whose surface is uneven."""
        heights_mm = np.zeros_like(self.x_mm)
        centre = self.place()
        for lobe in range(lobes):
            shift = self.rng.normal(0, 1.2 * half_width_mm) if lobe else 0.0
            dome = _bump(
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
        """`heights_mm` where fluid is thick enough to be told from the layers around it, else 0."""
        least_mm, peak_mm = (max(mm, rows * self.spacing_mm[1]) for mm, rows in (LEAST_DETACHED, LEAST_PEAK))
        bodies, n_bodies = ndimage.label(heights_mm >= least_mm)
        peaks_mm = ndimage.maximum(heights_mm, bodies, np.arange(n_bodies + 1))
        seen = np.asarray(peaks_mm) >= peak_mm
        seen[0] = False  # what is thinner
        return np.where(seen[bodies], heights_mm, 0)

    # ---- Placement and reflectivity
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

    def _greys(self, thickness_mm):
        """Grey map of every region between boundaries, (boundaries + 1, slices, columns), shadows included."""
        knobs, rng = self.knobs, self.rng
        contrast = np.full_like(self.x_mm, knobs("layer_contrast"))
        if knobs.has("disorganised"):
            contrast *= 1 - rng.uniform(0.4, 0.95) * np.clip(2 * _bump(self.x_mm, self.z_mm, self.place(), 1.2), 0, 1)
        lateral = knobs("lateral_variation")
        vitreous_grey = knobs("vitreous_grey")
        dark = vitreous_grey * rng.uniform(0.3, 1.3)
        own = {
            "retrohyaloid space": dark,
            "preretinal gap": dark,
            "hyaloid": rng.uniform(30, 130),
            "pigment epithelial detachment": knobs("ped_grey"),
            "drusen": rng.uniform(60, 180),
        }
        greys = [np.full_like(self.x_mm, vitreous_grey)]
        for layer, grey in _GREYS.items():
            if layer in own:
                tissue = np.full_like(self.x_mm, own[layer])
            elif layer == "subretinal fluid":
                tissue = np.full_like(self.x_mm, knobs("srf_grey") * MEAN_TISSUE_GREY)
            else:
                tissue = MEAN_TISSUE_GREY + contrast * (grey * knobs("layer_grey_factor") - MEAN_TISSUE_GREY)
            greys.append(np.clip(tissue * (1 + lateral * self.field(0.7)), 1, None))
        outer_nuclear = 1 + LAYERS.index("outer nuclear layer")
        if knobs.has("dark patch"):
            greys[outer_nuclear] = greys[outer_nuclear] * (1 - knobs("dark_patch") * np.clip(self.field(0.9), 0, 1))
        zones = [1 + LAYERS.index(layer) for layer in ("ellipsoid zone", "external limiting membrane")]
        lost = np.clip(rng.uniform(0, 1) * self.field(0.5), 0, 0.5)
        for zone in zones:
            greys[zone] = greys[zone] * (1 - lost)

        brightness = knobs("choroid_brightness") * (1 + rng.uniform(0.2, 1.2) * self.atrophy)
        bright_ped = own["pigment epithelial detachment"] > 40
        absorbed = np.clip(thickness_mm["pigment epithelial detachment"] / 0.3, 0, 1) * rng.uniform(0, 0.8) * bright_ped
        absorbed = np.maximum(absorbed, np.clip(thickness_mm["subretinal material"] / 0.1, 0, 1) * rng.uniform(0, 0.8))
        thickness = knobs("choroid_mm") * np.clip(1 + 0.25 * self.field(1.5), 0.4, None)
        decay_mm, sclera_drop = knobs("choroid_decay_mm"), rng.uniform(0, 0.6)
        for depth_mm in CHOROID_DEPTHS_MM:
            sclera = 1 / (1 + np.exp((thickness - depth_mm) / 0.03))
            greys.append(brightness * (1 - absorbed) * 165 * np.exp(-depth_mm / decay_mm) * (1 - sclera_drop * sclera))
        greys = np.stack(greys).astype(np.float32)

        self.vessels = []
        below_vessels = 1 + LAYERS.index("inner nuclear layer")
        for _ in range(knobs.count("vessels")):
            x, z = self.place()
            radius_mm = knobs("vessel_mm")
            across = np.exp(-(((self.x_mm - x) / (radius_mm * rng.uniform(0.8, 1.2))) ** 4))
            greys[below_vessels:] *= 1 - knobs("vessel_shadow") * across
            self.vessels.append((x, z, radius_mm))
        for _ in range(knobs.count("dark_shadows")):
            x, _ = self.place()
            across = np.exp(-(((self.x_mm - x) / knobs("dark_shadow_mm")) ** 4))
            first = 1 + rng.choice([RETINA_TOP, LAYERS.index("outer plexiform layer"), len(LAYERS)])
            greys[first:] *= 1 - knobs("vessel_shadow") * across
        return greys

    def _draw_foci(self):
        """(x, z, depth, radius in mm, grey) of bright dots between inner nuclear layer and pigment epithelium."""
        upper = self.boundary("ganglion cell and inner plexiform layer")
        lower = self.boundary("retinal pigment epithelium")
        foci = []
        for _ in range(self.knobs.count("foci")):
            index = tuple(self.rng.integers(size) for size in self.shape)
            share = self.rng.beta(2, 2)
            depth_mm = (1 - share) * upper[index] + share * lower[index]
            grey = self.rng.uniform(170, 260)
            foci.append((self.x_mm[index], self.z_mm[index], depth_mm, self.knobs("focus_mm"), grey))
        return foci

    def _draw_rings(self):
        outer = self.boundary("external limiting membrane")
        rings = []
        for _ in range(self.rng.integers(1, 4)):
            index = tuple(self.rng.integers(size) for size in self.shape)
            radius_mm = self.knobs("tubulation_mm")
            rings.append((self.x_mm[index], self.z_mm[index], outer[index] - radius_mm, radius_mm))
        return rings

    # ---- Drawing
    def b_scan(self, index):
        """Reflectivity (rows, columns; float32, grey values) and labels (likewise, uint8) of a slice."""
        row_mm, rows = self.spacing_mm[1], self.rows
        boundaries_px = self.boundaries_mm[:, index] / row_mm
        image = filled_columns(boundaries_px, self.greys[:, index], rows)
        image *= 1 + self._texture(boundaries_px)
        self._add_strands(image, boundaries_px)
        for x, z, depth_mm, radius_mm in self.rings:
            distance = self._distance(index, x, z, depth_mm, radius_mm)
            if distance is not None:
                box, d = distance
                image[box] += (30 - image[box]) * (d < 0.7) + (190 - image[box]) * ((d >= 0.7) & (d < 1.0))
        for x, z, radius_mm in self.vessels:
            column = int(np.abs(self.x_mm[index] - x).argmin())
            depth_mm = 0.5 * sum(
                self.boundary(layer)[index, column]
                for layer in ("ganglion cell and inner plexiform layer", "inner nuclear layer")
            )
            distance = self._distance(index, x, z, depth_mm, radius_mm)
            if distance is not None:
                box, d = distance
                image[box] += 45 * np.exp(-(((d - 0.8) / 0.4) ** 2))

        labels = np.zeros(image.shape, np.uint8)
        depth = np.arange(rows, dtype=np.float32)[:, None] + 0.5
        for label, layer in ((SRF, "subretinal fluid"), (PED, "pigment epithelial detachment")):
            first = LAYERS.index(layer)
            labels[(depth >= boundaries_px[first]) & (depth < boundaries_px[first + 1])] = label
        self._add_cysts(image, labels, index, boundaries_px)
        for x, z, depth_mm, radius_mm, grey in self.foci:
            distance = self._distance(index, x, z, depth_mm, 2 * radius_mm)
            if distance is not None:
                box, d = distance
                image[box] += (grey - image[box]) * np.exp(-((2 * d) ** 2))
        return image, labels

    def _distance(self, index, x, z, depth_mm, radius_mm):
        """Part of slice `index` around a point, and the distance to the point there in radii; None if out of sight."""
        if abs(z - self.z_mm[index, 0]) > max(radius_mm, self.spacing_mm[2] / 2):
            return None
        column = (x - self.x_mm[index, 0]) / self.spacing_mm[0]
        row = depth_mm / self.spacing_mm[1] - 0.5
        reach_columns, reach_rows = (int(np.ceil(1.5 * radius_mm / spacing)) for spacing in self.spacing_mm[:2])
        rows = slice(max(int(row) - reach_rows, 0), max(int(row) + reach_rows + 2, 0))
        columns = slice(max(int(column) - reach_columns, 0), max(int(column) + reach_columns + 2, 0))
        box = (rows, columns)
        y = np.arange(self.rows)[rows, None] - row
        x = np.arange(self.shape[1])[columns] - column
        if not (y.size and x.size):
            return None
        return box, np.hypot(y * self.spacing_mm[1], x * self.spacing_mm[0]) / radius_mm

    def _noise(self, correlation_mm, clip=2.0):
        """Smooth noise (rows, columns) of one slice, about standard normal, with structures of that size."""
        size = [
            max(3, int(length * spacing / correlation_mm) + 3)
            for length, spacing in zip(
                (self.rows, self.shape[1]), (self.spacing_mm[1], self.spacing_mm[0]), strict=True
            )
        ]
        knots = self.rng.standard_normal(size, dtype=np.float32) * 1.4
        noise = cv2.resize(knots, (self.shape[1], self.rows), interpolation=cv2.INTER_CUBIC)
        return np.clip(noise, -clip, clip)

    def _texture(self, boundaries_px):
        """Relative variation of grey values (rows, columns): haze in the vitreous, vessels in the choroid."""
        choroid = len(LAYERS)
        edges = boundaries_px[[RETINA_TOP, choroid, choroid + 3]]
        ones = np.ones(self.shape[1], np.float32)
        look = self.appearance
        vitreous = filled_columns(
            edges, np.stack([look["vitreous_texture"] * ones, 0 * ones, 0 * ones, 0 * ones]), self.rows
        )
        retina = filled_columns(
            edges, np.stack([0 * ones, look["tissue_texture"] * ones, 0 * ones, 0 * ones]), self.rows
        )
        deep = filled_columns(
            edges,
            np.stack([0 * ones, 0 * ones, 0.3 * look["choroid_texture"] * ones, look["choroid_texture"] * ones]),
            self.rows,
        )
        lumina = np.tanh(1.5 * self._noise(look["choroid_texture_mm"]))
        return vitreous * self._noise(0.3, 1.2) + retina * self._noise(0.05) + deep * 0.7 * lumina

    def _add_strands(self, image, boundaries_px):
        """Condensations of the vitreous: faint curved lines above the retina."""
        retina = boundaries_px[RETINA_TOP]
        for _ in range(self.strands):
            canvas = np.zeros(image.shape, np.float32)
            x = np.linspace(*np.sort(self.rng.uniform(-0.2, 1.2, 2)) * image.shape[1], 12)
            y = self.rng.uniform(0, max(retina.mean(), 2)) + np.cumsum(self.rng.normal(0, 9, 12))
            points = np.round(np.stack([x, y], 1)).astype(np.int32)
            cv2.polylines(canvas, [points], False, float(self.rng.uniform(10, 90)), int(self.rng.integers(1, 5)))
            canvas = cv2.GaussianBlur(canvas, (0, 0), self.rng.uniform(0.7, 5))
            image += canvas * (np.arange(self.rows)[:, None] < retina - 2)

    def _add_cysts(self, image, labels, index, boundaries_px):
        """Draw the slice's cysts into `image` and `labels` in place."""
        if not self.cysts:
            return
        row_mm, column_mm = self.spacing_mm[1], self.spacing_mm[0]
        nearest = np.full(image.shape, -1e3, np.float32)  # distance inside the border of the cyst that is deepest, px
        second = nearest.copy()
        share = np.ones(image.shape, np.float32)  # of the tissue's grey value that is left in it
        rough = self.roughness * self._noise(0.045)
        depth = np.arange(self.rows, dtype=np.float32)[:, None] + 0.5
        for cyst in self.cysts:
            upper, lower = (boundaries_px[LAYERS.index(layer)] for layer in HOSTS[cyst.host])
            column = (cyst.x - self.x_mm[index, 0]) / column_mm
            reach = 1.6 * cyst.half_width / column_mm + 3
            first, last = max(int(column - reach), 0), min(int(column + reach) + 2, image.shape[1])
            if first >= last:
                continue
            x = (np.arange(first, last, dtype=np.float32) - column) * column_mm / cyst.half_width
            z = (cyst.z - self.z_mm[index, 0]) / cyst.half_width
            middle = (upper + cyst.share * (lower - upper))[first:last]
            middle = middle + cyst.lean * cyst.half_height * np.clip(x, -1.5, 1.5) / row_mm
            half_rows = cyst.half_height / row_mm
            top, bottom = max(int(middle.min() - 1.6 * half_rows), 0), int(middle.max() + 1.6 * half_rows) + 2
            box = (slice(top, bottom), slice(first, last))
            y = (depth[top:bottom] - middle) / half_rows
            radius = (np.abs(x) ** cyst.exponent + np.abs(y) ** cyst.exponent + abs(z) ** cyst.exponent) ** (
                1 / cyst.exponent
            )
            scale_px = min(half_rows, cyst.half_width / column_mm)
            inside = (1 - radius + rough[box]) * scale_px
            deeper = inside > nearest[box]
            second[box] = np.where(deeper, nearest[box], np.maximum(second[box], inside))
            nearest[box] = np.where(deeper, inside, nearest[box])
            share[box] = np.where(deeper, cyst.grey, share[box])
        upper, lower = (boundaries_px[LAYERS.index(layer)] for layer in HOSTS["neuroretina"])
        margin = np.minimum(depth - upper - 1, lower - 1 - depth)
        inside = np.minimum(np.minimum(nearest, nearest - second - self.septum_px), margin)
        filled = np.clip(inside / self.wall_px + 0.5, 0, 1)
        content = MEAN_TISSUE_GREY * share * (1 + self.appearance["cyst_texture"] * self._noise(0.03))
        image += filled * (np.minimum(content, 0.8 * image) - image)
        labels[inside > 0] = IRF


class VariedScanner:
    """Appearance of one case: reflectivity to an exported B-scan, and the pixels that the export hides."""

    def __init__(self, knobs, rows, columns, spacing_mm):
        names = (
            "speckle grain_columns grain_rows noise_grey noise_exponent black_level blur_columns blur_rows "
            "roll_off_per_mm vignetting gain gamma offset saturation jpeg_quality log_step floor_grey tissue_looks"
        )
        self.rng = rng = knobs.rng
        self.looks = knobs.count("looks")
        self.look = {name: knobs(name) for name in names.split()}
        self.has = {name for name in ("median", "picture", "saturated", "logarithmic", "fine grain") if knobs.has(name)}
        depth_mm = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) * spacing_mm[1]
        along = np.linspace(-1, 1, columns, dtype=np.float32) - rng.uniform(-0.6, 0.6)
        self.light = np.exp(-self.look["roll_off_per_mm"] * depth_mm) * (
            1 - self.look["vignetting"] * np.clip(np.abs(along) - 0.4, 0, 1) ** 2
        )
        self.offset = self.look["offset"] * (rng.random() < 0.35)
        self.hidden = []  # (bool (rows, columns), grey value)
        row, column = np.ogrid[:rows, :columns]
        if knobs.has("wedge"):
            depth, width = rng.uniform(0.03, 0.3) * rows, rng.uniform(0.3, 1.5) * columns
            beside = column if rng.random() < 0.5 else columns - 1 - column
            below = row if rng.random() < 0.3 else rows - 1 - row
            self.hidden.append((below < depth * (1 - beside / width), 255))
        if knobs.has("edge line"):
            beside = column if rng.random() < 0.5 else columns - 1 - column
            self.hidden.append(((beside < rng.integers(1, 7)) & (row >= 0), rng.choice([0, 255])))

    def __call__(self, image):
        look = self.look
        image = cv2.GaussianBlur(image, (0, 0), look["blur_columns"], sigmaY=look["blur_rows"])
        image = np.float32(image * self.light)
        image = self.logarithmic_speckle(image) if "logarithmic" in self.has else self.multiplied_speckle(image)
        image = np.clip(image - look["black_level"], 0, None)
        image = 160 * (image / 160) ** look["gamma"] * look["gain"] + self.offset
        if "saturated" in self.has:
            image = np.clip(image, 0, look["saturation"]) * (255 / look["saturation"])
        # 0 and 255 are kept for what was never scanned.
        image = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
        if "median" in self.has:
            image = cv2.medianBlur(image, 3)
        if "picture" in self.has:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(look["jpeg_quality"])]
            image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_GRAYSCALE)
        return image

    def multiplied_speckle(self, image):
        """Speckle in proportion to the signal, and the detector's noise added in quadrature."""
        look = self.look
        rayleigh = np.sqrt(self.rng.standard_exponential(image.shape, dtype=np.float32)) * np.float32(
            2 / np.sqrt(np.pi)
        )
        image = image * (1 + look["speckle"] * (self.grained(rayleigh) - 1))
        exponent = look["noise_exponent"]
        noise = self.rng.standard_exponential(image.shape, dtype=np.float32) ** np.float32(exponent)
        noise = self.grained(noise * np.float32(look["noise_grey"] / math.gamma(1 + exponent)))
        return cv2.magnitude(np.clip(image, 0, None), noise)

    def logarithmic_speckle(self, image):
        """Grey values are the logarithm of an intensity, the tissue's and the noise's, each with speckle.

        The intensity of a field of random phase has an exponential distribution, whose logarithm has a long dark tail.
        """
        step = np.float32(self.look["log_step"])
        tissue = image / step + self.log_intensity(1, image.shape) / np.float32(math.sqrt(self.look["tissue_looks"]))
        noise = np.float32(self.look["floor_grey"]) / step + self.log_intensity(self.looks, image.shape)
        return step * np.logaddexp(tissue, noise)

    def log_intensity(self, looks, shape):
        """Logarithm of a speckled intensity of mean 1, averaged over `looks` exposures."""
        parts = [self.grained(self.rng.standard_normal(shape, np.float32)) for _ in range(2 * looks)]
        intensity = sum(part * part for part in parts)
        return np.log(intensity / intensity.mean() + np.float32(1e-6))

    def grained(self, noise):
        if "fine grain" in self.has:
            return noise
        return cv2.GaussianBlur(noise, (0, 0), self.look["grain_columns"], sigmaY=self.look["grain_rows"])
