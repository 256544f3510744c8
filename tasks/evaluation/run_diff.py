"""What changed since the champion: settings, data, code and libraries of two runs side by side."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

DATA_TAG, CODE_TAG = "dataset", "git_commit"  # tags of a run
SHORT_DIGEST = 12  # characters of a digest
UNKNOWN = "not recorded"


class RunRecord(TypedDict):
    """What the run of a registered version recorded: every setting by its dotted key, and its tags."""

    settings: dict[str, str]
    tags: dict[str, str]


class SettingChange(NamedTuple):
    """What differs, what it was for the champion, what it is for the candidate."""

    what: str
    before: str
    now: str


def diff_runs(
    past: RunRecord, settings: Iterable[tuple[str, Any, str]], facts: Mapping[str, str]
) -> list[SettingChange]:
    """Compare a candidate with the run of the champion.

    Args:
        past: of the champion.
        settings: (key, value, origin) rows of the candidate.
        facts: by the names of the tags that runs have: DATA, CODE, versions of libraries.

    Returns:
        the data first, then settings (those that are gone last), then code and libraries.
    """
    now = {key: str(value) for key, value, _ in settings}
    gone = [key for key in past["settings"] if key not in now]
    ran = [(name, past["tags"].get(name, UNKNOWN), value) for name, value in facts.items()]
    pairs = [pair for pair in ran if pair[0] == DATA_TAG]
    pairs += [(key, past["settings"].get(key, UNKNOWN), value) for key, value in now.items()]
    pairs += [(key, past["settings"][key], "no setting any more") for key in gone]
    pairs += [pair for pair in ran if pair[0] != DATA_TAG]
    return [
        SettingChange(_name(what), _cut(what, before), _cut(what, value))
        for what, before, value in pairs
        if before != value
    ]


def _name(what: str) -> str:
    return {DATA_TAG: "data set", CODE_TAG: "code"}.get(what, what)


def _cut(what: str, value: str) -> str:
    """Shorten digests; a commit keeps the mark of a changed tree."""
    if what not in (DATA_TAG, CODE_TAG) or value == UNKNOWN:
        return value
    head, dash, mark = value.partition("-")
    return head[:SHORT_DIGEST] + dash + mark
