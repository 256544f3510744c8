"""Batch inference: a file of sentences through a registered model."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.commands.predict import find_model as find_model_files
from flows.jobs.prefect_artifacts import name_run
from flows.steps import Timer, retrying_task, timed_task
from tasks.inference.bundle import MODEL_NAME
from tasks.serving.batch_scoring import score_file
from tasks.serving.ray_scoring import score_on_ray

find_model = retrying_task("find model", find_model_files)
score_rows = timed_task("score", score_file)  # no retries: running the command again resumes it
score_rows_on_ray = timed_task("score", score_on_ray)


@flow(name="score", result_serializer="json", persist_result=True)
def score(
    path: str,
    out: str,
    model: str,
    device: str,
    columns: str,
    form: str,
    home: str,
    refuse_truncated: bool = False,
    ray: str = "",
    workers: int = 0,
) -> dict[str, Any]:
    """Score a file of sentences; return what the command prints.

    Args:
        path: file, folder or S3 address of sentences, or - for standard input.
        out: Parquet file, or - for JSON lines on standard output.
        model: registry address, version number, or a bundle's folder.
        device: auto, cuda or cpu.
        columns: text=NAME, or empty.
        form: format of the input; empty for the one of its file extension.
        home: folder of the stores.
        refuse_truncated: quarantine sentences of more tokens than the model reads.
        ray: address of a Ray cluster that scores; empty for this process.
        workers: of the cluster, at most, on GPUs rounded up to the same number on each; 0: one per CPU, or up to eight
            per GPU.

    Raises:
        UsageError: if input, output or model are not valid.
        VerdictError: if there is no such model, or no row could be scored.
    """
    timer = Timer()
    version, bundle, digest = find_model(timer, model, home)
    name_run(f"{Path(path).name} with {MODEL_NAME} {version}")
    arguments = (path, out, bundle, version, device, columns, form, refuse_truncated, digest)
    outcome = score_rows_on_ray(timer, *arguments, ray, workers) if ray else score_rows(timer, *arguments)
    return {**outcome, "seconds": timer.seconds}
