"""Baselines learn which words occur, are the same every time and need no second label."""

import pytest

from tasks.data.snapshots import read_snapshot
from tasks.evaluation.baselines import measure_baselines
from tasks.evaluation.metrics import mcc_interval


def test_a_bag_of_words_finds_the_word_that_decides_and_the_majority_class_finds_nothing(
    toy_split: tuple[str, str, str],
) -> None:
    majority, words, pairs = measure_baselines(toy_split[0], toy_split[2], 200)
    labels = read_snapshot(toy_split[2])["label"]
    assert [each["name"] for each in (majority, words, pairs)] == [
        "majority class",
        "bag of words",
        "words and pairs of words",
    ]
    assert majority["interval"] == {"mcc": 0.0, "low": 0.0, "high": 0.0}
    most = int(2 * read_snapshot(toy_split[0])["label"].sum() >= len(read_snapshot(toy_split[0])))
    assert majority["accuracy"] == pytest.approx((labels == most).mean())
    assert (words["interval"]["mcc"], words["accuracy"]) == (1.0, 1.0)
    assert words["interval"] == mcc_interval(labels, labels, 200)
    assert pairs["interval"]["mcc"] > 0.9
    assert measure_baselines(toy_split[0], toy_split[2], 200) == [majority, words, pairs]
