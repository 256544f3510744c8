"""What a retraining run came to: what `verdict retrain` prints, result.json keeps and every notification repeats."""

import dataclasses
from typing import Any, Literal, Self

from tasks.inference.bundle import MODEL_NAME

RESULT_FILE = "result.json"  # in the folder of a finished job
MAX_MESSAGE = 500  # characters of a flow run's last state
SCHEMA_VERSION = 1  # of the JSON form; a change that a reader of an older file would miss raises it


@dataclasses.dataclass(frozen=True)
class RetrainOutcome:
    """The outcome of one job, the same for everybody who shows it."""

    decision: Literal["PROMOTE", "HOLD", "REJECT"]
    rules: list[str]
    """Names of the rules that led to the decision."""
    reasons: list[str]
    """One sentence a rule."""
    version: str
    """Registered version of the candidate."""
    mcc: float
    """Holdout MCC of the variant that will serve, with its 95% interval."""
    mcc_low: float
    mcc_high: float
    provider: str
    """ONNX Runtime execution provider that the MCC was measured on."""
    variant: str
    mcc_by_variant: dict[str, float]
    holdout_rows: int
    dataset: str
    """Digest of all data."""
    digest: str
    """Digest of the bundle."""
    threshold: float
    """Smallest MCC that is not rejected (judge.threshold)."""
    champion_before: str | None
    """Version that the candidate was compared with."""
    champion_mcc: float | None
    mcc_difference: float | None
    holdout_uses: int
    """Candidates that were measured on this holdout before."""
    report: str
    """Path of report.html in the job's folder."""
    store: str
    """Address of the MLflow store."""
    run: str
    """Id of the MLflow run."""
    seconds: dict[str, float]
    """Seconds of each step, in order."""
    unchanged: bool = False
    """Whether an equal job had finished before, so that nothing ran."""
    decided: dict[str, Any] | None = None
    """How a person decided a HOLD while the run was suspended: kind, actor, reason, time, from, to."""

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain values: the document of --json, result.json and Prefect's results."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, document: Any) -> Self | None:
        """Read what `to_json` returned; None where another version of the program, or nobody of ours, wrote it."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
            return None
        if document.keys() - {"schema_version"} != names:
            return None
        return cls(**{name: document[name] for name in names})


def describe_outcome(outcome: RetrainOutcome) -> str:
    """Return decision, version, MCC and reasons in one line."""
    figures = f"MCC {outcome.mcc:.3f} ({outcome.mcc_low:.3f} to {outcome.mcc_high:.3f})"
    return f"{outcome.decision} {MODEL_NAME} {outcome.version}, {figures}: {'; '.join(outcome.reasons)}"[:MAX_MESSAGE]
