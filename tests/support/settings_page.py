"""Writes the table of settings in tasks/core/README.md from the schema: python tests/support/settings_page.py."""

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "tasks" / "core" / "README.md"
BEGIN = "<!-- settings: written by tests/support/settings_page.py -->\n"
END = "<!-- end of settings -->\n"
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def bounds(field: FieldInfo) -> str:
    """Return what values a setting takes."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(map(str, get_args(field.annotation)))
    found = [
        (sign, value)
        for rule in field.metadata
        for name, sign in SIGNS.items()
        if (value := getattr(rule, name, None)) is not None
    ]
    if found:
        return " and ".join(f"{sign} {value:g}" for sign, value in found)
    return {bool: "true, false", int: "whole number"}.get(field.annotation, "")  # type: ignore[call-overload]


def shown(value: Any) -> str:
    """Return a default as it is typed in TOML."""
    return (
        f"`{str(value).lower()}`"
        if isinstance(value, bool)
        else f"`{value:g}`"
        if isinstance(value, float)
        else f"`{value!r}`"
    )


def settings_table() -> str:
    """Return the Markdown tables of all settings, one a group."""
    from tasks.core.settings import Settings

    parts = []
    for group, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        defaults = section.model_validate({}).model_dump()
        parts.append(f"\n### {group}\n\n| setting | default | values | meaning |\n| --- | --- | --- | --- |\n")
        for name, each in section.model_fields.items():
            meaning = (each.description or "").replace("|", "\\|").replace("\n", " ")
            assert meaning, f"{group}.{name} is not explained"
            default = defaults[name]
            default = list(default) if isinstance(default, tuple) else default
            parts.append(f"| `{group}.{name}` | {shown(default)} | {bounds(each)} | {meaning} |\n")
    return "".join(parts) + "\n"


def page_with(table: str) -> str:
    """Return the page with this table in the place of the one that it holds."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page_with(settings_table()), encoding="utf-8")
