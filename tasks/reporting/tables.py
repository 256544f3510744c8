"""Rows of the report's tables: rules, figures, paired comparison, slices, minimal pairs.

Differences are the candidate's value minus the champion's. Without a measured champion its values are None.
"""

from typing import NamedTuple, TypedDict, cast

import numpy as np

from tasks.core.policy import Policy
from tasks.core.printable import counted
from tasks.evaluation.evidence import Evidence, predictions_of
from tasks.evaluation.judge import RULES, SLICE_KINDS, Verdict
from tasks.evaluation.measurement import Comparison, Measurement, name_length
from tasks.evaluation.metrics import MccInterval, SliceFigures, mcc_interval
from tasks.reporting.wording import FIGURE_LABELS

SLICE_RESAMPLES = 2_000  # of the bootstrap in each slice
MAX_SLICES = 30  # slices of one kind; of more, those that dropped and the largest are shown


class RuleExplanation(NamedTuple):
    """A rule that applies, its reason and its explanation; a note has a reason only."""

    rule: str
    reason: str
    explanation: str


class FigureRow(NamedTuple):
    """One figure of both; `better` is 1 if the candidate's is better, -1 if worse, 0 if equal, else None."""

    name: str
    candidate: str
    champion: str | None
    better: int | None


class ClassRow(NamedTuple):
    """Figures of one class of one model; `support` is its number of sentences."""

    label: str
    support: int
    precision: float
    recall: float
    f1: float


class FactRow(NamedTuple):
    """A number of the paired comparison and its meaning."""

    name: str
    value: str
    means: str


class SliceRow(TypedDict):
    """Sentences of one source, length or phenomenon: MCC or share of both; bar width and tick in percent.

    `candidate` is None where the slice has no MCC because all its labels are the same; so is `champion` then.
    `interval` is None there, and for shares.

    `mark` is "dropped" if the rule slice_dropped applies, "few sentences" if it would with more sentences, "lower" for
    any other decrease, else empty.
    """

    name: str
    rows: int
    candidate: float | None
    interval: MccInterval | None
    champion: float | None
    width: float
    tick: float | None
    mark: str


class SliceTable(TypedDict):
    """The slices of one kind, and the number not shown."""

    kind: str
    rows: list[SliceRow]
    more: int


def explain_rules(verdict: Verdict) -> list[RuleExplanation]:
    """Return the rules that made the decision, followed by notes."""
    names = [*verdict["rules"], *[""] * (len(verdict["reasons"]) - len(verdict["rules"]))]
    pairs = zip(names, verdict["reasons"], strict=True)
    return [RuleExplanation(name, reason, RULES[name].explanation if name else "") for name, reason in pairs]


def measured_champion(evidence: Evidence) -> Measurement | None:
    """Return the champion's measurement; None without a measured champion."""
    return evidence["champion"]["measurement"] if evidence["champion"] else None


def compare_figures(evidence: Evidence) -> list[FigureRow]:
    """Return the figures of candidate and champion."""
    ours, theirs = evidence["candidate"], measured_champion(evidence)
    mcc, before = ours["interval"]["mcc"], theirs["interval"]["mcc"] if theirs else None
    lines = [
        _figure("MCC", mcc, before, 1, "{:.3f}"),
        FigureRow("95% CI of the MCC", _show_range(ours), _show_range(theirs) if theirs else None, None),
    ]
    for key, (name, direction) in FIGURE_LABELS.items():
        here, there = (cast(float, dict(side)[key]) if side else None for side in (ours, theirs))
        lines.append(_figure(name, here, there, direction, "{:.3f}"))
    champion = evidence["champion"]
    pairs = champion["minimal_pairs"]["share"] if champion and champion["minimal_pairs"] else None
    lines.append(_figure("minimal pairs ranked correctly", evidence["minimal_pairs"]["share"], pairs, 1, "{:.1%}"))
    return lines


def list_classes(measured: Measurement, labels: list[str]) -> list[ClassRow]:
    """Return precision, recall and F1 of each class; 0 where their denominator is 0.

    Args:
        measured: one model.
        labels: names of the classes 0 and 1.
    """
    counts = measured["confusion"]
    rows = []
    for name, right, missed, wrong in (
        (labels[0], counts["tn"], counts["fp"], counts["fn"]),
        (labels[1], counts["tp"], counts["fn"], counts["fp"]),
    ):
        rows.append(
            ClassRow(
                name,
                support=right + missed,
                precision=right / max(right + wrong, 1),
                recall=right / max(right + missed, 1),
                f1=2 * right / max(2 * right + missed + wrong, 1),
            )
        )
    return rows


def list_facts(comparison: Comparison, verdict: Verdict) -> list[FactRow]:
    """Return the numbers of the paired comparison with their meaning."""
    found, level, uses = comparison, verdict["numbers"]["alpha"], verdict["numbers"]["holdout_uses"]
    better = f"one-sided, of a better candidate; at most alpha, {_p_value(level)}, promotes"
    worse = f"one-sided, of a worse candidate; at most {_p_value(1 - verdict['policy']['reject_confidence'])} rejects"
    alone = f"{found['candidate_alone']} and {found['champion_alone']}"
    return [
        FactRow(
            "difference of the MCC", f"{found['difference']:+.3f}", "candidate minus champion, on the same sentences"
        ),
        FactRow(
            "95% CI", f"{found['low']:+.3f} to {found['high']:+.3f}", "of the difference; bootstrap over sentences"
        ),
        FactRow("candidate better", f"{found['probability']:.1%}", "of the resamples"),
        FactRow("permutation test: better", f"p-value {_p_value(found['p_better'])}", better),
        FactRow("permutation test: worse", f"p-value {_p_value(found['p_worse'])}", worse),
        FactRow("McNemar's test", f"p-value {found['mcnemar']:.3g}", "two-sided, of different error rates"),
        FactRow("same prediction", f"{found['agreement']:.1%}", f"of the sentences; {found['differing']} differ"),
        FactRow("right alone", alone, "sentences that only the candidate, only the champion labels correctly"),
        FactRow(
            f"alpha after {counted(int(uses or 0), 'other candidate')}",
            _p_value(level),
            "significance level; each candidate judged on this holdout before lowers it",
        ),
    ]


def list_slices(evidence: Evidence, policy: Policy) -> list[SliceTable]:
    """Return the slices by source and by length with their marks, the largest drop first."""
    ours, theirs = evidence["candidate"], measured_champion(evidence)
    found = []
    for kind, key in SLICE_KINDS.items():
        here: dict[str, SliceFigures] = dict(ours)[key]  # type: ignore[assignment]
        there: dict[str, SliceFigures] = dict(theirs)[key] if theirs else {}  # type: ignore[assignment]
        intervals = _slice_intervals(evidence, kind)
        rows = []
        for name, each in here.items():
            count, before = each["rows"], there[name]["mcc"] if theirs else None
            mark = _mark(each["mcc"], before, count, policy)
            interval = intervals.get(name) if each["mcc"] is not None else None
            rows.append(_slice(name, count, each["mcc"], before, mark, interval))
        rows.sort(key=_difference)
        kept = sorted(rows, key=lambda row: (row["mark"] != "dropped", -row["rows"]))[:MAX_SLICES]
        names = {row["name"] for row in kept}
        found.append(
            SliceTable(kind=kind, rows=[row for row in rows if row["name"] in names], more=len(rows) - len(kept))
        )
    return found


def _difference(row: SliceRow) -> float:
    both = row["candidate"] is not None and row["champion"] is not None
    return cast(float, row["candidate"]) - cast(float, row["champion"]) if both else 0.0


def _slice_intervals(evidence: Evidence, kind: str) -> dict[str, MccInterval]:
    """Return the 95% interval of the candidate's MCC in each slice."""
    answers = evidence["answers"]
    labels = np.array(answers["label"], np.int64)
    predictions = predictions_of(evidence)[0]
    names = np.array(answers["source"] if kind == "source" else [name_length(count) for count in answers["words"]])
    slices = {str(name): names == name for name in np.unique(names)}
    return {name: mcc_interval(labels[here], predictions[here], SLICE_RESAMPLES) for name, here in slices.items()}


def list_phenomena(evidence: Evidence) -> list[SliceRow]:
    """Return the share of minimal pairs ranked correctly, by phenomenon."""
    champion = evidence["champion"]
    there = champion["minimal_pairs"]["phenomena"] if champion and champion["minimal_pairs"] else {}
    rows = []
    for name, each in evidence["minimal_pairs"]["phenomena"].items():
        before = there[name]["share"] if name in there else None
        mark = "lower" if before is not None and each["share"] < before else ""
        rows.append(_slice(name, each["pairs"], each["share"], before, mark))
    return rows


def _slice(
    name: str, rows: int, ours: float | None, theirs: float | None, mark: str, interval: MccInterval | None = None
) -> SliceRow:
    tick, width = None if theirs is None else 100 * max(theirs, 0.0), 100 * max(ours or 0.0, 0.0)
    return SliceRow(
        name=name, rows=rows, candidate=ours, interval=interval, champion=theirs, width=width, tick=tick, mark=mark
    )


def _mark(ours: float | None, theirs: float | None, rows: int, policy: Policy) -> str:
    if ours is None or theirs is None or ours >= theirs:
        return ""
    if theirs - ours <= policy.max_slice_drop:
        return "lower"
    return "dropped" if rows >= policy.min_slice_rows else "few sentences"


def _figure(name: str, ours: float | None, theirs: float | None, direction: int, form: str) -> FigureRow:
    if ours is None or theirs is None:
        return FigureRow(name, form.format(ours), None, None)
    better = direction * ((ours > theirs) - (ours < theirs))
    return FigureRow(name, form.format(ours), form.format(theirs), better)


def _show_range(measured: Measurement) -> str:
    return f"{measured['interval']['low']:.3f} to {measured['interval']['high']:.3f}"


def _p_value(value: float | int | None) -> str:
    """Format a p value or a level with two digits."""
    return "none" if value is None else f"{value:.2g}"
