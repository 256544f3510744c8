"""Texts that report, card and MLflow's pages share: what follows a verdict, how figures are formatted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.core.printable import escape_controls

if TYPE_CHECKING:
    from tasks.evaluation.metrics import MccInterval
    from tasks.evaluation.threshold_choice import ThresholdChoice
    from tasks.evaluation.thresholds import ThresholdCurve

NEXT_STEPS = {
    "PROMOTE": "It becomes champion: the alias moves to it when it is registered.",
    "HOLD": "It is registered as challenger and waits for a person to approve or reject it.",
    "REJECT": "It is registered, and never becomes champion.",
}
FIGURE_LABELS = {  # by key of a measurement: label, and 1 if larger is better, else -1
    "accuracy": ("accuracy", 1),
    "f1": ("F1", 1),
    "auroc": ("AUROC", 1),
    "brier": ("Brier score (0 is perfect)", -1),
    "ece": ("calibration error (0 is perfect)", -1),
}
THRESHOLD_LOSS = 0.05  # of MCC against the best threshold, from which on the report points at it
_MARKS = str.maketrans({mark: "\\" + mark for mark in "\\`*_[]|~#"} | {"&": "&amp;", "<": "&lt;", "@": "&#64;"})


def show_interval(interval: MccInterval) -> str:
    """Format an MCC with its interval."""
    return f"{interval['mcc']:.3f} (95% CI {interval['low']:.3f} to {interval['high']:.3f})"


def show_time(moment: str) -> str:
    """Format a moment (ISO 8601, UTC) to the minute."""
    return f"{moment[:16].replace('T', ' ')} UTC"


def show_mcc(value: float | None) -> str:
    """Format the MCC of a slice; None where all its labels are the same."""
    return "no MCC" if value is None else f"{value:.3f}"


def describe_threshold(curve: ThresholdCurve, auroc: float, choice: ThresholdChoice | None = None) -> str:
    """Say where the candidate's decision threshold comes from, and what it costs."""
    served, (threshold, best) = float(curve.mcc[curve.served]), curve.best
    here = f"With the threshold {curve.served_threshold:.3g} the MCC is {served:.3f}"
    if choice:
        here = (
            f"The decision threshold {choice['threshold']:.3g} was chosen on {choice['sentences']} validation "
            f"sentences: MCC {choice['mcc']:.3f} there, {choice['default_mcc']:.3f} with 0.5. {here}"
        )
    if best - served <= THRESHOLD_LOSS:
        return f"{here}; no other gives more than {best:.3f} on these sentences."
    return (
        f"{here}; with {threshold:.3f} it would be {best:.3f} on these sentences, which is optimistic, as it is chosen "
        f"on them. The candidate ranks sentences (AUROC {auroc:.3f}) better than "
        f"{curve.served_threshold:.3g} divides them: its probabilities "
        "are shifted, as after too short a training or on data of another balance."
    )


def escape_markdown(text: str) -> str:
    """Escape untrusted text for one line of Markdown, also in a table."""
    return escape_controls(text, keep="").translate(_MARKS)


def capital(text: str) -> str:
    """Return a sentence with a capital first letter."""
    return text[:1].upper() + text[1:]
