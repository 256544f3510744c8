"""Measures ONNX graphs against the torch model that they come from, on random tokens and all validation sentences.

torch's answers are computed once, on a GPU if there is one, and serve every variant. Whether a graph ships is decided
by `shipping_rule`.

Shape letters: B sentences, S tokens.
"""

import contextlib
import copy
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from tasks.data.snapshots import read_snapshot
from tasks.evaluation.metrics import mcc
from tasks.evaluation.paired_tests import contingency, difference_quantile
from tasks.export.shipping_rule import (
    LOSS_CONFIDENCE,
    PARITY_LIMITS,
    REAL_CASE,
    HalfPrecision,
    Parity,
    allowed_difference,
)
from tasks.inference.sessions import open_session
from tasks.inference.tokenization import TokenIds, load_tokenizer, pad, sorted_batches, tokenise
from tasks.training.device import resolve_device

PARITY_SHAPES = ((1, 1), (1, 5), (7, 64), (32, 17))  # (B, S) of random tokens
PARITY_BATCH = 32  # sentences
# fp32 computes what torch computes, so some sentences of every length show a wrong graph, and a CPU takes seconds.
PORTABLE_SENTENCES = 512
PARITY_DEVICES = {"fp32": "cpu", "fp16": "auto", "int8": "cpu"}  # auto: a GPU if there is one

Logits = NDArray[np.float32]


class ParityCase(NamedTuple):
    """Inputs of a graph, torch's logits [B, 2] for them and, for real sentences, their labels [B]."""

    name: str
    inputs: dict[str, TokenIds]
    expected: Logits
    labels: TokenIds | None


class TorchReference(NamedTuple):
    """What graphs are compared with: cases of random tokens, cases of real sentences, and torch's half precision."""

    random: list[ParityCase]
    real: list[ParityCase]
    half: "HalfReference"


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


def torch_reference(logits: LogitsModule, model_folder: str, max_length: int, rows_path: str | None) -> TorchReference:
    """Compute torch's answers to random tokens and to all sentences of a snapshot; without one there are no sentences.

    Args:
        logits: the model, on the CPU.
        model_folder: of its tokenizer.
        max_length: tokens of the longest input.
        rows_path: snapshot of the validation sentences.
    """
    real = real_cases(logits, model_folder, max_length, rows_path) if rows_path else []
    return TorchReference(random_cases(logits), real, HalfReference(logits, real))


def random_cases(logits: LogitsModule) -> list[ParityCase]:
    """Return cases of random tokens in several shapes."""
    names = [f"{rows}x{length}" for rows, length in PARITY_SHAPES]
    inputs = [random_inputs(logits, rows, length) for rows, length in PARITY_SHAPES]
    return [
        ParityCase(name, each, expected, None)
        for name, each, expected in zip(names, inputs, torch_logits(logits, inputs), strict=True)
    ]


def real_cases(logits: LogitsModule, model_folder: str, max_length: int, rows_path: str) -> list[ParityCase]:
    """Return cases of all sentences of a snapshot, in batches of similar length, from short to long."""
    rows = read_snapshot(rows_path)
    labels = rows["label"].to_numpy(np.int64)
    ids = tokenise(load_tokenizer(model_folder, max_length), rows["sentence"].tolist()).rows()
    batches = sorted_batches(np.array([len(row) for row in ids]), PARITY_BATCH)
    pad_id = logits.model.config.pad_token_id or 0
    inputs = [_inputs(logits, *pad([ids[row] for row in batch], pad_id)) for batch in batches]
    return [
        ParityCase(REAL_CASE, each, expected, labels[batch])
        for batch, each, expected in zip(batches, inputs, torch_logits(logits, inputs), strict=True)
    ]


def compare_variant(variant: str, graph: Path, reference: TorchReference) -> Parity:
    """Measure a graph of a variant on the device that it is for, or on a CPU; fp32 on some of the sentences."""
    real = reference.real
    if variant == "fp32":
        real = real[:: -(-len(real) * PARITY_BATCH // PORTABLE_SENTENCES) or 1]
    cases = reference.random + real
    provider, answers = _run_graph(cases, graph, PARITY_DEVICES[variant])
    parity = _summarise(provider, cases, answers)
    factor = PARITY_LIMITS[variant].half_factor
    if np.isfinite(factor) and real and not parity["not_finite"]:
        distances = [_distance(case, answer) for case, answer in zip(cases, answers, strict=True)]
        parity["half"] = reference.half.measure(distances[len(reference.random) :], factor)
    return parity


def compare_with_torch(cases: list[ParityCase], graph: Path, device: str) -> Parity:
    """Measure a graph's logits against torch's in fp32."""
    provider, answers = _run_graph(cases, graph, device)
    return _summarise(provider, cases, answers)


class HalfReference:
    """Torch's own half precision on cases of real sentences, computed where it is needed and once.

    A CPU computes fp16 several times as slowly as fp32. There the sentences on which a graph differs most come first,
    and as soon as torch's difference on them allows the graph's, the others need no computing. A CPU without a kernel
    for fp16 computes in bf16.
    """

    def __init__(self, logits: LogitsModule, cases: list[ParityCase]) -> None:
        self._logits, self._cases = logits, cases
        self._device, self._precision = resolve_device("auto"), "fp16"
        self._distances: dict[int, float] = {}  # largest difference from fp32 by number of the case

    def measure(self, distances: list[float], factor: float) -> HalfPrecision:
        """Return torch's difference, as far as it takes to judge a graph.

        Args:
            distances: the graph's largest difference of a logit in each case.
            factor: that the graph's difference may be of torch's.
        """
        if self._device == "cuda":
            self._compute(list(range(len(self._cases))))
        for number in np.argsort(distances)[::-1].tolist():
            if max(distances) <= allowed_difference(self._largest(), factor):
                break
            self._compute([number])
        return HalfPrecision(
            precision=self._precision,
            device=self._device,
            sentences=sum(len(self._cases[number].expected) for number in self._distances),
            difference=self._largest(),
        )

    def _largest(self) -> float | None:
        """Return the largest difference so far; None if one is NaN or Inf."""
        largest = float(np.max(list(self._distances.values()), initial=0.0))
        return largest if np.isfinite(largest) else None

    def _compute(self, numbers: list[int]) -> None:
        """Compute the cases with these numbers that are not computed yet."""
        cases = {number: self._cases[number] for number in numbers if number not in self._distances}
        answers = self._answer([case.inputs for case in cases.values()]) if cases else []
        for (number, case), answer in zip(cases.items(), answers, strict=True):
            self._distances[number] = _distance(case, answer)

    def _answer(self, inputs: list[dict[str, TokenIds]]) -> list[Logits]:
        if self._device == "cuda":
            try:
                return _run_torch(self._half_model, inputs, "cuda")
            except torch.OutOfMemoryError:
                self._device = "cpu"
        if self._precision == "fp16":
            try:
                return _run_torch(self._half_model, inputs, "cpu")
            except RuntimeError:  # "not implemented for 'Half'"
                self._precision = "bf16"
                self._distances.clear()
        with torch.autocast("cpu", torch.bfloat16):
            return _run_torch(self._logits, inputs, "cpu")

    @cached_property
    def _half_model(self) -> LogitsModule:
        return copy.deepcopy(self._logits).half()


def torch_logits(logits: LogitsModule, inputs: list[dict[str, TokenIds]]) -> list[Logits]:
    """Return torch's logits [B, 2] in exact fp32 for each inputs [B, S], computed on a GPU if there is one."""
    if resolve_device("auto") == "cuda":
        with contextlib.suppress(torch.OutOfMemoryError):  # other processes may hold its memory
            return _run_torch(logits, inputs, "cuda")
    return _run_torch(logits, inputs, "cpu")


def _run_torch(model: LogitsModule, inputs: list[dict[str, TokenIds]], device: str) -> list[Logits]:
    """Run a model, which stays on the CPU, on a device."""
    try:
        model.to(device)
        with torch.inference_mode(), _without_tf32():
            answers = [model(*(torch.from_numpy(array).to(device) for array in each.values())) for each in inputs]
            return [answer.float().cpu().numpy() for answer in answers]
    finally:
        model.to("cpu")


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Compute fp32 products and convolutions on a GPU in fp32; TF32 has 10 bits of mantissa, like fp16."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _run_graph(cases: list[ParityCase], graph: Path, device: str) -> tuple[str, list[Logits]]:
    """Return the provider that ran a graph, and its logits [B, 2] for each case."""
    session = open_session(graph, device)
    answers = [session.run(None, case.inputs)[0] for case in cases]
    return session.get_providers()[0], answers


def _summarise(provider: str, cases: list[ParityCase], answers: list[Logits]) -> Parity:
    """Summarise a graph's logits by their differences from torch's, labels and MCC."""
    difference: dict[str, float] = {}
    for case, answer in zip(cases, answers, strict=True):
        largest = np.maximum(_distance(case, answer), difference.get(case.name, 0.0))  # unlike max(), keeps NaN
        difference[case.name] = float(largest)
    not_finite = [name for name, largest in difference.items() if not np.isfinite(largest)]
    parity = Parity(
        provider=provider,
        difference={name: largest for name, largest in difference.items() if name not in not_finite},
        not_finite=not_finite,
        sentences=0,
        changed=0,
        mcc=0.0,
        torch_mcc=0.0,
        mcc_loss_low=0.0,
        half=None,
    )
    labelled = [
        (case.labels, answer.argmax(axis=1), case.expected.argmax(axis=1))
        for case, answer in zip(cases, answers, strict=True)
        if case.labels is not None
    ]
    if labelled:
        labels, ours, torchs = (np.concatenate(part) for part in zip(*labelled, strict=True))
        parity["sentences"], parity["changed"] = len(labels), int((ours != torchs).sum())
        parity["mcc"], parity["torch_mcc"] = mcc(labels, ours), mcc(labels, torchs)
        parity["mcc_loss_low"] = 0.0 - difference_quantile(contingency(labels, ours, torchs), LOSS_CONFIDENCE)
    return parity


def _distance(case: ParityCase, answer: Logits) -> float:
    """Return the largest difference of a logit from torch's; NaN or Inf if a logit is."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(answer - case.expected).max(initial=0.0))


def _inputs(logits: LogitsModule, ids: TokenIds, mask: TokenIds) -> dict[str, TokenIds]:
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: arrays[name] for name in logits.names}
