"""The promotion policy: numbers with bounds, read from mlflow/policy.toml or from a user's file.

mlflow/policy.toml gives the reason for each number. The policy is the lowest layer of the settings under `judge`:
profile, environment and flags override single numbers, and the verdict records the result.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.core.errors import UsageError
from tasks.core.files import json_digest
from tasks.core.printable import quote
from tasks.core.refusals import describe_refusal, suggest
from tasks.core.toml_file import read_toml

POLICY_FILE = "policy.toml"

Share = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(ge=0.5, lt=1)]
Drop = Annotated[float, Field(ge=0, le=2)]  # MCC spans 2


class Policy(BaseModel):
    """What evidence must show on the holdout for a candidate to be promoted, held or rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    version: Annotated[str, Field(min_length=1)]
    """Name of this policy."""
    threshold: Annotated[float, Field(ge=-1, le=1)]
    """MCC; a candidate below it is rejected."""
    reject_confidence: Confidence
    """1 - significance level at which a candidate is worse than the champion and rejected."""
    variant_difference: Drop
    """Largest difference between the MCC of a variant and that of fp32."""
    confidence: Confidence
    """1 - significance level (alpha) at which the first candidate on a holdout is better and promoted."""
    alpha_decay: Annotated[float, Field(ge=0, le=10)]
    """Alpha is divided by (earlier holdout uses + 1) to this power."""
    min_alpha: Annotated[float, Field(ge=0, lt=0.5)]
    """Lower bound of alpha, after any number of holdout uses."""
    max_holdout_uses: Annotated[int, Field(ge=0)]
    """Holdout uses from which on no candidate is promoted without a person."""
    promote_on_new_data: bool
    """Promote a candidate trained on other rows if it is no worse than the champion within the margin."""
    margin: Drop
    """MCC; "no worse": the 95% interval of the difference lies above minus this."""
    min_slice_rows: Annotated[int, Field(ge=1)]
    """Smallest number of sentences of a slice that can hold a candidate."""
    max_slice_drop: Drop
    """Largest drop of a slice's MCC below the champion's."""
    max_minimal_pair_drop: Share
    """Largest drop of the share of minimal pairs ranked correctly below the champion's."""
    hold_on_drift: bool
    """Hold a candidate whose training data drifted from the champion's."""
    min_decision_threshold: Share = 0.0
    """Smallest decision threshold that a bundle may have; 0 for any."""
    max_decision_threshold: Share = 1.0
    """Largest decision threshold that a bundle may have; 1 for any."""
    min_threshold_gain: Drop = 0.0
    """Smallest gain of validation MCC over 0.5 that a chosen decision threshold must have."""
    max_latency_ms: Annotated[float, Field(ge=0)] = 0.0
    """Largest median latency of one sentence, in milliseconds, of the variant that serves; 0 for no limit."""
    max_size_mb: Annotated[float, Field(ge=0)] = 0.0
    """Largest file of the variant that serves, in megabytes; 0 for no limit."""

    @property
    def digest(self) -> str:
        """The hex SHA-256 of all numbers."""
        return json_digest(self.recorded())

    def recorded(self) -> dict[str, Any]:
        """Return the policy as plain values without the rules that are off, so that a new rule changes no digest."""
        return self.model_dump(exclude_defaults=True)


def load_policy(path: str = "") -> Policy:
    """Read a policy.

    Args:
        path: of a TOML file; empty for the bundled one.

    Raises:
        UsageError: if the file cannot be read, lacks a key, has an unknown key (the nearest is named) or a value out of
            bounds.
    """
    return _parse(Path(path)) if path else _bundled()


def parse_policy(values: dict[str, Any], origin: str) -> Policy:
    """Validate a policy's values, for example those of a recorded verdict.

    Args:
        values: by key.
        origin: of the values, for the message.

    Raises:
        UsageError: if a key is missing or unknown, or a value out of bounds.
    """
    keys = list(Policy.model_fields)
    for key in values:
        if key not in keys:
            nearest = suggest(key, keys) or f"expected {', '.join(keys)}"
            raise UsageError(f"policy {origin}: key {quote(key)} is unknown; {nearest.strip()}")
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UsageError(f"policy {origin} lacks {key}; take it from mlflow/{POLICY_FILE}") from error
        raise UsageError(
            f"policy {origin}: {key} = {quote(first['input'])} is refused: {describe_refusal(first)}"
        ) from error


def bundled_path() -> Path:
    """Return the path of the bundled policy: beside this module in a wheel, under mlflow/ in a checkout."""
    here = Path(__file__).resolve()
    installed = here.with_name(POLICY_FILE)
    return installed if installed.is_file() else here.parents[2] / "mlflow" / POLICY_FILE


@cache
def _bundled() -> Policy:
    return _parse(bundled_path())


def _parse(path: Path) -> Policy:
    try:
        return parse_policy(read_toml(path, f"policy {path}"), str(path))
    except OSError as error:
        raise UsageError(
            f"policy {path} cannot be read ({error}); expected a TOML file like mlflow/{POLICY_FILE}"
        ) from error
