"""Labels as people write them: which ones are the same, and what --labels takes those that are not known."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from tasks.core.column_options import parse_labels
from tasks.core.errors import UsageError
from tasks.core.printable import counted

MIN_UNKNOWN_SHARE = 0.05  # of a table's rows; fewer labels that are not known are faults of their rows
MAX_COUNTED = 64  # different labels that are counted

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.0*)?")
_ACCEPTABLE = {
    "true",
    "yes",
    "y",
    "t",
    "acceptable",
    "grammatical",
    "good",
    "ok",
    "correct",
    "valid",
    "positive",
    "pass",
}
_NEGATIONS = ("un", "in", "not", "non", "no")


def fold_label(label: str) -> str:
    """Return what is the same for labels that are the same: True and TRUE, 1 and 1.0."""
    label = label.strip()
    return str(int(label.partition(".")[0])) if _WHOLE.fullmatch(label) else label.casefold()


def find_label(label: str, labels: Mapping[str, int]) -> int | None:
    """Return 0 or 1 for a label as it is written; None if it is not known."""
    number = labels.get(label)
    if number is None:
        folded = fold_label(label)
        number = next((number for name, number in labels.items() if fold_label(name) == folded), None)
    return number


class LabelCount:
    """Counts the labels of a table, known and unknown ones."""

    def __init__(self, labels: Mapping[str, int]) -> None:
        self._names = {number: name for name, number in labels.items()}  # of several names the last: the user's
        self._counts: Counter[str] = Counter()
        self._unknown: dict[str, str] = {}  # as first written, by what is the same

    def add_known(self, number: int, count: int) -> None:
        """Count rows that are kept with the label 0 or 1."""
        if count:
            self._counts[self._names[number]] += count

    def add_unknown(self, label: str) -> None:
        """Count a row whose label is not known."""
        folded = fold_label(label)
        if folded in self._unknown or len(self._unknown) < MAX_COUNTED:
            shown = folded if _WHOLE.fullmatch(folded) else label.strip()
            self._counts[self._unknown.setdefault(folded, shown)] += 1

    def reject_other_names(self, path: str) -> None:
        """Reject a table whose labels have exactly two values, one of which is not known: two numbers or two words.

        Args:
            path: of the file or table, for the message.

        Raises:
            UsageError: which names both, and the option that takes them.
        """
        unknown = sum(self._counts[label] for label in self._unknown.values())
        numbers = sum(bool(_WHOLE.fullmatch(label)) for label in self._counts)
        if len(self._counts) != 2 or numbers == 1 or unknown < max(1, MIN_UNKNOWN_SHARE * self._counts.total()):
            return
        rows = {label: counted(count, "row") for label, count in sorted(self._counts.items())}
        shown = " and ".join(f"{label[:40]!r} ({number})" for label, number in rows.items())
        raise UsageError(f"{path} has the labels {shown}; expected 0 and 1{_option(*sorted(self._counts))}")


def reject_reversed(names: Sequence[str], labels: Mapping[str, int], path: str) -> None:
    """Reject a table that names its labels, 0 for acceptable sentences, where the user does not say so.

    Args:
        names: of the labels 0, 1, ...
        labels: label as written -> 0 or 1.
        path: of the file or table, for the message.

    Raises:
        UsageError: which names the option that takes them.
    """
    if len(names) == 2 and _is_acceptable(*names) and labels.get("0") == 0 and labels.get("1") == 1:
        raise UsageError(
            f"{path} names its label 0 {names[0]!r} and 1 {names[1]!r}; expected 1 for acceptable: --labels 0=1,1=0"
        )


def _option(first: str, second: str) -> str:
    """Return how to name two labels; that of an acceptable sentence stands first."""
    acceptable, sure = (first, True) if _is_acceptable(first, second) else (second, _is_acceptable(second, first))
    other = second if acceptable == first else first
    pairs = f"{acceptable}=1,{other}=0"
    try:
        sayable = parse_labels(pairs) == {acceptable: 1, other: 0} and pairs.isprintable()
    except ValueError:
        sayable = False
    if not sayable:  # a name with a comma, an equals sign or a control character, or none
        return ", or names that --labels NAME=1,NAME=0 can say"
    unsure = "" if sure else f" (or {acceptable}=0,{other}=1: which of them means acceptable is not known)"
    return f": --labels {shlex.quote(pairs)}{unsure}"


def _is_acceptable(label: str, other: str) -> bool:
    """Return whether a label clearly means acceptable beside another: by the word, or as the larger number."""
    label, other = fold_label(label), fold_label(other)
    if _WHOLE.fullmatch(label) and _WHOLE.fullmatch(other):
        return int(label) > int(other)
    negated = {f"{negation}{between}{label}" for negation in _NEGATIONS for between in ("", "-", "_", " ")}
    return label in _ACCEPTABLE or other in negated
