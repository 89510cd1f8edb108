import pytest

from utils.errors import InputError
from utils.networks import exported_model
from utils.networks.exported_model import (
    PredictionSettings,
    best_model,
    check_input,
    export_best,
    find_best_model,
    read_best,
)


class Exported:
    """Stands for a model: its file holds some text."""

    def __init__(self, content):
        self.save = lambda path: path.write_text(content)


def test_an_exported_model_is_checked_against_its_description(tmp_path):
    export_best(tmp_path, Exported("network"), {"epoch": 4})
    assert read_best(tmp_path / "best.keras")["epoch"] == 4
    (tmp_path / "best.keras").write_text("another")
    with pytest.raises(InputError, match=r"not the model that best\.json describes"):
        read_best(tmp_path / "best.keras")
    with pytest.raises(InputError, match="no such model"):
        read_best(tmp_path / "other.keras")


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"taught": []}, r"best\.json: taught is \[\], expected some of IRF, SRF, PED"),
        ({"taught": ["CNV"]}, "taught is .'CNV'., expected some"),
        ({"data": {"preparation": {}, "train": {"cases": []}}}, r"best\.json: data train lacks cases or patients"),
        ({"data": {"earlier": {}}}, "data earlier lacks cases or patients"),
    ],
)
def test_a_description_that_hides_what_was_taught_or_seen_is_refused(tmp_path, details, message):
    export_best(tmp_path, Exported("network"), details)
    with pytest.raises(InputError, match=message):
        read_best(tmp_path / "best.keras")


def test_a_model_that_does_not_say_what_its_channels_hold_sees_neighbours():
    before = {"network": "tennakoon", "axial_spacing_mm": 0.004, "slice_mean": 1.0, "slice_sd": 2.0, "threshold": 0.5}
    before |= {"reference_histogram": None}
    assert PredictionSettings.from_details(before).neighbours
    assert not PredictionSettings.from_details(before | {"neighbours": False}).neighbours
    today = {name: before[name] for name in ("axial_spacing_mm", "slice_mean", "slice_sd")}
    check_input("best.keras", before, today | {"neighbours": True}, "")
    with pytest.raises(InputError, match=r"keras: its neighbours is True, config\.NEIGHBOURS is False; set it back"):
        check_input("best.keras", before, today | {"neighbours": False}, "set it back")


def test_a_fine_tuned_model_is_taken_only_where_it_was_made_from_todays_segmentation_model(tmp_path):
    fine_tuned, trained = folders = tmp_path / "adversarial", tmp_path / "segmentation"
    assert find_best_model(*folders) is None
    with pytest.raises(InputError, match=r"run model_training\.py first"):
        best_model(*folders)
    export_best(trained, Exported("a U-Net"), {})
    assert best_model(*folders) == (trained / "best.keras", "there is no fine-tuned one")
    start = read_best(trained / "best.keras")["sha256"]
    export_best(fine_tuned, Exported("fine-tuned"), {"made_from": start})
    assert best_model(*folders) == (fine_tuned / "best.keras", f"fine-tuned from the model in {trained}")
    export_best(trained, Exported("a U-Net trained again"), {})
    path, why = best_model(*folders)
    assert path == trained / "best.keras"
    assert f"{fine_tuned} was made from another segmentation model" in why
    export_best(fine_tuned, Exported("fine-tuned"), {})  # by an earlier version
    path, why = best_model(*folders)
    assert path == fine_tuned / "best.keras"
    assert "it may be out of date" in why
    (trained / "best.json").unlink()
    assert "no model in" in best_model(*folders)[1]


def test_between_two_exports_no_description_stands_beside_another_model(tmp_path, monkeypatch):
    export_best(tmp_path, Exported("first"), {"epoch": 1})
    monkeypatch.setattr(exported_model, "write_json", lambda path, content: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export_best(tmp_path, Exported("second"), {"epoch": 2})
    assert (tmp_path / "best.keras").read_text() == "second"
    assert find_best_model(tmp_path / "adversarial", tmp_path) is None
