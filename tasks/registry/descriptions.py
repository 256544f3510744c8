"""What MLflow's own pages say: descriptions in Markdown and the tags that its tables show.

The tables show the raw text of a description, so its first line is plain. Addresses are those of MLflow's pages,
relative to its own, so they hold behind any host name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.core.printable import shorten
from tasks.evaluation.run_diff import SHORT_DIGEST
from tasks.registry.limits import MAX_CHANGES, MAX_VALUE
from tasks.registry.mlflow_client import PAGE_MODE
from tasks.reporting.wording import NEXT_STEPS, capital, escape_markdown, show_interval, show_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tasks.evaluation.evidence import Evidence
    from tasks.evaluation.judge import Verdict
    from tasks.evaluation.run_diff import SettingChange
    from tasks.registry.audit_log import AliasChange
    from tasks.reporting.tables import FigureRow

# What a change of the champion's alias, or a rejection, means for the version that it is about.
CHANGE_TEXTS = {
    "promote": "Promoted to champion",
    "approve": "APPROVED and promoted to champion",
    "rollback": "Champion again, by a rollback",
    "reject": "REJECTED",
}
# Paragraph of a version on HOLD, until a person decides.
WAITS = (
    f"{NEXT_STEPS['HOLD']} With the number of this version: `verdict approve N --reason TEXT` or "
    "`verdict reject N --reason TEXT`."
)
MAX_CELL_CHARS = 1_000  # characters of the tag that says what changed
EMPTY_CELL = "&emsp;"  # MLflow's pages leave no room between the columns of a table


def headline(evidence: Evidence, verdict: Verdict) -> str:
    """Return the verdict with its figures in one plain line."""
    measured, champion, comparison = evidence["candidate"], evidence["champion"], evidence["comparison"]
    text = f"{verdict['decision']}: MCC {show_interval(measured['interval'])} on {measured['rows']} holdout sentences"
    if champion and comparison:
        text += f", {comparison['difference']:+.3f} beside champion {champion['version']}"
    return f"{text}."


def version_tags(evidence: Evidence, verdict: Verdict, changes: Sequence[SettingChange] | None) -> dict[str, str]:
    """Return the tags that say at a glance what a version is; those for programs are set beside them."""
    changed = "; ".join(f"{each.what} {each.before} -> {each.now}" for each in changes or [])
    if changes is None:
        changed = "unknown" if verdict["champion"] else "first version judged without a champion"
    return {
        "verdict": verdict["decision"],
        "mcc": f"{evidence['candidate']['interval']['mcc']:.6f}",
        "changed": shorten(changed, MAX_CELL_CHARS) or "nothing",
    }


def describe_version(
    evidence: Evidence,
    verdict: Verdict,
    figures: Sequence[FigureRow],
    changes: Sequence[SettingChange] | None,
    run_page: str,
) -> str:
    """Return the description of a version.

    Args:
        evidence: what was measured.
        verdict: what was decided.
        figures: of candidate and champion.
        changes: since the champion; None where they are not known.
        run_page: address of the run's page, relative to MLflow's.
    """
    parts = [headline(evidence, verdict), _reasons(verdict)]
    if verdict["decision"] == "HOLD":
        parts.append(WAITS)
    if verdict["champion"]:
        parts.append(_changes(changes, verdict["champion"]))
    parts += [
        f"Trained on the rows `{evidence['training_digest'][:SHORT_DIGEST]}` and measured on the holdout "
        f"`{evidence['holdout_digest'][:SHORT_DIGEST]}`, which are data sets of its run, with "
        f"{evidence['candidate']['variant']} on {evidence['candidate']['provider']}. Other candidates judged on this "
        f"holdout before: {evidence['holdout_uses']}.",
        _links(run_page),
        _figures(figures, verdict),  # last: MLflow's pages leave no room after a table
    ]
    return "\n\n".join(parts)


def describe_change(change: AliasChange) -> str:
    """Return the line that a change puts above the description of the version that it is about."""
    return f"{CHANGE_TEXTS[change['kind']]} {_when(change)}: {escape_markdown(change['reason'])}"


def describe_replacement(change: AliasChange) -> str:
    """Return the line that a change puts above the description of the version that was champion before."""
    how = "rolled back to" if change["kind"] == "rollback" else "replaced by"
    return f"No longer champion: {how} version {change['to']} {_when(change)}."


def _when(change: AliasChange) -> str:
    return f"by {escape_markdown(change['actor'])}, {show_time(change['time'])}"


def describe_run(evidence: Evidence, verdict: Verdict, version: str, model: str, run_page: str) -> str:
    """Return the description of a run that ended with a verdict; arguments as above, `model` is the registry's name."""
    places = [
        f"[report]({run_page}/artifacts/records/report.html{PAGE_MODE}), card, evidence and verdict: `records/`",
        f"[page of the data gate]({run_page}/artifacts/gate/gate.html{PAGE_MODE}) and quarantined rows: `gate/`",
        "every picture: `pictures/`",
        "the rows used for training and judging: the data sets of this run, by digest",
    ]
    return "\n\n".join(
        [
            headline(evidence, verdict),
            _reasons(verdict),
            f"Registered as [version {version}](#/models/{model}/versions/{version}{PAGE_MODE}). "
            f"{NEXT_STEPS[verdict['decision']]}",
            "\n".join(f"- {place}" for place in places),
        ]
    )


def describe_failure(decision: str, error: str) -> str:
    """Return the description of a run that ended without a verdict."""
    what = {"REFUSED": "The data gate refused the data", "STOPPED": "The run was stopped"}.get(
        decision, "The run failed"
    )
    return f"{what}: {escape_markdown(error)}"


def _reasons(verdict: Verdict) -> str:
    names = [*(f" (rule `{rule}`)" for rule in verdict["rules"])]
    names += [""] * (len(verdict["reasons"]) - len(names))
    return "\n".join(
        f"- {capital(escape_markdown(reason))}{name}" for reason, name in zip(verdict["reasons"], names, strict=True)
    )


def _links(run_page: str) -> str:
    files = {"report": "records/report.html", "model card": "records/card.md", "evidence": "records/evidence.json"}
    files |= {"data gate": "gate/gate.html", "pictures": "pictures"}
    return " · ".join(f"[{name}]({run_page}/artifacts/{path}{PAGE_MODE})" for name, path in files.items())


def _figures(figures: Sequence[FigureRow], verdict: Verdict) -> str:
    beside = any(figure.champion is not None for figure in figures)
    head = ["figure", "this version", *([f"champion {verdict['champion']}"] if beside else [])]
    rows = [[figure.name, figure.candidate, *([figure.champion or ""] if beside else [])] for figure in figures]
    return f"**Figures**\n\n{_table(head, rows)}"


def _changes(changes: Sequence[SettingChange] | None, champion: str) -> str:
    if changes is None:
        return f"What changed since champion {champion} is not known: its run is not in this store."
    if not changes:
        return f"Nothing changed since champion {champion}: neither settings nor data, code or libraries."
    lines: list[str] = []
    for each in changes:
        before, now = (escape_markdown(shorten(value, MAX_VALUE)) or "empty" for value in (each.before, each.now))
        lines.append(f"- `{each.what}`: {before} → {now}")
        if sum(map(len, lines)) > MAX_CHANGES:
            break
    if len(changes) > len(lines):
        lines.append(f"- {len(changes) - len(lines)} more in the report")
    return "\n".join([f"**Changed since champion {champion}**\n", *lines])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[f"{cell}{EMPTY_CELL}" for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
