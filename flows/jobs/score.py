"""Batch inference: a file of sentences through a registered model."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.commands.predict import find_model as find_model_files
from flows.jobs.prefect_artifacts import name_run
from flows.steps import Timer, retrying_task, timed_task
from tasks.inference.bundle import MODEL_NAME
from tasks.serving.batch_scoring import score_file

find_model = retrying_task("find model", find_model_files)
score_rows = timed_task("score", score_file)  # no retries: running the command again resumes it


@flow(name="score", result_serializer="json", persist_result=True)
def score(
    path: str, out: str, model: str, device: str, columns: str, form: str, home: str, refuse_truncated: bool = False
) -> dict[str, Any]:
    """Score a file of sentences; return what the command prints.

    Args:
        path: file or folder of sentences, or - for standard input.
        out: Parquet file, or - for JSON lines on standard output.
        model: registry address, version number, or a bundle's folder.
        device: auto, cuda or cpu.
        columns: text=NAME, or empty.
        form: format of the input; empty for the one of its file extension.
        home: folder of the stores.
        refuse_truncated: quarantine sentences of more tokens than the model reads.

    Raises:
        UsageError: if input, output or model are not valid.
        VerdictError: if there is no such model, or no row could be scored.
    """
    timer = Timer()
    version, bundle, digest = find_model(timer, model, home)
    name_run(f"{Path(path).name} with {MODEL_NAME} {version}")
    outcome = score_rows(timer, path, out, bundle, version, device, columns, form, refuse_truncated, digest)
    return {**outcome, "seconds": timer.seconds}
