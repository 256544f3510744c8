"""A bundle as MLflow's python_function: what `mlflow.pyfunc.load_model` returns; needs no mlflow itself.

    model = mlflow.pyfunc.load_model("models:/acceptability@champion", model_config={"device": "cuda"})
    model.predict(["The cat sat on the mat."])     # a data frame of label, probability, version

Sentences come as a list, a NumPy array, a Series, or a data frame. Of a data frame the column `sentence` is taken, else
`text`, else the only column of strings; where there is no such one, nothing is guessed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import UsageError
from .classifier import Classifier

DEVICES = ("auto", "cuda", "cpu")
TEXT_COLUMNS = ("sentence", "text")
ANSWER_COLUMNS = ["label", "probability", "version"]
REGISTERED_META = "registered_model_meta"  # MLflow writes it beside MLmodel when it fetches a registered version
PYFUNC_VERSION_DIGITS = 12  # of a digest that stands for a version


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> "PyfuncModel":
    """Load a bundle; MLflow looks for a function of this name.

    Args:
        path: the bundle's folder, two levels below the model's.
        model_config: `device`: auto, cuda or cpu.

    Raises:
        VerdictError: if the bundle is damaged, or the device is not to be had.
    """
    device = (model_config or {}).get("device", "auto")
    if device not in DEVICES:
        raise UsageError(f"model_config device {device!r} is unknown; expected one of {', '.join(DEVICES)}")
    classifier = Classifier.from_bundle(path, device)
    registered = registered_version(Path(path).resolve().parents[1])
    return PyfuncModel(classifier, registered or f"sha256:{classifier.manifest['digest'][:PYFUNC_VERSION_DIGITS]}")


class PyfuncModel:
    """Judges sentences for MLflow."""

    def __init__(self, classifier: Classifier, version: str) -> None:
        self.classifier, self.version = classifier, version

    def predict(self, model_input: Any) -> pd.DataFrame:
        """Judge sentences, in input order.

        Returns:
            The columns label, probability and version, the registered one, or the digest's beginning for a model that
            is not registered; rows are named like those of a data frame or Series that came in.

        Raises:
            VerdictError: if the input holds no sentences, or says not clearly where.
        """
        sentences, index = read_sentence_input(model_input)
        answers = [{**answer, "version": self.version} for answer in self.classifier.predict(sentences)]
        return pd.DataFrame(answers, columns=ANSWER_COLUMNS, index=index)


def read_sentence_input(model_input: Any) -> tuple[list[Any], pd.Index | None]:
    """Return the sentences of any input that MLflow hands over, and the names of their rows.

    Raises:
        WrongUsage: if it is no such input, or has no text column that stands out.
    """
    if isinstance(model_input, Mapping):
        model_input = _table(model_input)
    if isinstance(model_input, pd.DataFrame):
        model_input = model_input[_text_column(model_input)]
    if isinstance(model_input, pd.Series):
        return model_input.tolist(), model_input.index
    if isinstance(model_input, np.ndarray):
        if model_input.size != len(np.atleast_1d(model_input)):
            raise UsageError(f"an array of shape {model_input.shape} came in; expected [N] or [N, 1] sentences")
        return model_input.reshape(-1).tolist(), None
    if isinstance(model_input, str):
        return [model_input], None
    if isinstance(model_input, list | tuple):
        return list(model_input), None
    raise UsageError(f"a {type(model_input).__name__} came in; expected a list of sentences or a data frame")


def registered_version(model: Path) -> str | None:
    """Return the registered version that a model's folder was fetched as, or None."""
    path = model / REGISTERED_META
    if not path.is_file():
        return None
    import yaml  # MLflow, which wrote the file, brought it along

    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    version = written.get("model_version") if isinstance(written, dict) else None
    return str(version) if version else None


def _table(columns: Mapping[Any, Any]) -> pd.DataFrame:
    """Make a data frame of what the scoring server hands over: values, or one value, by column."""
    try:
        return pd.DataFrame({name: np.atleast_1d(values) for name, values in columns.items()})
    except ValueError as error:
        raise UsageError(
            f"the columns {list(columns)} make no table ({error}); expected columns of one length"
        ) from error


def _text_column(frame: pd.DataFrame) -> Any:
    """Return the name of the column that holds the sentences.

    Raises:
        WrongUsage: if none or several could be meant.
    """
    usual = [name for name in TEXT_COLUMNS if name in frame.columns][:1]
    found = usual or [name for name in frame.columns if frame.shape[1] == 1 or _all_strings(frame[name])]
    if len(found) != 1 or list(frame.columns).count(found[0]) != 1:
        raise UsageError(
            f"of the columns {list(frame.columns)[:10]}, {len(found)} could hold the sentences; "
            f"expected one, named {' or '.join(TEXT_COLUMNS)}"
        )
    return found[0]


def _all_strings(column: pd.Series | pd.DataFrame) -> bool:
    return isinstance(column, pd.Series) and all(isinstance(value, str) for value in column)
