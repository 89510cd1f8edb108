"""Images with masks in files as cases: small imitations, read back; what must be refused, in a line."""

import numpy as np
import pytest
import SimpleITK
from dicoms import save as save_dicom
from dicoms import tomography
from foreign_data import COLUMNS, CYST, DRUSEN, FLUID, ROWS, coloured, expected_labels, inside, picture, save
from importing import BY_COLOUR, COLOURS, PAIRED, SPACING_MM, read_case, refusal, run_import, write_pairs
from PIL import Image

from utils.errors import InputError
from utils.importing.mask_files import read_mask
from utils.volumes.formats import read_content
from utils.volumes.mhd import read_volume, write_volume


def test_coloured_masks(tmp_path, capsys):
    write_pairs(tmp_path / "source", coloured({**COLOURS, (0, 0, 255): DRUSEN, (9, 9, 9): [(0, 0), (5, 0), (0, 5)]}))
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR, "OTHER3=0,0,255", "BACKGROUND=9,9,9")
    for number, name in enumerate(("1__1-a", "2__2-b")):
        voxels, reference = read_case(output, name)
        np.testing.assert_array_equal(voxels[0], picture(number))
        np.testing.assert_array_equal(reference, expected_labels())
        other, _ = read_volume(output / "Spectralis" / name / "other.mhd")
        np.testing.assert_array_equal(other[0], inside(DRUSEN) * 3)
    printed = capsys.readouterr().out
    assert "PATIENT_PATTERN = r'^(.+?)__'" in printed
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.count(",") == 2}
    assert rows["255,0,0"] == ["IRF", "2", str(2 * inside(CYST).sum())]
    assert rows["0,0,255"] == ["OTHER3", "2", str(2 * inside(DRUSEN).sum())]


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (coloured({(255, 0, 0): CYST, (9, 9, 9): FLUID}), [*PAIRED, "--labels", "IRF=255,0,0", "IGNORE=9,9,9"]),
        (inside(CYST) + np.uint8(255) * inside(FLUID), [*PAIRED, "--labels", "IRF=1", "IGNORE=255"]),
    ],
)
def test_a_class_that_says_that_nobody_judged(tmp_path, mask, options):
    """Without it, its value is an error that names the option."""
    write_pairs(tmp_path / "source", mask, names=("1-a",))
    (line,) = refusal(tmp_path, "masks", *options[:-1])
    assert "add what is missing to --labels (IGNORE= where nobody judged it), or" in line
    _, reference = read_case(run_import(tmp_path, "masks", *options), "1__1-a")
    np.testing.assert_array_equal(reference[0], np.select([inside(CYST), inside(FLUID)], [1, 255]))


def test_a_palette_that_shows_0_as_white_leaves_open_which_number_is_fluid(tmp_path):
    source = tmp_path / "source"
    write_pairs(source, inside(CYST).astype(np.uint8), names=("1-a",))
    (path,) = (source / "masks").iterdir()
    page = Image.fromarray((~inside(CYST)).astype(np.uint8), mode="P")
    page.putpalette([255, 255, 255, 0, 0, 0])
    page.save(path)
    (line,) = refusal(tmp_path, "masks", *PAIRED, "--labels", "IRF=1")
    assert f"{path}: its palette shows 0 as white" in line
    _, reference = read_case(run_import(tmp_path, "masks", *PAIRED, "--labels", "IRF=255,255,255"), "1__1-a")
    np.testing.assert_array_equal(reference[0], inside(CYST))


@pytest.mark.parametrize("kind", ["grey", "palette", "grey as colour", "16 bits in TIFF", "MetaImage"])
def test_numbered_masks(tmp_path, kind):
    source = tmp_path / "source"
    numbers = np.select([inside(CYST), inside(FLUID)], [7, 40]).astype(np.uint8)
    write_pairs(source, numbers)
    folder, suffix = source / "masks", {"16 bits in TIFF": "tif", "MetaImage": "mhd"}.get(kind, "png")
    for path in list(folder.iterdir()):
        if kind == "palette":
            image = Image.fromarray(numbers, mode="P")
            image.putpalette([255, 0, 0] * 256)  # colours that say nothing
            image.save(path)
        elif kind == "grey as colour":
            save(path, np.stack([numbers] * 3, axis=-1))
        elif kind == "16 bits in TIFF":
            save(path.with_suffix(".tif"), numbers.astype(np.uint16))
        elif kind == "MetaImage":
            write_volume(path.with_suffix(".mhd"), numbers[np.newaxis], SPACING_MM)
    options = ["--images", "images/*.png", "--masks", f"masks/*.{suffix}", "--labels", "IRF=7", "SRF=40"]
    output = run_import(tmp_path, "masks", *options)
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1], expected_labels())


def in_opacity(mode, colour, opacity):
    """A picture of one `colour` throughout, of Pillow's `mode`, with a mask as its opacity."""
    if mode == "P":
        image = Image.fromarray(opacity, mode="P")
        image.putpalette([*colour] * 256)
        image.info["transparency"] = bytes(range(256))
        return image
    image = Image.new(mode.removesuffix("A"), (COLUMNS, ROWS), colour if mode == "RGBA" else colour[0])
    image.putalpha(Image.fromarray(opacity))
    return image


@pytest.mark.parametrize(
    ("mode", "colour", "values", "by_opacity"),
    [
        ("RGBA", (0, 0, 0), (255, 0), True),
        ("LA", (0,), (1, 2), True),
        ("P", (0, 0, 0), (1, 2), True),
        ("RGBA", (255, 255, 255), (100, 200), True),
        ("RGBA", (7, 7, 7), (255, 0), False),  # 7 where it is opaque
        ("LA", (0,), (0, 0), False),  # an empty mask
    ],
)
def test_masks_in_the_opacity(tmp_path, mode, colour, values, by_opacity, capsys):
    source = tmp_path / "source"
    save(source / "images" / "1-a.png", picture())
    (source / "masks").mkdir()
    opacity = np.select([inside(CYST), inside(FLUID)], values).astype(np.uint8)
    in_opacity(mode, colour, opacity).save(source / "masks" / "1-a.png")
    cyst, fluid = values if by_opacity else (7, 8)
    labels = [f"IRF={cyst}", *([f"SRF={fluid}"] if fluid else [])]
    output = run_import(tmp_path, "masks", *PAIRED, "--labels", *labels)
    expected = [bool(value) * label for label, value in enumerate(values, 1)]
    expected = np.select([inside(CYST), inside(FLUID)], expected)
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1][0], expected)
    assert ("warning: 1 pages are of one colour throughout; their op" in capsys.readouterr().out) == by_opacity
    if by_opacity and not any(colour):
        with pytest.raises(InputError) as caught:
            run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR)
        (line,) = caught.value.messages
        assert "1-a.png: black, with a mask in its opacity, expected colours; state numbers: --labels IRF=255" in line


@pytest.mark.parametrize("full", [1, 255])
def test_one_mask_a_fluid(tmp_path, full):
    source = tmp_path / "source"
    for name in ("1-a", "2-b"):
        save(source / name / "image.png", picture())
        save(source / name / "irf.png", inside(CYST).astype(np.uint8) * full)
    save(source / "1-a" / "srf.png", inside(FLUID).astype(np.uint8) * full)
    options = ["--images", "*/image.png", "--masks", "IRF=*/irf.png", "SRF=*/srf.png"]
    assert refusal(tmp_path, "masks", *options) == [
        "2-b/image.png: has no mask like */srf.png; add it, or say what that means: --without-mask background or "
        "leave-out"
    ]
    output = run_import(tmp_path, "masks", *options, "--without-mask", "background")
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1], expected_labels())
    np.testing.assert_array_equal(read_case(output, "2__2-b")[1][0], inside(CYST))


def test_images_without_a_mask_are_left_out_where_that_is_said(tmp_path, capsys):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    (tmp_path / "source" / "masks" / "2-b.png").unlink()
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR, "--without-mask", "leave-out")
    assert [path.name for path in output.glob("*/*")] == ["1__1-a"]
    assert "1 images have none: leave-out" in capsys.readouterr().out


def test_jpeg_masks_need_a_tolerance(tmp_path, capsys):
    write_pairs(tmp_path / "source", inside(CYST).astype(np.uint8) * 255, suffix=".jpg")
    options = ["--images", "images/*.png", "--masks", "IRF=masks/*.jpg"]
    lines = refusal(tmp_path, "masks", *options)
    for name, line in zip(("1-a", "2-b"), lines, strict=True):
        assert f"masks/{name}.jpg: holds " in line
        assert "more values, expected 0, 255; add" in line
    output = run_import(tmp_path, "masks", *options, "--tolerance", "127")
    with Image.open(tmp_path / "source" / "masks" / "1-a.jpg") as image:
        stored = np.asarray(image)
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1][0], stored >= 128)
    blurred = 2 * np.count_nonzero((stored > 0) & (stored < 255))
    assert f"warning: {blurred} pixels of values that are not stated" in capsys.readouterr().out


def block(rim_value, inner_value, shape):
    """A mask of 0 with a block of 20 x 20 pixels; those beside it, and at its corners, have the rim's value."""
    mask = np.zeros((ROWS, COLUMNS, *shape), np.uint8)
    mask[140:162, 40:62] = rim_value
    mask[141:161, 41:61] = inner_value
    return mask


@pytest.mark.parametrize(
    ("mask", "options", "expected"),
    [
        (block(2, 3, ()), ["SRF=2", "PED=3"], "80 pixels of class '2' are a thin rim between two others"),
        (block(90, 255, ()), ["IRF=85", "PED=255", "--tolerance", "20"], "80 pixels of class '85' are a thin rim"),
        (block((127, 0, 0), (255, 0, 0), (3,)), ["IRF=255,0,0", "SRF=127,0,0"], "80 pixels of class '127,0,0' are a"),
        (block(3, 2, ()), ["SRF=2", "PED=3"], None),  # 3 is not between 0 and 2
        (block(0, 2, ()), ["SRF=2", "PED=3"], None),
        (block(3, 3, ()) - np.pad(np.ones((10, 1), np.uint8), ((145, 145), (40, 99))), ["SRF=2", "PED=3"], None),
    ],
)
def test_thin_rims_between_two_classes_are_warned_of(tmp_path, mask, options, expected, capsys):
    """As interpolation leaves them. The last has ten pixels of 2 at the edge of 3; at 78 of 88 places 3 touches 0."""
    write_pairs(tmp_path / "source", mask, names=("1-a",))
    command = ["masks", *PAIRED, "--labels", *options, "--dry-run"]
    run_import(tmp_path, *command)
    printed = capsys.readouterr().out
    assert ("thin rim" in printed) == (expected is not None)
    assert expected is None or f"warning: {expected}" in printed


def test_stacks_stay_volumes(tmp_path):
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    stack = np.stack([picture(n) for n in range(3)])
    masks = np.zeros_like(stack)
    masks[1][inside(CYST)] = 1
    for folder, voxels in (("images", stack), ("masks", masks)):
        pages = [Image.fromarray(page) for page in voxels]
        (source / folder).mkdir(exist_ok=True)
        pages[0].save(source / folder / "1-a.tif", save_all=True, append_images=pages[1:])
    options = ["--images", "images/*.tif", "--masks", "masks/*.tif", "--labels", "PED=1"]
    voxels, reference = read_case(run_import(tmp_path, "masks", *options), "1__1-a")
    np.testing.assert_array_equal(voxels, stack)
    np.testing.assert_array_equal(reference, masks * 3)


def test_image_and_mask_side_by_side(tmp_path):
    """As AMD-SD and OIMHS have them."""
    grey = np.stack([picture()] * 3, axis=-1)
    save(tmp_path / "source" / "Images" / "1-7" / "3.png", np.concatenate([grey, coloured(COLOURS)], axis=1))
    output = run_import(tmp_path, "beside", "--images", "Images/*/*.png", *BY_COLOUR)
    voxels, reference = read_case(output, "1__1-7_3")
    np.testing.assert_array_equal(voxels[0], picture())
    np.testing.assert_array_equal(reference, expected_labels())


# ---- Refused -------------------------------------------------------------------------------------------------------
def test_hostile_masks_are_refused_in_a_line_each(tmp_path):
    source = tmp_path / "source"
    write_pairs(source, coloured(COLOURS), names=("1-good", "2-size", "3-colour", "4-text", "5-photo"))
    save(source / "masks" / "2-size.png", coloured(COLOURS)[:-1])
    odd = coloured(COLOURS)
    odd[5, 5:8] = (1, 2, 3)
    save(source / "masks" / "3-colour.png", odd)
    (source / "masks" / "4-text.png").write_text("no picture")
    save(source / "images" / "5-photo.png", coloured(COLOURS))
    size, colour, text, photo = refusal(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    assert size.endswith(
        f"masks/2-size.png: a mask of {COLUMNS} x {ROWS - 1} x 1 pixels, expected {COLUMNS} x {ROWS} x 1 as the image "
        "has"
    )
    assert "masks/3-colour.png: holds 1,2,3 (3 pixels), expected 0,0,0, 255,0,0, 0,255,0; add" in colour
    assert "masks/4-text.png: not a readable picture" in text
    assert "images/5-photo.png: a picture in colour" in photo


def test_missing_pairs_are_refused(tmp_path):
    source = tmp_path / "source"
    write_pairs(source, coloured(COLOURS))
    (source / "masks" / "1-a.png").rename(source / "masks" / "9-z.png")
    orphan, lonely = sorted(refusal(tmp_path, "masks", *PAIRED, *BY_COLOUR), reverse=True)
    assert orphan == "masks/9-z.png: a mask without an image like images/*.png"
    assert lonely.startswith("images/1-a.png: has no mask like masks/*.png")


def test_two_annotators_are_refused_until_one_is_chosen(tmp_path):
    source = tmp_path / "source"
    save(source / "images" / "1-a.png", picture())
    for reader, points in (("anna", CYST), ("bert", FLUID)):
        save(source / "masks" / reader / "1-a.png", inside(points).astype(np.uint8) * 255)
    options = ["--images", "images/*.png", "--masks", "IRF=masks/{annotator}/*.png"]
    assert refusal(tmp_path, "masks", *options) == [
        "masks/anna/1-a.png: outlined by anna, bert, expected one; choose with --annotator"
    ]
    assert refusal(tmp_path, "masks", *options, "--annotator", "carl") == [
        "--annotator carl: nothing by this one; found anna, bert"
    ]
    output = run_import(tmp_path, "masks", *options, "--annotator", "bert")
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1][0], inside(FLUID))


def test_masks_beside_their_image_are_coloured(tmp_path):
    save(tmp_path / "source" / "1-a.png", np.concatenate([picture(), picture()], axis=1))
    (line,) = refusal(tmp_path, "beside", "--images", "*.png", "--labels", "IRF=1")
    assert "--labels: found numbers 1, expected colours" in line


@pytest.mark.parametrize(("mode", "transparency"), [("P", 1), ("P", bytes([255, 0, 255])), ("L", 1)])
def test_a_number_that_is_transparent_is_background(tmp_path, mode, transparency):
    """As in masks that are read by colour."""
    page = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=mode)
    if mode == "P":
        page.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    page.save(tmp_path / "mask.png", transparency=transparency)
    values, _ = read_mask(tmp_path / "mask.png", tmp_path / "image.png", 1)
    assert values.ravel().tolist() == [0, 0, 2]


def test_a_volume_lies_on_a_dicom_image_as_both_say(tmp_path):
    """A mask that was drawn on a conversion with its B-scans and rows in the opposite order."""
    mask = np.random.default_rng(0).integers(0, 2, (3, 7, 9)).astype(np.uint8)
    save_dicom(tomography(255 * mask, range(3)), tmp_path / "scan.dcm")
    content = read_content([str(tmp_path / "scan.dcm")])
    write_volume(tmp_path / "mask.mhd", mask, content.spacing_mm, content.placement)
    converted = SimpleITK.Flip(SimpleITK.ReadImage(tmp_path / "mask.mhd"), [False, True, True])
    SimpleITK.WriteImage(converted, tmp_path / "mask.mha")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.mha", tmp_path / "scan.dcm", 1)[0][..., 0], mask)
    converted.SetOrigin((0, 0, 0))
    SimpleITK.WriteImage(converted, tmp_path / "mask.mha")
    with pytest.raises(InputError, match="resample it onto that one"):
        read_mask(tmp_path / "mask.mha", tmp_path / "scan.dcm", 1)
