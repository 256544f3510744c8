"""Decides from what was measured of a graph whether it ships: `PARITY_LIMITS` has the limits of each variant.

fp32 must compute the same function as torch, so its logits are compared. fp16 and int8 round on purpose, so what
counts is the quality: labels and MCC on all validation sentences. For fp16 torch's own half precision says besides how
far from fp32 rounding alone leads: a graph that is much further has another fault.

The loss of MCC is judged with its noise: of a few changed labels, which each move MCC by about 0.003 on CoLA's
validation sentences, chance decides how many become wrong and how many right. A graph is refused where the lower bound
of its loss (`paired_tests.difference_quantile`) is above the limit.

The share of changed labels is judged without a bound: nothing in it cancels, and a refusal costs speed only. The lower
bound of Clopper and Pearson would let fp16 change 8 of CoLA's 867 validation sentences, nearly twice the limit. Where
one sentence is more than the limit (below 200 sentences for fp16, 100 for int8), one changed label is allowed.
"""

import math
from typing import NamedTuple, TypedDict

REAL_CASE = "sentences"  # name of the comparison on real sentences
MIN_CHANGED = 1  # labels that may change however few sentences there are
# Half-precision differences of a logit up to here are never refused; two logits move a probability by at most 0.0025.
NEGLIGIBLE_DIFFERENCE = 0.005
LOSS_CONFIDENCE = 0.95  # one-sided, of the loss of MCC


class ParityLimit(NamedTuple):
    """Limits of a variant, each compared with "greater than"; NaN and Inf are refused of every variant.

    Attributes:
        difference: of a logit from torch's fp32, on sentences and random tokens.
        changed: share of the validation sentences with another label than torch's.
        mcc_loss: that the graph has, with a confidence of `LOSS_CONFIDENCE`, against torch.
        half_factor: largest difference of a logit on the sentences, as a multiple of that of torch's half precision.
    """

    difference: float = math.inf
    changed: float = math.inf
    mcc_loss: float = math.inf
    half_factor: float = math.inf


PARITY_LIMITS = {
    "fp32": ParityLimit(difference=1e-4),
    "fp16": ParityLimit(changed=0.005, mcc_loss=0.005, half_factor=2.0),
    "int8": ParityLimit(changed=0.01, mcc_loss=0.005),
}


class HalfPrecision(TypedDict):
    """How far torch's own half precision is from its fp32 on the sentences.

    Attributes:
        precision: fp16, or bf16 where a CPU has no kernel for fp16.
        device: cuda or cpu.
        sentences: it was computed on. On a CPU, where it is slow, only until the graph is known to be within the limit,
            beginning with the sentences on which the graph differs most; 0 where the graph's difference is negligible.
        difference: largest of a logit on these; None if torch's half precision gives NaN or Inf.
    """

    precision: str
    device: str
    sentences: int
    difference: float | None


class Parity(TypedDict):
    """What was measured of a graph against torch on a provider of ONNX Runtime.

    Attributes:
        provider: that ran the graph.
        difference: largest of a logit from torch's fp32, by name of the case; cases with NaN or Inf are missing.
        not_finite: names of the cases with NaN or Inf logits.
        sentences: real ones that were compared.
        changed: how many of them have another label than torch's.
        mcc: of the graph on them.
        torch_mcc: of torch's fp32 on them.
        mcc_loss_low: lower bound of `torch_mcc` - `mcc`, with a one-sided confidence of `LOSS_CONFIDENCE`.
        half: torch's half precision on the same sentences, for fp16.
    """

    provider: str
    difference: dict[str, float]
    not_finite: list[str]
    sentences: int
    changed: int
    mcc: float
    torch_mcc: float
    mcc_loss_low: float
    half: HalfPrecision | None


class Attempt(TypedDict):
    """One way of making a variant: name of the maker, what was measured, and why it is refused; None if it ships."""

    maker: str
    parity: Parity | None
    fault: str | None


def parity_error(variant: str, parity: Parity) -> str | None:
    """Return why a graph exceeds the limits of its variant; None if it does not."""
    limit = PARITY_LIMITS[variant]
    if parity["not_finite"]:
        return f"has NaN or Inf logits at {parity['not_finite'][0]}, expected finite ones"
    for name, difference in parity["difference"].items():
        if difference > limit.difference:
            return f"differs from torch by {difference:.2e} at {name}, expected at most {limit.difference:g}"
    if variant == "fp32":
        return None
    count = parity["sentences"]
    if not count:
        return "was not compared with torch on any sentence"
    if parity["changed"] > allowed_changes(limit.changed, count):
        return (
            f"changes {parity['changed']} of {count} labels ({parity['changed'] / count:.2%}), "
            f"expected at most {limit.changed:.1%}"
        )
    if parity["mcc_loss_low"] > limit.mcc_loss:
        return (
            f"loses {parity['torch_mcc'] - parity['mcc']:.4f} MCC on {count} sentences, with {LOSS_CONFIDENCE:.0%} "
            f"confidence at least {parity['mcc_loss_low']:.4f}, expected at most {limit.mcc_loss:g}"
        )
    return _half_error(parity, limit.half_factor)


def allowed_changes(share: float, sentences: int) -> int:
    """Return how many labels may change: the share, rounded down, and at least `MIN_CHANGED`."""
    return max(MIN_CHANGED, math.floor(share * sentences))


def allowed_difference(half: float | None, factor: float) -> float:
    """Return the limit of a logit's difference, given that of torch's half precision; None: that has NaN or Inf."""
    return max(NEGLIGIBLE_DIFFERENCE, factor * half) if half is not None else math.inf


def _half_error(parity: Parity, factor: float) -> str | None:
    """Return by how much a graph is further from fp32 than torch's half precision; None if it is not."""
    half = parity["half"]
    largest = parity["difference"][REAL_CASE]
    if half is None or half["difference"] is None:
        return None
    allowed = allowed_difference(half["difference"], factor)
    if largest <= allowed:
        return None
    return (
        f"differs from torch by {largest:.2e} on {parity['sentences']} sentences, expected at most {allowed:.2e}: "
        f"torch's own {half['precision']} on {half['device']} differs by {half['difference']:.2e}"
    )
