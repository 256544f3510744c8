"""Tests and intervals for two models on the same rows: bootstrap, permutation test, McNemar's test.

Everything is computed from eight counts, the contingency table label x candidate's prediction x champion's prediction.
Resampling rows is one multinomial draw over these counts, and swapping the two models' predictions on discordant rows
is one binomial draw per label, so the cost does not grow with the number of rows. Bootstrap and permutation test are
our own: SciPy's resample rows, and its permutation test is not exact for this statistic.
Shape letters: N rows, R resamples.
"""

import math
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.evaluation.metrics import mcc_from_counts

MAX_EXACT_SWAPS = 4_000_000  # outcomes enumerated by the permutation test; above, a normal distribution approximates it
MIN_DISCORDANT = 25  # discordant rows below which McNemar's test is exact

Contingency = NDArray[np.int64]


class PermutationP(NamedTuple):
    """One-sided p values of the permutation test: the candidate is better, the candidate is worse."""

    better: float
    worse: float


class Difference(TypedDict):
    """MCC of the candidate minus the champion's, its 95% interval, and the fraction of resamples in which it is > 0."""

    difference: float
    low: float
    high: float
    probability: float


def contingency(labels: ArrayLike, candidate: ArrayLike, champion: ArrayLike) -> Contingency:
    """Count rows by label and both predictions.

    Args:
        labels: [N] of 0 and 1.
        candidate: [N] predicted labels.
        champion: [N] predicted labels.

    Returns:
        [8], indexed by 4 * label + 2 * candidate + champion.
    """
    labels, candidate, champion = (np.asarray(each, np.int64) for each in (labels, candidate, champion))
    return np.bincount(4 * labels + 2 * candidate + champion, minlength=8)


def mcc_difference(cells: ArrayLike) -> NDArray[np.float64]:
    """Return the candidate's MCC minus the champion's for contingency counts [..., 8]."""
    cells = np.asarray(cells)
    table = cells.reshape(*cells.shape[:-1], 2, 2, 2)
    flat = (*cells.shape[:-1], 4)
    return mcc_from_counts(table.sum(axis=-1).reshape(flat)) - mcc_from_counts(table.sum(axis=-2).reshape(flat))


def bootstrap(cells: Contingency, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Return the MCC difference with its percentile bootstrap interval; a difference of 0 counts half as > 0.

    Args:
        cells: [8] of `contingency`.
        resamples: R.
        seed: of the random generator.

    Raises:
        ValueError: if N is 0.
    """
    drawn = _resample(cells, resamples, seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(
        difference=float(mcc_difference(cells)),
        low=float(low),
        high=float(high),
        probability=float(np.mean(drawn > 0) + np.mean(drawn == 0) / 2),
    )


def difference_quantile(cells: Contingency, probability: float, resamples: int = 10_000, seed: int = 0) -> float:
    """Return a quantile of the bootstrapped MCC difference, a one-sided bound of it.

    The bounds are those of the percentile method (Efron 1981, https://doi.org/10.2307/3314608). A closed form from the
    variance of both MCCs would need their difference to be normal; if two models differ on three sentences only, it is
    a count that is skewed and cannot be negative, and the bootstrap draws just that.

    Args:
        cells: [8] of `contingency`.
        probability: of a smaller difference; 0.95 for the upper bound with a confidence of 95%.
        resamples: R.
        seed: of the random generator.

    Raises:
        ValueError: if N is 0.
    """
    return float(np.quantile(_resample(cells, resamples, seed), probability))


def permutation_test(cells: Contingency) -> PermutationP:
    """Exact paired permutation test of the MCC difference.

    Null hypothesis: the two models are interchangeable, so on each discordant row either is right with probability 1/2.
    For each label the number of rows won by the candidate is then binomial, which gives the exact distribution of the
    MCC difference, far into its tails. With accuracy in place of MCC this is McNemar's exact test.

    Args:
        cells: [8] of `contingency`.
    """
    from scipy.stats import binom

    table = cells.reshape(2, 2, 2)
    discordant = table[:, 1, 0] + table[:, 0, 1]  # of label 0, of label 1
    observed = float(mcc_difference(cells))
    if math.prod(int(count) + 1 for count in discordant) > MAX_EXACT_SWAPS:
        return _permutation_normal(table, discordant, observed)
    fp, tp = (np.arange(count + 1) + both for count, both in zip(discordant, table[:, 1, 1], strict=True))
    negatives, positives = table.sum(axis=(1, 2))
    grid = np.empty((len(fp), len(tp), 4))  # the candidate's confusion for every outcome of the swaps
    grid[..., 0], grid[..., 1] = (negatives - fp)[:, None], fp[:, None]
    grid[..., 2], grid[..., 3] = positives - tp, tp
    mcc = mcc_from_counts(grid)
    difference = mcc - mcc[::-1, ::-1]  # reversed: the champion's confusion for the same outcome
    weights = np.outer(*(binom.pmf(np.arange(count + 1), count, 0.5) for count in discordant))
    slack = 1e-12  # rounding between equal differences
    better, worse = weights[difference >= observed - slack].sum(), weights[difference <= observed + slack].sum()
    return PermutationP(min(float(better), 1.0), min(float(worse), 1.0))


def mcnemar(cells: Contingency) -> float:
    """Return the two-sided p value of McNemar's test of equal error rates.

    Exact (binomial) for fewer than `MIN_DISCORDANT` discordant rows, else chi-squared with continuity correction.
    """
    from scipy.stats import binomtest, chi2

    table = cells.reshape(2, 2, 2)
    candidate = int(table[0, 0, 1] + table[1, 1, 0])  # rows on which only the candidate is right
    champion = int(table[0, 1, 0] + table[1, 0, 1])
    total = candidate + champion
    if candidate == champion:
        return 1.0
    if total < MIN_DISCORDANT:
        return float(binomtest(candidate, total, 0.5).pvalue)
    return float(chi2.sf((abs(candidate - champion) - 1) ** 2 / total, df=1))


def agreement(cells: Contingency) -> float:
    """Return the fraction of rows with equal predictions; 1 for N = 0."""
    total = int(cells.sum())
    table = cells.reshape(2, 2, 2)
    return float(1 - (table[:, 1, 0] + table[:, 0, 1]).sum() / total) if total else 1.0


def _resample(cells: Contingency, resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the MCC differences [R] of resampled rows."""
    total = int(cells.sum())
    if total == 0:
        raise ValueError("a comparison needs at least one sentence")
    return mcc_difference(np.random.default_rng(seed).multinomial(total, cells / total, size=resamples))


def _permutation_normal(table: Contingency, discordant: Contingency, observed: float) -> PermutationP:
    """Approximate the permutation distribution by a normal one with the standard deviation of 10,000 random swaps."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    swapped = np.broadcast_to(table, (10_000, 2, 2, 2)).copy()
    for label, count in enumerate(discordant):
        heads = rng.binomial(count, 0.5, 10_000)
        swapped[:, label, 1, 0], swapped[:, label, 0, 1] = heads, count - heads
    spread = float(mcc_difference(swapped.reshape(-1, 8)).std())
    if not spread:
        return PermutationP(1.0, 1.0)
    return PermutationP(better=float(norm.sf(observed / spread)), worse=float(norm.cdf(observed / spread)))
