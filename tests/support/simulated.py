"""Simulated candidates of known quality, to count the error rates of the promotion rule.

A latent score of each sentence is the sum of a difficulty shared by all models and an error of each model; a score
above 0 is predicted as acceptable. The share of the difficulty is chosen so that two models agree as often as real
ones: their errors are strongly correlated.

Used by test_judge_simulation.py, and with more histories by benchmarks/simulate_policy.py. Shape letters: H histories,
K candidates in a row, N sentences, S slices.
"""

import math
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import multivariate_normal

from tasks.core.policy import Policy
from tasks.evaluation.judge import decide
from tasks.evaluation.metrics import mcc_from_counts
from tasks.evaluation.paired_tests import mcc_difference, permutation_test

SENTENCES, ACCEPTABLE = 516, 0.69  # CoLA's out_of_domain_dev.tsv
MCC, AGREEMENT, RECALL = (
    0.55,
    0.90,
    0.92,
)  # the champion's, two models', the champion's
# Sentences of CoLA's sources and length slices.
SOURCES, LENGTHS = (222, 83, 82, 55, 42, 32), (82, 182, 139, 113)
NEAR = 0.03  # MCC; equal models differ by this much in one case of five, which no policy promotes

Cells = NDArray[np.int64]


class World(NamedTuple):
    """Mean latent score of acceptable and minus that of unacceptable sentences, and the shared part of its variance."""

    acceptable: float
    unacceptable: float
    shared: float


def mcc_of(recall: float, specificity: float) -> float:
    """Return the expected MCC of a model with this recall and specificity."""
    bad = 1 - ACCEPTABLE
    return float(
        mcc_from_counts([bad * specificity, bad * (1 - specificity), ACCEPTABLE * (1 - recall), ACCEPTABLE * recall])
    )


@cache
def world() -> World:
    """Solve for the means that give the champion's MCC, and for the shared variance that gives the agreement."""
    cdf = NormalDist().cdf
    acceptable = NormalDist().inv_cdf(RECALL)
    unacceptable = brentq(lambda mean: mcc_of(RECALL, cdf(mean)) - MCC, -1, 2)

    def disagreement(mean: float, shared: float) -> float:
        both = multivariate_normal([0, 0], [[1, shared], [shared, 1]]).cdf([mean, mean])
        return 2 * float(cdf(mean) - both)

    def gap(shared: float) -> float:
        parts = (ACCEPTABLE, acceptable), (1 - ACCEPTABLE, unacceptable)
        return 1 - sum(share * disagreement(mean, shared) for share, mean in parts) - AGREEMENT

    return World(acceptable, unacceptable, brentq(gap, 0.1, 0.999))


@cache
def lift(gain: float) -> float:
    """Return the shift of the latent score that improves the MCC by `gain`."""
    cdf, here = NormalDist().cdf, world()

    def gap(step: float) -> float:
        return mcc_of(cdf(here.acceptable + step), cdf(here.unacceptable + step)) - MCC - gain

    return float(brentq(gap, -1, 1.5))


class Holdouts:
    """H holdouts, each with a champion's predictions; candidates are drawn one after the other."""

    def __init__(self, histories: int, seed: int, sentences: int = SENTENCES) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = (histories, sentences)
        self.label = self.rng.random(self.shape, np.float32) < ACCEPTABLE
        here = world()
        mean = np.where(self.label, here.acceptable, -here.unacceptable).astype(np.float32)
        self.base = mean + np.float32(math.sqrt(here.shared)) * self.errors()
        self.champion = self.predict(self.errors())

    def errors(self) -> NDArray[np.float32]:
        """Draw one model's errors [H, N]."""
        return self.rng.standard_normal(self.shape, np.float32)

    def predict(self, errors: NDArray[np.float32], gain: float = 0.0) -> NDArray[np.bool_]:
        """Return the predictions [H, N] of a model with these errors that is better by `gain` MCC."""
        own = np.float32(math.sqrt(1 - world().shared))
        step = np.float32(lift(gain)) if gain else np.float32(0)
        return self.base + np.where(self.label, step, -step) + own * errors > 0

    def cells(self, candidate: NDArray[np.bool_], slices: NDArray[np.int64] | None = None) -> Cells:
        """Count label x candidate x champion: [H, 8], or [H, S, 8] by the slice [N] of each sentence."""
        histories, sentences = self.shape
        groups = slices if slices is not None else np.zeros(sentences, np.int64)
        count = int(groups.max()) + 1
        index = 4 * self.label + 2 * candidate + self.champion + 8 * groups
        index = index + 8 * count * np.arange(histories)[:, None]
        counts = np.bincount(index.ravel(), minlength=8 * count * histories).reshape(histories, count, 8)
        return counts if slices is not None else counts[:, 0]


def draw_candidates(histories: int, candidates: int, seed: int, gain: float = 0.0) -> Cells:
    """Return the cells [H, K, 8] of independent candidates."""
    holdouts = Holdouts(histories, seed)
    return np.stack([holdouts.cells(holdouts.predict(holdouts.errors(), gain)) for _ in range(candidates)], axis=1)


def draw_climb(histories: int, candidates: int, seed: int, kept: float) -> Cells:
    """Return the cells [H, K, 8] of candidates selected by the holdout: each keeps a share of the best one's errors.

    What it keeps was luck on these sentences; on others no candidate is better. This models a person who reads every
    figure and continues from the best.
    """
    holdouts = Holdouts(histories, seed)
    best, record = holdouts.errors(), np.full(histories, -np.inf)
    found = []
    for _ in range(candidates):
        errors = np.float32(math.sqrt(kept)) * best + np.float32(math.sqrt(1 - kept)) * holdouts.errors()
        found.append(holdouts.cells(holdouts.predict(errors)))
        difference = mcc_difference(found[-1])
        better = difference > record
        best[better], record[better] = errors[better], difference[better]
    return np.stack(found, axis=1)


def draw_sliced(histories: int, seed: int, gain: float) -> tuple[Cells, Cells, Cells]:
    """Return the cells of one candidate a holdout: whole [H, 8], by source [H, S, 8], by length [H, S, 8]."""
    holdouts = Holdouts(histories, seed)
    candidate = holdouts.predict(holdouts.errors(), gain)
    source = np.repeat(np.arange(len(SOURCES)), SOURCES)
    length = holdouts.rng.permutation(np.repeat(np.arange(len(LENGTHS)), LENGTHS))
    return holdouts.cells(candidate), holdouts.cells(candidate, source), holdouts.cells(candidate, length)


def p_values(cells: Cells) -> NDArray[np.float64]:
    """Return the permutation test's p value [...] of cells [..., 8]; 1 if no policy could promote."""
    found = np.ones(cells.shape[:-1])
    for index in np.argwhere(mcc_difference(cells) > NEAR):
        found[tuple(index)] = permutation_test(cells[tuple(index)]).better
    return found


def decisions(cells: Cells, policy: Policy, first: int = 0, slices: tuple[Cells, ...] = ()) -> NDArray[np.str_]:
    """Judge candidates [H, K, 8] in their order; "HOLD" if no policy could promote.

    Args:
        cells: of every candidate.
        policy: of the judge.
        first: holdout uses before the first candidate.
        slices: cells [H, S, 8] by source and by length, of single candidates (K = 1).
    """
    found = np.full(cells.shape[:-1], "HOLD", "<U7")
    for row, use in np.argwhere(mcc_difference(cells) > NEAR):
        parts = tuple(each[row] for each in slices)
        found[row, use] = decide(evidence_of(cells[row, use], first + int(use), parts), policy)[0]
    return found


def evidence_of(cells: Cells, uses: int, slices: tuple[Cells, ...] = ()) -> Any:
    """Return the parts of evidence that the judge reads, for cells [8]."""
    better, worse = permutation_test(cells)
    ours, theirs = _measured(cells, slices, 1), _measured(cells, slices, 2)
    comparison = {"difference": float(mcc_difference(cells)), "p_better": better, "p_worse": worse}
    suite = {"share": 0.5, "pairs": 280}
    champion = {
        "version": "1",
        "digest": "old",
        "training_digest": "t",
        "measurement": theirs,
        "minimal_pairs": suite,
        "fault": None,
    }
    return {
        "digest": "new",
        "candidate": ours,
        "variants": {"fp32": ours},
        "champion": champion,
        "comparison": comparison,
        "minimal_pairs": suite,
        "leak": {"left": 0, "remaining": 0, "sentences": []},
        "champion_state": "active",
        "holdout_uses": uses,
        "drift": [],
        "training_digest": "t",
    }


def _measured(cells: Cells, slices: tuple[Cells, ...], axis: int) -> dict[str, Any]:
    """Return one model's figures: the candidate's (axis 1 of label x candidate x champion) or the champion's (2)."""
    other = 3 - axis

    def figure(part: Cells) -> dict[str, float]:
        counts = part.reshape(2, 2, 2).sum(axis=other)
        return {"rows": int(counts.sum()), "mcc": float(mcc_from_counts(counts.reshape(4)))}

    grouped = [{str(name): figure(part) for name, part in enumerate(parts)} for parts in slices] or [{}, {}]
    whole = figure(cells)
    return {
        "rows": whole["rows"],
        "interval": {"mcc": whole["mcc"]},
        "finite": True,
        "classes_predicted": 2,
        "variant": "fp32",
        "per_source": grouped[0],
        "per_length": grouped[1],
    }
