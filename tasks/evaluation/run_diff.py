"""Lists what differs between the champion's run and the candidate's: data, settings, code, library versions."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypedDict

from tasks.core.settings_loader import SettingRow

DATA_TAG, CODE_TAG = "dataset", "git_commit"  # tags of an MLflow run
SHORT_DIGEST = 12  # characters of a digest
UNKNOWN = "not recorded"


class RunRecord(TypedDict):
    """Parameters (settings by dotted key) and tags of a registered version's MLflow run."""

    settings: dict[str, str]
    tags: dict[str, str]


class SettingChange(NamedTuple):
    """One difference: its name, the champion's value, the candidate's value."""

    what: str
    before: str
    now: str


def diff_runs(champion: RunRecord, settings: Iterable[SettingRow], facts: Mapping[str, str]) -> list[SettingChange]:
    """Return what differs between the champion's run and a candidate.

    Args:
        champion: its run.
        settings: of the candidate.
        facts: of the candidate, by name of the run's tag: data digest, commit, library versions.

    Returns:
        the data first, then settings (removed ones last), then code and libraries.
    """
    now = {key: str(value) for key, value, _ in settings}
    gone = [key for key in champion["settings"] if key not in now]
    ran = [(name, champion["tags"].get(name, UNKNOWN), value) for name, value in facts.items()]
    pairs = [pair for pair in ran if pair[0] == DATA_TAG]
    pairs += [(key, champion["settings"].get(key, UNKNOWN), value) for key, value in now.items()]
    pairs += [(key, champion["settings"][key], "removed") for key in gone]
    pairs += [pair for pair in ran if pair[0] != DATA_TAG]
    return [
        SettingChange(_name(what), _cut(what, before), _cut(what, value))
        for what, before, value in pairs
        if before != value
    ]


def _name(what: str) -> str:
    return {DATA_TAG: "data set", CODE_TAG: "code"}.get(what, what)


def _cut(what: str, value: str) -> str:
    """Shorten digests; a commit keeps its suffix -dirty."""
    if what not in (DATA_TAG, CODE_TAG) or value == UNKNOWN:
        return value
    head, dash, suffix = value.partition("-")
    return head[:SHORT_DIGEST] + dash + suffix
