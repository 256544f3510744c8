"""The promotion policy: numbers with their bounds, read from mlflow/policy.toml or from a file of the user's own.

The file says why each number is what it is. It is the lowest layer of the settings under `judge`: profile, environment
and flags change single numbers, and the verdict records the result.
"""

import difflib
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.core.errors import UsageError
from tasks.core.files import json_digest

POLICY_FILE = "policy.toml"

Share = Annotated[float, Field(ge=0, le=1)]
Confidence = Annotated[float, Field(ge=0.5, lt=1)]
Drop = Annotated[float, Field(ge=0, le=2)]  # MCC spans 2


class Policy(BaseModel):
    """What evidence must show; every number is of the holdout that judges."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    version: Annotated[str, Field(min_length=1)]
    """Name of this policy."""
    threshold: Annotated[float, Field(ge=-1, le=1)]
    """Smallest holdout MCC that is not rejected."""
    reject_confidence: Confidence
    """Confidence with which a candidate must be worse than the champion to be rejected."""
    variant_difference: Drop
    """Largest difference of a variant's MCC from that of fp32."""
    confidence: Confidence
    """Confidence with which a candidate must be better than the champion, at the first look at a holdout."""
    alpha_decay: Annotated[float, Field(ge=0, le=10)]
    """How fast the chance of a false promotion that is left shrinks with the looks: (looks + 1) to this power."""
    min_alpha: Annotated[float, Field(ge=0, lt=0.5)]
    """Chance of a false promotion that is left to every look, however many there were."""
    max_holdout_uses: Annotated[int, Field(ge=0)]
    """Candidates judged on a holdout after which none is promoted without a person."""
    promote_on_new_data: bool
    """Whether a candidate on other training rows is promoted when it is no worse within the margin."""
    margin: Drop
    """How far below the champion's MCC the 95% interval may reach for "no worse"."""
    min_slice_rows: Annotated[int, Field(ge=1)]
    """Sentences from which on a slice counts."""
    max_slice_drop: Drop
    """Largest fall of a slice's MCC below the champion's."""
    max_minimal_pair_drop: Share
    """Largest fall of the share of minimal pairs told apart."""
    hold_on_drift: bool
    """Whether training data that drifted from the champion's needs a person."""

    @property
    def digest(self) -> str:
        """The hex SHA-256 of all numbers."""
        return json_digest(self.model_dump())


def load_policy(path: str = "") -> Policy:
    """Read a policy.

    Args:
        path: a TOML file; empty for the one that comes with the product.

    Raises:
        WrongUsage: if the file cannot be read, lacks a key, has an unknown one (the nearest is named) or a value out of
            bounds.
    """
    return _parse(Path(path)) if path else _bundled()


def parse_policy(values: dict[str, Any], origin: str) -> Policy:
    """Check a policy's values, for example those that a verdict records.

    Args:
        values: by key.
        origin: where they come from, for the message.

    Raises:
        WrongUsage: if a key is missing or unknown, or a value out of bounds.
    """
    keys = list(Policy.model_fields)
    for key in values:
        if key not in keys:
            nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]
            raise UsageError(f"policy {origin}: key {key!r} is unknown; did you mean {nearest!r}?")
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UsageError(f"policy {origin} lacks {key}; take it from mlflow/{POLICY_FILE}") from error
        reason = first["msg"]
        raise UsageError(
            f"policy {origin}: {key} = {first['input']!r} is refused: {reason[0].lower()}{reason[1:]}"
        ) from error


def bundled_path() -> Path:
    """Return the product's own policy: in a wheel it lies beside this module, in a checkout under mlflow/."""
    here = Path(__file__).resolve()
    packed = here.with_name(POLICY_FILE)
    return packed if packed.is_file() else here.parents[2] / "mlflow" / POLICY_FILE


@cache
def _bundled() -> Policy:
    return _parse(bundled_path())


def _parse(path: Path) -> Policy:
    try:
        return parse_policy(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"policy {path} cannot be read ({error}); expected a TOML file like mlflow/{POLICY_FILE}"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"policy {path} is not valid TOML: {error}") from error
