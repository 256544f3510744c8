"""Reads data and runs the gate: the `check` command, and the first steps of every flow. Needs no server."""

import logging
import os
from pathlib import Path
from typing import Any

from flows.commands.data_files import make_table_format
from tasks.core.errors import UnreachableError
from tasks.core.settings import DataSettings, Settings
from tasks.data.drift import DataProfile
from tasks.data.expectations import show_allowed, show_observed
from tasks.data.gate import GateReport, describe_remedy, describe_result, failed_critically, validate_data
from tasks.data.ingestion import Dataset, ingest
from tasks.data.row_features import describe_issues
from tasks.data.sources import locate_sources, locate_text
from tasks.reporting.gate_page import write_gate_page
from tasks.training.pretrained import locate_tokenizer

log = logging.getLogger("tasks.check")


def read_data(settings: DataSettings, home: str, snapshots: str = "") -> Dataset:
    """Resolve the addresses and write snapshots of their files.

    Args:
        settings: the settings under `data`.
        home: folder of the stores.
        snapshots: folder that receives them; empty for the one in `home`.

    Raises:
        UsageError: if an address, a file or a column does not exist.
        UnreachableError: if a server does not answer.
        DataRejected: if a file does not have the digest of its address.
    """
    sources = locate_sources(settings.path, settings.train, settings.holdout, home, offline=settings.offline)
    text = locate_text(settings.text, home, offline=settings.offline)
    return ingest(sources, snapshots or f"{home}/snapshots", make_table_format(settings), settings.holdout_share, text)


def run_gate(
    data: Dataset, settings: Settings, folder: str, encoder: str | None, reference: DataProfile | None
) -> GateReport:
    """Run the gate; write gate.json, gate.html and, of quarantined rows, quarantine.parquet and .csv to `folder`."""
    gate = validate_data(data, folder, settings, encoder, reference)
    write_gate_page(gate, str(Path(folder) / "gate.html"), reference)
    return gate


def check(settings: dict[str, Any], home: str) -> dict[str, Any]:
    """Read data and run the gate; return what the command prints.

    Raises:
        UsageError: if an address, a file or a column does not exist.
        UnreachableError: if a server or the store does not answer.
    """
    chosen = Settings.model_validate(settings)
    data = read_data(chosen.data, home)
    folder = Path(home) / "checks" / data["digest"][:16]
    folder.mkdir(parents=True, exist_ok=True)
    gate = run_gate(data, chosen, str(folder), find_tokenizer(chosen), champion_profile(home))
    return summarise(gate)


def summarise(gate: GateReport) -> dict[str, Any]:
    """Return the gate's report as commands print it; `failures` and `warnings` have one line per expectation, `remedy`
    says what to do about the first failure.
    """
    failed = [result for result in gate["results"] if not result["passed"]]
    return {
        "passed": gate["passed"],
        "rows_in": gate["rows_in"],
        "kept": gate["kept"],
        "quarantined": gate["quarantined"],
        "reasons": gate["reasons"],
        "examples": gate["examples"],
        "failures": [describe_result(result) for result in failed if failed_critically(result)],
        "warnings": [describe_result(result) for result in failed if not failed_critically(result)],
        "remedy": describe_remedy(gate),
        "quality_issues": gate["quality_issues"],
        "results": len(gate["results"]),
        "drift": gate["drift"],
        "reference": gate["reference"],
        "dataset": gate["dataset"],
        "report": str(Path(gate["report"]).with_suffix(".html")),
    }


def log_gate(gate: GateReport) -> None:
    """Log what was quarantined, quality issues, and each expectation that failed as a warning."""
    if gate["quarantined"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in gate["reasons"].items())
        log.warning(
            "quarantined %d of %d rows: %s; %s", gate["quarantined"], gate["rows_in"], kinds, gate["examples"][0]
        )
    for role, issues in gate["quality_issues"].items():
        if text := describe_issues(issues):
            log.info("%s: %s", role, text)
    for result in gate["results"]:
        if not result["passed"] and not failed_critically(result):
            log.warning("warning: %s", describe_result(result))


def describe_gate(gate: GateReport, page: str = "") -> str:
    """Return the gate's report as Markdown, for Prefect's page; `page` is the address of the HTML page, if any."""
    report = f"[page of the data gate]({page})" if page else f"`{Path(gate['report']).with_suffix('.html')}`"
    cells = [
        (
            result["table"],
            result["description"],
            show_observed(result),
            show_allowed(result),
            "passed" if result["passed"] else result["severity"],
        )
        for result in gate["results"]
    ]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return (
        f"# Data {'accepted' if gate['passed'] else 'refused'}\n\n"
        f"{gate['rows_in']} rows in, {gate['kept']} kept, {gate['quarantined']} quarantined. "
        f"Report: {report}\n\n"
        f"| rows | expectation | observed | allowed | |\n| --- | --- | --- | --- | --- |\n{rows}\n"
    )


def find_tokenizer(settings: Settings) -> str | None:
    """Return the folder of the encoder's tokenizer; None, with a warning, if a hub model cannot be reached."""
    try:
        return locate_tokenizer(settings.finetune.encoder, offline=settings.data.offline)
    except UnreachableError as error:
        log.warning("unknown word pieces and truncation are not checked: %s", error)
        return None


def champion_profile(home: str) -> DataProfile | None:
    """Return the profile of the champion's training data; None if there is no champion."""
    if not (Path(home) / "mlflow.db").is_file() and not os.environ.get("MLFLOW_TRACKING_URI"):
        return None  # no store, no champion: saves importing MLflow, which takes seconds
    from tasks.registry.champion_profile import fetch_profile
    from tasks.registry.store import locate_store

    return fetch_profile(locate_store(home))
