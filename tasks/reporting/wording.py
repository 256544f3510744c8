"""Texts that report, card and MLflow's pages share: what follows a verdict, how figures are formatted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.core.printable import escape_controls

if TYPE_CHECKING:
    from tasks.evaluation.metrics import MccInterval

NEXT_STEPS = {
    "PROMOTE": "It becomes champion: the alias moves to it when it is registered.",
    "HOLD": "It is registered as challenger and waits for a person to approve or reject it.",
    "REJECT": "It is registered, and never becomes champion.",
}
_MARKS = str.maketrans({mark: "\\" + mark for mark in "\\`*_[]|~#"} | {"&": "&amp;", "<": "&lt;", "@": "&#64;"})


def show_interval(interval: MccInterval) -> str:
    """Format an MCC with its interval."""
    return f"{interval['mcc']:.3f} (95% {interval['low']:.3f} to {interval['high']:.3f})"


def show_mcc(value: float | None) -> str:
    """Format the MCC of a slice; None where all its labels are the same."""
    return "no MCC" if value is None else f"{value:.3f}"


def escape_markdown(text: str) -> str:
    """Escape untrusted text for one line of Markdown, also in a table."""
    return escape_controls(text, keep="").translate(_MARKS)


def capital(text: str) -> str:
    """Return a sentence with a capital first letter."""
    return text[:1].upper() + text[1:]
