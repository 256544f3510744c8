"""Evidence has the figures of the bundle's own predictions."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from candidates import weigh
from onnx import numpy_helper
from toy import SPLIT, circumstances, facts, gate, policy

from tasks.core.errors import VerdictError
from tasks.core.files import write_json
from tasks.data.snapshots import read_snapshot
from tasks.evaluation.evidence import (
    DIFFERING_SHOWN,
    SnapshotRef,
    add_champion,
    count_known,
    find_leak,
    gather_evidence,
    measure_candidate,
    measure_snapshot,
    parse_evidence,
    read_evidence,
)
from tasks.evaluation.judge import judge
from tasks.evaluation.metrics import mcc
from tasks.evaluation.minimal_pairs import evaluate_minimal_pairs
from tasks.inference.bundle import PROFILE, write_manifest
from tasks.inference.classifier import Classifier


def snapshot(path: str) -> SnapshotRef:
    return SnapshotRef(digest="h" * 64, path=path)


def gather(bundle: str, holdout: str, champion: dict[str, str] | None = None, **changes: Any) -> Any:
    known: Any = {"split": SPLIT, "training": [], "context": circumstances(), "device": "cpu", "resamples": 200}
    return gather_evidence(bundle, snapshot(holdout), None, champion, **known | changes)  # type: ignore[arg-type]


def altered(
    bundle: str, folder: Path, change: Callable[[Any], Any], model: str = "model.onnx", part: str = "weight"
) -> str:
    """Copy a bundle and change the last layer of one of its graphs."""
    copied = Path(shutil.copytree(bundle, folder))
    graph = onnx.load(copied / model)
    tensor = next(each for each in graph.graph.initializer if each.name.endswith(f"classifier.{part}"))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save_model(graph, copied / model)
    write_manifest(copied, facts(), {})
    return str(copied)


def weakened(bundle: str, folder: Path, holdout: str, flips: int = 10) -> str:
    """Copy a bundle and move its threshold so that it calls so many acceptable sentences unacceptable."""
    logits = Classifier.from_bundle(bundle, "cpu").logits(read_snapshot(holdout)["sentence"].tolist())
    ahead = np.sort((logits[:, 1] - logits[:, 0])[logits[:, 1] > logits[:, 0]])
    step = np.array([(ahead[flips - 1] + ahead[flips]) / 2, 0], np.float32)
    return altered(bundle, folder, lambda bias: bias + step, part="bias")


def test_a_measurement_is_that_of_the_classifiers_predictions(exported: Any, toy_split: tuple[str, str, str]) -> None:
    classifier = Classifier.from_bundle(exported["bundle"], "cpu")
    measured = measure_snapshot(classifier, toy_split[2], resamples=200)
    rows = read_snapshot(toy_split[2])
    answers = [answer["label"] == "acceptable" for answer in classifier.predict(rows["sentence"].tolist())]
    assert measured["rows"] == len(rows) == 80
    assert measured["interval"]["mcc"] == mcc(rows["label"], answers)
    assert sum(measured["confusion"].values()) == 80
    assert len(measured["mcc_per_batch"]) == 3
    assert measured["per_source"]["toy"]["rows"] == 80
    assert (measured["variant"], measured["provider"]) == ("fp32", "CPUExecutionProvider")
    assert measured["finite"]
    assert measured["classes_predicted"] == 2


def test_a_secondary_holdout_of_one_label_is_not_reported(
    exported: Any, toy_split: tuple[str, str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = read_snapshot(toy_split[2])
    rows[rows["label"] == 1].to_parquet(tmp_path / "one.parquet")
    secondary = {"digest": "s" * 64, "path": str(tmp_path / "one.parquet")}
    assert measure_candidate(exported["bundle"], rows, secondary, "cpu", 200).secondary is None  # type: ignore[arg-type]
    assert "the secondary holdout has label 1 only, expected 0 and 1" in caplog.text


def test_every_variant_is_measured_and_the_served_one_is_judged(complete: Any, toy_split: tuple[str, str, str]) -> None:
    evidence = gather(complete["bundle"], toy_split[2])
    assert set(evidence["variants"]) == {"fp32", "fp16", "int8"}
    assert evidence["candidate"] == evidence["variants"]["int8"]
    for variant, measured in evidence["variants"].items():
        assert measured["variant"] == variant
        assert measured == measure_snapshot(
            Classifier.from_bundle(complete["bundle"], "cpu", variant), toy_split[2], 200
        )
    assert judge(evidence, policy(threshold=0.5))["mcc"] == evidence["variants"]["int8"]["interval"]["mcc"]


def test_the_verdict_follows_the_served_variant_and_not_the_reference(
    complete: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    evidence = gather(
        altered(complete["bundle"], tmp_path / "bundle", lambda weight: -weight, "model.cpu.onnx"), toy_split[2]
    )
    assert evidence["variants"]["fp32"]["interval"]["mcc"] > 0.9
    verdict = judge(evidence, policy(threshold=0.5))
    assert verdict["decision"] == "REJECT"
    assert {"below_threshold", "variant_differs"} <= set(verdict["rules"])


def test_the_worst_sentences_have_the_lowest_probability_of_their_label(
    exported: Any, toy_split: tuple[str, str, str]
) -> None:
    worst = measure_snapshot(Classifier.from_bundle(exported["bundle"], "cpu"), toy_split[2], 200)["worst"]
    probabilities = [row["probability"] for row in worst]
    assert probabilities == sorted(probabilities)
    assert len(worst) == 10


def test_the_champion_is_scored_on_the_same_rows(exported: Any, toy_split: tuple[str, str, str]) -> None:
    champion = {"version": "3", "digest": "other", "bundle": exported["bundle"]}
    evidence = gather(exported["bundle"], toy_split[2], champion)
    assert evidence["champion"]["measurement"] == evidence["candidate"]
    assert judge(evidence, policy(threshold=0.5))["decision"] == "HOLD"


def test_a_damaged_champion_is_evidence_and_leads_to_hold(
    exported: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    champion = {"version": "3", "digest": "other", "bundle": str(tmp_path / "gone")}
    evidence = gather(exported["bundle"], toy_split[2], champion)
    assert evidence["champion"]["measurement"] is None
    verdict = judge(evidence, policy(threshold=0.5))
    assert verdict["decision"] == "HOLD"
    assert "champion 3 cannot be measured" in verdict["reasons"][0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_with_nan_or_inf_outputs_is_rejected(
    exported: Any, toy_split: tuple[str, str, str], tmp_path: Path, value: float
) -> None:
    folder = altered(exported["bundle"], tmp_path / "bundle", lambda weight: np.full_like(weight, value))
    with np.errstate(invalid="ignore"):
        evidence = gather(folder, toy_split[2])
    verdict = judge(evidence, policy(threshold=-1.0))
    assert verdict["decision"] == "REJECT"
    assert "an output is NaN or Inf" in verdict["reasons"]
    assert set(evidence["answers"]["variants"]["fp32"]) == {None}
    write_json(tmp_path / "evidence.json", evidence)  # strict JSON without NaN


def test_the_rows_of_the_holdout_and_every_answer_are_kept(complete: Any, toy_split: tuple[str, str, str]) -> None:
    champion = {"version": "3", "digest": "other", "bundle": complete["bundle"]}
    answers = gather(complete["bundle"], toy_split[2], champion)["answers"]
    rows = read_snapshot(toy_split[2])
    assert answers["label"] == rows["label"].tolist()
    assert answers["source"] == ["toy"] * 80
    assert answers["words"] == [len(sentence.split()) for sentence in rows["sentence"]]
    assert answers["champion"] == answers["variants"]["int8"]
    classifier = Classifier.from_bundle(complete["bundle"], "cpu", "fp32")
    expected = classifier.probabilities(rows["sentence"].tolist())[:, 1]
    assert answers["variants"]["fp32"] == pytest.approx(expected.tolist(), abs=1e-9)


def test_champion_and_candidate_are_compared_row_by_row(
    exported: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    weak = weakened(exported["bundle"], tmp_path / "weak", toy_split[2])
    evidence = gather(exported["bundle"], toy_split[2], {"version": "3", "digest": "weak", "bundle": weak})
    comparison, rows = evidence["comparison"], read_snapshot(toy_split[2])
    ours, theirs = (
        [answer["label"] for answer in Classifier.from_bundle(path, "cpu").predict(rows["sentence"].tolist())]
        for path in (exported["bundle"], weak)
    )
    differing = {rows["sentence"][row] for row in range(80) if ours[row] != theirs[row]}
    assert len(differing) == 10 < DIFFERING_SHOWN
    assert comparison["differing"] == len(differing)
    assert {row["sentence"] for row in comparison["sentences"]} == differing
    assert comparison["agreement"] == pytest.approx(1 - len(differing) / 80)
    assert comparison["candidate_alone"] + comparison["champion_alone"] == len(differing)
    gap = [abs(row["candidate"] - row["champion"]) for row in comparison["sentences"]]
    assert gap == sorted(gap, reverse=True)
    figures = [evidence["candidate"], evidence["champion"]["measurement"]]
    assert comparison["difference"] == pytest.approx(figures[0]["interval"]["mcc"] - figures[1]["interval"]["mcc"])
    assert evidence["champion"]["minimal_pairs"] == evaluate_minimal_pairs(Classifier.from_bundle(weak, "cpu"))
    assert judge(evidence, policy(threshold=0.5))["decision"] == "PROMOTE"


def test_the_champions_training_rows_are_those_of_its_profile(
    exported: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    champion = {"version": "3", "digest": "other", "bundle": str(folder)}
    evidence = gather(exported["bundle"], toy_split[2], champion)
    assert evidence["champion"]["training_digest"] is None
    write_json(folder / PROFILE, gate()["profile"])
    write_manifest(folder, facts(), {})
    assert add_champion(evidence, champion, snapshot(toy_split[2]), "cpu")["champion"]["training_digest"] == "d" * 64  # type: ignore[arg-type,index]


def test_holdout_sentences_among_the_champions_training_rows_are_counted(
    toy_split: tuple[str, str, str], tmp_path: Path, exported: Any
) -> None:
    sentences = read_snapshot(toy_split[2])["sentence"].tolist()
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    profile = gate()["profile"] | {"dataset": "theirs", "holdouts": ["earlier"]}
    write_json(folder / PROFILE, profile)
    write_manifest(folder, facts(), {})
    holdout = {"digest": "new", "path": shutil.copy(toy_split[2], tmp_path / "new.parquet")}
    assert count_known(profile, holdout, sentences) is None  # the champion's rows are elsewhere
    rows = read_snapshot(toy_split[0])
    rows.loc[[1, 2, 3], "sentence"] = [sentences[7].upper() + "!", sentences[8], sentences[9]]
    rows.to_parquet(tmp_path / "theirs.parquet")
    assert count_known(profile, holdout, sentences) is None  # what it left out is unknown
    read_snapshot(toy_split[2])[9:12].to_parquet(tmp_path / "earlier.parquet")
    assert count_known(profile, holdout, sentences) == 2  # the third was in its own holdout
    assert count_known(profile, holdout | {"digest": "earlier"}, sentences) == 0
    assert count_known({**profile, "holdouts": []}, holdout, sentences) == 3
    champion = {"version": "3", "digest": "other", "bundle": str(folder)}
    evidence = add_champion(gather(exported["bundle"], toy_split[2], None), champion, holdout, "cpu")  # type: ignore[arg-type]
    assert evidence["champion"]["holdout_known"] == 2  # type: ignore[index]


def test_another_champion_replaces_the_one_before(
    exported: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    weak = weakened(exported["bundle"], tmp_path / "weak", toy_split[2])
    first = gather(exported["bundle"], toy_split[2], {"version": "3", "digest": "weak", "bundle": weak})
    second = add_champion(
        first, {"version": "4", "digest": "same", "bundle": exported["bundle"]}, snapshot(toy_split[2]), "cpu"
    )
    assert second == gather(
        exported["bundle"], toy_split[2], {"version": "4", "digest": "same", "bundle": exported["bundle"]}
    )
    assert second["champion_state"] == "active"
    assert first["champion"]["version"] == "3"


def test_holdout_sentences_among_the_training_rows_are_found_after_normalisation(
    toy_split: tuple[str, str, str], tmp_path: Path, exported: Any
) -> None:
    rows, sentences = read_snapshot(toy_split[0]), read_snapshot(toy_split[2])["sentence"].tolist()
    assert find_leak(toy_split[:2], sentences, 5) == {"left": 5, "remaining": 0, "sentences": []}
    leaked = tmp_path / "train.parquet"
    rows.loc[[1, 2, 3], "sentence"] = [sentences[7].upper() + "!", sentences[7], sentences[9]]
    rows.to_parquet(leaked)
    found = find_leak([str(leaked)], sentences, 0)
    assert found == {"left": 0, "remaining": 2, "sentences": [sentences[7], sentences[9]]}
    evidence = gather(exported["bundle"], toy_split[2], training=[toy_split[1], str(leaked)])
    assert judge(evidence, policy())["rules"] == ["holdout_leak"]


def test_evidence_without_its_schema_version_or_a_key_is_not_read(tmp_path: Path) -> None:
    evidence: Any = weigh()
    write_json(tmp_path / "evidence.json", evidence)
    assert read_evidence(tmp_path / "evidence.json") == evidence
    assert str(tmp_path) not in (tmp_path / "evidence.json").read_text()
    for broken, message in (
        (evidence | {"schema_version": 2}, "a file has schema version 2, this program reads 1; "),
        ({key: value for key, value in evidence.items() if key != "schema_version"}, "a file is no evidence; expected"),
        ({key: value for key, value in evidence.items() if key != "leak"}, "a file lacks leak; "),
        ([], "a file is no evidence; expected the evidence.json that a run wrote"),
    ):
        with pytest.raises(VerdictError, match=message):
            parse_evidence(broken, "a file")


def test_training_rows_that_are_gone_are_an_error(toy_split: tuple[str, str, str]) -> None:
    with pytest.raises(VerdictError, match="cannot be read"):
        find_leak(["nowhere.parquet"], ["a"], 0)
