"""The captured training step is the eager one, and what happens where a step cannot be captured.

`TapeRecorder` stands in for CUDA graphs on a CPU: it runs a recording again without Python, as a GPU does; the kernels
are Triton's own, in its interpreter.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from graph_tape import TapeRecorder
from tiny import VOCABULARY, Words, tiny_bert, toy_encoded, toy_recipe
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification, MPNetConfig, MPNetModel

from tasks.inference.tokenization import shuffled_batches
from tasks.training import adversarial_noise, cuda_graph_step
from tasks.training.cuda_graph_step import (
    WARMUP_PASSES,
    Captured,
    CaptureVariant,
    CudaGraphStep,
    Failed,
    OutOfMemory,
    capture_or_eager,
    make_train_step,
    ran_out_of_memory,
    try_capture,
)
from tasks.training.cuda_graphs import cudnn_attention_disabled, patch_for_cuda_graphs
from tasks.training.dataset import TokenDataset
from tasks.training.fused_layers import FusedLinear
from tasks.training.process_group import ProcessGroup
from tasks.training.train_step import EagerStep, Rows, StepConfig, StepOutputs

pytest.importorskip("triton")  # for Linux on x86-64

BATCH = 8
PLAIN = CaptureVariant(fused=False)


def nothing() -> None:
    """Move no progress bar."""


def encoded(count: int = 28) -> TokenDataset:
    """Return sentences of two buckets: of up to 8 tokens, and of 9 to 12."""
    return toy_encoded(count)


def epochs_of(data: TokenDataset, epochs: int = 2) -> list[list[Rows]]:
    """Return the batches of each epoch; the last of an epoch is short."""
    rng = np.random.default_rng(0)
    return [shuffled_batches(data.lengths, BATCH, rng) for _ in range(epochs)]


def config(**changes: Any) -> StepConfig:
    return toy_recipe(**{"steps": 8, "batch_size": BATCH, "learning_rate": 1e-2} | changes)


def captured_step(
    model: nn.Module, data: TokenDataset, chosen: StepConfig, variant: CaptureVariant = PLAIN, **arguments: Any
) -> CudaGraphStep:
    """Return a step in fp32, whose figures can be compared with the eager ones."""
    recorder = arguments.pop("recorder", None) or TapeRecorder()
    step = CudaGraphStep(model, data, chosen, variant, recorder, dtype=torch.float32, **arguments)
    step.prepare()
    return step


def run(step: EagerStep | CudaGraphStep, epochs: list[list[Rows]]) -> StepOutputs:
    """Train for epochs; return each step's loss and correct predictions."""
    first, outputs = 0, []
    for batches in epochs:
        outputs.append(step.run(batches, first, nothing))
        first += len(batches)
    return StepOutputs(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))


def same_noise(ids: torch.Tensor, features: int) -> torch.Tensor:
    """Return noise [B, S, E] that depends on nothing but where an element is."""
    rows, tokens, elements = (torch.arange(size) for size in (*ids.shape, features))
    return torch.cos(37.0 * rows[:, None, None] + 7.0 * tokens[:, None] + elements)


def assert_same_training(found: Any, found_outputs: StepOutputs, step: Any, outputs: StepOutputs) -> None:
    torch.testing.assert_close(found_outputs.losses, outputs.losses, rtol=0, atol=1e-5)
    assert torch.equal(found_outputs.correct, outputs.correct)
    torch.testing.assert_close(found.flat.master, step.flat.master, rtol=0, atol=1e-5)
    expected = step.optimizer.state()
    for name, value in found.optimizer.state().items():
        torch.testing.assert_close(value.float(), expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"r_drop": 1.0},
        {"sift": 50.0},
        {"layer_decay": 0.5, "max_grad_norm": 0.05},
        {"warmup_ratio": 0.9, "weight_decay": 0.5},
    ],
    ids=["plain", "R-Drop", "SiFT", "clipped, layer decay", "warm-up, weight decay"],
)
@pytest.mark.parametrize("fused", [False, True], ids=["plain layers", "fused layers"])
def test_replayed_steps_are_eager_steps(
    fused: bool, changes: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adversarial_noise, "draw_noise", same_noise)
    data, chosen = encoded(), config(**changes)
    epochs = epochs_of(data)
    assert {data.bucket(rows) for batches in epochs for rows in batches} == {8, 12}
    assert [len(rows) for rows in epochs[0]].count(4) == 1
    model, eager = Words(), EagerStep(Words(), data, chosen)
    step = captured_step(model, data, chosen, CaptureVariant(fused))
    assert (type(model.head) is FusedLinear) == fused
    expected = run(eager, epochs)
    assert float(expected.losses.max() - expected.losses.min()) > 0.05
    assert_same_training(step, run(step, epochs), eager, expected)


@pytest.mark.parametrize("micro_batches", [2, 3, 8])
def test_gradients_of_micro_batches_are_accumulated(micro_batches: int) -> None:
    """Three pieces of eight rows are of 3, 3 and 2; a short batch is filled up with padding rows."""
    data, chosen = encoded(), config()
    model, eager = Words(), EagerStep(Words(), data, chosen)
    step = captured_step(model, data, chosen, CaptureVariant(False, micro_batches=micro_batches))
    assert step.micro_batches == micro_batches
    sizes = {2: [4, 4], 3: [3, 3, 2], 8: [1] * 8}[micro_batches]
    assert model.rows == sizes * (WARMUP_PASSES + 1) * 2  # for each of two lengths
    assert_same_training(step, run(step, epochs_of(data)), eager, run(eager, epochs_of(data)))


def test_bert_is_captured_with_the_mask_that_is_added_to_its_scores() -> None:
    """Without fused attention transformers checks for padding tokens on the host, which waits for the device."""
    data, chosen = encoded(16), config(steps=4)
    with pytest.raises(RuntimeError, match="operation not permitted when stream is capturing"):
        captured_step(tiny_bert(), data, chosen)
    eager = EagerStep(tiny_bert(), data, chosen)
    step = captured_step(tiny_bert(), data, chosen, CaptureVariant(fused=False, full_mask=True))
    found, expected = run(step, epochs_of(data)), run(eager, epochs_of(data))
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-4)
    assert torch.equal(found.correct, expected.correct)


def test_each_replay_drops_other_activations_and_a_resumed_run_the_same_ones() -> None:
    data = TokenDataset(
        [np.array([5, 9, 7, 8, 6, 10, 11, 4])] * 2, np.array([0, 0]), 0, "cpu"
    )  # one sentence, so that dropout decides
    sizes = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 1, "n_heads": 1, "hidden_dim": 16}
    rates = {"dropout": 0.0, "attention_dropout": 0.5, "seq_classif_dropout": 0.0, "initializer_range": 0.2}
    torch.manual_seed(0)
    model, recorder = DistilBertForSequenceClassification(DistilBertConfig(**sizes, **rates)), TapeRecorder()
    chosen = config(steps=4, batch_size=1, learning_rate=0.0)
    step = captured_step(model, data, chosen, CaptureVariant(), recorder=recorder)
    first, second = (step.run([np.array([0]), np.array([1])], start, nothing).losses.tolist() for start in (0, 2))
    assert len({*first, *second}) == 4
    assert step.run([np.array([0])], 2, nothing).losses.tolist() == second[:1]
    launched = [name for name in recorder.launches if name.startswith("attention")]
    assert launched == ["attention_kernel", "attention_backward_kernel"] * (WARMUP_PASSES + 1 + 2 + 2 + 1)


def test_each_length_is_captured_once_after_its_warm_up() -> None:
    data, recorder, model = encoded(), TapeRecorder(), Words()
    step = captured_step(model, data, config(), recorder=recorder)
    assert (recorder.warm_ups, recorder.recordings) == (2, 2)
    assert model.rows == [BATCH] * (WARMUP_PASSES + 1) * 2
    run(step, epochs_of(data))
    assert (recorder.warm_ups, recorder.recordings) == (2, 2)
    assert len(model.rows) == (WARMUP_PASSES + 1) * 2  # a replay runs no Python of the model's


def test_a_length_that_was_not_prepared_is_captured_at_its_first_batch() -> None:
    data, recorder = encoded(), TapeRecorder()
    step = CudaGraphStep(Words(), data, config(), PLAIN, recorder, dtype=torch.float32)
    short = np.flatnonzero(data.lengths <= 8)[:BATCH]
    step.run([short, short], 0, nothing)
    assert recorder.recordings == 1


def test_captures_change_neither_weights_nor_the_state_of_the_optimiser() -> None:
    model = Words()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step = captured_step(model, encoded(), config())
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert not any(tensor.any() for tensor in step.optimizer.state().values())


def test_a_resumed_epoch_uses_the_learning_rates_of_its_steps() -> None:
    data, chosen = encoded(), config()
    first, second = epochs_of(data)
    eager, step = EagerStep(Words(), data, chosen), captured_step(Words(), data, chosen)
    eager.run(first, 0, nothing)
    step.flat.master.copy_(eager.flat.master)
    step.flat.sync_compute()
    step.optimizer.load(eager.optimizer.state())
    expected = eager.run(second, len(first), nothing)
    assert_same_training(step, step.run(second, len(first), nothing), eager, expected)


def test_progress_advances_once_a_step_and_the_device_is_synchronised_at_intervals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graph_step, "SYNC_EVERY", 4)
    steps = 10
    data, recorder, moves = encoded(steps), TapeRecorder(), list[int]()
    step = CudaGraphStep(Words(), data, config(steps=steps, batch_size=1), PLAIN, recorder)
    step.run([np.array([0])] * steps, 0, lambda: moves.append(recorder.synchronizations))
    assert moves == [0] * 4 + [1] * 4 + [2, 2]


def test_in_bf16_master_weights_stay_fp32_and_training_learns_the_same() -> None:
    data, chosen = encoded(16), config(steps=20, learning_rate=0.1, warmup_ratio=0.0)
    epochs = [batches for _ in range(5) for batches in epochs_of(data)]
    step = capture_or_eager(Words(), data, chosen, TapeRecorder())
    assert isinstance(step, CudaGraphStep)
    assert (step.flat.master.dtype, step.flat.compute.dtype) == (torch.float32, torch.bfloat16)
    eager = EagerStep(Words(), data, chosen)
    found, expected = run(step, epochs), run(eager, epochs)
    torch.testing.assert_close(found.losses[:5], expected.losses[:5], rtol=0.05, atol=0.01)
    assert float(found.losses[-1]) < float(found.losses[0]) / 2


# What happens where a capture fails.


def wait_for_device(_: Words, input_ids: torch.Tensor, __: torch.Tensor) -> None:
    assert input_ids.max().item() < VOCABULARY


def test_a_model_that_waits_for_the_device_is_trained_by_eager_steps(caplog: pytest.LogCaptureFixture) -> None:
    data, recorder, model = encoded(), TapeRecorder(), Words(wait_for_device)
    step, expected = capture_or_eager(model, data, config(), recorder), EagerStep(Words(), data, config())
    assert isinstance(step, EagerStep)
    assert caplog.messages == [
        "the training step cannot be captured as a CUDA graph (operation not permitted when stream is capturing);"
        " it runs several times slower"
    ]
    assert recorder.recordings == recorder.releases == 4  # each variant once
    # The attempts have left the model as it was.
    assert {type(module) for module in model.modules()} == {Words, nn.Embedding, nn.ModuleList, nn.Linear}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    found, plain = run(step, epochs_of(data)), run(expected, epochs_of(data))
    assert torch.equal(found.losses, plain.losses)
    assert torch.equal(step.flat.master, expected.flat.master)


def refuse_fused(model: Words, *_: torch.Tensor) -> None:
    if type(model.head) is FusedLinear:
        raise RuntimeError("no kernel image is available")


def check_for_padding(_: Words, __: torch.Tensor, attention_mask: torch.Tensor) -> None:
    if attention_mask.ndim == 2:
        attention_mask.all().item()


@pytest.mark.parametrize(
    ("on_forward", "recordings", "fused", "full_mask"),
    [
        (lambda *_: None, 2, True, False),
        (refuse_fused, 2, False, False),  # the warm-up fails first
        (check_for_padding, 1 + 1 + 2, True, True),
    ],
    ids=["the fastest", "not fused", "with the whole mask"],
)
def test_the_fastest_variant_that_works_is_taken_without_a_warning(
    on_forward: Any, recordings: int, fused: bool, full_mask: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data, recorder, model = encoded(), TapeRecorder(), Words(on_forward)
    seen: list[int] = []
    model.register_forward_hook(
        lambda _, args, kwargs, __: seen.append(kwargs["attention_mask"].ndim), with_kwargs=True
    )
    step = capture_or_eager(model, data, config(), recorder)
    assert isinstance(step, CudaGraphStep)
    assert step.micro_batches == 1
    assert recorder.recordings == recordings
    assert (type(model.head) is FusedLinear) == fused
    assert seen[-1] == (4 if full_mask else 2)
    assert caplog.messages == []


def memory_for(rows: int) -> Callable[..., None]:
    def check(_: Words, input_ids: torch.Tensor, __: torch.Tensor) -> None:
        if len(input_ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    return check


@functools.cache
def captured_on_whole_batches() -> StepOutputs:
    """Return the outputs of an epoch with memory for whole batches."""
    data = encoded()
    return run(capture_or_eager(Words(), data, config(), TapeRecorder()), epochs_of(data, 1))


@pytest.mark.parametrize(("rows", "logged"), [(8, []), (4, [2]), (3, [2, 4]), (1, [2, 4, 8])])
def test_without_enough_memory_batches_are_split_further_until_they_fit(
    rows: int, logged: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    data, recorder = encoded(), TapeRecorder()
    step = capture_or_eager(Words(memory_for(rows)), data, config(), recorder)
    assert isinstance(step, CudaGraphStep)
    assert step.micro_batches == (logged or [1])[-1]
    assert recorder.releases == len(logged)
    assert caplog.messages == [
        f"out of memory: batches of 8 are split into {count} micro-batches whose gradients are accumulated"
        for count in logged
    ]
    found, expected = run(step, epochs_of(data, 1)), captured_on_whole_batches()
    torch.testing.assert_close(found.losses, expected.losses, rtol=0.02, atol=0.01)  # gradients are rounded to bf16


def test_where_a_single_sentence_does_not_fit_every_variant_fails_once(caplog: pytest.LogCaptureFixture) -> None:
    model, recorder = Words(memory_for(0)), TapeRecorder()
    assert isinstance(capture_or_eager(model, encoded(), config(), recorder), EagerStep)
    assert model.rows == [8, 4, 2, 1, 1, 1, 1]  # the number of micro-batches stays for the other variants
    assert caplog.messages[-1] == (
        "the training step cannot be captured as a CUDA graph (CUDA out of memory. Tried to allocate 20.00 MiB.);"
        " it runs several times slower"
    )


def test_without_triton_training_is_eager(caplog: pytest.LogCaptureFixture) -> None:
    class NoTriton(TapeRecorder):
        def load_kernels(self) -> Any:
            raise ImportError("No module named 'triton'")

    assert isinstance(capture_or_eager(Words(), encoded(), config(), NoTriton()), EagerStep)
    assert "(No module named 'triton')" in caplog.text


def test_outcomes_of_a_capture_say_why() -> None:
    def attempt(model: nn.Module, micro_batches: int = 1) -> Any:
        variant = CaptureVariant(micro_batches=micro_batches)
        return try_capture(model, encoded(), config(), variant, TapeRecorder())

    assert isinstance(attempt(Words()), Captured)
    assert attempt(Words(memory_for(7))) == OutOfMemory("CUDA out of memory. Tried to allocate 20.00 MiB.")
    assert attempt(Words(memory_for(0)), BATCH) == Failed("CUDA out of memory. Tried to allocate 20.00 MiB.")
    assert attempt(Words(refuse_fused)) == Failed("no kernel image is available")


class Rank(ProcessGroup):
    """One of two ranks; the other one has captured, run out of memory or failed: 0, 1 or 2, attempt by attempt."""

    def __init__(self, others: list[int]) -> None:
        super().__init__(0, 2, "cpu")
        self.others = others

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def all_reduce_max(self, value: int) -> int:
        return max(value, self.others.pop(0))


@pytest.mark.parametrize(
    ("others", "micro_batches", "message"),
    [
        ([0], 1, ""),
        ([1, 0], 2, "split into 2 micro-batches"),
        ([1, 1, 0], 4, "split into 4 micro-batches"),
        ([2, 1, 0], 2, "split into 2 micro-batches"),
        ([2, 2, 2, 2], 1, "cannot be captured as a CUDA graph (it failed on another rank)"),
    ],
    ids=str,
)
def test_all_ranks_take_the_variant_that_works_for_all(
    others: list[int], micro_batches: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    group = Rank(others)
    step = capture_or_eager(Words(), encoded(), config(), TapeRecorder(), group)
    assert isinstance(step, EagerStep if "cannot" in message else CudaGraphStep)
    assert group.others == []
    assert step.micro_batches == micro_batches
    assert message in caplog.text


def test_losses_of_the_ranks_add_up_to_that_of_the_batch() -> None:
    data, rows = encoded(), np.arange(7)  # rank 0 takes four of them, rank 1 three
    chosen = config(learning_rate=0.0)
    whole = EagerStep(Words(), data, chosen).run([rows], 0, nothing)
    found = []
    for rank in range(2):
        group = Rank([])
        group.rank = rank
        found.append(captured_step(Words(), data, chosen, group=group).run([rows], 0, nothing))
    torch.testing.assert_close(found[0].losses + found[1].losses, whole.losses)
    assert torch.equal(found[0].correct + found[1].correct, whole.correct)


def test_on_a_cpu_the_step_is_eager_in_either_precision() -> None:
    for precision in ("fp32", "bf16"):
        assert isinstance(make_train_step(tiny_bert(), toy_encoded(4), toy_recipe(precision=precision)), EagerStep)


def test_cudnn_attention_is_off_while_captures_are_tried_and_as_before_afterwards() -> None:
    seen: list[bool] = []

    def note(*_: Any) -> None:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())

    for before in (True, False):
        with cudnn_attention_disabled():
            torch.backends.cuda.enable_cudnn_sdp(before)
            capture_or_eager(Words(note), encoded(8), config(), TapeRecorder())
            assert torch.backends.cuda.cudnn_sdp_enabled() == before
    assert set(seen) == {False}
    with pytest.raises(ValueError, match="failed"), cudnn_attention_disabled():
        raise ValueError("failed")
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_mpnet_patched_for_captures_gives_the_same_position_bias() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    encoder = MPNetModel(MPNetConfig(vocab_size=20, **sizes)).encoder
    hidden = torch.zeros(2, 40, 16)
    expected = encoder.compute_position_bias(hidden)
    patch_for_cuda_graphs(encoder)
    found = encoder.compute_position_bias(hidden)
    assert found.shape == (2, 2, 40, 40)
    assert torch.equal(found, expected)


def test_lack_of_memory_is_found_in_an_errors_context() -> None:
    error = RuntimeError("capture was invalidated")
    error.__context__ = torch.OutOfMemoryError()
    assert ran_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture"), False),
        (None, False),
    ],
)
def test_lack_of_memory_is_distinguished_from_other_failures(error: BaseException | None, expected: bool) -> None:
    assert ran_out_of_memory(error) is expected
