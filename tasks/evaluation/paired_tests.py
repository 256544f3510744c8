"""Compares two models on the same sentences: whatever both get right or wrong says nothing about which is better.

All that a comparison of two confusions can use are eight counts, the cells: label x candidate's answer x champion's
answer. Drawing sentences with replacement is one multinomial draw over them, and swapping the two models on the
sentences on which they differ is one binomial draw for each label, so nothing here grows with the number of sentences.
Shape letters: N sentences, R resamples.
"""

import math
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.evaluation.metrics import mcc_from_counts

MAX_EXACT_SWAPS = (
    4_000_000  # cases of a swap test that are gone through one by one; beyond, the normal distribution is as good
)
MIN_DISCORDANT = 25  # differing sentences below which McNemar's test is exact

Contingency = NDArray[np.int64]


class PermutationP(NamedTuple):
    """Chances that two interchangeable models differ at least as much as seen: in favour of the one, of the other."""

    better: float
    worse: float


class Difference(TypedDict):
    """The MCC difference, its 95% interval, and the share of the resamples in which the candidate is better."""

    difference: float
    low: float
    high: float
    probability: float


def contingency(labels: ArrayLike, candidate: ArrayLike, champion: ArrayLike) -> Contingency:
    """Count how often each label met each pair of answers.

    Args:
        labels: [N] of 0 and 1.
        candidate: [N] predicted labels.
        champion: [N] predicted labels.

    Returns:
        [8], at 4 * label + 2 * candidate + champion.
    """
    labels, candidate, champion = (np.asarray(each, np.int64) for each in (labels, candidate, champion))
    return np.bincount(4 * labels + 2 * candidate + champion, minlength=8)


def mcc_difference(cells: ArrayLike) -> NDArray[np.float64]:
    """Return the candidate's MCC less the champion's for cells [..., 8]."""
    cells = np.asarray(cells)
    table = cells.reshape(*cells.shape[:-1], 2, 2, 2)
    flat = (*cells.shape[:-1], 4)
    return mcc_from_counts(table.sum(axis=-1).reshape(flat)) - mcc_from_counts(table.sum(axis=-2).reshape(flat))


def bootstrap(cells: Contingency, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Return the MCC difference with its percentile interval over resampled sentences; a tie counts half.

    Args:
        cells: [8] of `count_cells`.
        resamples: R.
        seed: of the resampling.

    Raises:
        ValueError: if there are no sentences.
    """
    total = int(cells.sum())
    if total == 0:
        raise ValueError("a comparison needs at least one sentence")
    drawn = mcc_difference(np.random.default_rng(seed).multinomial(total, cells / total, size=resamples))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(
        difference=float(mcc_difference(cells)),
        low=float(low),
        high=float(high),
        probability=float(np.mean(drawn > 0) + np.mean(drawn == 0) / 2),
    )


def permutation_test(cells: Contingency) -> PermutationP:
    """Ask how often models that are as good as each other would differ by as much.

    For such models it is a coin's throw which of the two is right where they differ. Of each label the champion's and
    the candidate's shares are therefore binomial, and the MCC difference has an exact distribution, which goes as far
    into the tail as a policy asks; resamples would not. On accuracy instead of MCC this is McNemar's exact test.

    Args:
        cells: [8] of `count_cells`.
    """
    table = cells.reshape(2, 2, 2)
    differing = table[:, 1, 0] + table[:, 0, 1]  # of label 0, of label 1
    seen = float(mcc_difference(cells))
    if math.prod(int(count) + 1 for count in differing) > MAX_EXACT_SWAPS:
        return _permutation_normal(table, differing, seen)
    fp, tp = (np.arange(count + 1) + both for count, both in zip(differing, table[:, 1, 1], strict=True))
    negatives, positives = table.sum(axis=(1, 2))
    grid = np.empty((len(fp), len(tp), 4))  # one model's confusion for each outcome of the throws
    grid[..., 0], grid[..., 1] = (negatives - fp)[:, None], fp[:, None]
    grid[..., 2], grid[..., 3] = positives - tp, tp
    reached = mcc_from_counts(grid)
    difference = reached - reached[::-1, ::-1]  # the other model has what this one has not
    chances = np.outer(*(_fair_coin_tail(int(count)) for count in differing))
    slack = 1e-12  # equal differences that are computed in another order
    better, worse = chances[difference >= seen - slack].sum(), chances[difference <= seen + slack].sum()
    return PermutationP(min(float(better), 1.0), min(float(worse), 1.0))


def mcnemar(cells: Contingency) -> float:
    """Return the two-sided p value of McNemar's test: do both models err equally often?

    Exact where they differ in the rightness of fewer than 25 sentences, else chi-squared with continuity correction.
    """
    table = cells.reshape(2, 2, 2)
    candidate = int(table[0, 0, 1] + table[1, 1, 0])  # it alone is right
    champion = int(table[0, 1, 0] + table[1, 0, 1])
    total = candidate + champion
    if total < MIN_DISCORDANT:
        tail = sum(math.comb(total, count) for count in range(min(candidate, champion) + 1)) / 2**total
        return min(1.0, 2 * tail)
    statistic = (abs(candidate - champion) - 1) ** 2 / total if candidate != champion else 0.0
    return math.erfc(math.sqrt(statistic / 2))


def agreement(cells: Contingency) -> float:
    """Return the share of sentences that got the same label from both; 1 for no sentences."""
    total = int(cells.sum())
    table = cells.reshape(2, 2, 2)
    return float(1 - (table[:, 1, 0] + table[:, 0, 1]).sum() / total) if total else 1.0


def _fair_coin_tail(throws: int) -> NDArray[np.float64]:
    """Return the chances of 0, 1, ... heads in so many throws of a coin."""
    heads = np.arange(throws)
    return np.exp(np.concatenate([[0.0], np.cumsum(np.log((throws - heads) / (heads + 1)))]) - throws * math.log(2))


def _permutation_normal(table: Contingency, differing: Contingency, seen: float) -> PermutationP:
    """Approximate the same by a normal distribution whose spread is that of 10,000 throws."""
    rng = np.random.default_rng(0)
    thrown = np.broadcast_to(table, (10_000, 2, 2, 2)).copy()
    for label, count in enumerate(differing):
        heads = rng.binomial(count, 0.5, 10_000)
        thrown[:, label, 1, 0], thrown[:, label, 0, 1] = heads, count - heads
    spread = float(mcc_difference(thrown.reshape(-1, 8)).std())
    better = math.erfc(seen / spread / math.sqrt(2)) / 2 if spread else 1.0
    return PermutationP(better, 1 - better if spread else 1.0)
