"""What is measured is what the bundle answers."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import SPLIT, facts
from onnx import numpy_helper

from tasks.bundle import seal
from tasks.evidence import gather_evidence, measure
from tasks.judge import judge
from tasks.metrics import mcc
from tasks.predict import Classifier
from tasks.reading import load_rows


def gather(bundle: str, holdout: str, champion: dict[str, str] | None = None) -> Any:
    place = {"digest": "h" * 64, "path": holdout}
    return gather_evidence(bundle, place, None, champion, split=SPLIT, device="cpu", resamples=200)


def test_a_measurement_is_what_the_classifier_answers(exported: Any, toy_split: tuple[str, str, str]) -> None:
    classifier = Classifier.from_bundle(exported["bundle"], "cpu")
    measured = measure(classifier, toy_split[2], resamples=200)
    rows = load_rows(toy_split[2])
    answers = [answer["label"] == "acceptable" for answer in classifier.predict(rows["sentence"].tolist())]
    assert measured["rows"] == len(rows) == 80
    assert measured["interval"]["mcc"] == mcc(rows["label"], answers)
    assert sum(measured["confusion"].values()) == 80
    assert len(measured["mcc_per_batch"]) == 3
    assert measured["per_source"]["toy"]["rows"] == 80
    assert (measured["variant"], measured["provider"]) == ("fp32", "CPUExecutionProvider")
    assert measured["finite"]
    assert measured["classes_predicted"] == 2


def test_every_variant_is_measured_and_the_one_that_serves_is_judged(
    complete: Any, toy_split: tuple[str, str, str]
) -> None:
    evidence = gather(complete["bundle"], toy_split[2])
    assert set(evidence["variants"]) == {"fp32", "fp16", "int8"}
    assert evidence["candidate"] == evidence["variants"]["int8"]
    for variant, measured in evidence["variants"].items():
        assert measured["variant"] == variant
        assert measured == measure(Classifier.from_bundle(complete["bundle"], "cpu", variant), toy_split[2], 200)
    assert judge(evidence, 0.5)["mcc"] == evidence["variants"]["int8"]["interval"]["mcc"]


def test_the_verdict_follows_the_variant_that_serves_and_not_the_reference(
    complete: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(complete["bundle"], tmp_path / "bundle"))
    model = onnx.load(folder / "model.cpu.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight"))
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save_model(model, folder / "model.cpu.onnx")
    seal(folder, facts(), {})
    evidence = gather(str(folder), toy_split[2])
    assert evidence["variants"]["fp32"]["interval"]["mcc"] > 0.9
    assert judge(evidence, 0.5)["decision"] == "REJECT"


def test_the_worst_sentences_are_those_whose_label_got_least(exported: Any, toy_split: tuple[str, str, str]) -> None:
    worst = measure(Classifier.from_bundle(exported["bundle"], "cpu"), toy_split[2], 200)["worst"]
    given = [row["probability"] for row in worst]
    assert given == sorted(given)
    assert len(worst) == 10


def test_the_champion_is_scored_on_the_same_rows(exported: Any, toy_split: tuple[str, str, str]) -> None:
    champion = {"version": "3", "digest": "other", "bundle": exported["bundle"]}
    evidence = gather(exported["bundle"], toy_split[2], champion)
    assert evidence["champion"]["measurement"] == evidence["candidate"]
    assert judge(evidence, 0.5)["decision"] == "HOLD"


def test_a_damaged_champion_is_evidence_and_leads_to_hold(
    exported: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    champion = {"version": "3", "digest": "other", "bundle": str(tmp_path / "gone")}
    evidence = gather(exported["bundle"], toy_split[2], champion)
    assert evidence["champion"]["measurement"] is None
    verdict = judge(evidence, 0.5)
    assert verdict["decision"] == "HOLD"
    assert "champion 3 cannot be measured" in verdict["reasons"][0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_answers_no_numbers_is_rejected(
    exported: Any, toy_split: tuple[str, str, str], tmp_path: Path, value: float
) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    model = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight"))
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), value), weight.name))
    onnx.save_model(model, folder / "model.onnx")
    seal(folder, facts(), {})
    with np.errstate(invalid="ignore"):
        evidence = gather(str(folder), toy_split[2])
    verdict = judge(evidence, threshold=-1.0)
    assert verdict["decision"] == "REJECT"
    assert "an output is not a number" in verdict["reasons"]
