"""What any ancestor of a model has seen, the model has seen."""

import re

import pytest
from stand_in import export_brightness_model

from utils.preparation.ancestry import doubts, inherit, says_what_it_saw
from utils.preparation.prepared import all_seen
from utils.segmentation.predict import load_network
from utils.tools.export_onnx import export_onnx


def part(*cases):
    return {"cases": list(cases), "patients": [f"patient of {case}" for case in cases]}


OWN = {"preparation": {}, "train": part("a"), "val": part("b")}


@pytest.mark.parametrize(
    ("ancestors", "earlier"),
    [
        ([], None),
        ([OWN], None),  # the model that is fine-tuned learned from the same
        ([OWN | {"mixed 1": part("c")}], part("c")),
        ([OWN | {"mixed 1": part("d"), "earlier": part("c", "d")}], part("c", "d")),
        ([{"train": part("d"), "val": part("c")}], part("c", "d")),  # another's validation cases chose its epoch
        ([{"train": part("c")}, {"train": part("d")}], part("c", "d")),
        ([{"train": part("b"), "val": part("b")}], part("b")),
        ([None], part() | {"complete": False}),
        ([None, {"train": part("c")}], part("c") | {"complete": False}),
        ([OWN | {"earlier": part("c") | {"complete": False}}], part("c") | {"complete": False}),
        ([OWN | {"earlier": part()}], part() | {"complete": False}),  # of an earlier version
    ],
)
def test_what_a_model_inherits(ancestors, earlier):
    details = [{} if data is None else {"data": data} for data in ancestors]
    inherited = inherit({"data": OWN, "epoch": 3}, details)
    data = OWN | ({} if earlier is None else {"earlier": earlier})
    assert inherited == {"data": data, "epoch": 3, "taught": ["IRF", "SRF", "PED"]}
    assert says_what_it_saw(inherited) == ("complete" not in (earlier or {}))
    assert inherit(inherited, details) == inherited


def test_an_average_has_seen_what_each_of_its_models_has(tmp_path):
    """One of them as ONNX."""
    paths = [export_brightness_model(tmp_path / name, data={"train": part(name)}) for name in "ab"]
    export_onnx(paths[1], tmp_path / "b.onnx")
    seen = all_seen(load_network(paths[0], tmp_path / "b.onnx").details["data"])
    assert seen == part("a", "b")
    unknown = export_brightness_model(tmp_path / "unknown")
    assert not says_what_it_saw(load_network(*paths, unknown).details)


@pytest.mark.parametrize(
    ("details", "doubt"),
    [
        ({"data": OWN, "config": {"PATIENT_PATTERN": "^(.+?)__"}}, None),
        ({"data": OWN}, None),
        ({"data": OWN, "config": {"PATIENT_PATTERN": "^(.*)$"}}, "PATIENT_PATTERN .*other scans of the same patients"),
        ({"data": {"preparation": {}}}, "best.keras does not say which cases it, or a model that it came from, was"),
        ({}, "best.keras does not say which cases it, or a model that it came from, was"),
    ],
)
def test_what_a_model_leaves_open_is_said(details, doubt):
    found = list(doubts("best.keras", details, "^(.+?)__"))
    assert len(found) == (doubt is not None)
    assert all(re.search(doubt, text) for text in found)


def test_what_an_ancestor_was_taught_was_the_model():
    of_irf, of_ped = {"data": OWN, "taught": ["IRF"]}, {"data": OWN, "taught": ["PED"]}
    assert inherit(of_irf, [])["taught"] == ["IRF"]
    assert inherit(of_ped, [of_irf])["taught"] == ["IRF", "PED"]
    assert inherit(of_irf, [{"data": OWN}])["taught"] == ["IRF", "SRF", "PED"]  # files of before were taught all
