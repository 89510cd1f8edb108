"""Which B-scans the training scripts choose epochs on, without training: known mistake, the test cases."""

import pytest
from helpers import write_record, write_slice_csv

import adversarial_training
import config
import model_training
from utils.networks.exported_model import export_best
from utils.preparation.prepared import SliceRow

PARTS = ("train", "val", "test")


@pytest.fixture
def output(tmp_path, set_config):
    """OUTPUT_ROOT with a case in each part, named after it, and what stands for a trained model."""
    for part in PARTS:
        rows = [SliceRow(part, "Cirrus", f"Cirrus/{part}", index, 1, 1, 1) for index in range(3)]
        write_slice_csv(tmp_path / f"{part}_data.csv", rows)
        write_record(tmp_path, "Cirrus", part)
    set_config(OUTPUT_ROOT=str(tmp_path))
    (tmp_path / "runs").mkdir()
    return tmp_path


class Exported:
    def save(self, path):
        path.write_text("a U-Net")


def test_training_chooses_its_epochs_on_validation_cases(output, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        model_training,
        "train",
        lambda folder, data, sharing, state: seen.update(rows=data.rows["train"], b_scans=data.b_scans),
    )
    model_training.main([])
    assert {row.image_name for row in seen["b_scans"]} == {"val"}
    assert {row.image_name for row in seen["rows"]} == {"train"}


def test_fine_tuning_chooses_its_epochs_on_validation_cases(output, monkeypatch):
    details = {**config.prediction_settings(), "reference_histogram": None}
    export_best(output / "runs" / "unet" / "segmentation", Exported(), details)
    seen = []
    monkeypatch.setattr(adversarial_training, "fine_tune", lambda folder, data, state: seen.extend(data.b_scans))
    adversarial_training.main([])
    assert {row.image_name for row in seen} == {"val"}
