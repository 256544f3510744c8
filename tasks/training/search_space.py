"""Search spaces: which settings of fine-tuning a sweep varies, and the values that it tries.

A setting with several values is written as on the command line: `finetune.epochs=2,3,4` are choices,
`finetune.learning_rate=1e-5..1e-4` is a range, whose numbers are drawn on a logarithmic scale where both ends are
positive.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tasks.core.errors import UsageError
from tasks.core.finetune_settings import FinetuneSettings
from tasks.core.settings_loader import parse_setting

GROUP_PREFIX = "finetune."
RANGE = ".."
MAX_COMBINATIONS = 10_000
# What does not decide how good a model gets, and what is the same for all trials so that they can be compared.
NOT_SEARCHED = frozenset(
    {
        "device", "processes", "precision", "checkpoint_seconds", "restarts", "seed", "seeds", "allow_new_weights",
        "ray", "teacher",
    }
)  # fmt: skip
NUMBERS = (int, float)

Resolve = Callable[[str, str], Any]
"""Turns a dotted setting and its text into the typed value, or raises a UsageError."""


class Dimension(NamedTuple):
    """A setting of `finetune` and its values: either choices, or a range with both ends included."""

    name: str
    """Without the group."""
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def is_logarithmic(self) -> bool:
        """Whether numbers of the range are drawn on a logarithmic scale."""
        return self.low > 0

    @property
    def text(self) -> str:
        """Its values as they are written on the command line."""
        return ",".join(map(str, self.choices)) if self.choices else f"{self.low}{RANGE}{self.high}"

    @property
    def size(self) -> float:
        """How many values it has; infinity for a range that is not of integers."""
        return len(self.choices) or (self.high - self.low + 1 if isinstance(self.low, int) else math.inf)

    @property
    def values(self) -> Sequence[Any]:
        """All values, where they are not infinitely many."""
        return self.choices or range(int(self.low), int(self.high) + 1)


def split_assignments(assignments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Divide KEY=VALUE texts into settings with one value, as they are, and settings with several, by key."""
    fixed, varied = [], {}
    for text in assignments:
        key, value = parse_setting(text)
        is_path = "/" in value or value.startswith(RANGE)  # such as ../encoder
        if key.startswith(GROUP_PREFIX) and ("," in value or (RANGE in value and not is_path)):
            varied[key] = value
        else:
            fixed.append(text)
    return fixed, varied


def make_space(varied: dict[str, str], resolve: Resolve) -> tuple[Dimension, ...]:
    """Return the dimensions of a search space.

    Args:
        varied: the values of each dotted setting, as written.
        resolve: checks and types one value.

    Raises:
        UsageError: if nothing is varied, a setting cannot be, or a value is out of bounds.
    """
    if not varied:
        raise UsageError(
            "a sweep needs a setting with several values, for example --set finetune.learning_rate=1e-5,3e-5"
        )
    space = tuple(_make_dimension(key, text, resolve) for key, text in varied.items())
    if combinations(space) > MAX_COMBINATIONS and not has_range(space):
        raise UsageError(
            f"the sweep has {combinations(space):,} combinations; expected at most {MAX_COMBINATIONS:,}, "
            f"or a range of a setting: finetune.learning_rate=1e-5{RANGE}1e-4"
        )
    return space


def combinations(space: Sequence[Dimension]) -> float:
    """Return how many different trials a space has; infinity with a range that is not of integers."""
    return math.prod(dimension.size for dimension in space)


def has_range(space: Sequence[Dimension]) -> bool:
    """Return whether values of a space are drawn, and not only chosen."""
    return not all(dimension.choices for dimension in space)


def encoders_of(space: Sequence[Dimension], encoder: str) -> tuple[str, ...]:
    """Return the encoders that are tried; `encoder` where they are not varied."""
    return next((dimension.choices for dimension in space if dimension.name == "encoder"), (encoder,))


def check_folds(folds: int, teacher: str) -> None:
    """Check that a sweep's folds validate on rows that no model has read.

    Args:
        folds: of each trial; 1 for one split.
        teacher: `finetune.teacher`.

    Raises:
        UsageError: if there are several, and a teacher.
    """
    if folds > 1 and teacher:
        raise UsageError(
            f"--folds {folds} with finetune.teacher: the teacher has read rows of most folds, and validation would be "
            "too high; expected --folds 1"
        )


def all_combinations(space: Sequence[Dimension], seed: int) -> list[dict[str, Any]]:
    """Return every combination of values, by name of the setting, in an order that the seed decides."""
    found = [
        dict(zip((dimension.name for dimension in space), values, strict=True))
        for values in itertools.product(*(dimension.values for dimension in space))
    ]
    random.Random(seed).shuffle(found)
    return found


def _make_dimension(key: str, text: str, resolve: Resolve) -> Dimension:
    name = key.removeprefix(GROUP_PREFIX)
    if name in NOT_SEARCHED:
        raise UsageError(f"setting {key} is the same for all trials of a sweep; expected one value, not {text!r}")
    if RANGE in text and "," not in text:
        return _make_range(key, text, resolve)
    choices = tuple(resolve(key, choice.strip()) for choice in text.split(","))
    if len(set(choices)) < len(choices):
        raise UsageError(f"setting {key} = {text!r} repeats a value; expected each once")
    return Dimension(name, choices)


def _make_range(key: str, text: str, resolve: Resolve) -> Dimension:
    name = key.removeprefix(GROUP_PREFIX)
    low, high = (resolve(key, end.strip()) for end in text.split(RANGE, 1))
    if name not in FinetuneSettings.model_fields or not isinstance(low, NUMBERS) or isinstance(low, bool):
        raise UsageError(f"setting {key} takes no range; expected choices: {key}=A,B")
    if low >= high:
        raise UsageError(f"range {text!r} of setting {key} is empty; expected LOW{RANGE}HIGH with LOW below HIGH")
    return Dimension(name, (), low, high)
