"""The table of a run's predictions of its holdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.evaluation.evidence import predictions_of
from tasks.evaluation.measurement import read_probabilities

if TYPE_CHECKING:
    import pandas as pd

    from tasks.evaluation.evidence import Evidence

MAX_PREDICTIONS = 5_000  # rows, about 1 MB: MLflow's page loads the whole table


def list_predictions(evidence: Evidence, holdout: pd.DataFrame) -> pd.DataFrame:
    """Return what the served variant answered for each row of the holdout, the worst errors first.

    Args:
        evidence: of the candidate.
        holdout: the rows that it was measured on.

    Returns:
        Columns sentence, source, label, predicted, probability (of "acceptable") and correct; at most MAX_PREDICTIONS
        rows, those whose label got the smallest probability.
    """
    recorded = evidence["answers"]["variants"][evidence["candidate"]["variant"]]
    acceptable, predicted = read_probabilities(recorded), predictions_of(evidence)[0]
    label = holdout["label"].to_numpy()
    table = holdout[["sentence", "source", "label"]].assign(
        predicted=predicted, probability=acceptable.round(6), correct=predicted == label
    )
    order = np.argsort(np.where(label == 1, acceptable, 1 - acceptable), kind="stable")
    return table.iloc[order[:MAX_PREDICTIONS]]
