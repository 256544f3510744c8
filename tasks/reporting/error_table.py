"""The errors of a candidate on its holdout: the rows of the report's table, and a CSV file of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.core.spreadsheet import write_csv
from tasks.evaluation.evidence import predictions_of
from tasks.evaluation.measurement import name_length, read_probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from tasks.evaluation.evidence import Evidence

ERRORS_FILE = "errors.csv"
MAX_ERRORS_SHOWN = 500  # in the report, about 150 kB; the file has all
CHAMPION_RIGHT, CHAMPION_WRONG = "labels it correctly", "makes it too"


class WrongLabel(NamedTuple):
    """A sentence of the holdout that the candidate labels incorrectly; the fields are the columns of the file.

    `confidence` is the probability that it gave the label it predicted, None where that was NaN or Inf; `champion` says
    what the champion does with the sentence, and is empty without a measured one.
    """

    confidence: float | None
    label: str
    predicted: str
    champion: str
    source: str
    length: str
    file: str
    line: int
    sentence: str


def list_errors(evidence: Evidence, labels: Sequence[str], holdout: pd.DataFrame) -> list[WrongLabel]:
    """Return every error, the most confident one first.

    Args:
        evidence: of the candidate.
        labels: names of the classes 0 and 1.
        holdout: the rows that it was measured on.
    """
    answers = evidence["answers"]
    ours = answers["variants"][evidence["candidate"]["variant"]]
    truth, (predicted, theirs) = np.array(answers["label"]), predictions_of(evidence)
    acceptable = read_probabilities(ours)
    confidence = np.where(predicted == 1, acceptable, 1 - acceptable)
    wrong = np.flatnonzero(predicted != truth)
    return [
        WrongLabel(
            confidence=None if ours[row] is None else round(float(confidence[row]), 6),
            label=labels[truth[row]],
            predicted=labels[predicted[row]],
            champion="" if theirs is None else CHAMPION_RIGHT if theirs[row] == truth[row] else CHAMPION_WRONG,
            source=answers["source"][row],
            length=name_length(answers["words"][row]),
            file=str(holdout["file"].iloc[row]),
            line=int(holdout["line"].iloc[row]),
            sentence=str(holdout["sentence"].iloc[row]),
        )
        for row in wrong[np.argsort(-confidence[wrong], kind="stable")]
    ]


def write_errors(errors: Sequence[WrongLabel], folder: Path) -> Path:
    """Write all errors as CSV; return the path."""
    path = folder / ERRORS_FILE
    write_csv(path, WrongLabel._fields, errors)
    return path
