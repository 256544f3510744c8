"""Columns and labels of a table as settings and flags name them: text=sentence,label=verdict and good=1,bad=0."""

from collections.abc import Mapping
from typing import Any

COLUMN_ROLES = ("text", "label", "source", "mark")
COLUMNS_EXAMPLE, LABELS_EXAMPLE = "text=sentence,label=verdict", "acceptable=1,unacceptable=0"


def parse_columns(value: Any) -> dict[str, str]:
    """Return role -> column name.

    Args:
        value: ROLE=NAME,ROLE=NAME, or a mapping.

    Raises:
        ValueError: for a malformed text or an unknown role.
    """
    columns = {role: str(name) for role, name in _as_pairs(value, COLUMNS_EXAMPLE).items()}
    unknown = sorted(set(columns) - set(COLUMN_ROLES))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no role of a column; expected {', '.join(COLUMN_ROLES)}")
    return columns


def parse_labels(value: Any) -> dict[str, int]:
    """Return label -> 0 or 1.

    Args:
        value: LABEL=1,LABEL=0, or a mapping.

    Raises:
        ValueError: for a malformed text, and unless both 0 and 1 occur and nothing else.
    """
    labels = {label: str(number) for label, number in _as_pairs(value, LABELS_EXAMPLE).items()}
    if labels and set(labels.values()) != {"0", "1"}:
        raise ValueError(f"every label stands for 0 or 1, and both occur: {LABELS_EXAMPLE}")
    return {label: int(number) for label, number in labels.items()}


def format_pairs(pairs: Mapping[str, Any]) -> str:
    """Write NAME=VALUE,NAME=VALUE, which the functions above read back."""
    return ",".join(f"{name}={value}" for name, value in pairs.items())


def _as_pairs(value: Any, example: str) -> Mapping[str, Any]:
    """Split NAME=VALUE,NAME=VALUE; an equals sign in a value is part of it. A mapping is returned as it is."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected NAME=VALUE,NAME=VALUE, such as {example}")
    pairs: dict[str, str] = {}
    for part in filter(str.strip, value.split(",")):
        name, _, right = (side.strip() for side in part.partition("="))
        if not name or not right:
            raise ValueError(f"expected NAME=VALUE,NAME=VALUE, such as {example}")
        if name in pairs:
            raise ValueError(f"{name!r} stands twice in {value!r}")
        pairs[name] = right
    return pairs
