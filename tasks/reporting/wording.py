"""Words that report, card and MLflow's pages share: what the rules mean, how figures are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.evaluation.metrics import MccInterval

# What each rule of the judge asks; its reason says what was seen.
RULES = {
    "non_finite_output": "A model with an output that is not a number is rejected.",
    "one_class": "A model that gives every sentence the same label is rejected.",
    "below_threshold": "A model below the smallest MCC that the policy allows is rejected.",
    "worse_than_champion": "A model is rejected where equal models would seldom differ so much to its disadvantage.",
    "variant_differs": "A model is rejected where one of its variants is further from fp32 than the policy allows.",
    "holdout_leak": "A model that was trained on sentences of the holdout is rejected: its figures mean nothing.",
    "champion_lost": "Where there was a champion and its alias is gone, a person decides who follows.",
    "same_bundle": "A bundle that is the champion already is neither better nor worse than itself.",
    "champion_unmeasured": "Where the champion cannot be measured, nothing says that the candidate is better.",
    "holdout_uses_exhausted": "A holdout that judged too many candidates no longer promotes any without a person.",
    "slice_dropped": "A better model that is much worse for one source or length waits for a person.",
    "minimal_pairs_dropped": "A better model that tells fewer minimal pairs apart waits for a person.",
    "drift": "A model trained on data that drifted from the champion's waits for a person.",
    "not_better": "Only a model that is better with the confidence the policy asks is promoted without a person.",
    "first_champion": "A fit model is promoted where there never was a champion.",
    "better_than_champion": "A model is promoted where equal models would seldom differ so much in its favour.",
    "no_worse_on_new_data": "A model on other training rows is promoted where it is no worse within the margin.",
}
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
