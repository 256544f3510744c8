"""Prepares text to be shown: without the secrets of addresses, and without what a terminal would act on.

Sentences, reasons and paths come from elsewhere; an escape sequence in them could move the cursor, set the title or
hide what was printed before. They stay as they are in files and stores, and are escaped where they are printed.

Addresses may hold a password (https://NAME:PASSWORD@HOST) or a signature (?sig=...), also where another library's
message quotes one.
"""

import itertools
import json
import re
import unicodedata
from typing import Any

LINE_CHARACTERS = "\n\t"
MAX_QUOTED = 200  # characters of a key or a value in a message
MARK = " [...]"  # where a text was cut
JOINERS = "\u200c\u200d"  # within emoji and in several scripts
ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's categories: controls, formats, surrogates, separators of lines

HIDDEN = "***"
SHOWN_PARTS = {"sha256", "member"}  # of a data address: no secrets
SHOWN_VALUES = {"", "0", "1", "true", "false", HIDDEN}  # such as ?download=1
_SCHEME = r"\b(?!models:)[A-Za-z][A-Za-z0-9+.-]+:/+"  # models:/NAME@ALIAS has no user; pathlib leaves one slash
_URL_IN_TEXT = re.compile(rf"{_SCHEME}(?:[^\s/]*@)?[^\s\"'<>()\\]*", re.IGNORECASE)
_WHOLE_URL = re.compile(rf"({_SCHEME})(.*)", re.IGNORECASE | re.DOTALL)
# A password may hold an unescaped / ? or #.
_USER_INFO = re.compile(r"\A(?:[^/?#]*@|[^/?#@:]*:(?!\d*(?:[/?#]|$)).*@)", re.DOTALL)
_LABEL = re.compile(r" *\S+(?: \S+)? {2,}(?=\S)")
_UNBROKEN = re.compile(r"\S+")
_URL_PART = re.compile(r"([?&#;])([^=&#;]*)(=?)([^&#;]*)", re.DOTALL)


def redact(text: str) -> str:
    """Return a text whose addresses name no user or password, and no value of a query but plain flags."""
    return _URL_IN_TEXT.sub(lambda found: redact_address(found[0]), text) if ":/" in text else text


def redact_address(address: str) -> str:
    """Return one address likewise, whatever characters its password has."""
    found = _WHOLE_URL.match(address.strip())
    if not found:
        return address
    scheme, rest = found.groups()
    return scheme + _URL_PART.sub(_hide_value, _USER_INFO.sub(f"{HIDDEN}@", rest))


def list_secrets(address: str) -> set[str]:
    """Return what `redact_address` hides of an address: its user and password, and values of its query."""
    found = _WHOLE_URL.match(address.strip())
    if not found:
        return set()
    user = _USER_INFO.match(found[2])
    rest = found[2][user.end() :] if user else found[2]
    hidden = [part[4] or part[2] for part in _URL_PART.finditer(rest) if _hide_value(part) != part[0]]
    named = [user[0].removesuffix("@"), user[0].removesuffix("@").partition(":")[2]] if user else []
    return {secret for secret in [*hidden, *named] if secret}


def _hide_value(part: re.Match[str]) -> str:
    mark, name, equals, value = part.groups()
    if not equals:  # ?TOKEN, or the name of a place in a page
        return f"{mark}{HIDDEN}" if mark == "?" and name else part[0]
    return part[0] if name in SHOWN_PARTS or value in SHOWN_VALUES else f"{mark}{name}={HIDDEN}"


def escape_controls(text: str, keep: str = LINE_CHARACTERS) -> str:
    r"""Return a text whose control characters are written as in Python, such as \x1b; those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(ascii(char)[1:-1] if _is_control(char) and char not in keep else char for char in text)


def shorten(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters; a cut one ends in MARK."""
    return text if len(text) <= limit else text[: limit - len(MARK)].rstrip() + MARK


def wrap_words(text: str, width: int) -> str:
    """Return a text whose lines are broken between words, where they are longer than `width`."""
    if all(len(line) <= width for line in text.split("\n")):
        return text
    lines = []
    for line in text.split("\n"):
        indent, breaks = line_breaks(line, width)
        parts = [line[begin:end].rstrip() for begin, end in itertools.pairwise([0, *breaks, len(line)])]
        lines.append(("\n" + " " * indent).join(parts))
    return "\n".join(lines)


def line_breaks(line: str, width: int) -> tuple[int, list[int]]:
    """Return how far to indent what follows the first part of a line, and the offsets at which its further parts begin.

    A value stays beside its label (`reason    TEXT`), and an indented line keeps its indentation. A word that is longer
    than the width stays whole, for a terminal to break: so a path can be copied.
    """
    label = _LABEL.match(line)
    own = len(line) - len(line.lstrip(" "))
    indent = label.end() if label and label.end() <= width // 2 else max(2, own if own <= width // 2 else 0)
    breaks, begin, room = [], 0, width
    for word in _UNBROKEN.finditer(line):
        if word.end() - begin > room and line[begin : word.start()].strip():
            breaks.append(word.start())
            begin, room = word.start(), width - indent
    return indent, breaks


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: 1 row, 2 rows."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def quote(value: Any) -> str:
    """Return a key or a value as a message names it."""
    return shorten(redact(repr(redact_address(value) if isinstance(value, str) else value)), MAX_QUOTED)


def _is_control(char: str) -> bool:
    return unicodedata.category(char) in ESCAPED and char not in JOINERS


def json_document(value: Any) -> str:
    """Return indented JSON in which control characters are escaped, those beyond ASCII too."""
    return escape_json(json.dumps(value, indent=2, ensure_ascii=False))


def escape_json(text: str) -> str:
    """Return a JSON document of the same value whose strings hold no control character."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if escape_controls(char) == char else json.dumps(char)[1:-1] for char in text)
