"""Writers of Heidelberg's XML and Topcon's files, as small as they may be, of drawn volumes."""

import io
import struct

import numpy as np
from PIL import Image

SPACING_MM = (0.0122, 0.0039, 0.24)
LOCALIZER_MM = 0.02
NAMES = ["FCD0BEC0", "1D430890", "BD6DE920", "0A4C11F0", "77E23410", "3F00A2C0"]  # as HEYEX chooses them


# ---- Heidelberg's XML ----------------------------------------------------------------------------------------------
def image_text(kind, name, shape, scales, *, line=None, eye=None):
    """An <Image>: `shape` (rows, columns), `scales` (x, y) and `line` (x, y, x, y) in mm, `eye` as HEYEX 1 has it."""
    start_end = ""
    if line is not None:
        coords = [f"<Coord><X>{x:.4f}</X><Y>{y:.4f}</Y></Coord>" for x, y in (line[:2], line[2:])]
        start_end = f"<Start>{coords[0]}</Start><End>{coords[1]}</End>"
    return (
        f"<Image>{f'<Laterality>{eye}</Laterality>' if eye else ''}<ImageType><Type>{kind}</Type></ImageType>"
        f"<OphthalmicAcquisitionContext><Width>{shape[1]}</Width><Height>{shape[0]}</Height>"
        f"<ScaleX>{scales[0]}</ScaleX><ScaleY>{scales[1]}</ScaleY>{start_end}</OphthalmicAcquisitionContext>"
        f"<ImageData><ExamURL>file:///C:\\HRAExport\\{name}</ExamURL></ImageData></Image>"
    )


def series_text(images, *, eye=None, kind="Volume", stated=None):
    """A <Series> of `image_text`s; `eye` as later versions have it."""
    eye = f"<Laterality>{eye}</Laterality>" if eye else ""
    return f"<Series><Type>{kind}</Type>{eye}<NumImages>{stated or len(images)}</NumImages>{''.join(images)}</Series>"


def export_text(*series, version=True):
    """A whole export of `series_text`s."""
    return (
        f"<HEDX><BODY>{'<SWVersion><Version>1.12</Version></SWVersion>' if version else ''}<Patient>"
        "<LastName>Osterhase</LastName><FirstNames>Kunigunde</FirstNames>"
        "<Birthdate><Date><Year>1953</Year><Month>4</Month><Day>5</Day></Date></Birthdate>"
        "<Study><StudyDate><Date><Year>2000</Year><Month>1</Month><Day>31</Day></Date></StudyDate>"
        f"{''.join(series)}</Study></Patient></BODY></HEDX>"
    )


def lines_of(count, length_mm=6.0, top_mm=3.0, step_mm=SPACING_MM[2]):
    """Start and end of horizontal B-scans, one below the other."""
    return [(1.0, top_mm + step_mm * index, 1.0 + length_mm, top_mm + step_mm * index) for index in range(count)]


def write_xml(folder, voxels, *, old=True, names=NAMES, suffix=".tif", saved_as=None):
    """An export of one volume, uint8 (slices, rows, columns), left eye, in the form of HEYEX 1 or a later one."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, columns = voxels.shape[1:], voxels.shape[2]
    eye = "L" if old else None
    localizer = np.full((40, 40, 3), 90, np.uint8)
    images = [image_text("LOCALIZER", f"{names[0]}{suffix}", (40, 40), (LOCALIZER_MM,) * 2, eye=eye)]
    Image.fromarray(localizer).save(folder / f"{names[0]}{saved_as or suffix}")
    for slice_, name, line in zip(voxels, names[1:], lines_of(len(voxels), columns * SPACING_MM[0]), strict=False):
        images.append(image_text("OCT", f"{name}{suffix}", shape, SPACING_MM[:2], line=line, eye=eye))
        pixels = np.stack([slice_] * 3, axis=-1) if old else slice_
        Image.fromarray(pixels).save(folder / f"{name}{saved_as or suffix}")
    path = folder / "8A5705D0.xml"
    path.write_text(export_text(series_text(images, eye=None if old else "L"), version=not old), "utf-8")
    return path


# ---- Topcon --------------------------------------------------------------------------------------------------------
def block(name, content):
    return bytes([len(name)]) + name.encode() + struct.pack("<I", len(content)) + content


def write_topcon(path, voxels, spacing_mm=SPACING_MM, *, pictures=True, name="@IMG_SCAN_03", mode=2, eye=1):
    """A .fda of JPEG 2000 without loss, from uint8 (slices, rows, columns); or plain values of 16 bits."""
    slices, rows, columns = voxels.shape
    if pictures:
        content = struct.pack("<B6I", mode, 0, 0, columns, rows, slices, 0)
        for slice_ in voxels:
            file = io.BytesIO()
            Image.fromarray(slice_).save(file, "JPEG2000", irreversible=False, no_jp2=True)
            content += struct.pack("<I", len(file.getvalue())) + file.getvalue()
        scan = block("@IMG_JPEG", content)
    else:
        values = voxels.astype("<u2").tobytes()
        scan = block(name, struct.pack("<B4IBI", mode, columns, rows, 16, slices, 0, len(values)) + values)
    sizes = (spacing_mm[0] * columns, spacing_mm[2] * slices, spacing_mm[1] * 1000)
    written = block("@PARAM_SCAN_04", bytes(12) + struct.pack("<3d", *sizes) + bytes(25))
    written += block("@PATIENT_INFO_02", b"Osterhase".ljust(32, b"\0") + bytes(583))
    fundus = io.BytesIO()  # reddish, scanned from column 10 and row 8 to 30 and 28
    Image.fromarray(np.full((40, 50, 3), (200, 100, 50), np.uint8)).save(fundus, "JPEG2000", no_jp2=True)
    written += block("@IMG_FUNDUS", struct.pack("<6I", 50, 40, 24, 1, 0, len(fundus.getvalue())) + fundus.getvalue())
    written += block("@EFFECTIVE_SCAN_RANGE", struct.pack("<8I", 10, 8, 30, 28, 0, 0, 0, 0))
    captured = bytes([eye, mode]) + bytes(104) + struct.pack("<6H", 2000, 1, 31, 9, 23, 36)
    end = block("@CAPTURE_INFO_02", captured) + b"\0"
    path.write_bytes(b"FOCTFDA" + struct.pack("<2I", 1, 1001) + written + scan + end)
