"""Tells whether an English sentence is acceptable to a native speaker, with a model that Verdict trained.

    from verdict_inference import Classifier, Champion

    classifier = Classifier.from_bundle("path/of/bundle")       # a bundle's folder; needs no MLflow
    classifier.predict(["The cat sat on the mat."])

    with Champion.open("models:/acceptability@champion") as champion:   # follows the alias; needs the extra `mlflow`
        champion.predict(["The cat sat on the mat."])

All errors of this package derive from `VerdictError`.
"""

from .core.errors import NoChampion, UnknownModel, UnreachableError, UsageError, VerdictError
from .inference.bundle import Manifest
from .inference.classifier import Classifier, Prediction
from .serving.champion import Champion, ChampionAnswer, ChampionStatus, LoadedModel, NotReady

__all__ = [
    "Champion",
    "ChampionAnswer",
    "ChampionStatus",
    "Classifier",
    "LoadedModel",
    "Manifest",
    "NoChampion",
    "NotReady",
    "Prediction",
    "UnknownModel",
    "UnreachableError",
    "UsageError",
    "VerdictError",
]
