"""The decision threshold: a sentence is labelled acceptable where its probability of that exceeds the threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_THRESHOLD = 0.5  # of bundles and measurements that state none


def choose_labels(acceptable: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """Return the labels [N], 1 for acceptable, of probabilities of "acceptable" [N]; NaN is labelled 0."""
    return (acceptable > threshold).astype("int64")


def threshold_of(record: Mapping[str, Any]) -> float:
    """Return the decision threshold that a bundle's manifest or a measurement states, or the default."""
    return cast(float, record.get("decision_threshold", DEFAULT_THRESHOLD))
