"""Figures follow from labels and recorded probabilities alone."""

import numpy as np
import pytest

from tasks.evaluation.measurement import (
    compare,
    evaluate,
    name_length,
    predict_labels,
    read_probabilities,
    round_probabilities,
)
from tasks.evaluation.metrics import auroc, brier, f1, mcc

ROWS = {
    "label": [1, 1, 0, 0, 1, 0],
    "source": ["a", "a", "a", "b", "b", "b"],
    "words": [3, 5, 6, 8, 9, 40],
}
GIVEN = [0.9, 0.4, 0.2, 0.6, 0.51, 0.1]


def test_figures_are_those_of_the_labels_and_probabilities() -> None:
    found = evaluate(ROWS, GIVEN, "CPU", "fp32", 200)  # type: ignore[arg-type]
    predictions = [1, 0, 0, 1, 1, 0]
    assert found["interval"]["mcc"] == mcc(ROWS["label"], predictions)
    assert found["confusion"] == {"tn": 2, "fp": 1, "fn": 1, "tp": 2}
    assert found["f1"] == f1(ROWS["label"], predictions)
    assert found["auroc"] == auroc(ROWS["label"], GIVEN)
    assert found["brier"] == brier(ROWS["label"], GIVEN)
    assert (found["rows"], found["finite"], found["classes_predicted"], found["worst"]) == (6, True, 2, [])
    assert {name: part["rows"] for name, part in found["per_source"].items()} == {"a": 3, "b": 3}


def test_length_slices_are_in_order_and_empty_ones_are_left_out() -> None:
    found = evaluate(ROWS, GIVEN, "CPU", "fp32", 200)["per_length"]  # type: ignore[arg-type]
    assert {name: part["rows"] for name, part in found.items()} == {
        "1 to 5 words": 2,
        "6 to 8 words": 2,
        "9 to 12 words": 1,
        "13 words or more": 1,
    }
    assert list(found) == ["1 to 5 words", "6 to 8 words", "9 to 12 words", "13 words or more"]
    short = {**ROWS, "words": [1] * 6}
    assert list(evaluate(short, GIVEN, "CPU", "fp32", 200)["per_length"]) == ["1 to 5 words"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "name"),
    [(0, "1 to 5 words"), (5, "1 to 5 words"), (6, "6 to 8 words"), (12, "9 to 12 words"), (13, "13 words or more")],
)
def test_a_length_has_one_name(words: int, name: str) -> None:
    assert name_length(words) == name


def test_nan_and_inf_are_recorded_as_none_and_predicted_as_unacceptable() -> None:
    recorded = round_probabilities(np.array([0.25, np.nan, np.inf, 1.0]))
    assert recorded == [0.25, None, None, 1.0]
    assert read_probabilities(recorded).tolist() == [0.25, 0.5, 0.5, 1.0]
    assert predict_labels(recorded, 0.5).tolist() == [0, 0, 0, 1]
    found = evaluate({**ROWS, "label": [0, 1] * 3}, [None] * 6, "CPU", "fp32", 200)  # type: ignore[arg-type]
    assert (found["finite"], found["classes_predicted"]) == (False, 1)


def test_keeping_a_probability_keeps_its_label() -> None:
    logits = np.float32([1e-7, -1e-7, 0.0])  # the smallest differences that float32 logits near 1 have
    acceptable = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert predict_labels(round_probabilities(acceptable), 0.5).tolist() == [1, 0, 0]


def test_a_comparison_counts_who_alone_is_right() -> None:
    other = [0.9, 0.9, 0.9, 0.9, 0.1, 0.1]
    found = compare(ROWS, GIVEN, other, 500)  # type: ignore[arg-type]
    assert (found["candidate_alone"], found["champion_alone"], found["differing"]) == (2, 1, 3)
    assert found["difference"] == pytest.approx(
        mcc(ROWS["label"], [1, 0, 0, 1, 1, 0]) - mcc(ROWS["label"], [1, 1, 1, 1, 0, 0])
    )
    back = compare(ROWS, other, GIVEN, 500)  # type: ignore[arg-type]
    assert back["difference"] == -found["difference"]
    assert (back["p_better"], back["mcnemar"]) == (pytest.approx(found["p_worse"]), found["mcnemar"])


def test_no_rows_are_no_measurement() -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        evaluate({"label": [], "source": [], "words": []}, [], "CPU", "fp32", 200)
