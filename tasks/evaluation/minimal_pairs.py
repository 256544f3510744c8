"""Evaluates a model on minimal pairs: two sentences that differ in one point of English grammar, one acceptable.

The holdout measures accuracy on sentences like the training data; minimal pairs measure which phenomena of grammar a
model handles. The pairs were written for this project (minimal_pairs.tsv) and are never trained on. A pair is ranked
correctly if the acceptable sentence gets the higher probability of "acceptable"; chance is 1/2. The method is BLiMP's:
Warstadt et al. 2020, https://doi.org/10.1162/tacl_a_00321.
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
    """An acceptable and an unacceptable sentence that differ in one phenomenon."""

    phenomenon: str
    good: str
    bad: str


class PhenomenonResult(TypedDict):
    """Share of a phenomenon's pairs ranked correctly; `outcomes` has a 1 or 0 for each pair, in the file's order."""

    pairs: int
    share: float
    outcomes: str


class MinimalPairResult(TypedDict):
    """One model on all minimal pairs."""

    pairs: int
    share: float
    phenomena: dict[str, PhenomenonResult]


@cache
def load_pairs() -> tuple[MinimalPair, ...]:
    """Return all pairs, grouped by phenomenon."""
    with Path(__file__).with_name(PAIRS_FILE).open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)  # header
        return tuple(MinimalPair(*row) for row in rows)


def evaluate_minimal_pairs(classifier: "Classifier") -> MinimalPairResult:
    """Rank both sentences of every pair with a model."""
    pairs = load_pairs()
    sentences = [sentence for pair in pairs for sentence in (pair.good, pair.bad)]
    logits = classifier.logits(sentences).astype(np.float64)
    # Log odds instead of probabilities, which are rounded to 1 for confident models and would tie.
    log_odds = (logits[:, 1] - logits[:, 0]).reshape(-1, 2)
    correct = log_odds[:, 0] > log_odds[:, 1]  # false for NaN
    outcomes: dict[str, str] = {}
    for pair, outcome in zip(pairs, correct, strict=True):
        outcomes[pair.phenomenon] = outcomes.get(pair.phenomenon, "") + "01"[int(outcome)]
    return summarise(outcomes)


def summarise(outcomes: dict[str, str]) -> MinimalPairResult:
    """Compute the shares of pairs ranked correctly.

    Args:
        outcomes: for each phenomenon a string with 1 for each pair ranked correctly, else 0.
    """
    every = "".join(outcomes.values())
    return MinimalPairResult(
        pairs=len(every),
        share=_share(every),
        phenomena={
            name: PhenomenonResult(pairs=len(each), share=_share(each), outcomes=each)
            for name, each in outcomes.items()
        },
    )


def _share(outcomes: str) -> float:
    return outcomes.count("1") / len(outcomes) if outcomes else 0.0
