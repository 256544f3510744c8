"""The eager training step: schedule, clipping, micro-batches when memory is short, R-Drop; the same as a plain loop."""

import functools
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_bert, toy_encoded, toy_recipe
from torch import nn

from tasks.inference.tokenization import shuffled_batches
from tasks.training.dataset import TokenDataset
from tasks.training.losses import smooth_labels
from tasks.training.train_step import (
    EagerStep,
    Rows,
    StepConfig,
    StepOutputs,
    learning_rate_factor,
    learning_rates,
)

SPLIT = re.compile(
    r"out of memory: batches of (\d+) are split into (\d+) micro-batches whose gradients are accumulated"
)


class LimitedMemory(nn.Module):
    """A model that records its inputs, and runs out of memory for too many rows or in some of its calls."""

    def __init__(
        self, model: nn.Module, rows: int = 1_000, without: tuple[int, ...] = (), backward: bool = False
    ) -> None:
        """Wrap a model.

        Args:
            model: that computes.
            rows: largest number that fits in memory.
            without: calls, counted from 0, that run out of memory whatever their size.
            backward: run out of memory in the middle of the backward pass, not in the forward pass.
        """
        super().__init__()
        self.model, self._rows, self._without, self._backward = model, rows, without, backward
        self.given: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        fails = len(input_ids) > self._rows or len(self.given) in self._without
        self.given.append(input_ids)
        if not fails:
            return self.model(input_ids, attention_mask)
        if not self._backward:
            fail()
        output = self.model(input_ids, attention_mask, output_hidden_states=True)
        output.hidden_states[1].register_hook(fail)  # the head and the upper layer have their gradients by then
        return output

    def sizes(self) -> list[int]:
        """Return the number of rows of each call."""
        return [len(each) for each in self.given]


def fail(*_: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def nothing() -> None:
    """Move no progress bar."""


def batches_of(count: int, batch_size: int, epochs: int) -> list[Rows]:
    rng = np.random.default_rng(0)
    lengths = toy_encoded(count).lengths
    return [rows for _ in range(epochs) for rows in shuffled_batches(lengths, batch_size, rng)]


def assert_same_weights(found: nn.Module, expected: nn.Module, atol: float) -> None:
    for (name, one), other in zip(expected.named_parameters(), found.parameters(), strict=True):
        if not name.endswith("key.bias"):  # softmax cancels it: its gradient is rounding alone
            torch.testing.assert_close(other, one, rtol=0, atol=atol)


def train(
    model: nn.Module, data: TokenDataset, batches: list[Rows], recipe: StepConfig
) -> tuple[StepOutputs, EagerStep]:
    stepper = EagerStep(model, data, recipe)
    return stepper.run(batches, 0, nothing), stepper


def test_learning_rate_rises_to_the_peak_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, total=10, warmup=4) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0.0])


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert learning_rate_factor(0, total=10, warmup=0) == 1.0


def test_every_step_has_its_rate_and_the_warmup_is_rounded_up_to_steps() -> None:
    rates = learning_rates(toy_recipe(steps=10, warmup_ratio=0.31, learning_rate=2.0))
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 10 / 6, 8 / 6, 1.0, 4 / 6, 2 / 6])


def test_steps_lower_the_loss_of_a_repeated_batch() -> None:
    data = toy_encoded(16)
    stepper = EagerStep(tiny_bert(), data, toy_recipe(steps=30, learning_rate=1e-2, warmup_ratio=0.0))
    passed = stepper.run([np.arange(16)] * 30, 0, nothing)
    assert passed.losses.shape == passed.correct.shape == (30,)
    assert float(passed.losses[-1]) < float(passed.losses[0]) / 2
    assert int(passed.correct[-1]) == 16
    assert not passed.losses.requires_grad


def test_gradients_are_clipped() -> None:
    """With a norm of nearly zero AdamW's first step is still of the learning rate's size, its moments are not."""
    stepper = EagerStep(tiny_bert(), toy_encoded(16), toy_recipe(steps=1, max_grad_norm=1e-6))
    stepper.run([np.arange(16)], 0, nothing)
    # The first moment is a tenth of the clipped gradient.
    assert float(stepper.optimizer.state()["exp_avg"].norm()) == pytest.approx(1e-7, rel=0.01)


@pytest.mark.parametrize("max_grad_norm", [0.1, 1e6], ids=["clipped", "unclipped"])
def test_twenty_steps_are_those_of_a_plain_torch_loop(max_grad_norm: float) -> None:
    data, batches = toy_encoded(40), batches_of(40, 8, 4)
    recipe = toy_recipe(steps=20, learning_rate=1e-3, warmup_ratio=0.2, max_grad_norm=max_grad_norm)
    assert len(batches) == recipe.steps

    plain = tiny_bert().train()
    groups = [
        {"params": [one for one in plain.parameters() if one.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [one for one in plain.parameters() if one.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, 20, 4))
    expected = []
    for rows in batches:
        inputs, _ = data.batch(rows)
        loss = plain(**inputs, labels=torch.from_numpy(data.labels[rows])).loss
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        expected.append(loss.item())

    model = tiny_bert()
    stepper = EagerStep(model, data, recipe)
    passed = stepper.run(batches, 0, nothing)
    assert passed.losses.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.05
    assert_same_weights(model, plain, 1e-5)


def test_an_epoch_in_two_runs_is_the_epoch() -> None:
    data, batches = toy_encoded(40), batches_of(40, 8, 1)

    def run(*parts: list[Rows]) -> tuple[list[float], torch.Tensor]:
        stepper = EagerStep(tiny_bert(), data, toy_recipe(steps=5))
        losses: list[float] = []
        for part in parts:
            losses += stepper.run(part, len(losses), nothing).losses.tolist()
        return losses, stepper.flat.master

    whole, parted = run(batches), run(batches[:2], batches[2:])
    assert whole[0] == parted[0]
    assert torch.equal(whole[1], parted[1])


def test_layers_far_from_the_head_learn_at_a_lower_rate() -> None:
    """AdamW's first step is of the learning rate's size, whatever the gradient."""
    model = tiny_bert()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recipe = toy_recipe(steps=1, learning_rate=1e-3, warmup_ratio=0.0, weight_decay=0.0, layer_decay=0.5)
    EagerStep(model, toy_encoded(16), recipe).run([np.arange(16)], 0, nothing)
    moved = {name: float((one - before[name]).abs().max().detach()) for name, one in model.named_parameters()}
    assert moved["classifier.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["bert.encoder.layer.1.output.dense.weight"] == pytest.approx(5e-4, rel=1e-2)
    assert moved["bert.encoder.layer.0.output.dense.weight"] == pytest.approx(2.5e-4, rel=1e-2)
    assert moved["bert.embeddings.word_embeddings.weight"] == pytest.approx(1.25e-4, rel=1e-2)


def test_frozen_parameters_do_not_move() -> None:
    model = tiny_bert()
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in model.bert.embeddings.parameters()]
    EagerStep(model, toy_encoded(16), toy_recipe()).run([np.arange(16)], 0, nothing)
    after = model.bert.embeddings.parameters()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_progress_advances_once_a_step() -> None:
    moves: list[int] = []
    stepper = EagerStep(tiny_bert(), toy_encoded(20), toy_recipe())
    stepper.run(batches_of(20, 8, 2), 0, lambda: moves.append(1))
    assert len(moves) == 6


def test_dropout_is_on_in_training_after_a_validation() -> None:
    model = tiny_bert(dropout=0.5).eval()
    stepper = EagerStep(model, toy_encoded(16), toy_recipe(learning_rate=0.0))
    losses = stepper.run([np.arange(16)] * 2, 0, nothing).losses
    assert float(losses[0]) != float(losses[1])


MODERATE: dict[str, Any] = {"steps": 12, "learning_rate": 1e-3}


@functools.cache
def trained_on_whole_batches(r_drop: float) -> tuple[StepOutputs, nn.Module]:
    """Return the outputs and the model of a training with memory for whole batches."""
    model = tiny_bert(num_hidden_layers=1)
    outputs, _ = train(model, toy_encoded(24), batches_of(24, 8, 4), toy_recipe(r_drop=r_drop, **MODERATE))
    return outputs, model


@pytest.mark.parametrize(
    ("rows", "micro_batches", "logged"),
    [(8, 1, []), (7, 2, [2]), (4, 2, [2]), (3, 4, [2, 4]), (2, 4, [2, 4]), (1, 8, [2, 4, 8])],
)
@pytest.mark.parametrize("r_drop", [0.0, 1.0])
def test_micro_batches_train_as_the_whole_batch_does(
    r_drop: float, rows: int, micro_batches: int, logged: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    expected, plain = trained_on_whole_batches(r_drop)
    data, batches = toy_encoded(24), batches_of(24, 8, 4)
    recipe = toy_recipe(r_drop=r_drop, **MODERATE)
    model = tiny_bert(num_hidden_layers=1)
    limited = LimitedMemory(model, 2 * rows if r_drop else rows)  # R-Drop passes each sentence twice
    found, stepper = train(limited, data, batches, recipe)
    assert [tuple(map(int, match.groups())) for line in caplog.messages if (match := SPLIT.fullmatch(line))] == [
        (8, number) for number in logged
    ]
    assert len(caplog.messages) == len(logged)
    assert stepper.micro_batches == micro_batches
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert torch.equal(found.correct, expected.correct)
    assert_same_weights(model, plain, 1e-6)
    assert max(limited.sizes()[len(logged) :]) <= (2 * rows if r_drop else rows)


def test_the_number_of_micro_batches_stays() -> None:
    model = LimitedMemory(tiny_bert(), rows=4)
    stepper = EagerStep(model, toy_encoded(24), toy_recipe())
    stepper.run([np.arange(8), np.arange(8, 16)], 0, nothing)
    stepper.run([np.arange(16, 24)], 2, nothing)
    assert model.sizes() == [8] + [4] * 6
    assert stepper.micro_batches == 2


def test_a_short_batch_has_no_more_micro_batches_than_rows() -> None:
    data, batches = toy_encoded(12), [np.arange(8), np.arange(8, 11), np.array([11])]
    plain, model = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, toy_recipe(**MODERATE))
    limited = LimitedMemory(model, rows=1)
    found, _ = train(limited, data, batches, toy_recipe(**MODERATE))
    assert limited.sizes() == [8, 4, 2, *[1] * 8, *[1] * 3, 1]
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert_same_weights(model, plain, 1e-6)


def test_micro_batches_of_unequal_size_add_up_to_the_batch() -> None:
    """Seven sentences in four micro-batches, of 2, 2, 2 and 1; each sentence counts a seventh."""
    data, batches = toy_encoded(7), [np.arange(7)] * 6
    plain, model = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, toy_recipe(**MODERATE))
    limited = LimitedMemory(model, rows=2)
    found, _ = train(limited, data, batches, toy_recipe(**MODERATE))
    assert limited.sizes() == [7, 4, *[2, 2, 2, 1] * 6]
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert torch.equal(found.correct, expected.correct)
    assert_same_weights(model, plain, 1e-6)


@pytest.mark.parametrize("sizes", [[1], [2, 1], [3, 2, 1], [6, 3, 2, 1], [8, 4, 2, 1]])
def test_a_run_fails_if_a_single_row_does_not_fit(sizes: list[int]) -> None:
    model = LimitedMemory(tiny_bert(), rows=0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    stepper = EagerStep(model, toy_encoded(8), toy_recipe())
    with pytest.raises(torch.OutOfMemoryError):
        stepper.run([np.arange(sizes[0])], 0, nothing)
    assert model.sizes() == sizes
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("backward", [False, True], ids=["in a forward pass", "in the middle of a backward pass"])
@pytest.mark.parametrize(
    ("without", "sizes"),
    [
        ((0,), [8, 4, 4]),
        ((0, 2), [8, 4, 4, 2, 2, 2, 2]),
        ((0, 1, 4), [8, 4, 2, 2, 2, *[1] * 8]),
        ((1,), [8, 8, 4, 4]),
        ((1, 3), [8, 8, 4, 4, 2, 2, 2, 2]),
    ],
    ids=["first call", "second micro-batch", "twice", "second step", "second micro-batch of second step"],
)
def test_a_step_that_runs_out_of_memory_halfway_leaves_no_gradient(
    without: tuple[int, ...], sizes: list[int], backward: bool
) -> None:
    data, batches = toy_encoded(24), batches_of(24, 8, 2)
    plain, model = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, toy_recipe(**MODERATE))
    limited = LimitedMemory(model, without=without, backward=backward)
    found, _ = train(limited, data, batches, toy_recipe(**MODERATE))
    assert limited.sizes()[: len(sizes)] == sizes
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert torch.equal(found.correct, expected.correct)
    assert_same_weights(model, plain, 1e-6)


def test_other_errors_end_the_run() -> None:
    model = tiny_bert()
    stepper = EagerStep(model, toy_encoded(8), toy_recipe())
    model.classifier.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    with pytest.raises(RuntimeError, match="no kernel image"):
        stepper.run([np.arange(8)], 0, nothing)
    assert stepper.micro_batches == 1


def test_r_drop_without_dropout_is_the_plain_run() -> None:
    """Both passes are equal then: their divergence is 0, and the mean of their losses is the loss."""
    data, batches = toy_encoded(24), batches_of(24, 8, 4)
    plain, doubled = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, toy_recipe(**MODERATE))
    found, _ = train(doubled, data, batches, toy_recipe(r_drop=3.0, **MODERATE))
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert torch.equal(found.correct, expected.correct)
    assert_same_weights(doubled, plain, 1e-6)


@pytest.mark.parametrize("rows", [1_000, 8], ids=["whole", "micro-batches"])
def test_r_drop_passes_each_sentence_twice(rows: int) -> None:
    data = toy_encoded(8)
    model = LimitedMemory(tiny_bert(dropout=0.5), rows)
    passed, _ = train(model, data, [np.arange(8)], toy_recipe(r_drop=1.0))
    seen = [ids for ids in model.given if len(ids) <= rows]
    assert sum(map(len, seen)) == 16
    for ids in seen:
        once, again = ids.chunk(2)
        assert torch.equal(once, again)
    sentences = [tuple(row[row > 0].tolist()) for ids in seen for row in ids.chunk(2)[0]]
    assert sentences == [tuple(row[row > 0].tolist()) for row in data.batch(np.arange(8))[0]["input_ids"]]
    assert 0 <= int(passed.correct[0]) <= 8


def test_r_drop_adds_the_divergence_of_two_passes_with_dropout() -> None:
    losses = []
    for r_drop in (1.0, 2.0, 4.0):
        model = tiny_bert(dropout=0.5)  # seeds torch's generator: the same activations are dropped
        losses.append(float(train(model, toy_encoded(8), [np.arange(8)], toy_recipe(r_drop=r_drop))[0].losses[0]))
    assert losses[2] - losses[1] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] - losses[0] > 1e-3


def test_with_smoothed_labels_the_loss_stays_above_their_entropy() -> None:
    """The loss cannot fall below the targets' own entropy."""
    hard, rows = toy_encoded(16), np.arange(16)
    ids = [row[row > 0].numpy() for row in hard.batch(rows)[0]["input_ids"]]
    soft = TokenDataset(ids, smooth_labels(hard.labels, 0.2), 0, "cpu")
    recipe = toy_recipe(steps=60, learning_rate=1e-2)
    losses = [train(tiny_bert(), data, [rows] * 60, recipe)[0] for data in (hard, soft)]
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert float(losses[0].losses[-1]) < 0.05
    assert entropy - 1e-6 <= float(losses[1].losses[-1]) < entropy + 0.05
    assert [int(passed.correct[-1]) for passed in losses] == [16, 16]


def test_bf16_on_a_cpu_learns_what_fp32_learns() -> None:
    def run(precision: str) -> tuple[list[float], torch.dtype]:
        recipe = toy_recipe(steps=30, learning_rate=1e-2, warmup_ratio=0.0, precision=precision)
        stepper = EagerStep(tiny_bert(), toy_encoded(16), recipe)
        return stepper.run([np.arange(16)] * 30, 0, nothing).losses.tolist(), stepper.flat.master.dtype

    (exact, _), (rounded, dtype) = run("fp32"), run("bf16")
    assert dtype == torch.float32
    assert rounded != exact
    assert rounded[:5] == pytest.approx(exact[:5], rel=0.05)
    assert rounded[-1] < rounded[0] / 2
