"""Drift and estimate of served sentences, with exact values."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry
from request_rows import logged

from tasks.core.files import write_json
from tasks.core.settings import GateSettings, WatchSettings
from tasks.data.drift import DataProfile
from tasks.serving.metrics import ServerMetrics
from tasks.serving.request_log import hash_sentence
from tasks.serving.request_summary import ChampionReference, acceptable_of, distinct_answers, summarise_requests

WORDS = ("cat", "dog", "child", "apple", "mat")


def reference(probabilities: list[float], labels: list[int]) -> ChampionReference:
    """A champion that was trained on 1,000 sentences of 10 characters, and judged on these rows."""
    profile = DataProfile(
        dataset="d" * 64, rows=1_000, labels={"0": 300, "1": 700}, characters={"10": 1_000}, sources={"a": 1_000},
        words=dict.fromkeys(WORDS, 200),
    )  # fmt: skip
    answers = {"label": labels, "variants": {"fp32": probabilities}}
    candidate = {"variant": "fp32", "interval": {"mcc": 0.5, "low": 0.4, "high": 0.6}}
    evidence = cast(Any, {"answers": answers, "candidate": candidate})
    return ChampionReference("2", 0.5, profile, evidence)


def summarise(table: pa.Table, champion: ChampionReference | None) -> Any:
    return summarise_requests(table, champion, GateSettings(), WatchSettings())


def sentences(number: int, characters: int = 10) -> list[str]:
    """Distinct texts of so many characters that have one of WORDS each."""
    return [f"{WORDS[each % 5]} {each}".ljust(characters, ".")[:characters] for each in range(number)]


@pytest.fixture
def champion() -> ChampionReference:
    random = np.random.default_rng(0)
    probabilities = random.uniform(0.05, 0.95, 500)
    return reference(probabilities.tolist(), (random.random(500) < probabilities).astype(int).tolist())


def test_a_repeated_sentence_counts_once_and_other_versions_not_at_all(champion: ChampionReference) -> None:
    table = pa.concat_tables(
        [logged(("Same.", 0.9), ("Same.", 0.3), ("Other.", 0.55), version="2"), logged(("Old.", 0.5), version="1")]
    )
    assert distinct_answers(table, "2")["sentence"].to_pylist() == ["Same.", "Other."]
    np.testing.assert_allclose(acceptable_of(distinct_answers(table, "2")), [0.3, 0.55])
    assert len(distinct_answers(logged((None, 0.9), (None, 0.9), version="2"), "2")) == 2
    found = summarise(table, champion)
    assert (found["answers"], found["versions"], found["sentences"]) == (4, {"2": 3, "1": 1}, 2)
    assert (found["unsure"], found["latency_ms"]) == (0.5, pytest.approx([10.0, 10.0]))
    assert found["estimate"] is None
    assert found["no_estimate"] == "2 distinct sentences, at least 100 are needed"
    masked = summarise(logged(("<number> cats.", 0.9), ("<number> cats.", 0.9), version="2"), champion)
    assert masked["no_estimate"].startswith("1 distinct sentence, at least 100 are needed; those that differ only in")


def test_traffic_like_the_holdout_has_not_drifted_and_other_traffic_has(champion: ChampionReference) -> None:
    random = np.random.default_rng(1)
    texts = sentences(600)
    alike = logged(*zip(texts, random.uniform(0.05, 0.95, 600), strict=True), version="2")
    found = {shift["name"]: shift for shift in summarise(alike, champion)["drift"]}
    assert set(found) == {"label", "length", "vocabulary", "probability"}
    assert [name for name, shift in found.items() if shift["drifted"] and name != "vocabulary"] == []
    longer = logged(*zip(sentences(600, 40), random.uniform(0.6, 0.95, 600), strict=True), version="2")
    found = {shift["name"]: shift for shift in summarise(longer, champion)["drift"]}
    assert found["length"]["distance"] == 1.0
    assert [name for name in ("label", "length", "probability") if not found[name]["drifted"]] == []
    assert found["probability"]["setting"] == "watch.max_probability_shift"


def test_hashes_and_missing_sentences_have_no_words(champion: ChampionReference) -> None:
    table = logged((hash_sentence("a"), 0.7), (None, 0.2), version="2")
    assert {shift["name"] for shift in summarise(table, champion)["drift"]} == {"label", "length", "probability"}


def test_the_estimate_is_of_the_champion_s_distinct_sentences(champion: ChampionReference) -> None:
    random = np.random.default_rng(2)
    probabilities = random.uniform(0.05, 0.95, 2_000)
    found = summarise(logged(*zip(sentences(2_000), probabilities, strict=True), version="2"), champion)
    estimate = found["estimate"]
    assert (estimate["sentences"], estimate["calibrated_on"]) == (2_000, 500)
    # Uniform and calibrated: the expected share of right answers is 1/2 + 0.45 / 2, of both labels.
    assert estimate["mcc"] == pytest.approx(0.45, abs=0.08)
    assert estimate["low"] < 0.45 < estimate["high"]
    assert found["holdout"]["mcc"] == 0.5


def test_without_a_champion_or_its_evidence_there_is_volume_alone(champion: ChampionReference) -> None:
    table = logged(("Any.", 0.9), version="2")
    found = summarise(table, None)
    assert (found["answers"], found["version"], found["sentences"], found["drift"]) == (1, None, 0, [])
    bare = ChampionReference("2", 0.5, None, None)
    assert summarise(table, bare)["no_estimate"] == "the champion's answers on its holdout are not recorded here"
    assert summarise(table.slice(0, 0), champion)["latency_ms"] == []


def test_metrics_show_the_estimate_of_the_last_summary(champion: ChampionReference, tmp_path: Path) -> None:
    telemetry = ServerMetrics(cast(Any, None), lambda: 0)
    telemetry.registry = CollectorRegistry()
    telemetry.follow_summary(tmp_path)
    assert telemetry.text() == b""
    summary = summarise(logged(("Any.", 0.9), version="2"), champion)
    estimate = {"mcc": 0.5, "low": 0.25, "high": 0.75, "sentences": 100, "calibrated_on": 50, "confusion": [1.0] * 4}
    write_json(tmp_path / "summary.json", summary | {"estimate": estimate, "time": "2026-03-01T00:00:00+00:00"})
    shown = telemetry.text().decode()
    assert 'verdict_estimated_mcc{bound="low",version="2"} 0.25' in shown
    assert "verdict_estimate_timestamp_seconds 1.7723232e+09" in shown
    (tmp_path / "summary.json").write_text("{")
    assert telemetry.text() == b""
