"""Rows of a request log, without a server."""

import datetime

import pyarrow as pa

from tasks.serving.request_log import REQUEST_LOG_SCHEMA

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def logged(*rows: tuple[str | None, float], version: str = "1") -> pa.Table:
    """Return logged answers from sentences and probabilities of "acceptable"."""
    return pa.Table.from_pylist(
        [
            {
                "time": NOW,
                "version": version,
                "sentence": sentence,
                "characters": len(sentence or ""),
                "tokens": None,
                "label": "acceptable" if probability > 0.5 else "unacceptable",
                "probability": max(probability, 1 - probability),
                "truncated": False,
                "seconds": 0.01,
            }
            for sentence, probability in rows
        ],
        REQUEST_LOG_SCHEMA,
    )
