"""Small imitations of the layouts in which other people's images and outlines come."""

import json

import numpy as np
import SimpleITK
from matplotlib.path import Path as Outline
from PIL import Image

ROWS, COLUMNS = 300, 140
# x, y of a cyst and of fluid below it, in pixels from the image's corner; no pixel's centre lies on an edge.
CYST = [(20.25, 140.3), (60.8, 139.6), (55.4, 151.2), (30.1, 155.7)]
FLUID = [(70.0, 160.0), (110.0, 160.0), (110.0, 175.0), (90.0, 168.3), (70.0, 175.0)]
DRUSEN = [(100.2, 190.1), (120.9, 190.4), (111.3, 197.7)]


def picture(seed=0):
    """Grey values (rows, columns; uint8): a bright band between dark ones."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 100, (ROWS, COLUMNS))
    pixels[100:200] = rng.integers(100, 256, (100, COLUMNS))
    return pixels.astype(np.uint8)


def inside(points):
    """Bool (rows, columns): the pixels whose centres are within an outline, as matplotlib finds them."""
    row, column = np.indices((ROWS, COLUMNS)) + 0.5
    return Outline(points).contains_points(np.column_stack([column.ravel(), row.ravel()])).reshape(ROWS, COLUMNS)


def expected_labels():
    """Labels (1, rows, columns; uint8) of CYST as IRF and FLUID as SRF."""
    return (inside(CYST) * 1 + inside(FLUID) * 2)[np.newaxis].astype(np.uint8)


def save(path, pixels, **options):
    """Write pixels as the picture that the path's suffix says; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def coloured(colours):
    """(rows, columns, 3): each outline of {colour: points} filled."""
    mask = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    for colour, points in colours.items():
        mask[inside(points)] = colour
    return mask


def write_coco(path, images, categories=("eye", "cyst", "fluid", "drusen")):
    """A COCO file; `images` is {file name: [(category, segmentation), ...]}. The pictures are written beside it."""
    content = {"categories": [{"id": n, "name": name} for n, name in enumerate(categories)]}
    content["images"] = [
        {"id": n, "file_name": name, "width": COLUMNS, "height": ROWS} for n, name in enumerate(images)
    ]
    content["annotations"] = []
    for number, outlines in enumerate(images.values()):
        for category, segmentation in outlines:
            entry = {"id": len(content["annotations"]), "image_id": number, "iscrowd": 0, "bbox": [0, 0, 9, 9]}
            entry |= {"category_id": categories.index(category), "segmentation": segmentation}
            content["annotations"].append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(images):
        save(path.parent / name, picture(number), quality=95)
    path.write_text(json.dumps(content))


def flat(points):
    """A COCO polygon of points."""
    return [[coordinate for point in points for coordinate in point]]


def yolo_line(number, points):
    """A line of YOLO's for an outline."""
    shares = [f"{x / COLUMNS:.9f} {y / ROWS:.9f}" for x, y in points]
    return f"{number} {' '.join(shares)}\n"


def write_nifti(path, voxels, spacing_mm):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(spacing_mm)
    SimpleITK.WriteImage(image, str(path))
