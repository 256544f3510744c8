"""Behaviour suite: minimal pairs, one sentence of which is acceptable, by phenomenon of English grammar.

A holdout says how often a model is right on sentences like those that trained it; these say what it has understood. The
pairs are written for this file (behaviour.tsv) and are never trained on. A pair is told apart when the good sentence
gets the higher probability of "acceptable"; chance is one half.
"""

import csv
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

if TYPE_CHECKING:
    from tasks.inference.classifier import Classifier

PAIRS_FILE = "minimal_pairs.tsv"


class MinimalPair(NamedTuple):
    """Two sentences that differ in one thing."""

    phenomenon: str
    good: str
    bad: str


class PhenomenonResult(TypedDict):
    """How many of its pairs were told apart; `told` has a 1 for each that was, in the order of the file."""

    pairs: int
    share: float
    outcomes: str


class MinimalPairResult(TypedDict):
    """One model on the whole suite."""

    pairs: int
    share: float
    phenomena: dict[str, PhenomenonResult]


@cache
def load_pairs() -> tuple[MinimalPair, ...]:
    """Return the suite's pairs, those of one phenomenon together."""
    with Path(__file__).with_name(PAIRS_FILE).open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # the names of the columns
        return tuple(MinimalPair(*row) for row in rows)


def evaluate_minimal_pairs(classifier: "Classifier") -> MinimalPairResult:
    """Let a model judge both sentences of every pair."""
    pairs = load_pairs()
    sentences = [sentence for pair in pairs for sentence in (pair.good, pair.bad)]
    logits = classifier.logits(sentences).astype(np.float64)
    # The difference of the logits: probabilities near 1 would be equal.
    acceptable = (logits[:, 1] - logits[:, 0]).reshape(-1, 2)
    told = acceptable[:, 0] > acceptable[:, 1]  # false where one is no number
    outcomes: dict[str, str] = {}
    for pair, apart in zip(pairs, told, strict=True):
        outcomes[pair.phenomenon] = outcomes.get(pair.phenomenon, "") + "01"[int(apart)]
    return summarise(outcomes)


def summarise(outcomes: dict[str, str]) -> MinimalPairResult:
    """Compute the shares from the outcomes of each phenomenon.

    Args:
        outcomes: for each phenomenon a text of 0 and 1, one a pair.
    """
    every = "".join(outcomes.values())
    return MinimalPairResult(
        pairs=len(every),
        share=_share(every),
        phenomena={
            name: PhenomenonResult(pairs=len(told), share=_share(told), outcomes=told)
            for name, told in outcomes.items()
        },
    )


def _share(told: str) -> float:
    return told.count("1") / len(told) if told else 0.0
