"""Each limit rejects alone, and every comparison is on the same sentences each time."""

from typing import Any

import numpy as np
import pytest
from toy import origin

from tasks.data.snapshots import read_snapshot
from tasks.export.parity import LogitsModule, Parity, parity_error, real_cases
from tasks.training.model import load_classifier


def parity(**changes: Any) -> Parity:
    values = {
        "provider": "CPUExecutionProvider",
        "difference": {"1x1": 1e-5, "sentences": 5e-5},
        "sentences": 400,
        "equal": 1.0,
        "mcc_cost": 0.0,
    }
    return values | changes  # type: ignore[return-value]


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8"])
def test_a_graph_within_its_limits_has_no_error(variant: str) -> None:
    assert parity_error(variant, parity()) is None


@pytest.mark.parametrize(
    ("variant", "changes", "fault"),
    [
        ("fp32", {"difference": {"7x64": 1.1e-4}}, "differs from torch by 1.10e-04 at 7x64, expected at most 0.0001"),
        ("fp32", {"difference": {"1x1": np.nan}}, "has NaN or Inf logits at 1x1"),
        ("fp16", {"difference": {"1x1": 2.1e-2}}, "differs from torch by 2.10e-02 at 1x1, expected at most 0.02"),
        ("fp16", {"equal": 0.9925}, "gives 99.25% of 400 sentences torch's label, expected 99.5%"),
        ("int8", {"equal": 0.9875}, "gives 98.75% of 400 sentences torch's label, expected 99.0%"),
        ("int8", {"difference": {"1x1": np.inf}}, "has NaN or Inf logits at 1x1"),
        ("int8", {"difference": {"1x1": np.nan}}, "has NaN or Inf logits at 1x1"),
        ("int8", {"mcc_cost": 0.011}, "costs 0.011 MCC on 400 sentences, expected at most 0.01"),
        ("fp16", {"mcc_cost": 0.011}, "costs 0.011 MCC on 400 sentences, expected at most 0.01"),
        ("fp16", {"sentences": 0}, "was not compared with torch on any sentence"),
        ("int8", {"sentences": 0}, "was not compared with torch on any sentence"),
    ],
)
def test_each_limit_rejects_alone(variant: str, changes: dict[str, Any], fault: str) -> None:
    assert parity_error(variant, parity(**changes)) == fault


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("int8", {"difference": {"1x1": 3.0}}),
        ("int8", {"equal": 0.99}),
        ("fp16", {"equal": 0.995}),
        ("int8", {"mcc_cost": 0.01}),
        ("int8", {"mcc_cost": -0.3}),
        ("fp16", {"difference": {"1x1": 2e-2}}),
    ],
)
def test_the_limits_themselves_are_allowed(variant: str, changes: dict[str, Any]) -> None:
    assert parity_error(variant, parity(**changes)) is None


def test_sentences_are_spaced_evenly_over_the_rows_and_the_same_each_time(
    trained: Any, toy_split: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.export.parity.PARITY_SENTENCES", 10)
    logits = LogitsModule(load_classifier(trained["model"], attention="eager"))
    first, again = (real_cases(logits, trained["model"], origin()["max_length"], toy_split[1]) for _ in range(2))
    labels = read_snapshot(toy_split[1])["label"].to_numpy()
    (case,) = first
    assert case.labels is not None
    assert len(case.labels) == 10
    assert sorted(case.labels) == sorted(labels[np.linspace(0, len(labels) - 1, 10).astype(int)])
    assert np.array_equal(case.inputs["input_ids"], again[0].inputs["input_ids"])
    assert np.array_equal(case.expected, again[0].expected)
