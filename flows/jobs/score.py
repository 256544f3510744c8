"""A file of sentences through a registered model: find it, score, write."""

from typing import Any

from prefect import flow

from flows import steps
from flows.commands import review
from flows.steps import retrying_task, timed_task
from tasks.serving.batch_scoring import score_file

find_model = retrying_task("find model", review.find_model)
score_rows = timed_task("score", score_file)  # goes on where an earlier run stopped, so nothing is tried again blindly


@flow(name="score", result_serializer="json", persist_result=True)
def score(path: str, out: str, model: str, device: str, columns: str, form: str, home: str) -> dict[str, Any]:
    """Score a file of sentences; return what the command prints.

    Args:
        path: file of sentences, or - for standard input.
        out: Parquet file, or - for JSON lines on standard output.
        model: registry address, version number, or a bundle's folder.
        device: auto, cuda or cpu.
        columns: text=NAME, or empty.
        form: format of the input; empty: what its ending says.
        home: folder of the stores.

    Raises:
        WrongUsage: if input, output or model cannot be meant.
        VerdictError: if there is no such model, or no row could be scored.
    """
    taken: dict[str, float] = {}
    steps.seconds.set(taken)
    version, bundle = find_model(model, home)
    outcome = score_rows(path, out, bundle, version, device, columns, form)
    return {**outcome, "seconds": taken}
