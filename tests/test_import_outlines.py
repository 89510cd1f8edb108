"""Outlines of COCO's and YOLO's as cases: small imitations, read back; what must be refused, in a line."""

import json

import numpy as np
import pytest
from foreign_data import (
    COLUMNS,
    CYST,
    DRUSEN,
    FLUID,
    ROWS,
    expected_labels,
    flat,
    inside,
    picture,
    save,
    write_coco,
    yolo_line,
)
from importing import read_case, refusal, run_import

from utils.importing.outlines import run_lengths_mask
from utils.volumes.mhd import read_volume

COCO = ["--masks", "*/a.json", "--labels", "IRF=cyst"]


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


def test_overlapping_outlines_go_to_the_class_stated_first(tmp_path, capsys):
    beside = [(x + 10, y) for x, y in CYST]
    outlines = [("fluid", flat(beside)), ("cyst", flat(CYST))]
    write_coco(tmp_path / "source" / "a.json", {"1-a.jpg": outlines})
    output = run_import(tmp_path, "coco", "--masks", "a.json", "--labels", "IRF=cyst", "SRF=fluid")
    expected = np.select([inside(CYST), inside(beside)], [1, 2])
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1][0], expected)
    both = np.count_nonzero(inside(CYST) & inside(beside))
    assert (
        f"warning: {both} pixels of class 'fluid' count for 'cyst', which is stated first; in 1 cases"
        in capsys.readouterr().out
    )


YOLO = ["--images", "**/images/*.png", "--masks", "**/labels/*.txt", "--labels"]


def write_yolo(folder, names, number, place="data.yaml"):
    """An export of one picture with CYST as class `number`; `names` are those of its data.yaml, None without one."""
    save(folder / "images" / f"1-{folder.name}.png", picture())
    (folder / "labels").mkdir()
    (folder / "labels" / f"1-{folder.name}.txt").write_text(yolo_line(number, CYST))
    if names is not None:
        (folder / place).write_text(f"nc: 2\nnames: {names}\ntrain: ../train/images\n")


@pytest.mark.parametrize("place", ["data.yaml", "labels/data.yaml"])
@pytest.mark.parametrize("names", ["[srf, irf]", "\n- srf\n- irf", "{0: srf, 1: irf}", "\n  1: irf\n  0: 'srf'"])
def test_yolos_numbers_mean_what_the_nearest_file_names(tmp_path, names, place, capsys):
    write_yolo(tmp_path / "source" / "a", "[irf, srf]", 0)
    write_yolo(tmp_path / "source" / "b", names, 1, place)
    assert refusal(tmp_path, "yolo", *YOLO, "IRF=0", "PED=ped") == [
        f"--labels IRF=0: 0 is 'irf' in a/data.yaml and 'srf' in b/{place}, expected one class; state names"
    ]
    output = run_import(tmp_path, "yolo", *YOLO, "IRF=irf", "SRF=srf")
    for name in "ab":
        np.testing.assert_array_equal(read_case(output, f"1__{name}_1-{name}")[1][0], inside(CYST))
    assert f"note: b/{place} names the classes" in capsys.readouterr().out
    (record,) = json.loads((output / "provenance.json").read_text())["imports"]
    assert f"b/{place}" in record["cases"]["Spectralis/1__b_1-b"]


@pytest.mark.parametrize("names", ["[no, cyst]", "['1', cyst]", None])
def test_yolos_numbers_can_be_stated_where_they_mean_one_class(tmp_path, names):
    """A class may be called as YAML calls false. A number that is a name is that class, whatever its own number is."""
    write_yolo(tmp_path / "source" / "a", names, 0)
    labels = ["IRF=1", "SRF=cyst"] if names and "1" in names else ["IRF=0", "SRF=1"]
    output = run_import(tmp_path, "yolo", *YOLO, *labels)
    np.testing.assert_array_equal(read_case(output, "1__a_1-a")[1][0], inside(CYST))


@pytest.mark.parametrize(
    ("names", "number", "labels", "expected"),
    [
        ("[irf, srf]", 2, ["IRF=irf"], "labels/1-b.txt: line 1: class 2, expected one that data.yaml names: 0, 1"),
        ("[irf, srf]", 1, ["IRF=irf"], "holds class 'srf', which --labels does not state"),
        ("[irf, srf]", 0, ["IRF=0", "SRF=irf"], "--labels SRF=irf: irf is stated as IRF too, expected one target"),
        ("3", 0, ["IRF=irf"], "b/data.yaml: tells no names of classes (ValueError: names is no list"),
        ("[[irf], srf]", 0, ["IRF=irf"], "b/data.yaml: tells no names of classes"),
        ("[irf", 0, ["IRF=irf"], "b/data.yaml: tells no names of classes (ParserError"),
        (None, 0, ["IRF=0"], "0 is 'irf' in a/data.yaml and '0' elsewhere, expected one class; state names, and add"),
    ],
)
def test_hostile_names_of_yolos_classes(tmp_path, names, number, labels, expected):
    write_yolo(tmp_path / "source" / "a", "[irf]" if names is None else "[irf, srf]", 0)
    write_yolo(tmp_path / "source" / "b", names, number)
    (line,) = refusal(tmp_path, "yolo", *YOLO, *labels)
    assert expected in line


@pytest.mark.parametrize("hole_is_outlined_first", [True, False])
def test_a_background_class_that_is_stated_first_cuts_its_hole(tmp_path, capsys, hole_is_outlined_first):
    """In the labels and among the other findings. Stated last, it has only what no other class has."""
    inner = [(40.2, 143.3), (50.2, 143.3), (50.2, 149.3), (40.2, 149.3)]
    outlines = [("hole", flat(inner)), ("cyst", flat(CYST)), ("drusen", flat(CYST))]
    outlines = outlines if hole_is_outlined_first else outlines[::-1]
    write_coco(tmp_path / "source" / "a.json", {"1-a.jpg": outlines}, ("cyst", "hole", "drusen"))
    classes, ring = ["IRF=cyst", "OTHER1=drusen"], inside(CYST) & ~inside(inner)
    command = ["coco", "--masks", "a.json", "--labels"]
    run_import(tmp_path, *command, *classes, "BACKGROUND=hole", "--dry-run")
    assert "60 pixels of class 'hole' count for 'cyst', which is stated first" in capsys.readouterr().out
    output = run_import(tmp_path, *command, "BACKGROUND=hole", *classes)
    assert "60 pixels of class 'cyst' count for 'hole', which is stated first" in capsys.readouterr().out
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1][0], ring)
    np.testing.assert_array_equal(read_volume(output / "Spectralis" / "1__1-a" / "other.mhd")[0][0], ring)


@pytest.mark.parametrize("is_first", [True, False])
def test_an_outline_of_what_nobody_judged(tmp_path, is_first):
    """The class that is stated first has the overlap; other findings stay."""
    beside = [(x + 10, y) for x, y in CYST]
    outlines = [("cyst", flat(CYST)), ("unclear", flat(beside)), ("drusen", flat(beside))]
    write_coco(tmp_path / "source" / "a.json", {"1-a.jpg": outlines}, ("cyst", "unclear", "drusen"))
    classes = ["IRF=cyst", "IGNORE=unclear", "OTHER1=drusen"]
    labels = classes[1::-1] + classes[2:] if is_first else classes
    output = run_import(tmp_path, "coco", "--masks", "a.json", "--labels", *labels)
    order = [(inside(CYST), 1), (inside(beside), 255)][:: -1 if is_first else 1]
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1][0], np.select(*zip(*order, strict=True)))
    other, _ = read_volume(output / "Spectralis" / "1__1-a" / "other.mhd")
    np.testing.assert_array_equal(other[0], inside(beside))


def test_a_data_set_without_a_case_is_refused(tmp_path):
    write_coco(tmp_path / "source" / "train" / "a.json", {})
    assert refusal(tmp_path, "coco", *COCO) == [f"{tmp_path / 'source'}: holds no image that could be a case"]


BOX = [(10.0, 20.0), (30.0, 20.0), (30.0, 40.0), (10.0, 40.0)]
IN_BOX = [(15.0, 25.0), (15.0, 35.0), (25.0, 35.0), (25.0, 26.0)]
SMALL = [(12.1, 22.1), (12.3, 22.1), (12.2, 22.3)]  # between the centres of pixels


@pytest.mark.parametrize(
    ("outlines", "expected"),
    [
        ([BOX, CYST], ["1 outlines are axis-parallel rectangles, that is boxes"]),
        ([BOX[::-1] + BOX[-1:]], ["1 outlines are axis-parallel rectangles"]),
        ([[*BOX[:1], (20.0, 20.0), *BOX[1:]], [(x + 50, y) for x, y in BOX]], ["2 outlines are axis-parallel rect"]),
        ([[(x + 0.9 * y, y) for x, y in BOX]], []),
        ([FLUID, IN_BOX, [*BOX, (9.0, 30.0)]], ["1 outlines lie within others of their class and are filled; if"]),
        ([CYST, CYST[::-1]], ["1 outlines lie within others"]),
        ([CYST, SMALL], ["1 outlines hold no pixel's centre and are lost"]),
    ],
)
@pytest.mark.parametrize("layout", ["yolo", "coco in parts", "coco"])
def test_outlines_that_may_be_wrong_are_warned_of(tmp_path, layout, outlines, expected, capsys):
    source = tmp_path / "source"
    if layout == "yolo":
        save(source / "1-a.jpg", picture())
        (source / "1-a.txt").write_text("".join(yolo_line(0, points) for points in outlines))
        options = ["yolo", "--images", "*.jpg", "--masks", "*.txt", "--labels", "IRF=0"]
    else:
        parts = [flat(points) for points in outlines]
        parts = [[part for (part,) in parts]] if layout == "coco in parts" else parts
        annotations = [("cyst", segmentation) for segmentation in parts]
        write_coco(source / "a.json", {"1-a.jpg": annotations})
        options = ["coco", "--masks", "a.json", "--labels", "IRF=cyst"]
    output = run_import(tmp_path, *options)
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(found) == len(expected)
    assert all(line.startswith(f"warning: {start}") for line, start in zip(found, expected, strict=True))
    union = np.logical_or.reduce([inside(points) for points in outlines if points is not SMALL])
    np.testing.assert_array_equal(read_case(output, "1__1-a")[1][0], union)


@pytest.mark.parametrize(
    ("options", "warns"),
    [(["IRF=cyst"], False), (["IRF=cyst", "SRF=fluid"], True), (["IRF=cyst", "SRF=fluid", "--outlined", "SRF"], False)],
)
def test_a_fluid_that_is_nowhere_is_doubtful(tmp_path, capsys, options, warns):
    """The data set's list of classes may not even have it."""
    write_coco(tmp_path / "source" / "a" / "a.json", {"1-a.jpg": [("cyst", flat(CYST))]}, categories=("cyst",))
    run_import(tmp_path, "coco", "--masks", "*/a.json", "--labels", *options)
    assert ("warning: SRF is nowhere, and counts as looked for and absent" in capsys.readouterr().out) == warns


# ---- Refused ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        (("cyst", flat([*CYST, (COLUMNS + 30.0, 150.0)])), "point at 170, 150, outside of the image's 140 x 300"),
        (("cyst", [[1, 2, 3, 4]]), "1-a.jpg: annotation 0: an outline of 2 points, expected at least 3"),
        (("cyst", []), "annotation 0: a box, expected an outline"),
        (("cyst", [[1, 2, 3, 4, 5]]), "annotation 0: no outline (cannot reshape"),
        (("cyst", {"size": [9, 9], "counts": [81]}), "run lengths of 81 pixels"),
        (("drusen", flat(DRUSEN)), "holds class 'drusen', which --labels does not state, expected one of 'cyst'"),
    ],
)
def test_hostile_outlines_of_coco(tmp_path, outline, expected):
    write_coco(tmp_path / "source" / "train" / "a.json", {"1-a.jpg": [outline]})
    (line,) = refusal(tmp_path, "coco", *COCO)
    assert "train/" in line
    assert expected in line


def test_coco_files_as_other_programs_write_them(tmp_path):
    """Annotations without id; and two classes of one id, of which one would be lost."""
    path = tmp_path / "source" / "train" / "a.json"
    write_coco(path, {"1-a.jpg": [("cyst", flat(CYST)), ("cyst", [])]})
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["id"]
    path.write_text(json.dumps(content))
    (line,) = refusal(tmp_path, "coco", *COCO)
    assert "annotation None: a box" in line
    content["categories"][2]["id"] = 1
    path.write_text(json.dumps(content))
    (line,) = refusal(tmp_path, "coco", *COCO)
    assert "a.json: two categories have one id" in line


def test_every_outline_that_cannot_be_drawn_is_named(tmp_path):
    source, good = tmp_path / "source", ("cyst", flat(CYST))
    write_coco(source / "a" / "a.json", {"1-a.jpg": [good, ("cyst", [[1, 2]])], "2-b.jpg": [("cyst", []), good]})
    write_coco(source / "b" / "a.json", {"3-c.jpg": [good, ("cyst", [[1, 2, 3, 4]]), ("cyst", flat([*CYST, (-5, 0)]))]})
    lines = [line.partition("source/")[2] for line in refusal(tmp_path, "coco", *COCO)]
    assert [line.rpartition(": ")[0] for line in lines] == [
        *(f"a/a.json: {name}: annotation {number}" for name, number in (("1-a.jpg", 1), ("2-b.jpg", 2))),
        *(f"b/a.json: 3-c.jpg: annotation {number}" for number in (1, 2)),
    ]
    for folder in "ab":
        content = json.loads((source / folder / "a.json").read_text())
        content["annotations"][0]["category_id"] = content["annotations"][1]["image_id"] = 99
        (source / folder / "a.json").write_text(json.dumps(content))
    lines = [line.partition("source/")[2] for line in refusal(tmp_path, "coco", *COCO)]
    assert lines == [
        f"{folder}/a.json: annotation {number} has {key} 99, which is none"
        for folder in "ab"
        for number, key in enumerate(("category_id", "image_id"))
    ]
    (source / "1-a.txt").write_text("0 0.1 0.1\n\n" + yolo_line(0, CYST) + "0 0.5 0.5 0.2 0.2\n")
    save(source / "1-a.jpg", picture())
    lines = refusal(tmp_path, "yolo", "--images", "*.jpg", "--masks", "*.txt", "--labels", "IRF=0")
    assert [line.partition("1-a.txt: ")[2][:6] for line in lines] == ["line 1", "line 4"]


@pytest.mark.parametrize(
    ("name", "images"), [("pictures\\1-a.jpg", []), ("x\\..\\1-a.jpg", ["--images", "pictures"]), ("1\\a.jpg", [])]
)
def test_cocos_names_of_pictures_may_have_backslashes(tmp_path, name, images):
    """As Windows' separators, or in a file's very name."""
    source = tmp_path / "source"
    write_coco(source / "a.json", {name: [("cyst", flat(CYST))]})
    assert (source / name).is_file()
    options = ["coco", "--masks", "a.json", "--labels", "IRF=cyst", *images]
    patient = ["--patient-pattern", r"(\d+)"]
    if name != "1\\a.jpg":
        (source / "pictures").mkdir()
        (source / name).rename(source / "pictures" / "2-b.jpg")
        (line,) = refusal(tmp_path, *options, patient=patient)
        assert f"a.json: lists {name}, expected it as pictures/1-a.jpg below" in line
        (source / "pictures" / "2-b.jpg").rename(source / "pictures" / "1-a.jpg")
    (case,) = run_import(tmp_path, *options, patient=patient).glob("*/*")
    np.testing.assert_array_equal(read_volume(case / "reference.mhd")[0][0], inside(CYST))


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
