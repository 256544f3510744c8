"""The last summary of a request log, a JSON file in its folder, which `verdict status` and /metrics read."""

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from tasks.core.files import read_json

if TYPE_CHECKING:  # a server needs none of their libraries
    from tasks.data.drift import DriftResult
    from tasks.evaluation.metrics import MccInterval
    from tasks.evaluation.performance_estimate import MccEstimate

REQUEST_LOG_FOLDER = "requests"  # in the folder of the stores: where commands look
SUMMARY_FILE = "summary.json"
SUMMARY_SCHEMA = 1


class RequestSummary(TypedDict):
    """The last `hours` of a request log; `answers` counts all logged ones, `sentences` the champion's distinct ones.

    `versions` counts answers by version, `latency_ms` has their median and 95th percentile, `unsure` is the share of
    sentences near the decision threshold. Where `estimate` is None, `no_estimate` says why. `holdout`
    is the champion's MCC there; `reference` the digest of its training data.
    """

    schema_version: int
    time: str
    hours: float
    answers: int
    versions: dict[str, int]
    latency_ms: list[float]
    truncated: float
    version: str | None
    sentences: int
    unsure: float
    drift: "list[DriftResult]"
    reference: str | None
    estimate: "MccEstimate | None"
    no_estimate: str
    holdout: "MccInterval | None"


def read_summary(folder: Path) -> RequestSummary | None:
    """Return the last summary of a request log; None where there is none of this schema version.

    Raises:
        VerdictError: if it is not JSON.
    """
    path = folder / SUMMARY_FILE
    found = read_json(path, "run: verdict requests") if path.is_file() else None
    current = isinstance(found, dict) and found.get("schema_version") == SUMMARY_SCHEMA
    return cast(RequestSummary, found) if current else None
