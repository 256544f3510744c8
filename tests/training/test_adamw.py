"""AdamW on flat parameters is torch's AdamW on a plain model, step by step."""

import pytest
import torch
from torch import nn

from tasks.training.adamw import USUAL_CONSTANTS, AdamConstants, TorchAdamW
from tasks.training.flat_parameters import FlatParameters, layer_scales

RATES = [1e-2, 3e-3, 1e-3, 3e-2, 1e-2]
WEIGHT_DECAY = 0.1


class Toy(nn.Module):
    """An embedding, two numbered layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(5, 4)
        self.layer = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))])
        self.head = nn.Linear(4, 2)


def gradients(step: int) -> list[torch.Tensor]:
    """Return a gradient for each parameter; their norms differ from step to step."""
    generator = torch.Generator().manual_seed(step)
    return [
        torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 3 - 2) for parameter in Toy().parameters()
    ]


OTHER = AdamConstants(beta1=0.8, beta2=0.98, eps=1e-3)


def flat_optimizer(
    model: nn.Module, max_grad_norm: float, layer_decay: float = 1.0, constants: AdamConstants = USUAL_CONSTANTS
) -> TorchAdamW:
    flat = FlatParameters(model, WEIGHT_DECAY, layer_decay, torch.float32)
    return TorchAdamW(flat, max_grad_norm, constants=constants)


def step_with(optimizer: TorchAdamW, model: nn.Module, step: int) -> None:
    for parameter, gradient in zip(model.parameters(), gradients(step), strict=True):
        parameter.grad = gradient
    optimizer.step(RATES[step % len(RATES)])


@pytest.mark.parametrize("constants", [AdamConstants(), OTHER], ids=["usual", "other constants"])
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1e9, 0.05], ids=["no clipping", "unclipped", "clipped"])
def test_flat_adamw_is_adamw_on_the_plain_model_step_by_step(
    max_grad_norm: float, layer_decay: float, constants: AdamConstants
) -> None:
    plain, model = Toy(), Toy()
    scales = layer_scales(plain, layer_decay)
    groups = [
        {"params": [parameter], "weight_decay": WEIGHT_DECAY if parameter.ndim == 2 else 0.0}
        for parameter in plain.parameters()
    ]
    reference = torch.optim.AdamW(groups, lr=0.0, betas=constants[:2], eps=constants.eps)
    optimizer = flat_optimizer(model, max_grad_norm, layer_decay, constants)
    for step in range(10):
        for parameter, gradient in zip(plain.parameters(), gradients(step), strict=True):
            parameter.grad = gradient
        limit = max_grad_norm or 1e9
        norm = float(nn.utils.clip_grad_norm_(plain.parameters(), limit))
        assert (norm > limit) == (max_grad_norm == 0.05)
        for group, scale in zip(reference.param_groups, scales.values(), strict=True):
            group["lr"] = RATES[step % len(RATES)] * scale
        reference.step()
        step_with(optimizer, model, step)
        for expected, found in zip(plain.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_decay_shrinks_a_matrix_without_gradient_and_leaves_a_bias() -> None:
    model = nn.Linear(2, 2)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = TorchAdamW(FlatParameters(model, 0.5, 1.0, torch.float32), 1.0)
    optimizer.step(0.1)
    torch.testing.assert_close(model.weight.detach(), weight * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias.detach(), bias)


def test_a_step_takes_the_gradients() -> None:
    model = Toy()
    optimizer = flat_optimizer(model, 1.0)
    step_with(optimizer, model, 0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_are_clipped_to_the_norm() -> None:
    """The first moment after one step is a tenth of the clipped gradient."""
    model = Toy()
    optimizer = flat_optimizer(model, 1e-3)
    step_with(optimizer, model, 2)
    assert float(optimizer.state()["exp_avg"].norm()) == pytest.approx(1e-4, rel=1e-3)


def test_a_short_gradient_keeps_its_length() -> None:
    model = Toy()
    optimizer = flat_optimizer(model, 100.0)
    step_with(optimizer, model, 0)
    norm = float(torch.cat([gradient.flatten() for gradient in gradients(0)]).norm())
    assert norm < 1
    assert float(optimizer.state()["exp_avg"].norm()) == pytest.approx(0.1 * norm, rel=1e-5)


@pytest.mark.parametrize("before", [0, 1, 4])
def test_going_on_from_a_state_is_as_if_nothing_had_been(before: int) -> None:
    first, second = Toy(), Toy()
    whole, broken = flat_optimizer(first, 0.05, 0.7), flat_optimizer(second, 0.05, 0.7)
    for step in range(before):
        step_with(whole, first, step)
        step_with(broken, second, step)
    third = Toy()
    third.load_state_dict(second.state_dict())
    resumed = flat_optimizer(third, 0.05, 0.7)
    resumed.load(broken.state())
    assert float(resumed.state()["step"]) == before
    for step in range(before, 8):
        step_with(whole, first, step)
        step_with(resumed, third, step)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), third.parameters(), strict=True))
    assert all(torch.equal(tensor, whole.state()[name]) for name, tensor in resumed.state().items())


def test_a_state_is_not_changed_by_later_steps() -> None:
    model, other = Toy(), Toy()
    optimizer, loaded = flat_optimizer(model, 1.0), flat_optimizer(other, 1.0)
    step_with(optimizer, model, 0)
    state = optimizer.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    loaded.load(state)
    step_with(optimizer, model, 1)
    step_with(loaded, other, 1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())


def test_a_step_count_of_another_type_is_taken() -> None:
    """The kernel counts in fp64, so that a run can go on where the kernel does not work."""
    model, other = Toy(), Toy()
    optimizer, loaded = flat_optimizer(model, 1.0), flat_optimizer(other, 1.0)
    for step in range(3):
        step_with(optimizer, model, step)
    other.load_state_dict(model.state_dict())
    state = optimizer.state()
    loaded.load(state | {"step": state["step"].double()})
    step_with(optimizer, model, 3)
    step_with(loaded, other, 3)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
