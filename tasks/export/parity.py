"""Compares ONNX graphs with the torch model that they were exported from, on random tokens and real sentences.

Shape letters: B sentences, S tokens.
"""

from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tasks.data.snapshots import read_snapshot
from tasks.evaluation.metrics import mcc
from tasks.inference.sessions import open_session
from tasks.inference.tokenization import TokenIds, encode, load_tokenizer, pad, sorted_batches

PARITY_SHAPES = ((1, 1), (1, 5), (7, 64), (32, 17))  # (B, S) of random tokens
PARITY_SENTENCES = 512  # at most; seconds on a slow CPU, and one flipped label is 0.2% of them
PARITY_BATCH = 32  # sentences
REAL_CASE = "sentences"  # name of the comparison on real sentences
MAX_MCC_COST = 0.01  # largest loss of MCC against torch on the compared sentences


class ParityLimit(NamedTuple):
    """Largest difference of a logit from torch, and smallest share of equal labels."""

    difference: float
    equal: float


PARITY_LIMITS = {
    "fp32": ParityLimit(1e-4, 1.0),
    "fp16": ParityLimit(2e-2, 0.995),
    "int8": ParityLimit(float("inf"), 0.99),
}


class Parity(TypedDict):
    """Differences of a graph from torch on a provider; `difference` is the largest of a logit by name of the case.

    `equal` is the share of real sentences with torch's label, `mcc_cost` torch's MCC on them minus the graph's.
    """

    provider: str
    difference: dict[str, float]
    sentences: int
    equal: float
    mcc_cost: float


class ParityCase(NamedTuple):
    """Inputs of a graph, torch's logits [B, 2] for them and, for real sentences, their labels [B]."""

    name: str
    inputs: dict[str, TokenIds]
    expected: NDArray[np.float32]
    labels: TokenIds | None


class LogitsModule(nn.Module):
    """Wraps a classifier for exporters: positional inputs, and the logits tensor as output."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.names = model, input_names(model)
        self.eval()  # exporters restore this module's mode, which must not enable dropout

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs [B, S], in the order of `names`, to logits [B, 2]."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def input_names(model: PreTrainedModel) -> list[str]:
    """Return the graph's inputs: token ids, mask, and segment ids if the model has two segment types."""
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    return ["input_ids", "attention_mask"] + (["token_type_ids"] if segments else [])


def random_inputs(logits: LogitsModule, rows: int, length: int) -> dict[str, TokenIds]:
    """Return inputs [B, S] of random tokens; the last sentence is padded from half its length."""
    rng = np.random.default_rng(rows * 1_000 + length)
    vocabulary = logits.model.config.vocab_size
    ids = rng.integers(vocabulary // 2, vocabulary, (rows, length))  # low ids are special tokens
    mask = np.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    return _inputs(logits, ids, mask)


def random_cases(logits: LogitsModule) -> list[ParityCase]:
    """Return cases of random tokens in several shapes."""
    cases = []
    for rows, length in PARITY_SHAPES:
        inputs = random_inputs(logits, rows, length)
        cases.append(ParityCase(f"{rows}x{length}", inputs, _torch_logits(logits, inputs), None))
    return cases


def real_cases(logits: LogitsModule, model_folder: str, max_length: int, rows_path: str) -> list[ParityCase]:
    """Return cases of sentences spaced evenly over a snapshot's rows, in batches of similar length."""
    rows = read_snapshot(rows_path)
    rows = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(PARITY_SENTENCES, len(rows))).astype(int))]
    labels = rows["label"].to_numpy(np.int64)
    ids = encode(load_tokenizer(model_folder, max_length), rows["sentence"].tolist())
    cases = []
    for batch in sorted_batches(np.array([len(row) for row in ids]), PARITY_BATCH):
        inputs = _inputs(logits, *pad([ids[row] for row in batch], logits.model.config.pad_token_id or 0))
        cases.append(ParityCase(REAL_CASE, inputs, _torch_logits(logits, inputs), labels[batch]))
    return cases


def compare_with_torch(cases: list[ParityCase], graph: Path, device: str) -> Parity:
    """Compare a graph's logits with torch's; a NaN or Inf logit makes the case's difference NaN or Inf."""
    session = open_session(graph, device)
    difference: dict[str, float] = {}
    labels, expected, predicted = [], [], []
    for case in cases:
        (logits,) = session.run(None, case.inputs)
        largest = np.abs(logits - case.expected).max(initial=0.0)
        difference[case.name] = float(np.maximum(largest, difference.get(case.name, 0.0)))  # unlike max(), keeps NaN
        if case.labels is not None:
            labels.append(case.labels)
            expected.append(case.expected.argmax(axis=1))
            predicted.append(logits.argmax(axis=1))
    parity = Parity(provider=session.get_providers()[0], difference=difference, sentences=0, equal=1.0, mcc_cost=0.0)
    if labels:
        truth, reference, answer = (np.concatenate(part) for part in (labels, expected, predicted))
        parity["sentences"], parity["equal"] = len(truth), float((reference == answer).mean())
        parity["mcc_cost"] = float(mcc(truth, reference) - mcc(truth, answer))
    return parity


def parity_error(variant: str, parity: Parity) -> str | None:
    """Return why a variant exceeds its limits; None if it does not."""
    limit = PARITY_LIMITS[variant]
    for name, difference in parity["difference"].items():
        if not np.isfinite(difference):
            return f"has NaN or Inf logits at {name}"
        if difference > limit.difference:
            return f"differs from torch by {difference:.2e} at {name}, expected at most {limit.difference:g}"
    if variant == "fp32":
        return None  # labels can differ only if both logits are nearly equal
    if not parity["sentences"]:
        return "was not compared with torch on any sentence"
    if parity["equal"] < limit.equal:
        return (
            f"gives {parity['equal']:.2%} of {parity['sentences']} sentences torch's label, expected {limit.equal:.1%}"
        )
    if parity["mcc_cost"] > MAX_MCC_COST:
        return f"costs {parity['mcc_cost']:.3f} MCC on {parity['sentences']} sentences, expected at most {MAX_MCC_COST}"
    return None


def _inputs(logits: LogitsModule, ids: TokenIds, mask: TokenIds) -> dict[str, TokenIds]:
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: arrays[name] for name in logits.names}


def _torch_logits(logits: LogitsModule, inputs: dict[str, TokenIds]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return logits(*(torch.from_numpy(array) for array in inputs.values())).numpy()
