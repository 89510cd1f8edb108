"""Other people's data as cases: small imitations of each layout, read back; what must be refused, in a line."""

import json
import re
import shlex

import numpy as np
import pytest
from foreign_data import (
    COLUMNS,
    CYST,
    DRUSEN,
    FLUID,
    ROWS,
    coloured,
    expected_labels,
    flat,
    inside,
    picture,
    save,
    write_coco,
    write_nifti,
    yolo_line,
)
from helpers import PROJECT, read_csv, run_python
from PIL import Image
from scipy.io import savemat

from utils.errors import InputError
from utils.importing.outlines import run_lengths_mask
from utils.tools.import_cases import main
from utils.volumes.mhd import read_volume, write_volume

SPACING_MM = (0.0115, 0.00387, 0.12)
SAID = ["--vendor", "Spectralis", "--spacing-mm", *map(str, SPACING_MM)]
PATIENT = ["--patient-pattern", r"(\d+)-"]
COLOURS = {(255, 0, 0): CYST, (0, 255, 0): FLUID}


def run_import(tmp_path, layout, *options, said=SAID, patient=PATIENT):
    """Import the folder ``source`` into ``data``; the latter."""
    output = tmp_path / "data"
    main([layout, str(tmp_path / "source"), "--output", str(output), *said, *patient, *options])
    return output


def read_case(output, name, vendor="Spectralis"):
    """(voxels, reference) of a case, whose spacings are as said."""
    (voxels, spacing_mm), (reference, of_reference) = (
        read_volume(output / vendor / name / f"{kind}.mhd") for kind in ("oct", "reference")
    )
    np.testing.assert_allclose([spacing_mm, of_reference], [SPACING_MM] * 2)
    assert reference.dtype == np.uint8
    return voxels, reference


def refusal(tmp_path, layout, *options, **said):
    """The lines of the refusal, after which nothing is there."""
    with pytest.raises(InputError) as caught:
        run_import(tmp_path, layout, *options, **said)
    assert not list((tmp_path / "data").glob("*/*/*.mhd"))
    assert all("\n" not in message for message in caught.value.messages)
    return list(caught.value.messages)


def write_pairs(source, mask, names=("1-a", "2-b"), suffix=".png"):
    """Pictures images/NAME and masks masks/NAME, all with the same `mask`."""
    for number, name in enumerate(names):
        save(source / "images" / f"{name}.png", picture(number))
        save(source / "masks" / f"{name}{suffix}", mask, **({"quality": 95} if suffix == ".jpg" else {}))


PAIRED = ["--images", "images/*.png", "--masks", "masks/*.png"]
BY_COLOUR = ["--labels", "IRF=255,0,0", "SRF=0,255,0"]


# ---- Images and masks in files -------------------------------------------------------------------------------------
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
    assert f"note: {blurred} pixels of values that are not stated" in capsys.readouterr().out


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


# ---- Outlines ------------------------------------------------------------------------------------------------------
def test_coco(tmp_path, capsys):
    cyst = inside(CYST)
    counts = np.diff(np.flatnonzero(np.diff(cyst.T.ravel(), prepend=False, append=False)), prepend=0).tolist()
    run_lengths = {"size": [ROWS, COLUMNS], "counts": [*counts, cyst.size - sum(counts)]}
    outlined = [("cyst", flat(CYST)), ("fluid", flat(FLUID)), ("drusen", flat(DRUSEN))]
    folder = tmp_path / "source"
    write_coco(folder / "train" / "_annotations.coco.json", {"CNV-1-1.jpg": outlined, "CNV-2-1.jpg": []})
    write_coco(folder / "valid" / "_annotations.coco.json", {"DME-3-1.jpg": [("cyst", run_lengths), outlined[1]]})
    options = ["--masks", "*/_annotations.coco.json", "--labels", "IRF=cyst", "SRF=fluid", "OTHER1=drusen"]
    output = run_import(tmp_path, "coco", *options, patient=["--patient-pattern", r"[A-Z]+-(\d+)-"])
    for name in ("1__train_CNV-1-1", "3__valid_DME-3-1"):
        np.testing.assert_array_equal(read_case(output, name)[1], expected_labels())
    assert not read_case(output, "2__train_CNV-2-1")[1].any()
    np.testing.assert_array_equal(
        read_volume(output / "Spectralis" / "1__train_CNV-1-1" / "other.mhd")[0][0], inside(DRUSEN)
    )
    assert "patients  3; 1 in train/CNV-1-1" in capsys.readouterr().out


def test_cocos_text_of_run_lengths():
    # By hand: five bits a character from 48 on, 32 for "more", 16 for a negative end. 40 = 8 + 32 * 1 is chr(48 + 8 +
    # 32), chr(48 + 1); the fourth number is a difference to the second: 2 - 5 = -3 is chr(48 + 29).
    mask = run_lengths_mask({"size": [10, 5], "counts": "X153M"}, (10, 5), "file")
    expected = np.zeros(50, bool)
    expected[40:45] = True
    expected[48:] = True
    np.testing.assert_array_equal(mask, expected.reshape(5, 10).T)


def test_yolo(tmp_path):
    source = tmp_path / "source" / "train"
    for name in ("1-a", "2-b"):
        save(source / "images" / f"{name}.jpg", picture())
    (source / "labels").mkdir()
    (source / "labels" / "1-a.txt").write_text(yolo_line(0, CYST) + yolo_line(2, FLUID))
    (source / "labels" / "2-b.txt").write_text("")
    options = ["--images", "*/images/*.jpg", "--masks", "*/labels/*.txt", "--labels", "IRF=0", "SRF=2"]
    output = run_import(tmp_path, "yolo", *options)
    np.testing.assert_array_equal(read_case(output, "1__train_1-a")[1], expected_labels())
    assert not read_case(output, "2__train_2-b")[1].any()


# ---- Volumes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [1, 2])
def test_nnunet(tmp_path, version):
    source = tmp_path / "source"
    voxels = np.stack([picture(n) for n in range(2)]).astype(np.uint16) * 257
    labels = np.repeat(expected_labels(), 2, axis=0)
    write_nifti(source / "imagesTr" / "eye_12_0000.nii.gz", voxels, SPACING_MM)
    write_nifti(source / "labelsTr" / "eye_12.nii.gz", labels, SPACING_MM)
    names = {"background": 0, "cyst": 1, "fluid": 2}
    if version == 1:
        description = {"modality": {"0": "OCT"}, "labels": {str(number): name for name, number in names.items()}}
    else:
        description = {"channel_names": {"0": "OCT"}, "labels": names, "file_ending": ".nii.gz"}
    (source / "dataset.json").write_text(json.dumps(description))
    output = run_import(
        tmp_path,
        "nnunet",
        "--labels",
        "IRF=cyst",
        "SRF=fluid",
        said=["--vendor", "Topcon"],
        patient=["--patient-pattern", r"eye_(\d+)"],
    )
    read = read_case(output, "12__eye_12", "Topcon")
    np.testing.assert_array_equal(read[0], voxels)
    np.testing.assert_array_equal(read[1], labels)


def write_duke(path):
    """Three B-scans, of which reader 2 has graded the second, in columns 10 to 129."""
    content = {"images": np.stack([picture(n) for n in range(3)], axis=-1).astype(float)}
    for reader in (1, 2):
        fluid, layers = np.full((ROWS, COLUMNS, 3), np.nan), np.full((8, COLUMNS, 3), np.nan)
        if reader == 2:
            layers[:, 10:130, 1] = 120
            fluid[:, :, 1] = inside(CYST) * 4.0
        content |= {f"manualFluid{reader}": fluid, f"manualLayers{reader}": layers}
    path.parent.mkdir(parents=True)
    savemat(path, content)


def test_duke(tmp_path):
    write_duke(tmp_path / "source" / "Subject_04.mat")
    options = ["--images", "Subject_*.mat", "--labels", "IRF=fluid", "--annotator"]
    patient = {"patient": ["--patient-pattern", r"_(\d+)"]}
    assert "holds a graded B-scan" in refusal(tmp_path, "duke", *options, "1", **patient)[0]
    assert "expected 1 or 2" in refusal(tmp_path, "duke", *options, "both", **patient)[0]
    voxels, reference = read_case(run_import(tmp_path, "duke", *options, "2", **patient), "04__04_02")
    np.testing.assert_array_equal(voxels[0], picture(1)[:, 10:130].astype(np.uint16) * 257)
    np.testing.assert_array_equal(reference[0], inside(CYST)[:, 10:130])


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


COCO = ["--masks", "*/a.json", "--labels", "IRF=cyst"]


@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        (("cyst", flat([*CYST, (COLUMNS + 30.0, 150.0)])), "point at 170, 150, outside of the image's 140 x 300"),
        (("cyst", [[1, 2, 3, 4]]), "an outline of 2 points, expected at least 3"),
        (("cyst", []), "annotation 0 is a box, expected an outline"),
        (("cyst", {"size": [9, 9], "counts": [81]}), "run lengths of 81 pixels"),
        (("drusen", flat(DRUSEN)), "holds class 'drusen', which --labels does not state, expected one of 'cyst'"),
    ],
)
def test_hostile_outlines_of_coco(tmp_path, outline, expected):
    write_coco(tmp_path / "source" / "train" / "a.json", {"1-a.jpg": [outline]})
    (line,) = refusal(tmp_path, "coco", *COCO)
    assert "train/" in line
    assert expected in line


def test_hostile_files_of_coco(tmp_path):
    source = tmp_path / "source"
    write_coco(source / "train" / "a.json", {"1-a.jpg": [], "2-b.jpg": []})
    (source / "train" / "2-b.jpg").unlink()
    assert "a.json: lists 2-b.jpg, expected it as train/2-b.jpg" in refusal(tmp_path, "coco", *COCO)[0]
    save(source / "train" / "2-b.jpg", picture()[:-2])
    (line,) = refusal(tmp_path, "coco", *COCO)
    assert "2-b.jpg: outlined at 140 x 300 pixels, expected 140 x 298 as the image has" in line
    save(source / "train" / "2-b.jpg", picture())
    twice = [*COCO[:1], "train/*.json", *COCO[2:]]
    (source / "train" / "b.json").write_text((source / "train" / "a.json").read_text())
    assert "1-a.jpg: outlined twice, in train/a.json and train/b.json" in refusal(tmp_path, "coco", *twice)[0]
    (source / "train" / "b.json").write_text('{"images": 3}')
    assert "b.json: not a COCO file" in refusal(tmp_path, "coco", *twice)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 1: a box, expected an outline"),
        (
            yolo_line(0, CYST) + yolo_line(0, [(0, 0), (9, 9), (0, 2 * ROWS)]),
            "line 2: an outline has a point at 0, 600",
        ),
        ("cyst 0.1 0.1 0.2 0.2 0.1 0.2", "line 1: expected a class number"),
        ("0 0.1 0.1 0.2 0.2 0.1", "line 1: expected a class number and x and y"),
        (yolo_line(5, CYST), "holds class '5', which --labels does not state"),
    ],
)
def test_hostile_outlines_of_yolo(tmp_path, text, expected):
    save(tmp_path / "source" / "1-a.jpg", picture())
    (tmp_path / "source" / "1-a.txt").write_text(text)
    (line,) = refusal(tmp_path, "yolo", "--images", "*.jpg", "--masks", "*.txt", "--labels", "IRF=0")
    assert "1-a.txt: " in line
    assert expected in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"said": SAID[:2]}, "states none as spacing, expected a scan's; say it: --spacing-mm X Y Z"),
        ({"said": [*SAID[:3], "1", "1", "1"]}, "--spacing-mm 1 1 1: expected x 0.0005 to 0.045"),
        ({"patient": ["--patient-pattern", r"(\d{5})"]}, "1-a.png: --patient-pattern (\\d{5}) finds no patient in it"),
        ({"patient": ["--patient-pattern", r"\d"]}, "--patient-pattern \\d: expected a group"),
        ({"patient": ["--patient-pattern", "("]}, "--patient-pattern (: no regular expression"),
    ],
)
def test_what_must_be_said(tmp_path, options, expected):
    write_pairs(tmp_path / "source", coloured(COLOURS), names=("1-a",))
    (line,) = refusal(tmp_path, "masks", *PAIRED, *BY_COLOUR, **options)
    assert expected in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([*PAIRED, "--labels", "CYST=1"], "--labels CYST=1: expected TARGET=CLASS with IRF, SRF, PED"),
        ([*PAIRED, "--labels", "IRF=1", "SRF=1"], "--labels SRF=1: 1 is stated as IRF too"),
        ([*PAIRED, "--labels", "IRF=1", "SRF=1,2,3"], "are numbers and colours"),
        ([*PAIRED, "--labels", "IRF=cyst"], "--labels IRF=cyst: expected a number or a colour"),
        ([*PAIRED], "--masks: expected TARGET=PATTERN for each fluid, or one PATTERN and --labels"),
        ([*PAIRED, *BY_COLOUR, "--tolerance", "128"], "--tolerance 128: two of the stated values and 0 are only 255"),
        ([*PAIRED, *BY_COLOUR, "--annotator", "anna"], "--annotator anna: mark with {annotator}"),
        (["--images", "*/*.png", *PAIRED[2:], *BY_COLOUR], "--masks masks/*.png: has 1 *, expected 2"),
        (["--images", "images/*.jpg", *PAIRED[2:], *BY_COLOUR], "--images images/*.jpg: no file below the source"),
        (["--masks", "a", *BY_COLOUR], "--images: masks needs it"),
    ],
)
def test_what_is_said_wrongly(tmp_path, options, expected):
    write_pairs(tmp_path / "source", coloured(COLOURS), names=("1-a",))
    (line,) = refusal(tmp_path, "masks", *options)
    assert expected in line


def test_commands_of_the_documentation_are_understood():
    """All that is wrong with them is that their folder is not here."""
    text = (PROJECT / "docs" / "data.md").read_text("utf-8")
    blocks = re.findall(r"^```shell\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) == 7
    for block in blocks:
        command = shlex.split(block.replace("\\\n", " "))
        assert command[:3] == ["python", "-m", "utils.tools.import_cases"]
        with pytest.raises(InputError, match=f"^{re.escape(command[4])}: no such folder$"):
            main(command[3:])


def test_a_data_set_without_a_case_is_refused(tmp_path):
    write_coco(tmp_path / "source" / "train" / "a.json", {})
    assert refusal(tmp_path, "coco", *COCO) == [f"{tmp_path / 'source'}: holds no image that could be a case"]


def test_hostile_descriptions_of_nnunet(tmp_path):
    source = tmp_path / "source"
    options = ["--labels", "IRF=cyst"]
    (source / "imagesTr").mkdir(parents=True)
    assert "dataset.json: not nnU-Net's description (FileNotFoundError" in refusal(tmp_path, "nnunet", *options)[0]
    description = {"channel_names": {"0": "OCT", "1": "again"}, "labels": {"background": 0, "cyst": 1}}
    (source / "dataset.json").write_text(json.dumps(description))
    assert "2 channels" in refusal(tmp_path, "nnunet", *options)[0]
    description |= {"channel_names": {"0": "OCT"}, "file_ending": ".png"}
    (source / "dataset.json").write_text(json.dumps(description))
    save(source / "imagesTr" / "1-a_0000.png", picture())
    save(source / "labelsTr" / "1-a.png", inside(CYST) * np.uint8(2))
    assert "labelsTr/1-a.png: holds 2 (" in refusal(tmp_path, "nnunet", *options)[0]
    description["labels"]["drusen"] = 2
    (source / "dataset.json").write_text(json.dumps(description))
    assert "holds class 'drusen', which --labels does not state" in refusal(tmp_path, "nnunet", *options)[0]


def test_masks_beside_their_image_are_coloured(tmp_path):
    save(tmp_path / "source" / "1-a.png", np.concatenate([picture(), picture()], axis=1))
    (line,) = refusal(tmp_path, "beside", "--images", "*.png", "--labels", "IRF=1")
    assert "--labels: found numbers 1, expected colours" in line


def test_two_images_of_one_name_are_refused(tmp_path):
    write_pairs(tmp_path / "source", coloured(COLOURS), names=("1-a", "1-A"))
    (line,) = refusal(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    assert "would be case 1__1-a, as" in line.replace("1__1-A", "1__1-a")


def test_overlapping_outlines_go_to_the_class_stated_first(tmp_path, capsys):
    beside = [(x + 10, y) for x, y in CYST]
    outlines = [("fluid", flat(beside)), ("cyst", flat(CYST))]
    write_coco(tmp_path / "source" / "a.json", {"1-a.jpg": outlines})
    output = run_import(tmp_path, "coco", "--masks", "a.json", "--labels", "IRF=cyst", "SRF=fluid")
    expected = np.select([inside(CYST), inside(beside)], [1, 2])
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1][0], expected)
    both = np.count_nonzero(inside(CYST) & inside(beside))
    assert f"note: {both} pixels lie in several classes" in capsys.readouterr().out


# ---- On disk -------------------------------------------------------------------------------------------------------
def test_a_dry_run_writes_nothing(tmp_path, capsys):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR, "--dry-run")
    assert not output.exists()
    assert "pairs     2, a case each" in capsys.readouterr().out


def test_the_same_command_goes_on_and_another_overwrites_nothing(tmp_path, capsys):
    source = tmp_path / "source"
    write_pairs(source, coloured(COLOURS))
    command = ["masks", *PAIRED, *BY_COLOUR]
    output = run_import(tmp_path, *command, "--licence", "CC BY 4.0")
    folder = output / "Spectralis" / "1__1-a"
    before = (folder / "oct.mhd").stat().st_mtime_ns
    for file in (output / "Spectralis" / "2__2-b").iterdir():
        file.unlink()
    (output / "Spectralis" / "2__2-b").rmdir()
    save(source / "images" / "3-c.png", picture(3))
    save(source / "masks" / "3-c.png", coloured(COLOURS))
    capsys.readouterr()
    run_import(tmp_path, *command, "--licence", "CC BY 4.0")
    assert "2 cases written" in capsys.readouterr().out
    assert (folder / "oct.mhd").stat().st_mtime_ns == before
    (record,) = json.loads((output / "provenance.json").read_text())["imports"]
    assert record["licence"] == "CC BY 4.0"
    assert record["settings"]["labels"] == BY_COLOUR[1:]
    assert sorted(record["cases"]) == [f"Spectralis/{name}" for name in ("1__1-a", "2__2-b", "3__3-c")]
    assert list(record["cases"]["Spectralis/1__1-a"]) == ["images/1-a.png", "masks/1-a.png"]
    with pytest.raises(InputError, match=r"1__1-a: is there, of another import: python -m utils.tools.import_cases"):
        run_import(tmp_path, "masks", *PAIRED, "--labels", "PED=255,0,0", "SRF=0,255,0")
    save(source / "masks" / "1-a.png", coloured({(255, 0, 0): FLUID}))
    with pytest.raises(InputError, match="1__1-a: is there, from source files that have changed since") as caught:
        run_import(tmp_path, *command)
    assert len(caught.value.messages) == 1
    (output / "provenance.json").unlink()
    with pytest.raises(InputError, match="1__1-a: is there, of unknown origin"):
        run_import(tmp_path, *command)
    assert (folder / "oct.mhd").stat().st_mtime_ns == before


def test_a_second_data_set_joins_the_first(tmp_path):
    write_pairs(tmp_path / "source", coloured(COLOURS))
    run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR)
    for path in (tmp_path / "source").glob("*/*.png"):
        path.rename(path.with_name(f"7{path.name}"))
    output = run_import(tmp_path, "masks", *PAIRED, *BY_COLOUR, said=["--vendor", "Topcon", *SAID[2:]])
    assert len(json.loads((output / "provenance.json").read_text())["imports"]) == 2
    assert len(list(output.glob("*/*/oct.mhd"))) == 4


# ---- Used ----------------------------------------------------------------------------------------------------------
def write_many(tmp_path):
    """Six patients with two pictures each, outlined in COCO's layout; imported. Returns the folder."""
    outlined = [("cyst", flat(CYST)), ("fluid", flat(FLUID))]
    images = {f"CNV-{patient}-{n}.jpg": outlined for patient in range(6) for n in range(2)}
    write_coco(tmp_path / "source" / "_annotations.coco.json", images)
    options = ["--masks", "_annotations.coco.json", "--labels", "IRF=cyst", "SRF=fluid"]
    return run_import(tmp_path, "coco", *options, patient=["--patient-pattern", r"CNV-(\d+)-"])


def test_imported_cases_are_prepared_and_split_by_patient(tmp_path, prepare_here):
    data = write_many(tmp_path)
    prepare_here(data, tmp_path / "output", "PATIENT_PATTERN=^(.+?)__")
    rows = read_csv(tmp_path / "output" / "pre_processed" / "slice_gt.csv")
    assert len(rows) == 12
    assert rows[["is_IRF", "is_SRF"]].all(axis=None)
    parts = [read_csv(tmp_path / "output" / f"{part}_data.csv") for part in ("train", "val", "test")]
    patients = [set(rows.image_name.str.partition("__")[0]) for rows in parts]
    assert sum(map(len, patients)) == 6
    assert all(patients)
    assert [len(rows) for rows in parts] == [2 * len(of_part) for of_part in patients]


@pytest.mark.slow
def test_imported_cases_are_trained_on(tmp_path):
    data = write_many(tmp_path)
    settings = {"DATA_ROOT": data, "OUTPUT_ROOT": tmp_path / "output", "PATIENT_PATTERN": "^(.+?)__"}
    settings |= {"BASE_FILTERS": 2, "BATCH_SIZE": 4, "EPOCH": 1, "STEPS_PER_EPOCH": 2, "VALIDATION_B_SCANS": 2}
    given = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    for script in ("prepare_data.py", "model_training.py"):
        run_python(script, *given)
    assert (tmp_path / "output" / "runs" / "unet" / "segmentation" / "best.keras").is_file()
