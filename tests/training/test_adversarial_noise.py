"""SiFT's noise: how large it may be, that it moves the answer, that it leaves model and weights as they were."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_bert, toy_encoded, toy_recipe

from tasks.training.adversarial_noise import NOISE, STEP, draw_noise, find_noise, perturbed, repeat
from tasks.training.dataset import Inputs
from tasks.training.losses import divergence
from tasks.training.train_step import EagerStep


def batch(count: int = 8) -> Inputs:
    return toy_encoded(count).batch(np.arange(count))[0]


def distances(model: Any, inputs: Inputs, noise: torch.Tensor) -> torch.Tensor:
    """Return how far noise moves the answer to each sentence, [B]."""
    with torch.no_grad(), perturbed(model, noise):
        clean, noisy = model(**repeat(inputs, 2)).logits.chunk(2)
    return divergence(clean, noisy).sum(-1)


def first_loss(model: Any, **changes: Any) -> float:
    step = EagerStep(model, toy_encoded(8), toy_recipe(**changes))
    return float(step.run([np.arange(8)], 0, lambda: None).losses[0])


def test_noise_is_bounded_and_moves_the_answer_further_than_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_bert(), batch()
    ids = inputs["input_ids"]
    drawn = draw_noise(ids, 16)
    assert drawn.shape == (*ids.shape, 16)
    assert 0.7 * NOISE < float(drawn.std()) < NOISE
    monkeypatch.setattr("tasks.training.adversarial_noise.draw_noise", lambda *_: drawn.clone())
    found = find_noise(model, inputs)
    assert not found.requires_grad
    assert float(found.abs().max()) <= 2 * NOISE + STEP + 1e-6
    assert float((found - drawn).abs().max()) == pytest.approx(STEP, rel=1e-3)
    before, after = (distances(model, inputs, noise) for noise in (drawn, found))
    assert float(after.sum()) > 1.5 * float(before.sum())


def test_noise_is_measured_in_standard_deviations_of_the_embedding_and_only_the_last_sentences_have_it() -> None:
    model, inputs = tiny_bert(), batch(4)
    words = model.get_input_embeddings()
    ids = repeat(inputs, 2)["input_ids"]
    plain = words(ids)
    with perturbed(model, torch.full((4, ids.shape[1], 16), 0.5)):
        found = words(ids)
    assert torch.equal(found[:4], plain[:4])
    torch.testing.assert_close(found[4:] - plain[4:], 0.5 * plain[4:].std(-1, keepdim=True).expand_as(plain[4:]))
    assert torch.equal(words(ids), plain)


def test_looking_for_noise_leaves_gradients_and_frozen_weights_alone() -> None:
    model = tiny_bert()
    model.bert.pooler.requires_grad_(False)
    trained = [name for name, part in model.named_parameters() if part.requires_grad]
    find_noise(model, batch())
    assert all(part.grad is None for part in model.parameters())
    assert [name for name, part in model.named_parameters() if part.requires_grad] == trained


def test_an_answer_that_no_word_can_move_costs_nothing() -> None:
    models = [tiny_bert() for _ in range(2)]
    for model in models:
        torch.nn.init.zeros_(model.classifier.weight)
    plain, noisy = (first_loss(model, sift=weight) for model, weight in zip(models, (0.0, 5.0), strict=True))
    assert noisy == pytest.approx(plain, abs=1e-6)


def test_sift_adds_its_weight_times_the_divergence() -> None:
    losses = [first_loss(tiny_bert(), sift=weight) for weight in (0.0, 100.0, 200.0)]  # seeds torch's generator
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)
    assert losses[1] - losses[0] > 1e-3


def test_with_r_drop_too_every_sentence_passes_three_times() -> None:
    model, rows = tiny_bert(dropout=0.5), list[int]()
    model.register_forward_hook(lambda _, __, kwargs, ___: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    first_loss(model, r_drop=1.0, sift=1.0)
    assert rows == [16, 24]  # to find the noise, then to train
