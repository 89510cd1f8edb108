"""Damaged and malicious files. Each is refused in one sentence or read correctly.

There is no crash, no hang, no use of gigabytes, and no access outside the file's folder.

Every file is read in a process of its own kind: its memory is limited and a timer runs.
"""

import gzip
import json
import random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from utils.volumes.mhd import write_volume

ROOT = Path(__file__).parent.parent
SPACING_MM = (0.0117, 0.003872, 0.12)
SECONDS, GIBIBYTES = 10, 2

# Reads every file named on the standard input and prints what came of it, as a line of JSON each.
READER = f"""
import json, resource, signal, sys, traceback, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {str(ROOT)!r})
import numpy, pydicom, SimpleITK, PIL.Image, scipy.ndimage
from utils.errors import InputError
from utils.volumes.scans import find_scans, read_scan
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {GIBIBYTES} * 2**30,) * 2)
for line in sys.stdin:
    path = line.rstrip("\\n")
    signal.setitimer(signal.ITIMER_VIRTUAL, {SECONDS})  # ends the process after so many CPU seconds
    try:
        (files,) = find_scans([path])
        scan = read_scan(files, "Cirrus")
        voxels = numpy.stack([numpy.asarray(slice_) for slice_ in scan.voxels])
        outcome = dict(shape=voxels.shape, sum=int(voxels.sum(dtype="int64")), spacing_mm=scan.spacing_mm)
    except InputError as error:
        outcome = dict(error=error.messages)
    except BaseException as error:
        outcome = dict(crash="".join(traceback.format_exception(error))[-1500:])
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    print(json.dumps(dict(path=path, **outcome)), flush=True)
"""


def outcomes(paths):
    """What reading each of `paths` comes to, {name: outcome}; fails where a process ends before the last."""
    result = subprocess.run(
        [sys.executable, "-c", READER], input="".join(f"{path}\n" for path in paths), capture_output=True, text=True
    )
    found = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(paths), f"{paths[len(found)]}: exit {result.returncode}\n{result.stderr[-2000:]}"
    return {Path(outcome["path"]).name: outcome for outcome in found}


def voxels_of(shape=(3, 40, 30)):
    return np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)


def header(size="30 40 3", data="oct.raw", spacing="0.0117 0.003872 0.12", **fields):
    lines = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"}
    lines |= {"CompressedData": "False", "DimSize": size, "ElementSpacing": spacing, "ElementType": "MET_UCHAR"}
    lines |= fields | {"ElementDataFile": data}
    return "".join(f"{name} = {value}\n" for name, value in lines.items())


REFUSED = {  # headers that must not be believed
    "thousandfold": header("30000 40 3"),
    "thousandfold every way": header("30000 40000 3000"),
    "overflowing": header("4294967296 4294967296 4294967296"),
    "overflowing to nothing": header("4294967296 4294967296 1"),
    "negative": header("-30 40 3"),
    "all negative": header("-30 -40 -3"),
    "nothing": header("0 40 3"),
    "words": header("many rows wide"),
    "one number": header("30"),
    "many dimensions": header("30 40 3 1 1", NDims="5"),
    "wider type": header(ElementType="MET_DOUBLE"),
    "no type": header(ElementType="MET_NONSENSE"),
    "absolute": header(data="/etc/passwd"),
    "absolute, same size": header(data="{outside}"),
    "climbs": header(data="../outside.raw"),
    "climbs and comes back": header(data="../../etc/passwd"),
    "list": header(data="LIST"),
    "list with names": header(data="LIST") + "../outside.raw\n" * 3,
    "pattern": header(data="../slice%02d.raw 1 3 1"),
    "pattern of texts": header(data="%s.raw 1 3 1"),
    "pattern of endless width": header(data="%0999999999d.raw 1 3 1"),
    "pattern without end": header(data="oct%d.raw 1 99999 0"),
    "list without end": header(data="LIST") + "oct.raw\n" * 20000,
    "device": header(data="/dev/zero"),
    "itself": header(data="itself.mhd"),
    "folder": header(data="."),
    "missing": header(data="nowhere.raw"),
    "very long": header(data="x" * 5000),
    "compressed, and is not": header(CompressedData="True", CompressedDataSize="100"),
    "bomb": header(data="bomb.zraw", CompressedData="True"),
    "thousandfold bomb": header("30000 4000 300", data="bomb.zraw", CompressedData="True"),
    "size of words": header(data="bomb.zraw", CompressedData="True", CompressedDataSize="much"),
    "channels": header(ElementNumberOfChannels="1000000"),
    "empty": "",
    "binary": "\x00\x01\x02" * 100,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a sound volume, a file outside it, and links and bombs that headers may name."""
    outside = tmp_path_factory.mktemp("hostile")
    folder = outside / "inside"
    voxels = voxels_of()
    write_volume(folder / "oct.mhd", voxels, SPACING_MM)
    (outside / "outside.raw").write_bytes(bytes(voxels.size))
    (folder / "link.raw").symlink_to("../outside.raw")
    (folder / "bomb.zraw").write_bytes(zlib.compress(bytes(300 * 2**20), 9))
    return folder


def test_headers_that_lie_are_refused(folder):
    paths = []
    for name, text in REFUSED.items():
        path = folder / f"{name}.mhd"
        path.write_text(text.replace("{outside}", str(folder.parent / "outside.raw")).replace("itself.mhd", path.name))
        paths.append(path)
    for name, outcome in outcomes(paths).items():
        (message,) = outcome.get("error", [outcome])
        assert "\n" not in str(message), name
        assert "error" in outcome, f"{name}: {outcome}"


@pytest.mark.parametrize("spacing", ["0 0 0", "-1 0.0039 0.12", "inf 0.0039 0.12", "nan nan nan", "1e300 1 1", "wide"])
def test_a_spacing_that_cannot_be_is_refused_or_replaced(folder, spacing):
    path = folder / "spacing.mhd"
    path.write_text(header(spacing=spacing))
    (outcome,) = outcomes([path]).values()
    assert "crash" not in outcome
    if "error" not in outcome:
        assert all(0 < value < 3.001 for value in outcome["spacing_mm"])


def test_a_link_in_the_folder_is_followed(folder):
    """Its owner made it, as stores of large files do; what a header names stays in its folder."""
    (folder / "linked.mhd").write_text(header(data="link.raw"))
    (outcome,) = outcomes([folder / "linked.mhd"]).values()
    assert (outcome["shape"], outcome["sum"]) == ([3, 40, 30], 0)


def test_links_to_both_files_are_followed(folder, tmp_path):
    for name in ("oct.mhd", "oct.raw"):
        (tmp_path / name).symlink_to(folder / name)
    (outcome,) = outcomes([tmp_path / "oct.mhd"]).values()
    assert outcome["sum"] == voxels_of().sum()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_sizes_beyond_the_content_take_no_memory(tmp_path, suffix):
    """Headers that claim a hundred times as many rows, before the same compressed voxels."""
    image = SimpleITK.GetImageFromArray(voxels_of())
    image.SetSpacing(SPACING_MM)
    path = tmp_path / f"scan{suffix}"
    SimpleITK.WriteImage(image, str(path), True)
    content = gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes()
    if suffix == ".nii.gz":
        size = np.frombuffer(content[40:56], "<i2").copy()
        size[2] = 30000
        content = gzip.compress(content[:40] + size.tobytes() + content[56:])
    else:
        for old, new in (
            (b"DimSize = 30 40 3", b"DimSize = 30 40000 300"),
            (b"sizes: 30 40 3", b"sizes: 30 40000 300"),
        ):
            content = content.replace(old, new)
    lying = tmp_path / f"lying{suffix}"
    lying.write_bytes(content)
    found = outcomes([path, lying])
    assert found[path.name]["sum"] == voxels_of().sum()
    assert "error" in found[lying.name], found[lying.name]


def dicom(path, voxels):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["hostile"])
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = voxels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = voxels.tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def sound_files(folder):
    """The same small scan in every format that can be written here."""
    voxels = voxels_of()
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(SPACING_MM)
    folder.mkdir()
    for name, compressed in (("a.mha", True), ("b.mha", False), ("c.nii.gz", True), ("d.nii", False), ("e.nrrd", True)):
        SimpleITK.WriteImage(image, str(folder / name), compressed)
    tifffile.imwrite(folder / "f.tif", voxels, photometric="minisblack")
    tifffile.imwrite(folder / "g.tif", voxels, photometric="minisblack", compression="zlib")
    Image.fromarray(voxels[0]).save(folder / "h.png")
    Image.fromarray(voxels[0]).save(folder / "i.jpg")
    Image.fromarray(voxels[0]).save(folder / "j.bmp")
    dicom(folder / "k.dcm", voxels)
    return sorted(folder.iterdir())


def mutated(content, rng):
    """`content` with one to three of: bytes replaced, numbers enlarged, a part cut out, doubled or its end lost."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        # The head is where sizes and offsets are.
        place = rng.randrange(min(len(content), 400)) if rng.random() < 0.8 else rng.randrange(len(content))
        kind = rng.randrange(6)
        if kind == 0:
            content[place] = rng.randrange(256)
        elif kind == 1:
            content[place : place + 4] = rng.choice(
                [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\0\x80"]
            )
        elif kind == 2:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 3:
            digits = [index for index, byte in enumerate(content[:400]) if 48 <= byte < 58]
            if digits:
                index = rng.choice(digits)
                content[index : index + 1] = rng.choice([b"9999", b"-1", b"0", b"1e9", b"4294967297"])
        elif kind == 4:
            del content[place : place + rng.randint(1, 64)]
        else:
            del content[max(1, rng.randrange(len(content))) :]
        if not content:
            return b"\0"
    return bytes(content)


def check_mutations(folder, count, seed):
    rng = random.Random(seed)
    originals = sound_files(folder / "sound")
    expected = outcomes(originals)
    mutations = []
    for number in range(count):
        original = originals[number % len(originals)]
        path = folder / f"{number:04d}_{original.name}"
        path.write_bytes(mutated(original.read_bytes(), rng))
        mutations.append(path)
    n_refused = 0
    for name, outcome in outcomes(mutations).items():
        assert "crash" not in outcome, f"{name}: {outcome['crash']}"
        n_refused += "error" in outcome
        if "error" not in outcome:
            # A byte may widen a picture; what is read is never of another order of size than what was written.
            assert np.prod(outcome["shape"]) <= 50 * np.prod(expected[name[5:]]["shape"]), f"{name}: {outcome}"
    assert n_refused > count / 5  # the mutations do reach what matters


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_mutated_files_of_every_format_are_refused_or_read(tmp_path, seed):
    check_mutations(tmp_path, 660 if seed == 0 else 5500, seed)
