"""torch's answers, which graphs are compared with: to random tokens and all sentences, and in half precision.

They are computed once, in the process that trained, where torch and transformers are imported and a GPU is in use
already; the subprocess that makes the graphs gets the numbers and imports no model code.

Shape letters: B sentences, S tokens.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.data.token_limit import count_positions
from tasks.export.shipping_rule import REAL_CASE, HalfPrecision, allowed_difference
from tasks.inference.cpu_limits import compute_threads
from tasks.inference.tokenization import TokenIds, load_tokenizer, sorted_batches, tokenise
from tasks.training.device import resolve_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARITY_SHAPES = ((1, 1), (1, 5), (7, 64), (32, 17))  # (B, S) of random tokens; S at most the encoder's positions
PARITY_BATCH = 32  # sentences

Logits = NDArray[np.float32]


class ParityInputs(NamedTuple):
    """Inputs of a graph; for real sentences also their labels [B]."""

    name: str
    inputs: dict[str, TokenIds]
    labels: TokenIds | None


class ParityCase(NamedTuple):
    """Inputs of a graph, torch's logits [B, 2] for them and, for real sentences, their labels [B]."""

    name: str
    inputs: dict[str, TokenIds]
    expected: Logits
    labels: TokenIds | None


class TorchReference(NamedTuple):
    """What graphs are compared with: cases of random tokens and real sentences, torch's half precision, pad id."""

    random: list[ParityCase]
    real: list[ParityCase]
    half: "HalfReference"
    pad_id: int


class LogitsModule(nn.Module):
    """Wraps a classifier for exporters: positional inputs, and the logits tensor as output."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model, self.names = model, input_names(model)
        self.eval()  # exporters restore this module's mode, which must not enable dropout

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs [B, S], in the order of `names`, to logits [B, 2]."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def input_names(model: "PreTrainedModel") -> list[str]:
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


def load_logits(folder: str) -> LogitsModule:
    """Load a classifier with the attention that exporters can trace."""
    from tasks.training.model import load_classifier  # imports every part of transformers that a model may need

    return LogitsModule(load_classifier(folder, attention="eager"))


def torch_reference(model_folder: str, max_length: int, rows_path: str | None) -> TorchReference:
    """Compute torch's answers to random tokens and to all sentences of a snapshot; without one there are no sentences.

    Args:
        model_folder: output of `fine_tune`.
        max_length: tokens of the longest input.
        rows_path: snapshot of the validation sentences.
    """
    logits = load_logits(model_folder)
    all_inputs = _random_inputs(logits, PARITY_SHAPES)
    if rows_path:
        all_inputs += _real_inputs(logits, model_folder, max_length, rows_path)
    cases = _answer(logits, all_inputs)
    random, real = cases[: len(PARITY_SHAPES)], cases[len(PARITY_SHAPES) :]
    half = HalfReference(partial(load_logits, model_folder), real)
    half.compute_on_gpu(logits)
    return TorchReference(random, real, half, logits.model.config.pad_token_id or 0)


def random_cases(logits: LogitsModule, shapes: Iterable[tuple[int, int]] = PARITY_SHAPES) -> list[ParityCase]:
    """Return cases of random tokens in several shapes (B, S)."""
    return _answer(logits, _random_inputs(logits, shapes))


def _answer(logits: LogitsModule, all_inputs: list[ParityInputs]) -> list[ParityCase]:
    answers = torch_logits(logits, [each.inputs for each in all_inputs])
    return [
        ParityCase(each.name, each.inputs, expected, each.labels)
        for each, expected in zip(all_inputs, answers, strict=True)
    ]


def _random_inputs(logits: LogitsModule, shapes: Iterable[tuple[int, int]]) -> list[ParityInputs]:
    positions = count_positions(logits.model.config.to_dict())
    shapes = [(rows, min(length, positions or length)) for rows, length in shapes]
    return [ParityInputs(f"{rows}x{length}", random_inputs(logits, rows, length), None) for rows, length in shapes]


def _real_inputs(logits: LogitsModule, model_folder: str, max_length: int, rows_path: str) -> list[ParityInputs]:
    """Return all sentences of a snapshot, in batches of similar length, from short to long."""
    from tasks.data.snapshots import read_snapshot  # brings pandas

    rows = read_snapshot(rows_path)
    labels = rows["label"].to_numpy(np.int64)
    tokens = tokenise(load_tokenizer(model_folder, max_length), rows["sentence"].tolist())
    pad_id = logits.model.config.pad_token_id or 0
    return [
        ParityInputs(REAL_CASE, _inputs(logits, *tokens.batch(batch, pad_id)), labels[batch])
        for batch in sorted_batches(tokens.lengths, PARITY_BATCH)
    ]


class HalfReference:
    """Torch's own half precision on cases of real sentences.

    A GPU computes all of them at once, with the model that is there. A CPU computes fp16 several times as slowly as
    fp32: it loads the model again where a graph differs at all, the sentences on which it differs most come first, and
    as soon as torch's difference on them allows the graph's, the others need no computing. A CPU without a kernel for
    fp16 computes in bf16.
    """

    def __init__(self, load: Callable[[], LogitsModule], cases: list[ParityCase]) -> None:
        """Prepare; nothing is computed yet.

        Args:
            load: returns the model, on the CPU. It and the cases are sent to the subprocess.
            cases: of real sentences, with torch's answers in fp32.
        """
        self._load, self._cases = load, cases
        self._device, self._precision = "cpu", "fp16"
        self._distances: dict[int, float] = {}  # largest difference from fp32 by number of the case

    def compute_on_gpu(self, logits: LogitsModule) -> None:
        """Compute all cases with a loaded model if there is a GPU with enough memory."""
        if resolve_device("auto") != "cuda":
            return
        with contextlib.suppress(torch.OutOfMemoryError):
            answers = _run_torch(copy.deepcopy(logits).half(), [case.inputs for case in self._cases], "cuda")
            self._keep(dict(enumerate(answers)))
            self._device = "cuda"

    def measure(self, distances: list[float], factor: float) -> HalfPrecision:
        """Return torch's difference, as far as it takes to judge a graph.

        Args:
            distances: the graph's largest difference of a logit in each case.
            factor: that the graph's difference may be of torch's.
        """
        for number in np.argsort(distances)[::-1].tolist():
            if max(distances) <= allowed_difference(self._largest(), factor):
                break
            if number not in self._distances:
                self._keep({number: self._answer(self._cases[number].inputs)})
        return HalfPrecision(
            precision=self._precision,
            device=self._device,
            sentences=sum(len(self._cases[number].expected) for number in self._distances),
            difference=self._largest(),
        )

    def _keep(self, answers: dict[int, Logits]) -> None:
        """Keep how far answers are from fp32, by number of the case."""
        for number, answer in answers.items():
            self._distances[number] = largest_difference(self._cases[number], answer)

    def _largest(self) -> float | None:
        """Return the largest difference so far; None if one is NaN or Inf."""
        largest = float(np.max(list(self._distances.values()), initial=0.0))
        return largest if np.isfinite(largest) else None

    def _answer(self, inputs: dict[str, TokenIds]) -> Logits:
        if self._precision == "fp16":
            try:
                return _run_torch(self._half_model, [inputs], "cpu")[0]
            except RuntimeError:  # "not implemented for 'Half'"
                self._precision = "bf16"
                self._distances.clear()
        return _run_torch(self._model, [inputs], "cpu", torch.bfloat16)[0]

    @cached_property
    def _model(self) -> LogitsModule:
        return self._load()

    @cached_property
    def _half_model(self) -> LogitsModule:
        return copy.deepcopy(self._model).half()


def torch_logits(logits: LogitsModule, inputs: list[dict[str, TokenIds]]) -> list[Logits]:
    """Return torch's logits [B, 2] in exact fp32 for each inputs [B, S], computed on a GPU if there is one."""
    if resolve_device("auto") == "cuda":
        with contextlib.suppress(torch.OutOfMemoryError):  # other processes may hold its memory
            return _run_torch(logits, inputs, "cuda")
    return _run_torch(logits, inputs, "cpu")


def _run_torch(
    model: LogitsModule, inputs: list[dict[str, TokenIds]], device: str, autocast: torch.dtype | None = None
) -> list[Logits]:
    """Run a model, which stays on the CPU, on a device; on a CPU with one thread for each inputs."""

    @torch.inference_mode()
    def answer(each: dict[str, TokenIds]) -> torch.Tensor:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            return model(*(torch.from_numpy(array).to(device) for array in each.values())).float()

    try:
        model.to(device)
        with _without_tf32():
            answers = _run_parallel(answer, inputs) if device == "cpu" else [answer(each) for each in inputs]
            return [each.cpu().numpy() for each in answers]
    finally:
        model.to("cpu")


def _run_parallel(answer: Callable[[dict[str, TokenIds]], torch.Tensor], inputs: list[Any]) -> list[torch.Tensor]:
    """Answer many inputs on all cores, each on one.

    A batch of short sentences divided among threads spends more time at their barriers than computing, and several
    times that where other processes use the cores too: 10 s of CPU time instead of 1.4 s for 387 sentences.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of new threads too
    try:
        with ThreadPoolExecutor(compute_threads()) as pool:
            return list(pool.map(answer, inputs[::-1]))[::-1]  # the longest sentences first
    finally:
        torch.set_num_threads(threads)


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


def largest_difference(case: ParityCase, answer: Logits) -> float:
    """Return the largest difference of a logit from torch's; NaN or Inf if a logit is."""
    with np.errstate(invalid="ignore"):
        return float(np.abs(answer - case.expected).max(initial=0.0))


def _inputs(logits: LogitsModule, ids: TokenIds, mask: TokenIds) -> dict[str, TokenIds]:
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: arrays[name] for name in logits.names}
