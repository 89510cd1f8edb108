"""nnU-Net's and Duke's volumes as cases: small imitations, read back; what must be refused, in a line."""

import json

import numpy as np
import pytest
from foreign_data import COLUMNS, CYST, ROWS, expected_labels, inside, picture, save, write_nifti
from importing import SPACING_MM, read_case, refusal, run_import
from scipy.io import savemat


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
    """Three B-scans, of which reader 2 has graded the second, in columns 50 to 129, and outlined a cyst in 20 to 60."""
    content = {"images": np.stack([picture(n) for n in range(3)], axis=-1).astype(float)}
    for reader in (1, 2):
        fluid, layers = np.full((ROWS, COLUMNS, 3), np.nan), np.full((8, COLUMNS, 3), np.nan)
        if reader == 2:
            layers[:, 50:130, 1] = 120
            fluid[:, :, 1] = inside(CYST) * 4.0
        content |= {f"manualFluid{reader}": fluid, f"manualLayers{reader}": layers}
    path.parent.mkdir(parents=True)
    savemat(path, content)


def test_what_was_not_graded_in_dukes_volumes_is_not_judged(tmp_path, capsys):
    write_duke(tmp_path / "source" / "Subject_04.mat")
    options = ["--images", "Subject_*.mat", "--labels", "IRF=fluid", "--annotator"]
    patient = {"patient": ["--patient-pattern", r"_(\d+)"]}
    assert "Subject_04.mat: reader 1 graded no B-scan" in refusal(tmp_path, "duke", *options, "1", **patient)[0]
    assert "expected 1 or 2" in refusal(tmp_path, "duke", *options, "both", **patient)[0]
    voxels, reference = read_case(run_import(tmp_path, "duke", *options, "2", **patient), "04__04")
    np.testing.assert_array_equal(voxels, np.stack([picture(n) for n in range(3)]).astype(np.uint16) * 257)
    expected = np.full((3, ROWS, COLUMNS), 255)
    expected[1, :, 50:130] = 0
    expected[1][inside(CYST)] = 1
    np.testing.assert_array_equal(reference, expected)
    assert "not outlined: SRF, PED; unknown there, not absent" in capsys.readouterr().out


def test_nnunets_ignore_label_is_not_judged(tmp_path):
    source = tmp_path / "source"
    labels = np.full((2, ROWS, COLUMNS), 3, np.uint8)
    labels[1] = expected_labels()
    write_nifti(source / "imagesTr" / "1_0000.nii.gz", np.stack([picture(n) for n in range(2)]), SPACING_MM)
    write_nifti(source / "labelsTr" / "1.nii.gz", labels, SPACING_MM)
    names = {"background": 0, "cyst": 1, "fluid": 2, "ignore": 3}
    description = {"channel_names": {"0": "OCT"}, "labels": names, "file_ending": ".nii.gz"}
    (source / "dataset.json").write_text(json.dumps(description))
    options = ["nnunet", "--labels", "IRF=cyst", "SRF=fluid"]
    assert "BACKGROUND= or IGNORE=" in refusal(tmp_path, *options, patient=["--patient-pattern", "(.*)"])[0]
    output = run_import(tmp_path, *options, "IGNORE=ignore", patient=["--patient-pattern", "(.*)"])
    expected = np.concatenate([np.full((1, ROWS, COLUMNS), 255), expected_labels()])
    np.testing.assert_array_equal(read_case(output, "1__1")[1], expected)


def test_hostile_descriptions_of_nnunet(tmp_path):
    source = tmp_path / "source"
    options = ["--labels", "IRF=cyst"]
    (source / "imagesTr").mkdir(parents=True)
    assert "dataset.json: not nnU-Net's description (FileNotFoundError" in refusal(tmp_path, "nnunet", *options)[0]
    description = {"channel_names": {"0": "OCT", "1": "again"}, "labels": {"background": 0, "cyst": 1}}
    (source / "dataset.json").write_text(json.dumps(description))
    assert "2 channels" in refusal(tmp_path, "nnunet", *options)[0]
    regions = {"background": 0, "fluid": [1, 2], "cyst": [2], "drusen": 3}
    (source / "dataset.json").write_text(json.dumps({**description, "labels": regions}))
    (line,) = refusal(tmp_path, "nnunet", *options)
    assert "dataset.json: labels fluid, cyst are regions of several numbers, expected one number a class; name" in line
    description |= {"channel_names": {"0": "OCT"}, "file_ending": ".png"}
    (source / "dataset.json").write_text(json.dumps(description))
    save(source / "imagesTr" / "1-a_0000.png", picture())
    save(source / "labelsTr" / "1-a.png", inside(CYST) * np.uint8(2))
    assert "labelsTr/1-a.png: holds 2 (" in refusal(tmp_path, "nnunet", *options)[0]
    description["labels"]["drusen"] = 2
    (source / "dataset.json").write_text(json.dumps(description))
    assert "holds class 'drusen', which --labels does not state" in refusal(tmp_path, "nnunet", *options)[0]
