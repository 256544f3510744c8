"""What a retraining run shows on its page in Prefect: the verdict, figures beside the champion's, the way to MLflow."""

import logging
import os
import re
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from tasks.core.errors import first_line
from tasks.evaluation.evidence import Evidence
from tasks.registry import tracking as runs
from tasks.registry.mlflow_client import MlflowStore
from tasks.reporting.tables import compare_figures

ARTIFACT_KEY = "MLFLOW_PAGE"  # what browsers call MLflow's pages, where that is not what programs call the server

log = logging.getLogger("tasks.pages")


def publish_outcome(outcome: dict[str, Any], evidence: Evidence, store: MlflowStore) -> None:
    """Put verdict, figures and, where MLflow has pages, links onto the flow run's page.

    It shows the work and is none: a server that is away for it is told, and fails nothing.
    """
    try:
        create_markdown_artifact(key="verdict", markdown=describe(outcome), description="What was decided, and why")
        figures = [
            {"figure": figure.name, "candidate": figure.candidate, "champion": figure.champion or ""}
            for figure in compare_figures(evidence)
        ]
        create_table_artifact(key="figures", table=figures, description="Candidate and champion, on the holdout")
        if base := find_base(store):
            _link(f"{base}/{runs.find_page(store, outcome['run'])}")
    except Exception as error:  # httpx's, Prefect's and MLflow's have no common ancestor
        log.warning("Prefect's page of this run is not complete: %s", first_line(error))


def find_base(store: MlflowStore) -> str:
    """Return the address of MLflow's pages for browsers, without user and password; empty for a database."""
    address = os.environ.get(ARTIFACT_KEY, "").strip() or store["uri"]
    return re.sub(r"//[^/@]*@", "//", address).rstrip("/") if address.startswith("http") else ""


def _link(page: str) -> None:
    create_link_artifact(key="mlflow-run", link=page, link_text="the run in MLflow", description="Curves, files")
    report = f"{page}/artifacts/records/report.html"
    create_link_artifact(key="report", link=report, link_text="the report", description="All that the verdict rests on")


def describe(outcome: dict[str, Any]) -> str:
    """Write the outcome as Markdown."""
    rows = "\n".join(f"| {name} | {taken:.1f} |" for name, taken in outcome["seconds"].items())
    reasons = "\n".join(f"- {reason}" for reason in outcome["reasons"])
    return (
        f"# {outcome['decision']}\n\n{reasons}\n\n"
        f"Version {outcome['version']}, holdout MCC {outcome['mcc']:.3f} "
        f"({outcome['mcc_low']:.3f} to {outcome['mcc_high']:.3f}) on {outcome['holdout_rows']} sentences, "
        f"{outcome['variant']} on {outcome['provider']}.\n\nReport: `{outcome['report']}`\n\n"
        f"| step | seconds |\n| --- | --- |\n{rows}\n"
    )
