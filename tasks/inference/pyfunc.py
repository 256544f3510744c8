"""Loader module of MLflow's python_function flavor: `mlflow.pyfunc.load_model` imports it; it needs no mlflow itself.

    model = mlflow.pyfunc.load_model("models:/acceptability@champion", model_config={"device": "cuda"})
    model.predict(["The cat sat on the mat."])     # a data frame of label, probability, truncated, version

Input is a list, a NumPy array, a Series or a data frame of sentences. Of a data frame the column `sentence` is taken,
else `text`, else the only column or the only one of strings; anything else is ambiguous and rejected.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import UsageError
from .bundle import check_signature, digest_version
from .classifier import Classifier

DEVICES = ("auto", "cuda", "cpu")
TEXT_COLUMNS = ("sentence", "text")
ANSWER_COLUMNS = ["label", "probability", "truncated", "version"]
REGISTERED_META = "registered_model_meta"  # MLflow writes it beside MLmodel when it downloads a registered version


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> "PyfuncModel":
    """Load a bundle; MLflow calls the function of this name.

    Args:
        path: the bundle's folder, two levels below the model's.
        model_config: `device`: auto, cuda or cpu; `manifest_digest`: that of the bundle that was logged.

    Raises:
        UsageError: if the device is none of these.
        VerdictError: if the bundle is corrupt, another one or signed wrongly, or the device is not available.
    """
    config = model_config or {}
    device = config.get("device", "auto")
    if device not in DEVICES:
        raise UsageError(f"model_config device {device!r} is unknown; expected one of {', '.join(DEVICES)}")
    check_signature(Path(path))
    classifier = Classifier.from_bundle(path, device, expected=config.get("manifest_digest", ""))
    registered = registered_version(Path(path).resolve().parents[1])
    return PyfuncModel(classifier, registered or digest_version(classifier.manifest))


class PyfuncModel:
    """The model object that MLflow wraps."""

    def __init__(self, classifier: Classifier, version: str) -> None:
        self.classifier, self.version = classifier, version

    def predict(self, model_input: Any) -> pd.DataFrame:
        """Classify sentences, in input order.

        Returns:
            Columns label, probability, truncated (whether the sentence is longer than the model reads) and version (the
            registered one, or `sha256:...` of an unregistered bundle), with the index of the data frame or Series that
            was passed.

        Raises:
            UsageError: if the input has another type, or no unambiguous text column.
            VerdictError: if an item is not a string.
        """
        sentences, index = read_sentence_input(model_input)
        answers = [{**answer, "version": self.version} for answer in self.classifier.predict(sentences)]
        return pd.DataFrame(answers, columns=ANSWER_COLUMNS, index=index)


def read_sentence_input(model_input: Any) -> tuple[list[Any], pd.Index | None]:
    """Return the sentences of any input that MLflow passes on, and the index of their rows, if it has one.

    Raises:
        UsageError: if the input has another type, or no unambiguous text column.
    """
    if isinstance(model_input, Mapping):
        model_input = _table(model_input)
    if isinstance(model_input, pd.DataFrame):
        model_input = model_input[_text_column(model_input)]
    if isinstance(model_input, pd.Series):
        return model_input.tolist(), model_input.index
    if isinstance(model_input, np.ndarray):
        if model_input.size != len(np.atleast_1d(model_input)):
            raise UsageError(f"input is an array of shape {model_input.shape}; expected [N] or [N, 1] sentences")
        return model_input.reshape(-1).tolist(), None
    if isinstance(model_input, str):
        return [model_input], None
    if isinstance(model_input, list | tuple):
        return list(model_input), None
    raise UsageError(f"input is of type {type(model_input).__name__}; expected a list of sentences or a data frame")


def registered_version(model: Path) -> str | None:
    """Return the registered version that a model's folder was downloaded as, or None."""
    path = model / REGISTERED_META
    if not path.is_file():
        return None
    import yaml  # a dependency of MLflow, which wrote the file

    meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    version = meta.get("model_version") if isinstance(meta, dict) else None
    return str(version) if version else None


def _table(columns: Mapping[Any, Any]) -> pd.DataFrame:
    """Return a data frame of what the scoring server passes on: values, or one value, by column."""
    try:
        return pd.DataFrame({name: np.atleast_1d(values) for name, values in columns.items()})
    except ValueError as error:
        raise UsageError(f"columns {list(columns)} have different lengths ({error}); expected equal lengths") from error


def _text_column(frame: pd.DataFrame) -> Any:
    """Return the name of the column that holds the sentences.

    Raises:
        UsageError: if no column or several could hold them.
    """
    named = [name for name in TEXT_COLUMNS if name in frame.columns][:1]
    found = named or [name for name in frame.columns if frame.shape[1] == 1 or _all_strings(frame[name])]
    if len(found) != 1 or list(frame.columns).count(found[0]) != 1:
        raise UsageError(
            f"of the columns {list(frame.columns)[:10]}, {len(found)} could hold the sentences; "
            f"expected one, named {' or '.join(TEXT_COLUMNS)}"
        )
    return found[0]


def _all_strings(column: pd.Series | pd.DataFrame) -> bool:
    return isinstance(column, pd.Series) and all(isinstance(value, str) for value in column)
