"""The sentences on which two versions differ."""

import pandas as pd

from tasks.evaluation.compare_versions import DIFFERING_SENTENCES, list_disagreements


def test_the_largest_difference_comes_first_also_from_a_probability_of_zero() -> None:
    table = pd.DataFrame({"label": [1, 0, 1, 1], "sentence": ["none", "zero", "some", "equal"]})
    listed = list_disagreements(table, [None, 0.0, 0.3, 0.9], [0.8, 0.9, 0.7, 0.8], (0.5, 0.5))
    assert [(row["sentence"], row["first"], row["second"]) for row in listed] == [
        ("zero", 0.0, 0.9),
        ("some", 0.3, 0.7),
        ("none", None, 0.8),  # counts as 0.5
    ]


def test_few_of_many_differing_sentences_are_listed() -> None:
    many = pd.DataFrame({"label": [1] * 30, "sentence": [str(row) for row in range(30)]})
    assert len(list_disagreements(many, [0.1] * 30, [0.9] * 30, (0.5, 0.5))) == DIFFERING_SENTENCES < 30
