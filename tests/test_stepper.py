"""The training step: schedule, decay groups, clipping."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tasks.stepper import Stepper, learning_rate_factor, parameter_groups


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=16, **sizes))


def batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 1])}


def test_learning_rate_rises_to_the_peak_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, total=10, warmup=4) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0.0])


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert learning_rate_factor(0, total=10, warmup=0) == 1.0


def test_only_matrices_decay(model: nn.Module) -> None:
    decaying, resting = parameter_groups(model, weight_decay=0.01)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decaying["weight_decay"] == 0.01
    assert resting["weight_decay"] == 0.0
    rest = {names[id(parameter)] for parameter in resting["params"]}
    assert rest == {name for name in names.values() if name.endswith(".bias") or "LayerNorm" in name}


def test_every_trained_parameter_is_in_exactly_one_group(model: nn.Module) -> None:
    next(model.parameters()).requires_grad_(False)
    grouped = [id(parameter) for group in parameter_groups(model, 0.01) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_decay_shrinks_a_matrix_without_gradient_and_leaves_a_bias() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(parameter_groups(layer, weight_decay=0.5), lr=0.1, fused=True)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight * (1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias.detach(), bias)


def test_steps_lower_the_loss_of_a_repeated_batch(model: nn.Module) -> None:
    model.train()
    values = {"learning_rate": 1e-2, "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0}
    stepper = Stepper(model, steps=30, **values)
    losses = [float(stepper.step(batch())[0]) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_gradients_are_clipped(model: nn.Module) -> None:
    """With a norm of nearly zero AdamW's first step is still of the learning rate's size, its moments are not."""
    values = {"learning_rate": 1e-2, "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1e-6}
    stepper = Stepper(model, steps=1, **values)
    stepper.step(batch())
    moments = [state["exp_avg"].norm() for state in stepper._optimizer.state.values()]
    # The first moment is a tenth of the clipped gradient.
    assert float(torch.stack(moments).norm()) == pytest.approx(1e-7, rel=0.01)
