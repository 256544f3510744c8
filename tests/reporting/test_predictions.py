"""The table of predictions that MLflow's page shows."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from candidates import weigh

from tasks.reporting import predictions
from tasks.reporting.predictions import list_predictions


def test_the_worst_errors_come_first_and_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence: Any = weigh()
    labels = np.array(evidence["answers"]["label"])
    rows = pd.DataFrame({"sentence": [f"s{i}" for i in range(len(labels))], "source": "book", "label": labels})
    table = list_predictions(evidence, rows)
    assert list(table.columns) == ["sentence", "source", "label", "predicted", "probability", "correct"]
    assert len(table) == len(labels)
    given = np.where(table["label"] == 1, table["probability"], 1 - table["probability"])
    assert (np.diff(given) >= -1e-6).all()
    assert table["correct"].mean() == pytest.approx(evidence["candidate"]["accuracy"])
    monkeypatch.setattr(predictions, "MAX_PREDICTIONS", 3)
    assert list(list_predictions(evidence, rows)["sentence"]) == list(table["sentence"][:3])
