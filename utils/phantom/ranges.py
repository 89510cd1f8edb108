"""The table of what varies between varied phantoms, how far, and why; for `utils.phantom.varied`.

Appearance varies more than between real scanners, so that a real scanner is one more variation to the trained network.
Anatomy stays within what real eyes have. (Domain randomisation, as in SynthSeg: Billot et al., Medical Image Analysis
86, 2023.) Lengths are in mm unless a name says otherwise. Grey values are 0-255.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`. They, or with `log` their logarithms, are uniformly distributed."""

    low: float
    high: float
    reason: str
    log: bool = False

    def draw(self, rng):
        if self.log:
            return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return float(rng.uniform(self.low, self.high))


RANGES = {
    # ---- The image's grid
    "column_mm": Range(0.0055, 0.0180, "high-resolution to fast and wide scans; exports at other widths"),
    "row_mm": Range(0.00385, 0.0039, "Spectralis': another one would be resampled, which smooths the noise"),
    "columns": Range(400, 640, "usually 512; also crops and half-scans"),
    "slice_mm": Range(0.03, 0.13, "from Cirrus to Spectralis"),
    "above_mm": Range(0.01, 1.0, "vitreous above the retina: tight crops to long scans", log=True),
    "below_mm": Range(0.08, 1.2, "choroid and what follows below Bruch's membrane", log=True),
    # ---- Shape of the eye
    "rise_mm": Range(-1.2, 1.2, "from one side of the scan to the other, where the beam enters off the axis"),
    "sag_mm": Range(
        -0.9, 0.4, "of the sides below the middle: they rise in myopic eyes, and fall where a dome lifts it"
    ),
    "undulation_mm": Range(0.0, 0.020, "uneven Bruch's membrane"),
    "motion_mm": Range(0.001, 0.03, "axial eye motion between slices", log=True),
    "eccentricity_mm": Range(-0.91, 0.91, "where the image's centre lies from the fovea, both ways"),
    "surface_mm": Range(
        0.05, 0.5, "lateral distance over which the retina's surface evens out what lifts it", log=True
    ),
    "layer_scale": Range(0.70, 1.35, "thickness of all layers: thin myopic, thick young retinas", log=True),
    "one_layer_scale": Range(0.65, 1.5, "thickness of each single layer", log=True),
    # ---- Reflectivity
    "layer_contrast": Range(0.35, 1.25, "1: Spectralis after averaging; low where media are cloudy"),
    "layer_grey_factor": Range(0.72, 1.35, "each layer's own", log=True),
    "lateral_variation": Range(0.02, 0.15, "of a layer's grey value along the scan"),
    "tissue_texture": Range(0.0, 0.14, "coarse variation of grey value within the retina"),
    "choroid_brightness": Range(0.35, 1.4, "pigmented to albinotic fundus", log=True),
    "choroid_decay_mm": Range(0.10, 0.9, "depth at which it is down to a third: scanner's wavelength, depth imaging"),
    "choroid_texture": Range(0.05, 0.65, "contrast of choroidal vessels"),
    "choroid_texture_mm": Range(0.03, 0.15, "their calibre"),
    "choroid_mm": Range(0.10, 0.45, "thickness of the choroid"),
    "vitreous_grey": Range(1.0, 70.0, "empty to bright vitreous", log=True),
    "vitreous_texture": Range(0.0, 0.8, "unevenness of the haze"),
    "haze_grey": Range(15.0, 90.0, "haze that ends somewhere above the retina"),
    "haze_mm": Range(0.03, 0.6, "height of its upper border above the retina"),
    "haze_softness_mm": Range(0.002, 0.05, "over which it fades there", log=True),
    # ---- Scanner
    "looks": Range(1, 2, "exposures averaged, where grey values are the logarithm of the signal"),
    "log_step": Range(12.0, 34.0, "grey values per factor e of the signal: 92 to 32 dB from black to white"),
    "floor_grey": Range(6.0, 45.0, "grey value of the noise where there is no signal: vitreous, fluid"),
    "tissue_looks": Range(
        1.0, 200.0, "averaging smooths tissue but not the noise floor; deconvolution adds to that", log=True
    ),
    "speckle": Range(0.06, 0.95, "averaged over hundreds of exposures, or one", log=True),
    "grain_columns": Range(0.3, 1.1, "size of speckle along the scan, pixels"),
    "grain_rows": Range(0.3, 1.4, "size of speckle along the depth, pixels"),
    "noise_grey": Range(8.0, 45.0, "detector noise, the vitreous' grain", log=True),
    "noise_exponent": Range(0.5, 1.1, "0.5: Rayleigh, 1: exponential"),
    "black_level": Range(0.0, 15.0, "signal below it is exported as black"),
    "blur_columns": Range(0.3, 0.9, "lateral resolution, pixels"),
    "blur_rows": Range(0.3, 1.4, "axial resolution, pixels"),
    "roll_off_per_mm": Range(-0.1, 0.6, "loss of signal with depth; negative in enhanced depth imaging"),
    "vignetting": Range(0.0, 0.7, "loss of signal towards the sides, where the pupil cuts the beam"),
    "exposure": Range(120.0, 240.0, "grey value that 1 % of the pixels exceed: exports use the available range"),
    "gamma": Range(0.7, 1.35, "tone curve of the export", log=True),
    "offset": Range(0.0, 38.0, "grey value of black: Topcon's is 35"),
    "saturation": Range(170.0, 255.0, "grey value above which an export may clip"),
    "jpeg_quality": Range(35, 95, "of exports as pictures"),
    # ---- Shadows
    "vessels": Range(0, 9, "large vessels that cross the scan"),
    "vessel_mm": Range(0.015, 0.09, "half their calibre", log=True),
    "vessel_shadow": Range(0.1, 0.85, "share of light that one takes"),
    "dark_shadows": Range(0, 4, "floaters, haemorrhage, exudates: dark columns"),
    "dark_shadow_mm": Range(0.03, 0.5, "half their width", log=True),
    # ---- Confounders
    "drusen": Range(1, 14, "mounds under the pigment epithelium, not labelled"),
    "druse_mm": Range(0.02, 0.14, "their radius"),
    "atrophy_mm": Range(0.2, 1.5, "half-width of lost outer retina", log=True),
    "membrane_mm": Range(0.006, 0.03, "thickness of an epiretinal membrane"),
    "material_mm": Range(0.02, 0.14, "height of subretinal hyperreflective material"),
    "foci": Range(0, 45, "hyperreflective foci, exudates"),
    "focus_mm": Range(0.006, 0.028, "their radius"),
    "tubulation_mm": Range(0.02, 0.06, "radius of outer retinal tubulation: a bright ring, not labelled"),
    "hole_mm": Range(0.05, 0.7, "half-width of a steep pit or hole, which is vitreous, not fluid", log=True),
    "dark_patch": Range(0.1, 0.5, "loss of brightness of a patch of the outer nuclear layer that is not fluid"),
    # ---- Fluid
    "cyst_grey": Range(0.04, 0.52, "share of the grey value of the tissue around it: clear or proteinaceous", log=True),
    "cyst_texture": Range(0.0, 0.35, "unevenness of a cyst's content"),
    "wall_px": Range(0.5, 3.0, "softness of a body's border, pixels"),
    "septum_px": Range(0.0, 4.0, "tissue left between two cysts, pixels"),
    "cyst_roughness": Range(0.0, 0.3, "irregularity of outlines"),
    "clusters": Range(1, 6, "groups of cysts in a scan"),
    "oedema_mm": Range(0.0, 0.30, "swelling of the tissue around them"),
    "oedema_width_mm": Range(0.3, 1.4, "half its width"),
    "srf_mm": Range(0.04, 0.50, "height of subretinal fluid: a slit to a high detachment", log=True),
    "srf_width_mm": Range(0.2, 2.0, "half its width", log=True),
    "pocket_slope": Range(
        0.05, 0.7, "fall in mm per mm of the retina beside a peak of the floor, which leaves a pocket"
    ),
    "srf_grey": Range(0.04, 0.45, "share of the grey value of the tissue around it", log=True),
    "ped_mm": Range(0.07, 1.0, "height of a pigment epithelial detachment", log=True),
    "ped_width_mm": Range(0.15, 2.0, "half its width", log=True),
    "ped_grey": Range(5.0, 150.0, "serous to fibrovascular or drusenoid", log=True),
    "roof_roughness_mm": Range(0.0, 0.010, "shaggy outer segments over a detachment"),
}

# Name: (share of the scans that have it, why).
SHARES = {
    "IRF": (0.60, "most frequent in diabetic oedema and in neovascular disease"),
    "SRF": (0.50, "alone and beside other fluid"),
    "PED": (0.40, "alone and beside other fluid"),
    "pockets": (0.60, "of SRF: between the peaks of detachments, drusen and material, and at their feet"),
    "no pit": (0.15, "scans beside the fovea, or a fovea that never formed"),
    "detached hyaloid": (0.35, "age"),
    "haze": (0.20, "bleeding, inflammation, the vitreous' cortex; its border is no retina's"),
    "strands": (0.15, "condensations of the vitreous"),
    "epiretinal membrane": (0.25, "a bright line on the retina, over dark gaps that are no fluid"),
    "drusen": (0.35, "age-related degeneration"),
    "atrophy": (0.15, "outer retina lost, choroid bright"),
    "material": (0.20, "of neovascular disease"),
    "tubulation": (0.10, "over atrophy"),
    "foci": (0.50, "diabetes"),
    "hole": (0.12, "macular holes, traction, the disc's cup"),
    "dark patch": (0.35, "oblique light on Henle's fibres"),
    "disorganised": (0.20, "inner layers that cannot be told apart"),
    "logarithmic": (0.75, "the logarithm gives speckle a tail of black pixels; other exports have none"),
    "fine grain": (0.2, "speckle of single pixels; else as large as the grain"),
    "saturated": (0.30, "exports that clip"),
    "median": (0.30, "what preprocessing does to Cirrus and Topcon"),
    "picture": (0.30, "exported as JPEG"),
    "wedge": (0.15, "white corners beside a rotated scan"),
    "edge line": (0.10, "a white or black line left at the side by cropping"),
    "cut": (0.12, "retina cut by the image's upper border"),
}


class Knobs:
    """Draws values of `RANGES` and outcomes of `SHARES` by name, from one generator `rng`."""

    def __init__(self, rng):
        self.rng = rng

    def __call__(self, name):
        """A value of the range."""
        return RANGES[name].draw(self.rng)

    def count(self, name):
        """A whole number of the range, both ends included."""
        return int(self.rng.integers(int(RANGES[name].low), int(RANGES[name].high) + 1))

    def has(self, name):
        """Whether this scan is one of the share that has it."""
        return self.rng.random() < SHARES[name][0]
