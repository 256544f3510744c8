"""Outcomes of retraining runs that no run has produced."""

import dataclasses
from typing import Any

from flows.outcome import RetrainOutcome

HOLD = RetrainOutcome(
    decision="HOLD",
    rules=["not_better"],
    reasons=["not better", "drifted"],
    version="4",
    mcc=0.51234,
    mcc_low=0.4,
    mcc_high=0.6,
    provider="CPUExecutionProvider",
    variant="int8",
    mcc_by_variant={"fp32": 0.52, "fp16": 0.52, "int8": 0.51234},
    holdout_rows=80,
    dataset="d" * 64,
    digest="b" * 64,
    threshold=0.3,
    champion_before="3",
    champion_mcc=0.5,
    mcc_difference=0.01234,
    holdout_uses=2,
    report="/somewhere/report.html",
    store="sqlite:///somewhere/mlflow.db",
    run="r" * 32,
    seconds={"read data": 0.1, "fine-tune": 1.5},
)


def make_outcome(**changes: Any) -> RetrainOutcome:
    """Return the outcome of a candidate on HOLD, changed by name."""
    return dataclasses.replace(HOLD, **changes)
