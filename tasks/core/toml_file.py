"""Reads a TOML file of settings or of a policy within bounds of size and nesting.

Python's parser takes time that grows with the square of the length of a dotted key, and as much memory; no file that a
person writes comes near these bounds.
"""

import re
import tomllib
from pathlib import Path
from typing import Any, Protocol

from tasks.core.errors import UsageError, first_line

MAX_BYTES = 256 * 1_024
MAX_DEPTH = 32  # of brackets within brackets, and of the names that dots join in one key
STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'")


class Readable(Protocol):
    """A path, or a file of an installed package."""

    def read_bytes(self) -> bytes:
        """Return the file's content."""


def read_toml(source: Readable | Path, name: str) -> dict[str, Any]:
    """Return the values of a TOML file.

    Args:
        source: the file.
        name: what it is called in messages, such as "profile x.toml".

    Raises:
        OSError: if it cannot be read.
        UsageError: if it is too large, nested too deeply, or no valid TOML.
    """
    content = source.read_bytes()
    if len(content) > MAX_BYTES:
        raise UsageError(f"{name} has {len(content):,} bytes; expected a TOML file of at most {MAX_BYTES:,}")
    try:
        text = content.decode("utf-8-sig")  # Windows' editors write a byte order mark
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is no text in UTF-8 ({first_line(error)}); expected a TOML file") from error
    _check_nesting(text, name)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise UsageError(f"{name} is not valid TOML: {first_line(error)}") from error


def _check_nesting(text: str, name: str) -> None:
    depth = 0
    for number, line in enumerate(STRING.sub("''", text).splitlines(), 1):
        key = line.split("=", 1)[0]
        if key.count(".") >= MAX_DEPTH:
            names = key.count(".") + 1
            raise UsageError(f"{name}, line {number}: a key of {names} names; expected at most {MAX_DEPTH}")
        for character in re.findall(r"[\[\]{}]", line.split("#", 1)[0]):
            depth += 1 if character in "[{" else -1
            if depth > MAX_DEPTH:
                raise UsageError(f"{name}, line {number}: more than {MAX_DEPTH} brackets within brackets")
