"""Trials of the command line, kept as a Markdown table: what wrong, missing and right arguments are answered with."""

import re
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).parents[1] / "flows" / "trials.md"
ELISION = " ... "


class Trial(NamedTuple):
    """A command in a folder with `write_files`, and what it says; `stores` is what VERDICT_HOME holds."""

    stores: str
    """none, empty (a new database), or champion."""
    command: str
    code: int
    message: str
    """Parts of the output in their order, with ELISION between them."""


def read_trials() -> list[Trial]:
    rows = re.findall(
        r"^\| (\w+) \| `verdict ?(.*)` \| (\d+) \| (.*) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [Trial(stores, command, int(code), message) for stores, command, code, message in rows]


def write_files(folder: Path) -> None:
    """Write what the trials name."""
    (folder / "folder").mkdir()
    (folder / "notes.txt").write_text("Remember the milk.\nAnd the bread.\n")
    (folder / "empty.tsv").write_text("")
    (folder / "list.json").write_text("[1, 2]")
    (folder / "bad.toml").write_text("[finetune\n")
    (folder / "mine.toml").write_text("[finetune]\nepochs = 3\n")
    (folder / "table.csv").write_text("words,fine\nA cat sleeps.,1\n")
    for name in ("binary.tsv", "binary.csv"):
        (folder / name).write_bytes(bytes(range(256)))


def follows(message: str, output: str) -> bool:
    """Return whether the parts of a message stand in an output in their order."""
    return re.search(".*".join(map(re.escape, message.split(ELISION))), output, re.DOTALL) is not None


def shown(code: int, out: str, err: str, folder: Path) -> str:
    """Return what a table shows of a run: its first line, of standard error if it failed."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")] if code else out.splitlines()
    first = next((line for line in [*lines, *out.splitlines()] if line.strip()), "")
    return first.replace(str(folder), "TMP")
