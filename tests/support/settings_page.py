"""Writes the table of settings in tasks/core/README.md from the schema: python tests/support/settings_page.py."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "tasks" / "core" / "README.md"
BEGIN = "<!-- settings: written by tests/support/settings_page.py -->\n"
END = "<!-- end of settings -->\n"


def shown(value: Any) -> str:
    """Return a default as a page shows it."""
    return (
        f"`{str(value).lower()}`"
        if isinstance(value, bool)
        else f"`{value:g}`"
        if isinstance(value, float)
        else f"`{value!r}`"
    )


def settings_table() -> str:
    """Return the Markdown tables of all settings, one a group."""
    from tasks.core.settings_description import describe_settings

    parts, group = [], ""
    for each in describe_settings():
        if group != each.key.partition(".")[0]:
            group = each.key.partition(".")[0]
            parts.append(f"\n### {group}\n\n| setting | default | values | meaning |\n| --- | --- | --- | --- |\n")
        meaning = each.meaning.replace("|", "\\|")
        parts.append(f"| `{each.key}` | {shown(each.default)} | {each.values} | {meaning} |\n")
    return "".join(parts) + "\n"


def page_with(table: str) -> str:
    """Return the page with this table in the place of the one that it holds."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page_with(settings_table()), encoding="utf-8")
