"""Every path from sentences to labels uses the decision threshold of the bundle."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registered import make_champion_store
from starlette.testclient import TestClient
from toy import facts

from flows.commands.predict import predict
from flows.commands.request_review import find_reference
from tasks.data.cola_format import Row
from tasks.data.snapshots import read_snapshot
from tasks.evaluation.compare_versions import compare_bundles
from tasks.evaluation.evidence import measure_snapshot
from tasks.evaluation.metrics import confusion
from tasks.inference.bundle import read_manifest, write_manifest
from tasks.inference.classifier import Classifier
from tasks.inference.pyfunc import _load_pyfunc
from tasks.serving.batcher import Batcher
from tasks.serving.champion import Champion
from tasks.serving.demo_page import DemoController
from tasks.serving.feedback import Feedback
from tasks.serving.metrics import ServerMetrics
from tasks.serving.request_validation import RequestLimits
from tasks.serving.routes import build_app
from tasks.serving.score_parts import Scorer

NEVER = 3_600.0


@pytest.fixture(scope="module")
def sentences(toy_split: tuple[str, str, str]) -> list[str]:
    return list(read_snapshot(toy_split[2])["sentence"])


@pytest.fixture(scope="module")
def bundle(exported: Any, sentences: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle whose threshold makes half of the sentences unacceptable that are acceptable with 0.5."""
    acceptable = Classifier.from_bundle(exported["bundle"], "cpu").probabilities(sentences)[:, 1]
    above = np.sort(acceptable[acceptable > 0.5])
    middle = len(above) // 2
    folder = Path(shutil.copytree(exported["bundle"], tmp_path_factory.mktemp("threshold") / "bundle"))
    write_manifest(folder, facts(decision_threshold=float(above[middle - 1 : middle + 1].mean())), {})
    return str(folder)


@pytest.fixture(scope="module")
def expected(bundle: str, sentences: list[str]) -> list[str]:
    classifier = Classifier.from_bundle(bundle, "cpu")
    acceptable = classifier.probabilities(sentences)[:, 1]
    assert 0 < (acceptable > classifier.threshold).sum() < (acceptable > 0.5).sum()
    return ["acceptable" if each > classifier.threshold else "unacceptable" for each in acceptable]


def by_classifier(bundle: str, sentences: list[str]) -> list[str]:
    return [answer["label"] for answer in Classifier.from_bundle(bundle, "cpu").predict(sentences)]


def by_pyfunc(bundle: str, sentences: list[str]) -> list[str]:
    return list(_load_pyfunc(bundle, {"device": "cpu"}).predict(sentences)["label"])


def by_command(bundle: str, sentences: list[str]) -> list[str]:
    return [answer["label"] for answer in predict(sentences, bundle, "cpu", bundle)]


def by_scoring(bundle: str, sentences: list[str]) -> list[str]:
    rows = [Row(line, "", 1, "", sentence) for line, sentence in enumerate(sentences)]
    return Scorer(Classifier.from_bundle(bundle, "cpu"), None).score(rows)["label"].to_pylist()


def by_http(bundle: str, sentences: list[str], path: str = "/v1/judge") -> Any:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(sentences)], "data": sentences}]}
    with Champion.open(bundle, NEVER, "cpu") as champion:
        batcher, telemetry = Batcher(champion.current), ServerMetrics(champion.status, lambda: 0)
        client = TestClient(build_app(champion, batcher, telemetry), base_url="http://localhost")
        assert client.get("/").json()["model"]["decision_threshold"] == champion.current().classifier.threshold
        found = client.post(path, json={"sentences": sentences} if path == "/v1/judge" else body).json()
        batcher.close()
    return found


def by_judge_api(bundle: str, sentences: list[str]) -> list[str]:
    return [answer["label"] for answer in by_http(bundle, sentences)["predictions"]]


def by_open_inference(bundle: str, sentences: list[str]) -> list[str]:
    return list(by_http(bundle, sentences, "/v2/models/acceptability/infer")["outputs"][0]["data"])


def by_demo_page(bundle: str, sentences: list[str]) -> list[str]:
    with Champion.open(bundle, NEVER, "cpu") as champion:
        batcher = Batcher(champion.current)
        page = DemoController(
            lambda lines: asyncio.wrap_future(batcher.submit(lines)), Feedback(f"{bundle}.tsv"), RequestLimits()
        )
        html = asyncio.run(page.judge("\n".join(sentences)))["html"]
        batcher.close()
    return [line.partition('"')[2].partition('"')[0] for line in html.splitlines() if line.startswith("<li class")]


@pytest.mark.parametrize(
    "path",
    [by_classifier, by_pyfunc, by_command, by_scoring, by_judge_api, by_open_inference, by_demo_page],
)
def test_every_path_gives_the_labels_of_the_bundles_threshold(
    path: Callable[[str, list[str]], list[str]], bundle: str, sentences: list[str], expected: list[str]
) -> None:
    assert path(bundle, sentences) == expected


def test_the_measurement_is_that_of_the_labels_that_are_served(
    bundle: str, exported: Any, toy_split: tuple[str, str, str], sentences: list[str], expected: list[str]
) -> None:
    labels = read_snapshot(toy_split[2])["label"]
    served = confusion(labels, [label == "acceptable" for label in expected])._asdict()
    classifier = Classifier.from_bundle(bundle, "cpu")
    measured = measure_snapshot(classifier, toy_split[2], 200)
    assert (measured["confusion"], measured["decision_threshold"]) == (served, classifier.threshold)
    compared = compare_bundles(bundle, exported["bundle"], toy_split[2], "cpu", 200)
    assert compared["first"]["confusion"] == served
    assert "decision_threshold" not in compared["second"]
    default = by_classifier(exported["bundle"], sentences)
    differing = sum(one != other for one, other in zip(default, expected, strict=True))
    assert compared["comparison"]["differing"] == differing > 0


def test_a_probability_is_that_of_the_label(bundle: str, sentences: list[str]) -> None:
    classifier = Classifier.from_bundle(bundle, "cpu")
    acceptable = classifier.probabilities(sentences)[:, 1]
    for answer, given in zip(classifier.predict(sentences), acceptable, strict=True):
        assert answer["probability"] == pytest.approx(given if answer["label"] == "acceptable" else 1 - given)


def test_requests_are_reviewed_by_the_champions_threshold_also_where_its_evidence_is_lost(
    bundle: str, empty_store: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(Path(bundle))
    home = make_champion_store(tmp_path, empty_store, {"bundle": bundle, "digest": manifest["digest"]})
    reference = find_reference(str(home))
    assert reference is not None
    assert (reference.version, reference.evidence) == ("1", None)
    assert reference.threshold == manifest["decision_threshold"] > 0.5
