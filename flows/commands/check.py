"""Reading and gate alone, and what every flow does with new data. Nothing here needs a server."""

import logging
import os
from pathlib import Path
from typing import Any

from tasks.core.errors import UnreachableError
from tasks.core.settings import DataSettings, Settings
from tasks.data.drift import DataProfile
from tasks.data.expectations import show_allowed, show_observed
from tasks.data.gate import GateReport, describe_result, failed_critically, validate_data
from tasks.data.ingestion import Dataset, ingest
from tasks.data.record_readers import table_format
from tasks.data.sources import locate_sources, locate_text
from tasks.reporting.gate_page import write_gate_page
from tasks.training.pretrained import locate_tokenizer

log = logging.getLogger("tasks.check")


def read_data(settings: DataSettings, home: str) -> Dataset:
    """Find the files behind the addresses and snapshot them.

    Args:
        settings: the settings under `data`.
        home: folder of the stores.

    Raises:
        WrongUsage: if an address, a file or a column is not there.
        Unreachable: if a server does not answer.
        DataRefused: if a file is not the one that its digest names.
    """
    sources = locate_sources(settings.path, settings.train, settings.holdout, home, offline=settings.offline)
    text = locate_text(settings.text, home, offline=settings.offline)
    form = table_format(settings.columns, settings.labels, settings.max_chars)
    return ingest(sources, f"{home}/snapshots", form, settings.holdout_share, text)


def run_gate(
    data: Dataset, settings: Settings, folder: str, encoder: str | None, reference: DataProfile | None
) -> GateReport:
    """Run the gate and write gate.json, gate.html and, where rows were quarantined, quarantine.parquet to `folder`."""
    gate = validate_data(data, folder, settings.gate, settings.data.max_quarantined, encoder, reference)
    write_gate_page(gate, str(Path(folder) / "gate.html"), reference)
    return gate


def check(settings: dict[str, Any], home: str) -> dict[str, Any]:
    """Read and examine data; return what the command prints.

    Raises:
        WrongUsage: if an address, a file or a column is not there.
        Unreachable: if a server or the store does not answer.
    """
    chosen = Settings.model_validate(settings)
    data = read_data(chosen.data, home)
    folder = Path(home) / "checks" / data["digest"][:16]
    folder.mkdir(parents=True, exist_ok=True)
    gate = run_gate(data, chosen, str(folder), find_tokenizer(chosen), champion_profile(home))
    return summarise(gate)


def summarise(gate: GateReport) -> dict[str, Any]:
    """Return the gate's answer as commands print it; `failures` and `warnings` are one line a finding."""
    failed = [finding for finding in gate["results"] if not finding["passed"]]
    return {
        "passed": gate["passed"],
        "rows_in": gate["rows_in"],
        "kept": gate["kept"],
        "quarantined": gate["quarantined"],
        "reasons": gate["reasons"],
        "examples": gate["examples"],
        "failures": [describe_result(finding) for finding in failed if failed_critically(finding)],
        "warnings": [describe_result(finding) for finding in failed if not failed_critically(finding)],
        "quality_issues": gate["quality_issues"],
        "results": len(gate["results"]),
        "drift": gate["drift"],
        "reference": gate["reference"],
        "dataset": gate["dataset"],
        "report": str(Path(gate["report"]).with_suffix(".html")),
    }


def report_gate(gate: GateReport) -> None:
    """Tell on the log what was quarantined and what warns."""
    if gate["quarantined"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in gate["reasons"].items())
        log.warning(
            "quarantined %d of %d rows: %s; %s", gate["quarantined"], gate["rows_in"], kinds, gate["examples"][0]
        )
    for finding in gate["results"]:
        if not finding["passed"] and not failed_critically(finding):
            log.warning("warning: %s", describe_result(finding))


def describe_gate(gate: GateReport) -> str:
    """Write the gate's answer as Markdown."""
    cells = [
        (
            finding["table"],
            finding["description"],
            show_observed(finding),
            show_allowed(finding),
            "passed" if finding["passed"] else finding["severity"],
        )
        for finding in gate["results"]
    ]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return (
        f"# Data {'accepted' if gate['passed'] else 'refused'}\n\n"
        f"{gate['rows_in']} rows in, {gate['kept']} kept, {gate['quarantined']} quarantined. "
        f"Report: `{Path(gate['report']).with_suffix('.html')}`\n\n"
        f"| rows | asks | observed | allowed | |\n| --- | --- | --- | --- | --- |\n{rows}\n"
    )


def find_tokenizer(settings: Settings) -> str | None:
    """Return the folder of the encoder's tokeniser; None, and said so, where a hub model cannot be had."""
    try:
        return locate_tokenizer(settings.finetune.encoder, offline=settings.data.offline)
    except UnreachableError as error:
        log.warning("word pieces are not checked: %s", error)
        return None


def champion_profile(home: str) -> DataProfile | None:
    """Return the profile of the champion's training data; None where there is no champion yet."""
    if not (Path(home) / "mlflow.db").is_file() and not os.environ.get("MLFLOW_TRACKING_URI"):
        return None  # without a store there is no champion, and MLflow takes seconds to import
    from tasks.registry import versions as registry

    return registry.fetch_profile(registry.locate_store(home))
