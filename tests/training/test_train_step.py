"""The training step: schedule, clipping, memory that does not suffice, and that it is the plain loop that we know."""

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
    uses_bf16,
)

TOLD = re.compile(r"out of memory: batches of (\d+) are split into (\d+) micro-batches whose gradients are accumulated")


class Short(nn.Module):
    """A model that keeps what it is given, and has memory for so many rows only, or none in some of its calls."""

    def __init__(
        self, model: nn.Module, rows: int = 1_000, without: tuple[int, ...] = (), backward: bool = False
    ) -> None:
        """Wrap a model.

        Args:
            model: that computes.
            rows: that memory suffices for.
            without: calls, counted from 0, in which it does not, whatever they are given.
            backward: memory ends in the middle of the backward pass, not in the forward pass.
        """
        super().__init__()
        self.model, self._rows, self._without, self._backward = model, rows, without, backward
        self.given: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        short = len(input_ids) > self._rows or len(self.given) in self._without
        self.given.append(input_ids)
        if not short:
            return self.model(input_ids, attention_mask)
        if not self._backward:
            fail()
        output = self.model(input_ids, attention_mask, output_hidden_states=True)
        output.hidden_states[1].register_hook(fail)  # the head and the upper layer have their gradients by then
        return output

    def sizes(self) -> list[int]:
        """Return how many rows each call was given."""
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


def test_every_step_has_its_rate_and_a_started_warmup_step_is_a_whole_one() -> None:
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


def test_an_epoch_in_two_parts_is_the_epoch() -> None:
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


def test_layers_far_from_the_head_move_less() -> None:
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


def test_every_step_moves_the_bar_once() -> None:
    moves: list[int] = []
    stepper = EagerStep(tiny_bert(), toy_encoded(20), toy_recipe())
    stepper.run(batches_of(20, 8, 2), 0, lambda: moves.append(1))
    assert len(moves) == 6


def test_dropout_is_on_while_training_even_after_a_validation() -> None:
    model = tiny_bert(dropout=0.5).eval()
    stepper = EagerStep(model, toy_encoded(16), toy_recipe(learning_rate=0.0))
    losses = stepper.run([np.arange(16)] * 2, 0, nothing).losses
    assert float(losses[0]) != float(losses[1])


MODERATE: dict[str, Any] = {"steps": 12, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("rows", "parts", "told"),
    [(8, 1, []), (7, 2, [2]), (4, 2, [2]), (3, 4, [2, 4]), (2, 4, [2, 4]), (1, 8, [2, 4, 8])],
)
@pytest.mark.parametrize("r_drop", [0.0, 1.0])
def test_a_model_short_of_memory_trains_as_one_that_is_not(
    r_drop: float, rows: int, parts: int, told: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    data, batches = toy_encoded(24), batches_of(24, 8, 4)
    recipe = toy_recipe(r_drop=r_drop, **MODERATE)
    plain, short = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, recipe)
    limited = Short(short, 2 * rows if r_drop else rows)  # R-Drop gives each sentence twice
    found, stepper = train(limited, data, batches, recipe)
    assert [tuple(map(int, match.groups())) for line in caplog.messages if (match := TOLD.fullmatch(line))] == [
        (8, number) for number in told
    ]
    assert len(caplog.messages) == len(told)
    assert stepper.micro_batches == parts
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert torch.equal(found.correct, expected.correct)
    assert_same_weights(short, plain, 1e-6)
    assert max(limited.sizes()[len(told) :]) <= (2 * rows if r_drop else rows)


def test_the_number_of_parts_stays() -> None:
    model = Short(tiny_bert(), rows=4)
    stepper = EagerStep(model, toy_encoded(24), toy_recipe())
    stepper.run([np.arange(8), np.arange(8, 16)], 0, nothing)
    stepper.run([np.arange(16, 24)], 2, nothing)
    assert model.sizes() == [8] + [4] * 6
    assert stepper.micro_batches == 2


def test_a_short_batch_has_no_more_parts_than_rows() -> None:
    data, batches = toy_encoded(12), [np.arange(8), np.arange(8, 11), np.array([11])]
    plain, short = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, toy_recipe(**MODERATE))
    model = Short(short, rows=1)
    found, _ = train(model, data, batches, toy_recipe(**MODERATE))
    assert model.sizes() == [8, 4, 2, *[1] * 8, *[1] * 3, 1]
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert_same_weights(short, plain, 1e-6)


def test_parts_of_unlike_size_add_up_to_the_batch() -> None:
    """Seven sentences in four parts: 2, 2, 2 and 1; each counts a seventh."""
    data, batches = toy_encoded(7), [np.arange(7)] * 6
    plain, short = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, toy_recipe(**MODERATE))
    model = Short(short, rows=2)
    found, _ = train(model, data, batches, toy_recipe(**MODERATE))
    assert model.sizes() == [7, 4, *[2, 2, 2, 1] * 6]
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert torch.equal(found.correct, expected.correct)
    assert_same_weights(short, plain, 1e-6)


@pytest.mark.parametrize("sizes", [[1], [2, 1], [3, 2, 1], [6, 3, 2, 1], [8, 4, 2, 1]])
def test_where_even_one_row_is_too_much_the_run_fails(sizes: list[int]) -> None:
    model = Short(tiny_bert(), rows=0)
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
    ids=["at once", "in a second part", "twice", "in a second step", "in a second part of a second step"],
)
def test_a_step_that_fails_halfway_leaves_no_gradient(
    without: tuple[int, ...], sizes: list[int], backward: bool
) -> None:
    data, batches = toy_encoded(24), batches_of(24, 8, 2)
    plain, short = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, toy_recipe(**MODERATE))
    model = Short(short, without=without, backward=backward)
    found, _ = train(model, data, batches, toy_recipe(**MODERATE))
    assert model.sizes()[: len(sizes)] == sizes
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert torch.equal(found.correct, expected.correct)
    assert_same_weights(short, plain, 1e-6)


def test_another_error_than_memory_ends_the_run() -> None:
    model = tiny_bert()
    stepper = EagerStep(model, toy_encoded(8), toy_recipe())
    model.classifier.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel image")))
    with pytest.raises(RuntimeError, match="no kernel image"):
        stepper.run([np.arange(8)], 0, nothing)
    assert stepper.micro_batches == 1


def test_r_drop_without_dropout_is_the_plain_run() -> None:
    """Both passes are the same then: they do not differ, and the mean of their losses is the loss."""
    data, batches = toy_encoded(24), batches_of(24, 8, 4)
    plain, doubled = tiny_bert(), tiny_bert()
    expected, _ = train(plain, data, batches, toy_recipe(**MODERATE))
    found, _ = train(doubled, data, batches, toy_recipe(r_drop=3.0, **MODERATE))
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
    assert torch.equal(found.correct, expected.correct)
    assert_same_weights(doubled, plain, 1e-6)


@pytest.mark.parametrize("rows", [1_000, 8], ids=["at once", "in parts"])
def test_r_drop_shows_each_sentence_twice(rows: int) -> None:
    data = toy_encoded(8)
    model = Short(tiny_bert(dropout=0.5), rows)
    passed, _ = train(model, data, [np.arange(8)], toy_recipe(r_drop=1.0))
    seen = [ids for ids in model.given if len(ids) <= rows]
    assert sum(map(len, seen)) == 16
    for ids in seen:
        once, again = ids.chunk(2)
        assert torch.equal(once, again)
    sentences = [tuple(row[row > 0].tolist()) for ids in seen for row in ids.chunk(2)[0]]
    assert sentences == [tuple(row[row > 0].tolist()) for row in data.batch(np.arange(8))[0]["input_ids"]]
    assert 0 <= int(passed.correct[0]) <= 8


def test_r_drop_adds_how_far_two_passes_with_dropout_differ() -> None:
    losses = []
    for r_drop in (1.0, 2.0, 4.0):
        model = tiny_bert(dropout=0.5)  # seeds torch's generator: the same places are dropped
        losses.append(float(train(model, toy_encoded(8), [np.arange(8)], toy_recipe(r_drop=r_drop))[0].losses[0]))
    assert losses[2] - losses[1] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-4)
    assert losses[1] - losses[0] > 1e-3


def test_a_model_that_trains_on_smoothed_labels_stays_less_certain() -> None:
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
    assert run("auto")[0] == exact


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [("auto", "cuda", True), ("auto", "cpu", False), ("bf16", "cpu", True), ("fp32", "cuda", False)],
)
def test_precision_follows_the_device_unless_it_is_asked_for(precision: str, device: str, expected: bool) -> None:
    assert uses_bf16(precision, device) is expected
