"""The eye behind a phantom: retinal layers, fluids and confounders as smooth en-face maps in millimetres.

An eye is a stack of layers over the lateral plane (x along a B-scan, z across the B-scans). Each layer has a thickness
map. Depths are sums of thicknesses from Bruch's membrane upwards, so a thicker layer lifts all layers above it. SRF and
PED are layers of their own. Cysts are intervals inside a nuclear layer that is thick enough to hold them. A fluid's
volume is therefore the sum of its height map, and scaling the map gives any wanted volume.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from utils.labels import FLUIDS

IRF, SRF, PED = FLUIDS.values()

# Thin layers from vitreous to choroid, with their grey value (0-255) in a Spectralis export. The values of the fluid
# layers are visible only through their blurred walls.
LAYER_GREYS = {
    "hyaloid": 60,
    "retrohyaloid space": 4,
    "nerve fibre layer": 190,
    "ganglion cell and inner plexiform layer": 156,
    "inner nuclear layer": 102,
    "outer plexiform layer": 148,
    "outer nuclear layer": 84,
    "external limiting membrane": 128,
    "myoid zone": 98,
    "ellipsoid zone": 205,
    "outer segments": 135,
    "subretinal fluid": 40,
    "retinal pigment epithelium": 238,
    "pigment epithelial detachment": 70,
    "drusen": 150,
}
LAYERS = tuple(LAYER_GREYS)
CYSTIC_LAYERS = ("inner nuclear layer", "outer nuclear layer")
VITREOUS_GREY = 4
CHOROID_DEPTHS_MM = np.array(
    [0.0, 0.012, 0.03, 0.06, 0.1, 0.14, 0.18, 0.23, 0.28, 0.34, 0.42, 0.5, 0.6, 0.7, 0.85, 1.0]
)

EYE_WIDTH_MM = 6.2  # side of the square that every map below covers, a little wider than any scan
LEAST_VITREOUS_MM, LEAST_CHOROID_MM = 0.10, 0.22  # between the retina and the upper and lower end of the image
CYST_WALL_MM = 0.012  # tissue left between a cyst and its nuclear layer's borders, both sides together


@dataclass(frozen=True)
class Fluid:
    """One fluid as a depth interval in each column. Maps are float32 (slices, columns)."""

    label: int
    top_mm: np.ndarray
    bottom_mm: np.ndarray  # equal to top_mm where there is no fluid
    grey: np.ndarray  # 0-255


@dataclass(frozen=True)
class Eye:
    """Everything that `utils.phantom` renders, over all slices of the full-depth volume."""

    boundaries_mm: np.ndarray  # float32 (boundaries, slices, columns), depth of each layer's top, then of choroid steps
    greys: np.ndarray  # float32 (boundaries + 1, slices, columns), what lies above, between and below the boundaries
    fluids: tuple  # of Fluid; their intervals never overlap
    foci_mm: np.ndarray  # (foci, 4): x, z, depth, radius of hyperreflective foci
    texture: np.ndarray  # float32 (planes, depths, columns), coarse standard normal noise filling the volume

    def boundary_mm(self, layer):
        """Depth of the top of `layer` (a name in LAYERS, or "choroid": Bruch's membrane), (slices, columns)."""
        return self.boundaries_mm[(*LAYERS, "choroid").index(layer)]


def lateral_grid_mm(slices, columns, spacing_mm):
    """x and z of every A-scan relative to the volume's centre, each (slices, columns) float32."""
    x_mm = (np.arange(columns) - (columns - 1) / 2) * spacing_mm[0]
    z_mm = (np.arange(slices) - (slices - 1) / 2) * spacing_mm[2]
    x_mm, z_mm = np.meshgrid(x_mm.astype(np.float32), z_mm.astype(np.float32))
    return x_mm, z_mm


def create_eye(rng, depth_mm, slices, columns, spacing_mm, fluid_mm3):
    """Draw an eye that fits an image of `depth_mm` and holds `fluid_mm3`, {label: volume in mm3, 0 for none}."""
    x_mm, z_mm = lateral_grid_mm(slices, columns, spacing_mm)
    a_scan_mm2 = spacing_mm[0] * spacing_mm[2]
    fovea_mm = rng.normal(0, 0.12, 2)
    nasal = rng.choice([-1, 1])  # the side of the optic disc: +1 in a right eye
    lesion_mm = fovea_mm + rng.normal(0, 0.2, 2)

    cysts_mm = cyst_heights(rng, x_mm, z_mm, lesion_mm, fluid_mm3.get(IRF, 0), a_scan_mm2)
    srf_mm = dome_heights(rng, x_mm, z_mm, lesion_mm, fluid_mm3.get(SRF, 0), a_scan_mm2, lobes=1)
    ped_mm = dome_heights(rng, x_mm, z_mm, lesion_mm, fluid_mm3.get(PED, 0), a_scan_mm2, lobes=rng.integers(1, 4))
    vessels = vessel_map(rng, x_mm, z_mm, nasal)

    thickness_mm = healthy_thicknesses(rng, np.hypot(x_mm - fovea_mm[0], z_mm - fovea_mm[1]), x_mm * nasal)
    thickness_mm["nerve fibre layer"] += 0.012 * vessels
    drusen_mm = drusen_heights(rng, x_mm, z_mm, fovea_mm)  # these press into the outer nuclear layer, lifting little
    thickness_mm["outer nuclear layer"] -= np.minimum(0.8 * drusen_mm, 0.7 * thickness_mm["outer nuclear layer"])
    for layer, height_mm in zip(CYSTIC_LAYERS, cysts_mm, strict=True):
        swelling_mm = oedema_heights(height_mm, spacing_mm)
        thickness_mm[layer] = np.maximum(thickness_mm[layer] + swelling_mm, height_mm + CYST_WALL_MM)
    thickness_mm |= {"subretinal fluid": srf_mm, "pigment epithelial detachment": ped_mm, "drusen": drusen_mm}

    tops_mm = placed_in_image(rng, np.stack([thickness_mm[layer] for layer in LAYERS]), x_mm, z_mm, depth_mm)
    boundaries_mm = np.concatenate([tops_mm, tops_mm[-1] + CHOROID_DEPTHS_MM[1:, None, None]]).astype(np.float32)
    shadow = 1 - vessels * rng.uniform(0.45, 0.65)
    fluids = tuple(create_fluids(rng, tops_mm, thickness_mm, cysts_mm, x_mm, z_mm))
    return Eye(
        boundaries_mm=boundaries_mm,
        greys=tissue_greys(rng, x_mm, z_mm, shadow, ped_mm),
        fluids=fluids,
        foci_mm=hyperreflective_foci(rng, tops_mm, x_mm, z_mm),
        texture=rng.standard_normal((64, 36, 64), dtype=np.float32),
    )


def smooth_field(rng, x_mm, z_mm, correlation_mm):
    """Smooth noise over the lateral plane, about standard normal, with structures of `correlation_mm`."""
    knots = int(np.ceil(EYE_WIDTH_MM / correlation_mm)) + 3
    return sampled(rng.standard_normal((knots, knots), dtype=np.float32) * 1.5, x_mm, z_mm)


def sampled(canvas, x_mm, z_mm):
    """Values of a square `canvas` (z, x) that covers the eye's width, cubically interpolated at x_mm and z_mm."""
    scale = (canvas.shape[0] - 1) / EYE_WIDTH_MM
    columns, rows = ((position + EYE_WIDTH_MM / 2) * scale for position in (x_mm, z_mm))
    return cv2.remap(canvas, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def filled_columns(boundaries_px, values, rows):
    """Image (rows, columns) whose columns hold `values` (boundaries + 1, columns) between sorted `boundaries_px`.

    A pixel cut by a boundary gets the mean of both sides, weighted by area: the steps from value to value, each shared
    between two rows, are summed down the columns.
    """
    steps = np.zeros((rows + 1, values.shape[1]), np.float32)
    steps[0] = values[0]
    columns = np.arange(values.shape[1])
    position = np.clip(boundaries_px, 0, rows - 1e-3)
    row = position.astype(int)
    below = (position - row) * np.diff(values, axis=0)
    for boundary, step in enumerate(np.diff(values, axis=0)):
        steps[row[boundary], columns] += step - below[boundary]
        steps[row[boundary] + 1, columns] += below[boundary]
    return np.cumsum(steps[:-1], axis=0)


def in_quadrature(signal, noise):
    """Root of the sum of squares, float32. That of `cv2.magnitude` depends on where the arrays lie in memory."""
    return np.sqrt(signal * signal + noise * noise)


def haze_above(retina_px, rows, row_mm, grey, height_mm, softness_mm):
    """Grey values (rows, columns; float32) of haze in the vitreous, up to `height_mm` above the retina.

    `retina_px` (columns,) is the retina's surface in rows. The haze is `grey` bright and fades over `softness_mm`.
    """
    above_mm = (retina_px - np.arange(rows, dtype=np.float32)[:, None] - 0.5) * row_mm
    haze = grey / (1 + np.exp(np.clip((above_mm - height_mm) / softness_mm, -30, 30)))
    return np.where(above_mm > 0, haze, 0).astype(np.float32)


def healthy_thicknesses(rng, eccentricity_mm, nasal_mm):
    """Thickness of every layer except fluid and drusen, {layer: mm}, from the distance to the fovea's centre.

    Inner layers vanish in the foveal pit. The outer nuclear layer and the outer segments are thickest there. The nerve
    fibre layer grows towards the optic disc. Values are round ones, chosen for a rim of 0.3 mm and a centre of 0.23.
    """
    pit_mm = rng.uniform(0.45, 0.65)
    rim = 1 - np.exp(-((eccentricity_mm / pit_mm) ** 2))
    centre = np.exp(-((eccentricity_mm / 0.6) ** 2))
    thinning = np.exp(-np.maximum(eccentricity_mm - 1, 0) / 6)
    scale = rng.uniform(0.82, 0.98)
    thickness_mm = {
        "nerve fibre layer": 0.007 + rim * np.clip(0.024 + 0.008 * nasal_mm, 0.012, None),
        "ganglion cell and inner plexiform layer": 0.003 + 0.078 * rim * thinning**2,
        "inner nuclear layer": 0.003 + 0.036 * rim * thinning,
        "outer plexiform layer": 0.010 + 0.018 * rim,
        "outer nuclear layer": (0.072 + 0.05 * centre) * thinning,
        "external limiting membrane": np.full_like(rim, 0.007),
        "myoid zone": 0.018 + 0.006 * centre,
        "ellipsoid zone": np.full_like(rim, 0.018),
        "outer segments": 0.022 + 0.014 * centre,
        "retinal pigment epithelium": np.full_like(rim, 0.024),
    }
    thickness_mm = {layer: value * scale for layer, value in thickness_mm.items()}
    detached = rng.random() < 0.35  # posterior hyaloid detached, but still within the image
    thickness_mm["hyaloid"] = np.full_like(rim, 0.008 * detached)
    thickness_mm["retrohyaloid space"] = detached * (0.05 + 0.12 * (1 - np.exp(-((eccentricity_mm / 2) ** 2))))
    return thickness_mm


def dome_heights(rng, x_mm, z_mm, centre_mm, volume_mm3, a_scan_mm2, lobes):
    """Height map in mm of a lens (SRF) or dome (PED) of `volume_mm3` near `centre_mm`: `lobes` merged paraboloids."""
    height_mm = np.zeros_like(x_mm)
    if volume_mm3 == 0:
        return height_mm
    peak_mm = rng.uniform(0.26, 0.36) * np.cbrt(volume_mm3)
    radius_mm = np.sqrt(2 * volume_mm3 / (np.pi * peak_mm))  # a paraboloid holds pi r^2 h / 2
    x_mm, z_mm = warped(rng, x_mm, z_mm, 0.12 * radius_mm, max(0.6 * radius_mm, 0.15))
    centres_mm = centre_mm + rng.uniform(-0.3, 0.3, 2) * radius_mm
    elongation = rng.uniform(0.85, 1.2)
    for lobe in range(lobes):
        lobe_mm = centres_mm + (rng.uniform(-0.8, 0.8, 2) * radius_mm if lobe else 0)
        size = rng.uniform(0.35, 0.6) if lobe else 1
        distance = np.hypot((x_mm - lobe_mm[0]) / elongation, (z_mm - lobe_mm[1]) * elongation) / (size * radius_mm)
        height_mm = np.maximum(height_mm, peak_mm * size * np.clip(1 - distance**2, 0, None))
    return height_mm * np.float32(volume_mm3 / (height_mm.sum() * a_scan_mm2))


def cyst_heights(rng, x_mm, z_mm, centre_mm, volume_mm3, a_scan_mm2):
    """Height maps in mm of cysts with a total of `volume_mm3`: for the inner and for the outer nuclear layer.

    Ellipsoids are placed at random in a disk around `centre_mm`. One that would touch another in its layer is placed
    again, and the disk grows a little. So septa remain between neighbours, as in cystoid oedema.
    """
    heights_mm = [np.zeros_like(x_mm), np.zeros_like(x_mm)]
    if volume_mm3 == 0:
        return heights_mm
    x_mm, z_mm = warped(rng, x_mm, z_mm, 0.03, 0.25)
    scale_mm = np.clip(0.4 * np.cbrt(volume_mm3), 0.10, 0.40)
    cluster_mm = 1.5 * scale_mm
    cysts, missing_mm3 = [], volume_mm3
    while missing_mm3 > 0:
        outer = rng.random() < 0.65 or not cysts
        radius_mm = scale_mm * rng.uniform(0.35, 1.0) * (1 if outer else 0.55)
        half_height_mm = min(radius_mm * rng.uniform(0.5, 0.9), 0.22 if outer else 0.045)
        angle, distance_mm = rng.uniform(0, 2 * np.pi), cluster_mm * np.sqrt(rng.random()) * bool(cysts)
        x, z = centre_mm + distance_mm * np.array([np.cos(angle), np.sin(angle)])
        if any(outer == o and np.hypot(x - cx, z - cz) < radius_mm + r + 0.015 for cx, cz, r, o in cysts):
            cluster_mm *= 1.02
            continue
        cysts.append((x, z, radius_mm, outer))
        square = 1 - ((x_mm - x) ** 2 + (z_mm - z) ** 2) / radius_mm**2
        heights_mm[outer] += 2 * half_height_mm * np.sqrt(np.clip(square, 0, None))
        missing_mm3 -= 4 / 3 * np.pi * radius_mm**2 * half_height_mm
    measured_mm3 = sum(height_mm.sum() for height_mm in heights_mm) * a_scan_mm2
    return [height_mm * np.float32(volume_mm3 / measured_mm3) for height_mm in heights_mm]


def oedema_heights(cyst_height_mm, spacing_mm):
    """Smooth swelling in mm of a layer that holds cysts. It extends beyond them and does not follow each one."""
    reach_z, reach_x = (max(1, round(0.2 / spacing)) for spacing in (spacing_mm[2], spacing_mm[0]))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_x + 1, 2 * reach_z + 1))
    envelope_mm = cv2.dilate(cyst_height_mm, disk)
    return 0.8 * cv2.GaussianBlur(envelope_mm, (0, 0), 0.22 / spacing_mm[0], sigmaY=0.22 / spacing_mm[2])


def warped(rng, x_mm, z_mm, shift_mm, correlation_mm):
    """The lateral grid, bent by smooth shifts so that circles drawn on it become irregular."""
    return tuple(axis + np.float32(shift_mm) * smooth_field(rng, x_mm, z_mm, correlation_mm) for axis in (x_mm, z_mm))


def drusen_heights(rng, x_mm, z_mm, fovea_mm):
    """Height map in mm of 0 to 20 drusen, small mounds under the RPE that carry no label."""
    height_mm = np.zeros_like(x_mm)
    for _ in range(rng.integers(0, 21)):
        x, z = fovea_mm + rng.normal(0, 1.0, 2)
        radius_mm = rng.uniform(0.05, 0.16)
        mound = np.clip(1 - ((x_mm - x) ** 2 + (z_mm - z) ** 2) / radius_mm**2, 0, None)
        height_mm = np.maximum(height_mm, radius_mm * rng.uniform(0.25, 0.5) * mound)
    return height_mm


def vessel_map(rng, x_mm, z_mm, nasal):
    """Opacity 0-1 of retinal vessels: two arcades from the optic disc around the fovea, with branches towards it."""
    pixels = 512
    canvas = np.zeros((pixels, pixels), np.float32)
    steps = np.linspace(0, 1, 40)

    def draw(x, z, width_mm):
        points = (np.stack([x, z], 1) + EYE_WIDTH_MM / 2) / EYE_WIDTH_MM * (pixels - 1)
        width = max(1, round(width_mm / EYE_WIDTH_MM * pixels))
        cv2.polylines(canvas, [np.round(points).astype(np.int32)], isClosed=False, color=1.0, thickness=width)

    for side in (-1, 1):
        height_mm = rng.uniform(1.7, 2.3)
        x = nasal * (3.4 - 6.8 * steps)
        z = side * (0.5 + height_mm * np.sin(np.pi * np.clip(steps * 1.1, 0, 1)) ** 0.7)
        z += 0.08 * np.sin(steps * rng.uniform(15, 30) + rng.uniform(0, 6))
        draw(x, z, rng.uniform(0.07, 0.11))
        for start in rng.choice(np.arange(6, 34), rng.integers(3, 6), replace=False):
            end = rng.normal(0, 0.25) + 0.75 * nasal * rng.choice([-1, 1]), side * rng.uniform(0.5, 0.9)
            bend = 0.2 * rng.normal() * np.sin(np.pi * steps)
            draw(x[start] + (end[0] - x[start]) * steps + bend, z[start] + (end[1] - z[start]) * steps, 0.03)
    return np.clip(sampled(cv2.GaussianBlur(canvas, (0, 0), 1.2), x_mm, z_mm), 0, 1)


def placed_in_image(rng, thickness_mm, x_mm, z_mm, depth_mm):
    """Depths of all layer tops and of Bruch's membrane, (layers + 1, slices, columns), inside an image of `depth_mm`.

    Bruch's membrane is a tilted bowl, with slight eye motion between slices. Where the retina would leave the image,
    the bowl is made flatter.
    """
    heights_mm = np.cumsum(thickness_mm[::-1], axis=0)[::-1]  # of each layer's top above Bruch's membrane
    tilt_x, tilt_z = rng.normal(0, [0.045, 0.025])
    bowl_mm = tilt_x * x_mm + tilt_z * z_mm - rng.uniform(0.005, 0.03) * (x_mm**2 + z_mm**2)
    bowl_mm += 0.004 * smooth_field(rng, x_mm, z_mm, 1.0) + rng.normal(0, 0.003, (len(x_mm), 1))
    room_mm = depth_mm - LEAST_VITREOUS_MM - LEAST_CHOROID_MM
    retina_mm = heights_mm[LAYERS.index("nerve fibre layer")]
    for _ in range(12):
        extent_mm = bowl_mm.max() - (bowl_mm - retina_mm).min()
        if extent_mm <= room_mm:
            break
        bowl_mm *= 0.8
    slack_mm = max(room_mm - extent_mm, 0)
    bruch_mm = bowl_mm - (bowl_mm - retina_mm).min() + LEAST_VITREOUS_MM + slack_mm * rng.uniform(0.25, 0.75)
    return bruch_mm - np.concatenate([heights_mm, np.zeros_like(heights_mm[:1])])


def create_fluids(rng, tops_mm, thickness_mm, cysts_mm, x_mm, z_mm):
    """Yield every Fluid; serous fluid is nearly black, a PED may be partly filled with tissue and then is grey."""

    def grey(mean, variation):
        return np.clip(mean + variation * smooth_field(rng, x_mm, z_mm, 0.4), 16, None)

    serous_grey = rng.uniform(24, 34)
    for layer, height_mm in zip(CYSTIC_LAYERS, cysts_mm, strict=True):
        free_mm = thickness_mm[layer] - height_mm
        share = np.clip(0.5 + 0.15 * smooth_field(rng, x_mm, z_mm, 0.4), 0.2, 0.8)
        top_mm = tops_mm[LAYERS.index(layer)] + free_mm * share
        yield Fluid(IRF, top_mm, top_mm + height_mm, grey(serous_grey, 4))
    for label, layer in ((SRF, "subretinal fluid"), (PED, "pigment epithelial detachment")):
        top_mm = tops_mm[LAYERS.index(layer)]
        mean, variation = (serous_grey + 2, 4) if label == SRF else (rng.uniform(30, 80), 12)
        yield Fluid(label, top_mm, top_mm + thickness_mm[layer], grey(mean, variation))


def tissue_greys(rng, x_mm, z_mm, vessel_shadow, ped_mm):
    """Grey map of every region between boundaries, (boundaries + 1, slices, columns), shadows included.

    Two confounders are here: dark shadows without a vessel, and patches of the outer nuclear layer as dark as fluid.
    """
    greys = [np.full_like(x_mm, VITREOUS_GREY)]
    for grey in LAYER_GREYS.values():
        contrast = 0.05 * smooth_field(rng, x_mm, z_mm, 0.8) + rng.normal(0, 0.03)
        greys.append(grey * (1 + contrast))
    outer_nuclear = 1 + LAYERS.index("outer nuclear layer")
    greys[outer_nuclear] *= 1 - 0.45 * np.clip(smooth_field(rng, x_mm, z_mm, 0.9) - 0.7, 0, 1)
    brightness = rng.uniform(0.75, 1.05) * (1 - 0.45 * np.clip(ped_mm / 0.3, 0, 1))
    thickness_mm = rng.uniform(0.18, 0.32) + 0.03 * smooth_field(rng, x_mm, z_mm, 1.5)
    for depth_mm in CHOROID_DEPTHS_MM:
        sclera = 1 / (1 + np.exp((thickness_mm - depth_mm) / 0.03))
        greys.append(brightness * (165 * np.exp(-depth_mm / 0.38) * (1 - 0.35 * sclera)))
    greys = np.stack(greys).astype(np.float32)

    opacity = np.ones_like(x_mm)
    for _ in range(rng.integers(0, 4)):
        x, z = rng.uniform(-2.7, 2.7, 2)
        distance = np.hypot((x_mm - x) / rng.uniform(0.06, 0.25), (z_mm - z) / rng.uniform(0.15, 0.5))
        opacity *= 1 - rng.uniform(0.4, 0.75) * np.exp(-(distance**4))
    below_vessels = 1 + LAYERS.index("ganglion cell and inner plexiform layer")
    greys[1 + LAYERS.index("nerve fibre layer") :] *= opacity
    greys[below_vessels:] *= vessel_shadow
    return greys


def hyperreflective_foci(rng, tops_mm, x_mm, z_mm):
    """(foci, 4): x, z, depth, radius in mm of 0 to 60 bright dots between inner nuclear layer and photoreceptors."""
    count = rng.integers(0, 61)
    upper, lower = (tops_mm[LAYERS.index(layer)] for layer in ("inner nuclear layer", "myoid zone"))
    slices, columns = (rng.integers(0, size, count) for size in x_mm.shape)
    share = rng.uniform(0.1, 0.9, count)
    depth_mm = (1 - share) * upper[slices, columns] + share * lower[slices, columns]
    return np.stack([x_mm[slices, columns], z_mm[slices, columns], depth_mm, rng.uniform(0.008, 0.02, count)], 1)
