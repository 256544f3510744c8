"""Words that report, card and MLflow's pages share: what the rules mean, how figures are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.evaluation.metrics import MccInterval

NEXT_STEPS = {
    "PROMOTE": "It becomes champion, last of all, when everything that the alias points at is in place.",
    "HOLD": "A person decides; it waits as challenger, and nothing happens by itself.",
    "REJECT": "It is registered for the record and never becomes champion.",
}
_MARKS = str.maketrans({mark: "\\" + mark for mark in "\\`*_[]|~#"} | {"&": "&amp;", "<": "&lt;", "@": "&#64;"})


def show_interval(interval: MccInterval) -> str:
    """Write an MCC with its interval."""
    return f"{interval['mcc']:.3f} (95% {interval['low']:.3f} to {interval['high']:.3f})"


def escape_markdown(text: str) -> str:
    """Write other people's text so that Markdown shows it as it is, in a table too, on one line."""
    from tasks.reporting.templating import (
        visible,  # brings the templates' library, which a registry's page needs only here
    )

    return visible(text).translate(_MARKS)


def capital(text: str) -> str:
    """Write a sentence with a capital letter in front."""
    return text[:1].upper() + text[1:]
