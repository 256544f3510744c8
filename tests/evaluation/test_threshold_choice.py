"""The decision threshold is the one with the best validation MCC, smoothed, and never a spike or the holdout's."""

from typing import Any

import numpy as np
import pytest

from tasks.evaluation.metrics import mcc
from tasks.evaluation.threshold_choice import choose_on_validation, choose_threshold


def test_scores_that_all_lie_near_one_value_are_separated_in_the_middle() -> None:
    assert choose_threshold([0, 0, 1, 1], [0.52, 0.53, 0.55, 0.56]) == 0.54


def test_of_equal_thresholds_the_one_nearest_the_default_is_chosen() -> None:
    labels = [0, 1, 0, 1]  # MCC 0.577 above the first and above the third probability, 0 at 0.5
    assert choose_threshold(labels, [0.2, 0.3, 0.6, 0.8]) == 0.7
    assert choose_threshold(labels, [0.2, 0.32, 0.7, 0.8]) == 0.26


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [([1, 1], [0.6, 0.8]), ([0, 1], [0.7, 0.7]), ([1, 0], [0.2, 0.9]), ([0, 1], [0.4, 0.9]), ([], [])],
)
def test_the_default_stays_where_no_other_is_better(labels: list[int], probabilities: list[float]) -> None:
    assert choose_threshold(labels, probabilities) == 0.5


def test_a_spike_of_the_curve_is_not_chosen() -> None:
    rng = np.random.default_rng(0)
    probabilities = np.linspace(0.001, 0.999, 400)
    labels = (probabilities + rng.normal(0, 0.15, 400) > 0.7).astype(np.int64)
    chosen = choose_threshold(labels, probabilities)
    assert chosen == choose_threshold(labels[::-1], probabilities[::-1])
    assert 0.65 < chosen < 0.75


def test_a_bundles_threshold_is_chosen_through_its_graph(complete: Any, toy_split: tuple[str, str, str]) -> None:
    from tasks.data.snapshots import read_snapshot
    from tasks.inference.classifier import Classifier

    choice = choose_on_validation(complete["bundle"], toy_split[1], "cpu")
    classifier, rows = Classifier.from_bundle(complete["bundle"], "cpu"), read_snapshot(toy_split[1])
    acceptable = classifier.probabilities(rows["sentence"].tolist())[:, 1].round(9)
    assert (choice["variant"], choice["sentences"]) == (classifier.variant, len(rows))
    assert choice["mcc"] == mcc(rows["label"], acceptable > choice["threshold"])
    assert choice["default_mcc"] == mcc(rows["label"], acceptable > 0.5) <= choice["mcc"]
