"""Describes every setting from the schema (meaning, values, default), and writes settings as TOML.

There is no second list: what a setting means is the text under its field in settings.py, finetune_settings.py or
policy.py, and its bounds are those that the field is checked with.
"""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tasks.core.errors import UsageError
from tasks.core.printable import quote
from tasks.core.refusals import suggest
from tasks.core.settings import ENV_PREFIX, Settings
from tasks.core.settings_loader import ResolvedSettings, SettingRow, load_settings, profile_names

SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
KINDS = {bool: "true or false", int: "whole number", float: "number", tuple: "text, or a list of texts"}
COMMENT_WIDTH = 110  # characters of a line of comment in TOML


class SettingDescription(NamedTuple):
    """What is known of a setting without any profile."""

    key: str
    """Dotted, such as finetune.epochs."""
    meaning: str
    values: str
    """Kind and bounds, such as "whole number, ≥ 1 and ≤ 1000"."""
    default: Any


def describe_settings() -> list[SettingDescription]:
    """Return a description of every setting, in the order of the schema."""
    return [
        SettingDescription(
            key=f"{group}.{name}",
            meaning=(field.description or "").replace("\n", " "),
            values=_describe_values(field),
            default=_plain(defaults[name]),
        )
        for group, schema in settings_groups().items()
        for defaults in [schema.model_validate({}).model_dump()]
        for name, field in schema.model_fields.items()
    ]


def settings_groups() -> dict[str, type[BaseModel]]:
    """Return the classes of the groups of settings by name."""
    return {group: field.annotation for group, field in Settings.model_fields.items()}  # type: ignore[misc]


def find_settings(name: str) -> list[SettingDescription]:
    """Return the settings that a name stands for: a dotted key, a key without its group, or a group.

    Raises:
        UsageError: if there is none; the message names one that is like it.
    """
    known = describe_settings()
    found = [each for each in known if name in (each.key, *each.key.split("."))]
    if not found:
        names = [part for each in known for part in (each.key, *each.key.split("."))]
        raise UsageError(f"setting {quote(name)} is unknown; {suggest(name, names)}all of them: verdict settings")
    return found


def profile_values(key: str) -> dict[str, Any]:
    """Return what the bundled profiles set a setting to, by profile; those that leave it alone are left out."""
    return {
        profile: _plain(row.value)
        for profile in profile_names()
        for row in load_settings(profile, {}, {}).rows()
        if row.key == key and row.origin == f"profile {profile}"
    }


def variable_of(key: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + key.replace(".", "__").upper()


def toml_value(value: Any) -> str:
    """Return a text, number, boolean or list as TOML: JSON has the same form, but for some control characters."""
    text = json.dumps(_plain(value), ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def format_settings(rows: Iterable[SettingRow]) -> str:
    """Return settings as a TOML file, which --profile reads back."""
    lines: list[str] = []
    for key, value, _ in rows:
        group, _, name = key.partition(".")
        if f"[{group}]" not in lines:
            lines += [*([""] if lines else []), f"[{group}]"]
        lines.append(f"{name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def format_template(resolved: ResolvedSettings, profile: str, path: str) -> str:
    """Return a TOML file that explains every setting: those that a layer set are set, others stand in comments.

    Args:
        resolved: the settings.
        profile: that they start from, for the comment at the file's top.
        path: of the file, likewise.
    """
    described = {each.key: each for each in describe_settings()}
    lines = [
        f"# Settings of Verdict, as in profile {profile}: verdict retrain --profile {path}",
        "# A line that begins with # and no space holds a default; remove the # to change it.",
    ]
    for row in resolved.rows():
        group, _, name = row.key.partition(".")
        if f"[{group}]" not in lines:
            lines += ["", *_comment(settings_groups()[group].__doc__ or ""), f"[{group}]"]
        each = described[row.key]
        lines += ["", *_comment(f"{each.meaning} Values: {each.values}. Default: {toml_value(each.default)}.")]
        lines.append(f"{'' if row.key in resolved.origins else '#'}{name} = {toml_value(row.value)}")
    return "\n".join(lines) + "\n"


def write_template(path: Path, resolved: ResolvedSettings, profile: str) -> None:
    """Write `format_template` to a new file.

    Raises:
        UsageError: if the file exists, or its folder does not.
    """
    text = format_template(resolved, profile, str(path))
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise UsageError(f"{path} exists and is not overwritten; name a new file: verdict init FILE") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"there is no folder {path.parent}; expected a new file in one that exists") from error


def _describe_values(field: FieldInfo) -> str:
    """Return which values a setting takes."""
    kind = get_origin(field.annotation) or field.annotation
    if kind is Literal:
        return ", ".join(map(str, get_args(field.annotation)))
    bounds = [
        f"{sign} {value if isinstance(value, int) else f'{value:g}'}"
        for rule in field.metadata
        for name, sign in SIGNS.items()
        if (value := getattr(rule, name, None)) is not None
    ]
    words = KINDS.get(kind, "text")  # type: ignore[arg-type]
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, COMMENT_WIDTH)]
