"""Baselines on the holdout, trained on the same rows: the majority class, and logistic regression over words.

They say what the labels are worth without an encoder: a model that is no better than a bag of words has learned which
words occur, not grammar. scikit-learn's, deterministic, and bounded in rows and features.
"""

from typing import TypedDict

import numpy as np
import pandas as pd

from tasks.data.snapshots import read_snapshot
from tasks.evaluation.metrics import MccInterval, accuracy, mcc_interval

MAX_ROWS = 100_000  # training rows, evenly spaced; of more, a bag of words learns little
MAX_FEATURES = 50_000
WORDS = r"\w+|[^\w\s]"  # words and punctuation marks
WORD_BASELINES = {"bag of words": (1, 1), "words and pairs of words": (1, 2)}  # lengths of the n-grams


class Baseline(TypedDict):
    """One baseline on the holdout."""

    name: str
    interval: MccInterval
    accuracy: float


def measure_baselines(training: str, holdout: str, resamples: int) -> list[Baseline]:
    """Train and measure every baseline; where the training rows have one label only, the majority class alone.

    Args:
        training: snapshot of the training rows, without those of validation.
        holdout: snapshot of the holdout.
        resamples: of the bootstrap.

    Raises:
        VerdictError: if the rows cannot be read.
    """
    trained, rows = read_snapshot(training), read_snapshot(holdout)
    trained = trained.iloc[:: -(-len(trained) // MAX_ROWS)]
    majority = int(2 * trained["label"].sum() >= len(trained))
    predictions = {"majority class": np.full(len(rows), majority)}
    if trained["label"].nunique() == 2:
        predictions |= {name: _predict(trained, rows, ngrams) for name, ngrams in WORD_BASELINES.items()}
    labels = rows["label"].to_numpy(np.int64)
    return [
        Baseline(name=name, interval=mcc_interval(labels, given, resamples), accuracy=accuracy(labels, given))
        for name, given in predictions.items()
    ]


def _predict(trained: pd.DataFrame, rows: pd.DataFrame, ngrams: tuple[int, int]) -> np.ndarray:
    """Return the labels [N] that a logistic regression over n-grams of words predicts, both classes weighted alike."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(token_pattern=WORDS, ngram_range=ngrams, max_features=MAX_FEATURES, sublinear_tf=True),
        LogisticRegression(class_weight="balanced", solver="liblinear", random_state=0),
    )
    model.fit(trained["sentence"], trained["label"])
    return np.asarray(model.predict(rows["sentence"]), np.int64)
