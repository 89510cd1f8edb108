"""Draws a varied phantom's B-scans: tissues, shadows, and bodies of fluid with their labels."""

import cv2
import numpy as np

from utils.phantom.anatomy import CHOROID_DEPTHS_MM, filled_columns, haze_above
from utils.phantom.varied_eye import HOSTS, IRF, LAYER_GREYS, LAYERS, PED, RETINA_TOP, SRF, bump

MEAN_TISSUE_GREY = 125


class VariedDrawing:
    """Draws the B-scans of a `VariedEye`, slice by slice."""

    def __init__(self, eye):
        self.eye, self.knobs, self.rng = eye, eye.knobs, eye.rng
        self.greys = self._greys(eye.thickness_mm)
        self.appearance = {
            name: self.knobs(name)
            for name in ("tissue_texture", "choroid_texture", "choroid_texture_mm", "vitreous_texture", "cyst_texture")
        }
        self.wall_px, self.septum_px = self.knobs("wall_px"), self.knobs("septum_px")
        self.roughness = self.knobs("cyst_roughness")
        self.foci = self._draw_foci() if self.knobs.has("foci") else []
        self.rings = self._draw_rings() if self.knobs.has("tubulation") else []
        self.strands = int(self.rng.integers(1, 6)) if self.knobs.has("strands") else 0
        names = ("haze_grey", "haze_mm", "haze_softness_mm")
        self.haze = [self.knobs(name) for name in names] if self.knobs.has("haze") else None

    def _greys(self, thickness_mm):
        """Grey map of every region between boundaries, (boundaries + 1, slices, columns), shadows included."""
        eye, knobs, rng = self.eye, self.knobs, self.rng
        contrast = np.full_like(eye.x_mm, knobs("layer_contrast"))
        if knobs.has("disorganised"):
            contrast *= 1 - rng.uniform(0.4, 0.95) * np.clip(2 * bump(eye.x_mm, eye.z_mm, eye.place(), 1.2), 0, 1)
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
        greys = [np.full_like(eye.x_mm, vitreous_grey)]
        for layer, grey in LAYER_GREYS.items():
            if layer in own:
                tissue = np.full_like(eye.x_mm, own[layer])
            elif layer == "subretinal fluid":
                tissue = np.full_like(eye.x_mm, knobs("srf_grey") * MEAN_TISSUE_GREY)
            else:
                tissue = MEAN_TISSUE_GREY + contrast * (grey * knobs("layer_grey_factor") - MEAN_TISSUE_GREY)
            greys.append(np.clip(tissue * (1 + lateral * eye.field(0.7)), 1, None))
        outer_nuclear = 1 + LAYERS.index("outer nuclear layer")
        if knobs.has("dark patch"):
            greys[outer_nuclear] = greys[outer_nuclear] * (1 - knobs("dark_patch") * np.clip(eye.field(0.9), 0, 1))
        zones = [1 + LAYERS.index(layer) for layer in ("ellipsoid zone", "external limiting membrane")]
        lost = np.clip(rng.uniform(0, 1) * eye.field(0.5), 0, 0.5)
        for zone in zones:
            greys[zone] = greys[zone] * (1 - lost)

        brightness = knobs("choroid_brightness") * (1 + rng.uniform(0.2, 1.2) * eye.atrophy)
        bright_ped = own["pigment epithelial detachment"] > 40
        absorbed = np.clip(thickness_mm["pigment epithelial detachment"] / 0.3, 0, 1) * rng.uniform(0, 0.8) * bright_ped
        absorbed = np.maximum(absorbed, np.clip(thickness_mm["subretinal material"] / 0.1, 0, 1) * rng.uniform(0, 0.8))
        thickness = knobs("choroid_mm") * np.clip(1 + 0.25 * eye.field(1.5), 0.4, None)
        decay_mm, sclera_drop = knobs("choroid_decay_mm"), rng.uniform(0, 0.6)
        for depth_mm in CHOROID_DEPTHS_MM:
            sclera = 1 / (1 + np.exp((thickness - depth_mm) / 0.03))
            greys.append(brightness * (1 - absorbed) * 165 * np.exp(-depth_mm / decay_mm) * (1 - sclera_drop * sclera))
        greys = np.stack(greys).astype(np.float32)

        self.vessels = []
        below_vessels = 1 + LAYERS.index("inner nuclear layer")
        for _ in range(knobs.count("vessels")):
            x, z = eye.place()
            radius_mm = knobs("vessel_mm")
            across = np.exp(-(((eye.x_mm - x) / (radius_mm * rng.uniform(0.8, 1.2))) ** 4))
            greys[below_vessels:] *= 1 - knobs("vessel_shadow") * across
            self.vessels.append((x, z, radius_mm))
        for _ in range(knobs.count("dark_shadows")):
            x, _ = eye.place()
            across = np.exp(-(((eye.x_mm - x) / knobs("dark_shadow_mm")) ** 4))
            first = 1 + rng.choice([RETINA_TOP, LAYERS.index("outer plexiform layer"), len(LAYERS)])
            greys[first:] *= 1 - knobs("vessel_shadow") * across
        return greys

    def _draw_foci(self):
        """(x, z, depth, radius in mm, grey) of bright dots between inner nuclear layer and pigment epithelium."""
        eye = self.eye
        upper = eye.boundary("ganglion cell and inner plexiform layer")
        lower = eye.boundary("retinal pigment epithelium")
        foci = []
        for _ in range(self.knobs.count("foci")):
            index = tuple(self.rng.integers(size) for size in eye.shape)
            share = self.rng.beta(2, 2)
            depth_mm = (1 - share) * upper[index] + share * lower[index]
            grey = self.rng.uniform(170, 260)
            foci.append((eye.x_mm[index], eye.z_mm[index], depth_mm, self.knobs("focus_mm"), grey))
        return foci

    def _draw_rings(self):
        eye = self.eye
        outer = eye.boundary("external limiting membrane")
        rings = []
        for _ in range(self.rng.integers(1, 4)):
            index = tuple(self.rng.integers(size) for size in eye.shape)
            radius_mm = self.knobs("tubulation_mm")
            rings.append((eye.x_mm[index], eye.z_mm[index], outer[index] - radius_mm, radius_mm))
        return rings

    # ---- B-scans
    def b_scan(self, index):
        """Reflectivity (rows, columns; float32, grey values) and labels (likewise, uint8) of a slice."""
        eye = self.eye
        row_mm, rows = eye.spacing_mm[1], eye.rows
        boundaries_px = eye.boundaries_mm[:, index] / row_mm
        image = filled_columns(boundaries_px, self.greys[:, index], rows)
        if self.haze:
            image = np.maximum(image, haze_above(boundaries_px[RETINA_TOP], rows, row_mm, *self.haze))
        image *= 1 + self._texture(boundaries_px)
        self._add_strands(image, boundaries_px)
        for x, z, depth_mm, radius_mm in self.rings:
            distance = self._distance(index, x, z, depth_mm, radius_mm)
            if distance is not None:
                box, d = distance
                image[box] += (30 - image[box]) * (d < 0.7) + (190 - image[box]) * ((d >= 0.7) & (d < 1.0))
        for x, z, radius_mm in self.vessels:
            column = int(np.abs(eye.x_mm[index] - x).argmin())
            depth_mm = 0.5 * sum(
                eye.boundary(layer)[index, column]
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
        eye = self.eye
        if abs(z - eye.z_mm[index, 0]) > max(radius_mm, eye.spacing_mm[2] / 2):
            return None
        column = (x - eye.x_mm[index, 0]) / eye.spacing_mm[0]
        row = depth_mm / eye.spacing_mm[1] - 0.5
        reach_columns, reach_rows = (int(np.ceil(1.5 * radius_mm / spacing)) for spacing in eye.spacing_mm[:2])
        rows = slice(max(int(row) - reach_rows, 0), max(int(row) + reach_rows + 2, 0))
        columns = slice(max(int(column) - reach_columns, 0), max(int(column) + reach_columns + 2, 0))
        box = (rows, columns)
        y = np.arange(eye.rows)[rows, None] - row
        x = np.arange(eye.shape[1])[columns] - column
        if not (y.size and x.size):
            return None
        return box, np.hypot(y * eye.spacing_mm[1], x * eye.spacing_mm[0]) / radius_mm

    def _noise(self, correlation_mm, clip=2.0):
        """Smooth noise (rows, columns) of one slice, about standard normal, with structures of that size."""
        eye = self.eye
        size = [
            max(3, int(length * spacing / correlation_mm) + 3)
            for length, spacing in zip((eye.rows, eye.shape[1]), (eye.spacing_mm[1], eye.spacing_mm[0]), strict=True)
        ]
        knots = self.rng.standard_normal(size, dtype=np.float32) * 1.4
        noise = cv2.resize(knots, (eye.shape[1], eye.rows), interpolation=cv2.INTER_CUBIC)
        return np.clip(noise, -clip, clip)

    def _texture(self, boundaries_px):
        """Relative variation of grey values (rows, columns): haze in the vitreous, vessels in the choroid."""
        eye = self.eye
        choroid = len(LAYERS)
        edges = boundaries_px[[RETINA_TOP, choroid, choroid + 3]]
        ones = np.ones(eye.shape[1], np.float32)
        look = self.appearance

        def textured(*strengths):
            return filled_columns(edges, np.float32(strengths)[:, None] * ones, eye.rows)

        vitreous, retina = textured(look["vitreous_texture"], 0, 0, 0), textured(0, look["tissue_texture"], 0, 0)
        deep = textured(0, 0, 0.3 * look["choroid_texture"], look["choroid_texture"])
        lumina = np.tanh(1.5 * self._noise(look["choroid_texture_mm"]))
        return vitreous * self._noise(0.3, 1.2) + retina * self._noise(0.05) + deep * 0.7 * lumina

    def _add_strands(self, image, boundaries_px):
        """Condensations of the vitreous: faint curved lines above the retina."""
        eye = self.eye
        retina = boundaries_px[RETINA_TOP]
        for _ in range(self.strands):
            canvas = np.zeros(image.shape, np.float32)
            x = np.linspace(*np.sort(self.rng.uniform(-0.2, 1.2, 2)) * image.shape[1], 12)
            y = self.rng.uniform(0, max(retina.mean(), 2)) + np.cumsum(self.rng.normal(0, 9, 12))
            points = np.round(np.stack([x, y], 1)).astype(np.int32)
            cv2.polylines(canvas, [points], False, float(self.rng.uniform(10, 90)), int(self.rng.integers(1, 5)))
            canvas = cv2.GaussianBlur(canvas, (0, 0), self.rng.uniform(0.7, 5))
            image += canvas * (np.arange(eye.rows)[:, None] < retina - 2)

    def _add_cysts(self, image, labels, index, boundaries_px):
        """Draw the slice's cysts into `image` and `labels` in place."""
        eye = self.eye
        if not eye.cysts:
            return
        row_mm, column_mm = eye.spacing_mm[1], eye.spacing_mm[0]
        nearest = np.full(image.shape, -1e3, np.float32)  # distance inside the border of the cyst that is deepest, px
        second = nearest.copy()
        share = np.ones(image.shape, np.float32)  # of the tissue's grey value that is left in it
        rough = self.roughness * self._noise(0.045)
        depth = np.arange(eye.rows, dtype=np.float32)[:, None] + 0.5
        for cyst in eye.cysts:
            upper, lower = (boundaries_px[LAYERS.index(layer)] for layer in HOSTS[cyst.host])
            column = (cyst.x - eye.x_mm[index, 0]) / column_mm
            reach = 1.6 * cyst.half_width / column_mm + 3
            first, last = max(int(column - reach), 0), min(int(column + reach) + 2, image.shape[1])
            if first >= last:
                continue
            x = (np.arange(first, last, dtype=np.float32) - column) * column_mm / cyst.half_width
            z = (cyst.z - eye.z_mm[index, 0]) / cyst.half_width
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
