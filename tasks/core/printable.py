"""Escapes what a terminal would act on instead of showing it: control characters and direction overrides.

Sentences, reasons and paths come from elsewhere; an escape sequence in them could move the cursor, set the title or
hide what was printed before. They stay as they are in files and stores, and are escaped where they are printed.
"""

import json
import logging
import unicodedata
from typing import Any

LINE_CHARACTERS = "\n\t"
MAX_QUOTED = 200  # characters of a key or a value in a message
MARK = " [...]"  # where a text was cut
JOINERS = "\u200c\u200d"  # within emoji and in several scripts
ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories: controls, formats, surrogates, separators of lines


def escape_controls(text: str, keep: str = LINE_CHARACTERS) -> str:
    r"""Return a text whose control characters are written as in Python, such as \x1b; those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(ascii(char)[1:-1] if _is_control(char) and char not in keep else char for char in text)


def shorten(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters; a cut one ends in MARK."""
    return text if len(text) <= limit else text[: limit - len(MARK)].rstrip() + MARK


def quote(value: Any) -> str:
    """Return a key or a value as a message names it."""
    return shorten(repr(value), MAX_QUOTED)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ESCAPED and char not in JOINERS


def json_document(value: Any) -> str:
    """Return indented JSON in which control characters are escaped, those beyond ASCII too."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if escape_controls(char) == char else json.dumps(char)[1:-1] for char in text)


class PrintableFormatter(logging.Formatter):
    """Formats log records as lines without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        return escape_controls(super().format(record))
