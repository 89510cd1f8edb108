"""The scanner of a varied phantom: optics, speckle, noise, tone curve, and pixels that the export hides."""

import math

import cv2
import numpy as np

from utils.phantom.anatomy import in_quadrature


class VariedScanner:
    """Appearance of one case: reflectivity to an exported B-scan, and the pixels that the export hides."""

    def __init__(self, knobs, rows, columns, spacing_mm, padded_wedges=False):
        names = (
            "speckle grain_columns grain_rows noise_grey noise_exponent black_level blur_columns blur_rows "
            "roll_off_per_mm vignetting exposure gamma offset saturation jpeg_quality log_step floor_grey tissue_looks"
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
        self.gain = None  # of the export, set by the first B-scan
        self.offset = self.look["offset"] * (rng.random() < 0.35)
        self.hidden = []  # (bool (rows, columns), grey value)
        row, column = np.ogrid[:rows, :columns]
        if knobs.has("wedge") or padded_wedges:
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
        image = image ** np.float32(look["gamma"])
        if self.gain is None:
            self.gain = (look["exposure"] - self.offset) / max(np.percentile(image, 99), 1e-3)
        image = self.gain * image + self.offset
        if "saturated" in self.has:
            image = np.clip(image, 0, look["saturation"]) * (255 / look["saturation"])
        # 0 and 255 are valid grey values, too; `hidden` marks pixels that were never scanned.
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
        return in_quadrature(np.clip(image, 0, None), noise)

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
