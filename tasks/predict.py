"""Inference with ONNX Runtime on a bundle; needs onnxruntime, tokenizers and numpy, and no torch.

    from tasks.predict import Classifier
    classifier = Classifier.from_bundle("path/of/bundle")
    classifier.predict(["The cat sat on the mat."])

Shape letters: N sentences, B of a batch, S tokens.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tasks.batching import encode, pad, sorted_batches
from tasks.bundle import TOKENIZER, VARIANTS, Manifest, serving_variant, variants_of, verify
from tasks.errors import VerdictError
from tasks.external import refuse_external_data

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
BATCH = {CPU: 32, CUDA: 256}  # sentences


class Prediction(TypedDict):
    """The answer to one sentence; the probability is that of the label."""

    sentence: str
    label: str
    probability: float


class Classifier:
    """Judges sentences with a verified bundle."""

    def __init__(
        self, session: onnxruntime.InferenceSession, tokenizer: Tokenizer, manifest: Manifest, variant: str = "fp32"
    ) -> None:
        self.manifest, self.variant = manifest, variant
        self.provider: str = session.get_providers()[0]
        self._session, self._tokenizer = session, tokenizer
        self._inputs = {node.name for node in session.get_inputs()}

    @classmethod
    def from_bundle(cls, path: str | Path, device: str = "auto", variant: str | None = None) -> Self:
        """Verify a bundle and load the variant that serves on the device.

        Args:
            path: the bundle's folder.
            device: cuda, cpu, or auto: a GPU where one works.
            variant: fp32, fp16 or int8; None for the fast one of the device, or fp32 where the bundle lacks that.

        Raises:
            VerdictError: if the bundle is damaged, keeps weights elsewhere or lacks the variant, or cuda is wanted and
                does not work.
        """
        folder = Path(path)
        manifest = verify(folder)
        if variant and variant not in variants_of(manifest):
            raise VerdictError(f"bundle {folder} holds no variant {variant!r}; expected {variants_of(manifest)}")
        for name in variants_of(manifest):
            refuse_external_data(folder / VARIANTS[name])
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(manifest["max_length"])
        for place in ("cuda", "cpu") if _may_use_gpu(device) else ("cpu",):
            chosen = variant or serving_variant(manifest, place)
            session = open_session(folder / VARIANTS[chosen], device if place == "cuda" else "cpu")
            if place == "cpu" or session.get_providers()[0] == CUDA:
                break  # else a GPU is there but does not work
        return cls(session, tokenizer, manifest, chosen)

    def logits(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return logits [N, 2] in input order."""
        result = np.zeros((len(sentences), len(self.manifest["labels"])), np.float32)
        ids = encode(self._tokenizer, sentences)
        for rows in sorted_batches(np.array([len(row) for row in ids], np.int64), BATCH[self.provider]):
            padded, mask = pad([ids[row] for row in rows], self.manifest["pad_id"])
            feed = {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros_like(padded)}
            (result[rows],) = self._session.run(None, {name: feed[name] for name in self._inputs})
        return result

    def probabilities(self, sentences: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each label, [N, 2], in input order."""
        logits = self.logits(sentences).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, sentences: Sequence[str]) -> list[Prediction]:
        """Judge sentences, in input order.

        Raises:
            VerdictError: if an item is no string.
        """
        for item in sentences:
            if not isinstance(item, str):
                raise VerdictError(f"sentence {item!r} is a {type(item).__name__}; expected strings")
        probabilities = self.probabilities(sentences)
        best = probabilities.argmax(axis=1)
        return [
            Prediction(sentence=text, label=self.manifest["labels"][label], probability=float(row[label]))
            for text, label, row in zip(sentences, best, probabilities, strict=True)
        ]


def open_session(graph: Path, device: str) -> onnxruntime.InferenceSession:
    """Open a graph on cpu, cuda, or auto: a GPU where one works.

    Raises:
        VerdictError: if cuda is wanted and the session does not run on it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    wanted = [CPU]
    if _may_use_gpu(device):
        onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
        wanted = [CUDA, CPU]
    session = onnxruntime.InferenceSession(graph, options, providers=wanted)
    # The list of available providers says what was compiled in, and a provider that fails to load falls back to the
    # CPU without an error: only the open session knows.
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise VerdictError("device cuda was asked for, but ONNX Runtime runs on the CPU only; see: verdict doctor")
    return session


def _may_use_gpu(device: str) -> bool:
    """Tell whether a GPU is to be tried; whether it works only an open session knows."""
    return device == "cuda" or (device == "auto" and CUDA in onnxruntime.get_available_providers() and has_gpu())


def has_gpu() -> bool:
    """Tell whether NVIDIA's driver is loaded and shows a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _load_pyfunc(path: str) -> "PyfuncModel":
    """Load a bundle for MLflow's python_function flavour, which looks for a function of this name."""
    return PyfuncModel(Classifier.from_bundle(path))


class PyfuncModel:
    """What `mlflow.pyfunc.load_model` calls; needs no mlflow itself."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Judge the first column of a data frame, or a list of sentences; return a frame of label and probability."""
        import pandas as pd

        column = model_input.iloc[:, 0] if isinstance(model_input, pd.DataFrame) else model_input
        predictions = self.classifier.predict([str(sentence) for sentence in column])
        return pd.DataFrame(predictions, columns=["label", "probability"])
