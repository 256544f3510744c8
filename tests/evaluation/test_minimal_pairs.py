"""The minimal pairs are well formed and unseen in training, and a model is scored on all of them."""

import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data.normalization import normalise
from tasks.data.sample_corpus import write_sample
from tasks.evaluation import minimal_pairs
from tasks.evaluation.minimal_pairs import evaluate_minimal_pairs, load_pairs, summarise
from tasks.inference.classifier import Classifier

PAIRS = load_pairs()


def words(sentence: str) -> list[str]:
    return re.findall(r"[a-z']+", sentence.lower())


def test_there_are_fourteen_phenomena_of_twenty_pairs() -> None:
    counts = Counter(pair.phenomenon for pair in PAIRS)
    assert len(counts) == 14
    assert set(counts.values()) == {20}
    assert [pair.phenomenon for pair in PAIRS] == [name for name in counts for _ in range(20)]


def test_every_line_has_three_cells() -> None:
    path = Path(minimal_pairs.__file__).with_name("minimal_pairs.tsv")
    rows = list(csv.reader(path.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[0] == ["phenomenon", "good", "bad"]
    for row in rows[1:]:
        assert len(row) == 3
        assert all(cell == cell.strip() and cell for cell in row)
        assert all(cell[0].isupper() and cell[-1] in ".?!" for cell in row[1:])


def test_no_sentence_occurs_twice_or_in_both_roles() -> None:
    normalised = [normalise(sentence) for pair in PAIRS for sentence in (pair.good, pair.bad)]
    assert [sentence for sentence, count in Counter(normalised).items() if count > 1] == []


def test_the_two_sentences_of_a_pair_differ_in_at_most_three_words_or_their_order() -> None:
    for pair in PAIRS:
        good, bad = Counter(words(pair.good)), Counter(words(pair.bad))
        assert max((good - bad).total(), (bad - good).total()) <= 3, pair


def test_no_sentence_occurs_in_the_sample_corpus(tmp_path: Path) -> None:
    write_sample(tmp_path)
    sample = {
        normalise(line.split("\t")[3]) for path in tmp_path.glob("*.tsv") for line in path.read_text().splitlines()
    }
    assert len(sample) > 4_000
    assert not sample & {normalise(sentence) for pair in PAIRS for sentence in (pair.good, pair.bad)}


class KnowsGood:
    """A classifier that knows the good sentences, but for some."""

    def __init__(self, wrong: set[str]) -> None:
        self.good = {pair.good for pair in PAIRS} - wrong

    def logits(self, sentences: list[str]) -> Any:
        return np.array([[0.0, float(sentence in self.good)] for sentence in sentences], np.float32)


def test_a_pair_is_ranked_correctly_if_the_good_sentence_scores_higher_and_a_tie_is_not() -> None:
    first = PAIRS[0]
    assert evaluate_minimal_pairs(KnowsGood(set()))["share"] == 1.0  # type: ignore[arg-type]
    found = evaluate_minimal_pairs(KnowsGood({first.good}))  # type: ignore[arg-type]
    assert found["share"] == pytest.approx(279 / 280)
    assert found["phenomena"][first.phenomenon] == {"pairs": 20, "share": 0.95, "outcomes": "0" + "1" * 19}


def test_a_real_model_is_evaluated_and_the_shares_follow_from_the_outcomes(exported: Any) -> None:
    classifier = Classifier.from_bundle(exported["bundle"], "cpu")
    found = evaluate_minimal_pairs(classifier)
    assert found["pairs"] == 280
    assert found == summarise({name: each["outcomes"] for name, each in found["phenomena"].items()})
    good, bad = classifier.logits([PAIRS[0].good, PAIRS[0].bad]).astype(float)
    outcome = found["phenomena"][PAIRS[0].phenomenon]["outcomes"][0]
    assert outcome == str(int(good[1] - good[0] > bad[1] - bad[0]))


def test_nan_logits_rank_no_pair_correctly() -> None:
    class Broken:
        def logits(self, sentences: list[str]) -> Any:
            return np.full((len(sentences), 2), np.nan, np.float32)

    assert evaluate_minimal_pairs(Broken())["share"] == 0.0  # type: ignore[arg-type]


def test_no_pairs_have_the_share_zero() -> None:
    assert summarise({}) == {"pairs": 0, "share": 0.0, "phenomena": {}}
