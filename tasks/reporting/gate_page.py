"""Writes the data gate's page: one HTML file without external resources, with the reason for the result."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypedDict

from markupsafe import Markup

from tasks.core.files import write_text
from tasks.core.printable import counted, shorten
from tasks.data.drift import OTHER_CATEGORY, DataProfile, DriftResult, Histogram, drifted_names
from tasks.data.expectations import ExpectationResult, format_value, show_allowed, show_observed
from tasks.data.gate import GateReport, failed_critically
from tasks.data.row_features import ISSUE_TEXTS, QualityIssue
from tasks.reporting.templating import render

MAX_SOURCES = 20  # sources listed by name
MAX_SHOWN_CHARS = 300  # of one text from the data
MIN_SHOWN_P = 1e-4  # smaller p values are shown as < 0.0001

ResultStatus = Literal["failed", "warning", "passed"]
ResultGroups = dict[str, list[ExpectationResult]]


class SourceRow(TypedDict):
    """A source with its shares of the training rows; bar and mark in percent of the largest share."""

    name: str
    rows: int
    share: float
    before: float
    width: float | None
    mark: float


def write_gate_page(gate: GateReport, path: str, reference: DataProfile | None = None) -> str:
    """Write the page; it links to quarantine.csv and quarantine.parquet in the same folder.

    Args:
        gate: the gate's report.
        path: of the HTML file, which is replaced.
        reference: profile of the champion's training data, with which the gate compared.

    Returns:
        The path.
    """
    profile = gate["profile"]
    lengths = _describe_lengths(profile, reference)
    html = render(
        "gate.html.j2",
        gate=gate,
        why=explain(gate),
        settings=sorted(
            {str(each["setting"]) for each in gate["results"] if failed_critically(each) and each["setting"]}
        ),
        groups=_group(gate["results"]),
        quality_issues=_tabulate_issues(gate["quality_issues"]),
        acceptable=profile["labels"].get("1", 0) / profile["rows"] if profile["rows"] else None,
        lengths=lengths,
        pictures=_draw(gate, reference, lengths) if profile["rows"] else {},
        balance={role: _balance(counts) for role, counts in gate["labels"].items()},
        issue_texts=ISSUE_TEXTS,
        samples=gate["samples"],
        compared=reference is not None,
        sources=rank_sources(profile, reference),
        lists_rows=_lists_rows,
        status=_status,
        observed=lambda result: _short(show_observed(result)),
        allowed=lambda result: _short(show_allowed(result)),
        judged=_describe_limit,
        probability=_probability,
        short=_short,
    )
    write_text(Path(path), html)
    return path


def explain(gate: GateReport) -> str:
    """Return a sentence: why the data was refused, what warns, or that all expectations passed."""
    failed = [result for result in gate["results"] if _status(result) == "failed"]
    warned = [result for result in gate["results"] if _status(result) == "warning"]
    drifted = drifted_names(gate["drift"])
    if failed:
        more = f"; {counted(len(failed) - 1, 'more expectation')} failed" if len(failed) > 1 else ""
        return f"{_sentence(failed[0])}{more}."
    if drifted and len(drifted) == len(warned):  # all warnings are drift
        return f"Warning: it drifted from the champion's training data: {_list(drifted)}."
    if warned:
        more = f"; {counted(len(warned) - 1, 'more warning')}" if len(warned) > 1 else ""
        return f"Warning: {_sentence(warned[0])}{more}."
    if not gate["results"]:
        return "Nothing was checked."
    return f"{counted(len(gate['results']), 'expectation')} checked, none failed."


def rank_sources(profile: DataProfile, reference: DataProfile | None) -> list[SourceRow]:
    """Return the sources with the largest shares, in the new data or the reference; the last row pools the rest."""
    now, before = _shares(profile), _shares(reference) if reference else {}
    larger = {name: max(now.get(name, 0.0), before.get(name, 0.0)) for name in now | before}
    ranked = sorted(larger, key=lambda name: (-larger[name], -now.get(name, 0.0), name))
    shown, rest = ranked[:MAX_SOURCES], ranked[MAX_SOURCES:]
    lines = [
        SourceRow(
            name=name or "no source",
            rows=profile["sources"].get(name, 0),
            share=now.get(name, 0.0),
            before=before.get(name, 0.0),
            width=100 * now.get(name, 0.0) / larger[shown[0]],
            mark=100 * before.get(name, 0.0) / larger[shown[0]],
        )
        for name in shown
    ]
    pooled = OTHER_CATEGORY in profile["sources"] or bool(reference and OTHER_CATEGORY in reference["sources"])
    if rest or pooled:
        name = "all others" if pooled else f"{len(rest)} more"
        count = profile["rows"] - sum(line["rows"] for line in lines)
        old = 1 - sum(line["before"] for line in lines) if before else 0.0
        share = count / max(profile["rows"], 1)
        lines.append(SourceRow(name=name, rows=count, share=share, before=max(old, 0.0), width=None, mark=0.0))
    return lines


def _shares(profile: DataProfile) -> dict[str, float]:
    """Return the share of each named source that has rows."""
    return {
        name: rows / profile["rows"] for name, rows in profile["sources"].items() if rows and name != OTHER_CATEGORY
    }


def _group(results: Iterable[ExpectationResult]) -> dict[ResultStatus, ResultGroups]:
    """Group results by status and table, in their order."""
    groups: dict[ResultStatus, ResultGroups] = {"failed": {}, "warning": {}, "passed": {}}
    for result in results:
        groups[_status(result)].setdefault(result["table"], []).append(result)
    return groups


def _lists_rows(tables: ResultGroups) -> bool:
    """Return whether any result lists rows; otherwise that column is left out, which keeps the table narrow."""
    return any(result["unexpected"] or result["in_quarantine"] for table in tables.values() for result in table)


def _tabulate_issues(issues: dict[str, list[QualityIssue]]) -> dict[str, list[int | None]]:
    """Return one row of counts for each kind of issue, with a column for each table."""
    rows: dict[str, list[int | None]] = {}
    for column, of_table in enumerate(issues.values()):
        for issue in of_table:
            text = ISSUE_TEXTS[issue["kind"]] + (f" (of a sample of {issue['read']:,})" if issue["read"] else "")
            cells: dict[str, int | None] = {text: issue["exact"]}
            if issue["normalised"] is not None:
                cells = {f"{text}, exactly": issue["exact"], f"{text}, normalised": issue["normalised"]}
            if issue["tokens"] is not None:
                cells[f"{text}, as the encoder reads them"] = issue["tokens"]
            for name, count in cells.items():
                rows.setdefault(name, [None] * len(issues))[column] = count
    return rows


def _status(result: ExpectationResult) -> ResultStatus:
    if result["passed"]:
        return "passed"
    return "failed" if failed_critically(result) else "warning"


def _sentence(result: ExpectationResult) -> str:
    table = result["table"][:1].upper() + result["table"][1:]
    observed, allowed = _short(show_observed(result)), _short(show_allowed(result))
    return f"{table}: {_short(result['description'])}: observed {observed}, allowed {allowed}"


def _describe_limit(shift: DriftResult) -> str:
    if shift["drifted"]:
        return "drift"
    return "not significant" if shift["distance"] > shift["limit"] else "within the limit"


def _probability(p: float) -> str:
    return f"< {MIN_SHOWN_P:g}" if p < MIN_SHOWN_P else format_value(p)


def _short(text: str) -> str:
    shown = shorten(text, MAX_SHOWN_CHARS)
    return shown if shown == text else f"{shown} ({len(text):,} characters)"


def _list(names: list[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def _describe_lengths(profile: DataProfile, reference: DataProfile | None) -> str:
    """Return the figure's caption."""
    text = "Half of the training sentences have at most {} characters, 95% at most {}".format(*_quantiles(profile))
    if reference and reference["rows"]:
        text += "; of the champion's, half at most {} and 95% at most {}".format(*_quantiles(reference))
    return text + "."


def _quantiles(profile: DataProfile) -> tuple[int, int]:
    """Return the median and the 95th percentile of the lengths."""
    lengths = sorted((int(length), rows) for length, rows in profile["characters"].items())
    found = []
    for share in (0.5, 0.95):
        rest = share * sum(rows for _, rows in lengths)
        for length, rows in lengths:
            rest -= rows
            if rest <= 0:
                found.append(length)
                break
    return (found[0], found[1]) if found else (0, 0)


def _draw(gate: GateReport, reference: DataProfile | None, lengths: str) -> dict[str, Markup]:
    """Return the figures as inline SVG: lengths in characters and, where an encoder read the sentences, in tokens."""
    from tasks.reporting.charts import draw_lengths, draw_tokens  # imports matplotlib
    from tasks.reporting.figure_style import draw_inline

    figures = {
        "lengths": (draw_lengths(gate["profile"], reference), f"Lengths of the training sentences. {lengths}"),
        **(
            {"tokens": (draw_tokens(gate["tokens"]), "Sentences by number of tokens, by role.")}
            if gate["tokens"]
            else {}
        ),
    }
    return {name: Markup(draw_inline(figure, name, text)) for name, (figure, text) in figures.items()}


def _balance(counts: Histogram) -> tuple[int, int, float]:
    """Return the rows of the labels 0 and 1, and the share of the latter."""
    unacceptable, acceptable = counts.get("0", 0), counts.get("1", 0)
    return unacceptable, acceptable, acceptable / max(unacceptable + acceptable, 1)
