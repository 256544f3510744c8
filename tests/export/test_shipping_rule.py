"""Each limit refuses alone, just above its value and not at it, and the page has the limits of the program."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.evaluation.metrics import mcc
from tasks.evaluation.paired_tests import contingency, difference_quantile
from tasks.export.shipping_rule import PARITY_LIMITS, Parity, allowed_changes, parity_error

README = Path(__file__).parents[2] / "tasks" / "export" / "README.md"
HALF = {"precision": "fp16", "device": "cuda", "sentences": 867, "difference": 0.03}


def parity(**changes: Any) -> Parity:
    values = {
        "provider": "CPUExecutionProvider",
        "difference": {"1x1": 1e-5, "sentences": 5e-5},
        "not_finite": [],
        "sentences": 867,
        "changed": 0,
        "mcc": 0.6,
        "torch_mcc": 0.6,
        "mcc_loss_low": 0.0,
        "half": HALF,
    }
    return values | changes  # type: ignore[return-value]


@pytest.mark.parametrize("variant", PARITY_LIMITS)
def test_a_graph_within_its_limits_has_no_error(variant: str) -> None:
    assert parity_error(variant, parity()) is None


LOSS = {"torch_mcc": 0.6123, "mcc": 0.6, "mcc_loss_low": 0.00501}
LOSES = "loses 0.0123 MCC on 867 sentences, with 95% confidence at least 0.0050, expected at most 0.005"


@pytest.mark.parametrize(
    ("variant", "changes", "fault"),
    [
        ("fp32", {"difference": {"7x64": 1.1e-4}}, "differs from torch by 1.10e-04 at 7x64, expected at most 0.0001"),
        ("fp32", {"not_finite": ["1x1"]}, "has NaN or Inf logits at 1x1, expected finite ones"),
        ("fp16", {"not_finite": ["7x64"]}, "has NaN or Inf logits at 7x64, expected finite ones"),
        ("int8", {"not_finite": ["sentences"]}, "has NaN or Inf logits at sentences, expected finite ones"),
        ("fp16", {"sentences": 0}, "was not compared with torch on any sentence"),
        ("int8", {"sentences": 0}, "was not compared with torch on any sentence"),
        ("fp16", {"changed": 5}, "changes 5 of 867 labels (0.58%), expected at most 0.5%"),
        ("int8", {"changed": 9}, "changes 9 of 867 labels (1.04%), expected at most 1.0%"),
        ("fp16", {"changed": 2, "sentences": 80}, "changes 2 of 80 labels (2.50%), expected at most 0.5%"),
        ("int8", {"changed": 2, "sentences": 80}, "changes 2 of 80 labels (2.50%), expected at most 1.0%"),
        ("fp16", LOSS, LOSES),
        ("int8", LOSS, LOSES),
        (
            "fp16",
            {"difference": {"sentences": 0.0601}},
            "differs from torch by 6.01e-02 on 867 sentences, expected at most 6.00e-02: "
            "torch's own fp16 on cuda differs by 3.00e-02",
        ),
        (
            "fp16",
            {"difference": {"sentences": 0.00501}, "half": HALF | {"difference": 0.001}},
            "differs from torch by 5.01e-03 on 867 sentences, expected at most 5.00e-03: "
            "torch's own fp16 on cuda differs by 1.00e-03",
        ),
    ],
)
def test_each_limit_refuses_alone(variant: str, changes: dict[str, Any], fault: str) -> None:
    assert parity_error(variant, parity(**changes)) == fault


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("fp32", {"difference": {"1x1": 1e-4}}),
        ("fp32", {"changed": 9}),  # only of nearly equal logits
        ("fp16", {"changed": 4}),
        ("int8", {"changed": 8}),
        ("fp16", {"changed": 1, "sentences": 200}),
        ("int8", {"changed": 1, "sentences": 100}),
        ("fp16", {"changed": 1, "sentences": 80}),  # one label more than the share alone
        ("int8", {"changed": 1, "sentences": 80}),
        ("fp16", {"mcc_loss_low": 0.005, "mcc": 0.5}),
        ("int8", {"mcc_loss_low": 0.005, "mcc": 0.5}),
        ("int8", {"mcc_loss_low": -0.3, "mcc": 0.9}),
        ("fp16", {"difference": {"sentences": 0.06}}),
        ("fp16", {"difference": {"7x64": 9.0, "sentences": 0.06}}),  # tokens that no sentence has
        ("fp16", {"difference": {"sentences": 0.005}, "half": HALF | {"difference": 0.0}}),
        ("fp16", {"difference": {"sentences": 3.0}, "half": HALF | {"difference": None}}),  # torch's overflows
        ("int8", {"difference": {"sentences": 3.0}, "half": None}),
    ],
)
def test_the_limits_themselves_are_allowed(variant: str, changes: dict[str, Any]) -> None:
    assert parity_error(variant, parity(**changes)) is None


def test_the_share_of_labels_that_may_change_is_exact_for_every_number_of_sentences() -> None:
    for count in range(1, 20_001):
        assert allowed_changes(0.005, count) == max(1, count // 200)
        assert allowed_changes(0.01, count) == max(1, count // 100)


def lost_labels(wrong: int, right: int) -> dict[str, Any]:
    """Return the changes and MCC of a graph with that many labels wrong, and right, that torch has not."""
    labels = np.random.default_rng(0).integers(0, 2, 867)
    torchs = labels.copy()
    torchs[:150] = 1 - labels[:150]
    ours = torchs.copy()
    ours[150 : 150 + wrong] = 1 - ours[150 : 150 + wrong]
    ours[:right] = 1 - ours[:right]
    low = -difference_quantile(contingency(labels, ours, torchs), 0.95)
    return {"changed": wrong + right, "mcc": mcc(labels, ours), "torch_mcc": mcc(labels, torchs), "mcc_loss_low": low}


def test_the_same_number_of_changed_labels_is_refused_where_it_costs_mcc_and_not_where_it_is_noise() -> None:
    assert str(parity_error("int8", parity(**lost_labels(8, 0)))).startswith("loses 0.01")
    for wrong in (4, 5, 6):
        assert parity_error("int8", parity(**lost_labels(wrong, 8 - wrong))) is None
    assert (
        lost_labels(6, 2)["torch_mcc"] - lost_labels(6, 2)["mcc"] > 0.005
    )  # more than the limit, but it may be chance


def test_the_page_has_these_limits() -> None:
    page = README.read_text(encoding="utf-8")
    for row in (
        "| fp32 | 0.0001 | | | |",
        "| fp16 | | 0.5% | 0.005 | 2 times torch's own half precision, or 0.005 |",
        "| int8 | | 1.0% | 0.005 | |",
    ):
        assert row in page
    assert [tuple(PARITY_LIMITS[name]) for name in ("fp32", "fp16", "int8")] == [
        (1e-4, np.inf, np.inf, np.inf),
        (np.inf, 0.005, 0.005, 2.0),
        (np.inf, 0.01, 0.005, np.inf),
    ]
