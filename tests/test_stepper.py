"""The training step: schedule, loss, clipping, and that it is the plain loop that everybody knows."""

import numpy as np
import pytest
import torch
from tiny import tiny_bert, toy_encoded, toy_recipe
from torch import nn

from tasks.batching import shuffled_batches
from tasks.stepper import EagerStepper, Rows, learning_rate_factor, learning_rates, loss_of, make_stepper


def nothing() -> None:
    """Move no progress bar."""


def batches_of(count: int, batch_size: int, epochs: int) -> list[Rows]:
    rng = np.random.default_rng(0)
    lengths = toy_encoded(count).lengths
    return [rows for _ in range(epochs) for rows in shuffled_batches(lengths, batch_size, rng)]


def test_learning_rate_rises_to_the_peak_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, total=10, warmup=4) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0.0])


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert learning_rate_factor(0, total=10, warmup=0) == 1.0


def test_every_step_has_its_rate_and_a_started_warmup_step_is_a_whole_one() -> None:
    rates = learning_rates(toy_recipe(steps=10, warmup_ratio=0.31, learning_rate=2.0))
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 10 / 6, 8 / 6, 1.0, 4 / 6, 2 / 6])


def test_loss_and_correct_predictions_leave_out_ignored_rows() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 100.0], [100.0, 0.0], [3.0, 4.0]])
    loss, correct = loss_of(logits, torch.tensor([0, 1, 0, -100]))
    assert float(loss) == pytest.approx(np.log(2) / 3)
    assert int(correct) == 3


def test_loss_is_computed_in_fp32() -> None:
    """In bf16, log(2) would be 0.6914."""
    loss, _ = loss_of(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([0]))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(np.log(2), abs=1e-6)


def test_steps_lower_the_loss_of_a_repeated_batch() -> None:
    data = toy_encoded(16)
    stepper = EagerStepper(tiny_bert(), data, toy_recipe(steps=30, learning_rate=1e-2, warmup_ratio=0.0))
    passed = stepper.run([np.arange(16)] * 30, 0, nothing)
    assert passed.losses.shape == passed.correct.shape == (30,)
    assert float(passed.losses[-1]) < float(passed.losses[0]) / 2
    assert int(passed.correct[-1]) == 16
    assert not passed.losses.requires_grad


def test_gradients_are_clipped() -> None:
    """With a norm of nearly zero AdamW's first step is still of the learning rate's size, its moments are not."""
    stepper = EagerStepper(tiny_bert(), toy_encoded(16), toy_recipe(steps=1, max_grad_norm=1e-6))
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
        loss = plain(**data.batch(rows)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        expected.append(loss.item())

    model = tiny_bert()
    stepper = EagerStepper(model, data, recipe)
    passed = stepper.run(batches, 0, nothing)
    assert passed.losses.tolist() == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.05
    for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True):
        if not name.endswith("key.bias"):  # softmax cancels it: its gradient is rounding alone
            torch.testing.assert_close(other, one, rtol=0, atol=1e-5)


def test_an_epoch_in_two_parts_is_the_epoch() -> None:
    data, batches = toy_encoded(40), batches_of(40, 8, 1)

    def run(*parts: list[Rows]) -> tuple[list[float], torch.Tensor]:
        stepper = EagerStepper(tiny_bert(), data, toy_recipe(steps=5))
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
    EagerStepper(model, toy_encoded(16), recipe).run([np.arange(16)], 0, nothing)
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
    make_stepper(model, toy_encoded(16), toy_recipe()).run([np.arange(16)], 0, nothing)
    after = model.bert.embeddings.parameters()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_every_step_moves_the_bar_once() -> None:
    moves: list[int] = []
    stepper = EagerStepper(tiny_bert(), toy_encoded(20), toy_recipe())
    stepper.run(batches_of(20, 8, 2), 0, lambda: moves.append(1))
    assert len(moves) == 6


def test_dropout_is_on_while_training_even_after_a_validation() -> None:
    model = tiny_bert(dropout=0.5).eval()
    stepper = EagerStepper(model, toy_encoded(16), toy_recipe(learning_rate=0.0))
    losses = stepper.run([np.arange(16)] * 2, 0, nothing).losses
    assert float(losses[0]) != float(losses[1])


def test_on_a_cpu_the_step_runs_call_by_call() -> None:
    assert isinstance(make_stepper(tiny_bert(), toy_encoded(4), toy_recipe()), EagerStepper)
