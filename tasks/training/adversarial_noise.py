"""SiFT: small adversarial noise on the word embeddings, under which a sentence's answer shall stay the same.

Noise is drawn at random, then moved one step in the direction in which the answer changes most. It is measured in
standard deviations of each token's embedding: an encoder with larger embeddings gets larger noise. Source: He et al.
2021, https://arxiv.org/abs/2006.03654, section 4, after Jiang et al. 2020, https://arxiv.org/abs/1911.03437.

Shape letters: B sentences of a batch, S tokens of its longest sentence, E features of an embedding.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tasks.training.dataset import Inputs
from tasks.training.losses import divergence

NOISE = 1e-2  # standard deviation of the noise that is drawn, as in microsoft/DeBERTa; larger values than two are cut
STEP = 1e-2  # largest change of a token's noise by the step; microsoft/DeBERTa's 1e-4 would be rounded away in bf16
SMALLEST = 1e-12  # slope that is divided by


def repeat(inputs: Inputs, passes: int) -> Inputs:
    """Return a batch's inputs [B, ...] for several passes at once, [passes * B, ...]."""
    if passes == 1:
        return inputs
    return {name: tensor.repeat(passes, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}


def find_noise(model: Any, inputs: Inputs) -> torch.Tensor:
    """Return noise [B, S, E] for inputs [B, S] of a transformers model; no element is above 2 * NOISE + STEP."""
    noise = draw_noise(inputs["input_ids"], model.get_input_embeddings().weight.shape[1]).requires_grad_()
    with frozen(model), perturbed(model, noise):
        clean, noisy = model(**repeat(inputs, 2)).logits.float().chunk(2)
    (slope,) = torch.autograd.grad(divergence(noisy, clean.detach()).sum(), noise)
    return (noise + STEP * slope / slope.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)).detach()


def draw_noise(ids: torch.Tensor, features: int) -> torch.Tensor:
    """Return normal noise [B, S, E] for token ids [B, S]."""
    return (torch.randn(*ids.shape, features, device=ids.device) * NOISE).clamp(-2 * NOISE, 2 * NOISE)


@contextlib.contextmanager
def perturbed(model: Any, noise: torch.Tensor) -> Iterator[None]:
    """Add noise [B, S, E] to the word embeddings of a batch's last B sentences while the context lasts."""

    def add(_module: nn.Module, _inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        clean, last = embedded.split([len(embedded) - len(noise), len(noise)])
        scale = last.detach().float().std(-1, keepdim=True)
        return torch.cat([clean, last + (noise * scale).to(last.dtype)])

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Compute no gradients of the weights while the context lasts."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
