"""What a retraining run shows on its page in Prefect: verdict, figures of candidate and champion, links to MLflow."""

import logging
import os
import re

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.outcome import RetrainOutcome
from tasks.core.errors import first_line
from tasks.evaluation.evidence import Evidence
from tasks.registry import tracking
from tasks.registry.store import MlflowStore
from tasks.reporting.tables import compare_figures

PAGE_URL_VARIABLE = "MLFLOW_PAGE"  # MLflow's address for browsers, where it is not its address for programs

log = logging.getLogger("tasks.pages")


def publish_outcome(outcome: RetrainOutcome, evidence: Evidence, store: MlflowStore) -> None:
    """Put verdict, figures and, where MLflow has pages, links onto the flow run's page.

    Best effort: failures are logged and never fail the run.
    """
    try:
        create_markdown_artifact(key="verdict", markdown=describe(outcome), description="Verdict and reasons")
        figures = [
            {"figure": figure.name, "candidate": figure.candidate, "champion": figure.champion or ""}
            for figure in compare_figures(evidence)
        ]
        create_table_artifact(key="figures", table=figures, description="Candidate and champion on the holdout")
        if base := find_base(store):
            _link(f"{base}/{tracking.find_page(store, outcome.run)}")
    except Exception as error:  # httpx, Prefect and MLflow share no base class
        log.warning("artifacts are missing on Prefect's page of this run: %s", first_line(error))


def find_base(store: MlflowStore) -> str:
    """Return the address of MLflow's pages for browsers, without user and password; empty for a database."""
    address = os.environ.get(PAGE_URL_VARIABLE, "").strip() or store["uri"]
    return re.sub(r"//[^/@]*@", "//", address).rstrip("/") if address.startswith("http") else ""


def _link(page: str) -> None:
    create_link_artifact(key="mlflow-run", link=page, link_text="the run in MLflow", description="Curves and files")
    report = f"{page}/artifacts/records/report.html"
    create_link_artifact(key="report", link=report, link_text="the report", description="Evidence and verdict")


def describe(outcome: RetrainOutcome) -> str:
    """Write the outcome as Markdown."""
    rows = "\n".join(f"| {name} | {taken:.1f} |" for name, taken in outcome.seconds.items())
    reasons = "\n".join(f"- {reason}" for reason in outcome.reasons)
    return (
        f"# {outcome.decision}\n\n{reasons}\n\n"
        f"Version {outcome.version}, holdout MCC {outcome.mcc:.3f} "
        f"({outcome.mcc_low:.3f} to {outcome.mcc_high:.3f}) on {outcome.holdout_rows} sentences, "
        f"{outcome.variant} on {outcome.provider}.\n\nReport: `{outcome.report}`\n\n"
        f"| step | seconds |\n| --- | --- |\n{rows}\n"
    )
