"""`benchmarks.beside_nnunet` without nnU-Net: its layout, its arithmetic, and scores of given probabilities."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from benchmarks import beside_nnunet
from benchmarks.nnunet_steps import epochs_for, iterations_for
from benchmarks.real_folds import find_real_cases
from utils.errors import InputError
from utils.volumes.mhd import write_volume

SPACING_MM = (0.0117, 0.00387, 0.12)
REFERENCE = np.array([[1, 2, 3, 0], [0, 0, 0, 0]], np.uint8)
OTHER = np.array([[1, 0, 0, 1], [2, 3, 0, 0]], np.uint8)  # drusen, hyperreflective material, a rupture
GREY = np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8)


@pytest.fixture
def case(tmp_path):
    folder = tmp_path / "data" / "Spectralis" / "DME-5-1"
    for name, voxels in (("oct", GREY.astype(np.uint16) * 257), ("reference", REFERENCE), ("other", OTHER)):
        write_volume(folder / f"{name}.mhd", voxels[np.newaxis], SPACING_MM)
    (case,) = find_real_cases([tmp_path / "data"])
    return case


def test_the_layout_is_nnunets_and_ignores_what_is_not_judged(case, tmp_path):
    beside_nnunet.write_layout(tmp_path / "fold", {"train": [case], "val": [], "test": []})
    raw = tmp_path / "fold" / "raw" / "Dataset001_Fluid"
    picture = sitk.ReadImage(raw / "imagesTr" / "DME-5-1_0000.mha")
    labels = sitk.ReadImage(raw / "labelsTr" / "DME-5-1.mha")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(picture), GREY)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels), [[1, 2, 3, 4], [4, 0, 0, 0]])
    assert picture.GetSpacing() == labels.GetSpacing() == pytest.approx((0.0117, 0.00387))
    assert json.loads((raw / "dataset.json").read_text()) == {
        "channel_names": {"0": "OCT"},
        "labels": {"background": 0, "IRF": 1, "SRF": 2, "PED": 3, "ignore": 4},
        "numTraining": 1,
        "file_ending": ".mha",
    }
    splits = tmp_path / "fold" / "preprocessed" / "Dataset001_Fluid" / "splits_final.json"
    assert json.loads(splits.read_text()) == [{"train": ["DME-5-1"], "val": []}]


def test_the_schedule_ends_with_the_seconds():
    assert epochs_for(8820, 8.0) == 50
    assert epochs_for(100, 8.0) == 2  # 12 iterations, 5 an epoch at least
    assert epochs_for(3, 8.0) == 1
    seconds, iterations = 8820.0, []
    for epoch in range(50):
        pace = 8.0 if epoch < 20 else 10.0  # the machine becomes slower
        iterations.append(iterations_for(seconds, 50 - epoch, pace))
        seconds -= pace * iterations[-1]
    assert iterations[0] == 22  # 8820 / 50 / 8 = 22.05
    assert 0 <= seconds < 10.0  # nothing is left that another iteration fits in


def test_scores_are_of_judged_pixels_alone_and_kept(case, tmp_path, monkeypatch):
    labels = np.array([[1, 1, 0, 3], [0, 0, 0, 3]])

    def predict(python, folder, name, pictures, predicted):
        assert sitk.GetArrayFromImage(sitk.ReadImage(Path(pictures) / "DME-5-1_0000.mha")).shape == labels.shape
        np.save(Path(predicted) / "DME-5-1.npy", np.eye(4, dtype=np.float32)[labels])
        (Path(predicted) / "cost.json").write_text('{"s_a_b_scan": 1.0, "peak_gib": 1.0}')

    (tmp_path / "fold").mkdir()
    monkeypatch.setattr(beside_nnunet, "step", predict)
    rows = beside_nnunet.scores(tmp_path / "fold", [case], None, "python")
    monkeypatch.setattr(beside_nnunet, "step", None)
    pd.testing.assert_frame_equal(rows, beside_nnunet.scores(tmp_path / "fold", [case], None, "python"))
    assert rows["fluid"].tolist() == ["IRF", "SRF", "PED"]
    # PED is predicted in two pixels; in one of them lie drusen.
    assert rows[["true", "predicted", "overlap"]].to_numpy().tolist() == [[1, 2, 1], [1, 0, 0], [1, 1, 0]]


def test_gains_need_the_same_b_scans(tmp_path):
    rows = pd.DataFrame({"b_scan": ["a", "b"], "patient": ["1", "2"], "fluid": "IRF", "true": 10, "predicted": 10})
    rows["overlap"] = [10, 10]
    rows.assign(overlap=5).to_csv(tmp_path / "ours.csv", index=False)
    assert beside_nnunet.gain_over(tmp_path / "ours.csv", rows, "IRF") == "+0.500 (+0.500 to +0.500)"
    rows[:1].to_csv(tmp_path / "fewer.csv", index=False)
    with pytest.raises(InputError, match=r"fewer.csv: lacks 1 of the 2 B-scans"):
        beside_nnunet.gain_over(tmp_path / "fewer.csv", rows, "IRF")
