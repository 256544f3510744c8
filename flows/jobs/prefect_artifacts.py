"""What a run shows on its page in Prefect: its name, verdict, figures of candidate and champion, links to MLflow."""

import contextlib
import logging
import os
import re
import socket
from uuid import UUID

import httpx
from prefect import get_client
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run

from flows.outcome import RetrainOutcome
from tasks.core.errors import VerdictError, first_line
from tasks.evaluation.evidence import Evidence
from tasks.inference.bundle import MODEL_NAME
from tasks.registry import tracking
from tasks.registry.mlflow_client import PAGE_MODE
from tasks.registry.store import MlflowStore
from tasks.reporting.tables import compare_figures

PAGE_URL_VARIABLE = "MLFLOW_PAGE"  # MLflow's address for browsers, where it is not its address for programs

log = logging.getLogger("tasks.pages")


def publish_outcome(outcome: RetrainOutcome, evidence: Evidence, store: MlflowStore) -> None:
    """Put verdict, figures and, where MLflow has pages, links onto the flow run's page.

    Best effort: failures are logged and never fail the run.
    """
    try:
        markdown = describe(outcome, link_report(outcome, store))
        create_markdown_artifact(key="verdict", markdown=markdown, description="Verdict and reasons")
        figures = [
            {"figure": figure.name, "candidate": figure.candidate, "champion": figure.champion or ""}
            for figure in compare_figures(evidence)
        ]
        create_table_artifact(key="figures", table=figures, description="Candidate and champion on the holdout")
        for key, (link, text) in find_pages(outcome, store).items():
            create_link_artifact(key=key, link=link, link_text=text)
    except Exception as error:  # httpx, Prefect and MLflow share no base class
        log.warning("artifacts are missing on Prefect's page of this run: %s", first_line(error))


def find_base(store: MlflowStore) -> str:
    """Return the address of MLflow's pages for browsers, without user and password; empty for a database."""
    address = os.environ.get(PAGE_URL_VARIABLE, "").strip() or store["uri"]
    return re.sub(r"//[^/@]*@", "//", address).rstrip("/") if address.startswith("http") else ""


def find_run_page(store: MlflowStore, run_id: str) -> str:
    """Return the address of a run's page in MLflow; empty for a database."""
    base = find_base(store)
    return f"{base}/{tracking.find_page(store, run_id)}" if base else ""


def find_pages(outcome: RetrainOutcome, store: MlflowStore) -> dict[str, tuple[str, str]]:
    """Return address and text of MLflow's pages about an outcome by the key of their artifact; none for a database."""
    run = find_run_page(store, outcome.run)
    if not run:
        return {}
    base = find_base(store)
    return {
        "report": (f"{run}/artifacts/records/report.html{PAGE_MODE}", "report: evidence and verdict"),
        "mlflow-version": (
            f"{base}/#/models/{MODEL_NAME}/versions/{outcome.version}{PAGE_MODE}",
            f"version {outcome.version}",
        ),
        "mlflow-run": (f"{run}{PAGE_MODE}", "run in MLflow: curves and files"),
    }


def link_report(outcome: RetrainOutcome, store: MlflowStore) -> str:
    """Return Markdown that leads to the report: links where MLflow has pages and answers, else the worker's path."""
    with contextlib.suppress(VerdictError):
        if pages := find_pages(outcome, store):
            return " · ".join(f"[{text}]({link})" for link, text in pages.values())
    return f"Report: `{outcome.report}` on {socket.gethostname()}"


def name_run(name: str) -> None:
    """Name this flow run on Prefect's pages; without one, or where the server does not answer, do nothing."""
    if flow_run.id:
        with contextlib.suppress(httpx.HTTPError, PrefectHTTPStatusError), get_client(sync_client=True) as client:
            client.set_flow_run_name(UUID(str(flow_run.id)), name)


def describe(outcome: RetrainOutcome, report: str) -> str:
    """Write the outcome as Markdown, with the text that leads to its report."""
    rows = "\n".join(f"| {name} | {taken:.1f} |" for name, taken in outcome.seconds.items())
    reasons = "\n".join(f"- {reason}" for reason in outcome.reasons)
    return (
        f"# {outcome.decision}\n\n{reasons}\n\n"
        f"Version {outcome.version}, holdout MCC {outcome.mcc:.3f} "
        f"({outcome.mcc_low:.3f} to {outcome.mcc_high:.3f}) on {outcome.holdout_rows} sentences, "
        f"{outcome.variant} on {outcome.provider}.\n\n{report}\n\n"
        f"| step | seconds |\n| --- | --- |\n{rows}\n"
    )
