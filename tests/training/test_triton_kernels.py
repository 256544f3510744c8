"""Triton's kernels compute what torch's operators compute: values, gradients, and dropout that can be drawn again.

On a machine without a GPU they run in Triton's interpreter (TRITON_INTERPRET=1, set by conftest.py), about 20 ms a
program: shapes are as small as a law allows. With a GPU the same tests run the compiled kernels.
"""

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from tasks.training.adamw import AdamConstants, TorchAdamW, TritonAdamW
from tasks.training.adversarial_noise import find_noise
from tasks.training.flat_parameters import FlatParameters, layer_scales
from tasks.training.fused_attention import ShortAttention, attend
from tasks.training.fused_layers import DropoutAddNorm, FusedLinear, FusedResidual, column_sum, fuse
from tasks.training.fused_state import STATE, DropoutRng, FusedState

kernels = pytest.importorskip("tasks.training.triton_kernels", exc_type=ImportError)  # Triton is for Linux on x86-64

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# On a GPU products of fp32 are in TF32.
CLOSE = {"rtol": 2e-2, "atol": 2e-2} if GPU else {"rtol": 1e-5, "atol": 1e-5}
BF16_CLOSE = {"rtol": 2e-2, "atol": 2e-2}
FP32, BF16 = torch.float32, torch.bfloat16
# The interpreter multiplies matrices of bf16 as if they were integers (triton 3.7.1): attention is in fp16 there.
HALF = BF16 if GPU else torch.float16


def randn(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_()


def seed(value: int = 0) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32, device=DEVICE)


def close_for(dtype: torch.dtype) -> dict[str, float]:
    return CLOSE if dtype == FP32 else BF16_CLOSE


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (37, 5), (600, 3)], ids=str)  # 600: more than one block of rows
@pytest.mark.parametrize(("dtype", "out"), [(FP32, FP32), (BF16, BF16), (FP32, BF16)])
def test_column_sum(shape: tuple[int, int], dtype: torch.dtype, out: torch.dtype) -> None:
    values = randn(*shape, dtype=dtype).detach()
    expected = values.float().sum(0).to(out)
    torch.testing.assert_close(column_sum(values, out, kernels), expected, **close_for(out))
    buffer = torch.full((shape[1] + 2,), 7.0, dtype=out, device=DEVICE)
    column_sum(values, out, kernels, out=buffer[1:-1])
    torch.testing.assert_close(buffer[1:-1], expected, **close_for(out))
    assert buffer[[0, -1]].tolist() == [7.0, 7.0]  # nothing is written beside the sums


class TwoLayers(nn.Module):
    """A matrix of more than one block, a normalisation and a numbered layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(40, 30), nn.LayerNorm(30)
        self.layer = nn.ModuleList([nn.Linear(30, 3)])


def gradients(step: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return a gradient for each parameter, rounded to `dtype`; their norms differ from step to step."""
    shapes = [parameter.shape for parameter in TwoLayers().parameters()]
    scale = 10.0 ** (step % 3 - 2)
    return [(randn(*shape, seed=100 * step + i).detach() * scale).to(dtype) for i, shape in enumerate(shapes)]


def assign_gradients(model: nn.Module, found: list[torch.Tensor]) -> None:
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        parameter.grad = gradient


@pytest.mark.parametrize(
    ("max_grad_norm", "constants"),
    [(1e9, AdamConstants()), (0.05, AdamConstants()), (0.0, AdamConstants(0.8, 0.98, 1e-3)), (0.0, AdamConstants(0.0))],
    ids=["unclipped", "clipped", "no clipping, other constants", "no momentum"],
)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_adamw_is_that_of_torch_on_the_plain_model_step_by_step(
    dtype: torch.dtype, max_grad_norm: float, constants: AdamConstants
) -> None:
    plain, model = TwoLayers().to(DEVICE), TwoLayers().to(DEVICE)
    scales = layer_scales(plain, 0.7)
    groups = [{"params": [one], "weight_decay": 0.1 if one.ndim == 2 else 0.0} for one in plain.parameters()]
    reference = torch.optim.AdamW(groups, lr=0.0, betas=constants[:2], eps=constants.eps)
    flat = FlatParameters(model, 0.1, 0.7, dtype)
    optimizer = TritonAdamW(flat, max_grad_norm, kernels, constants=constants)
    for step, rate in enumerate([1e-2, 3e-3, 3e-2, 1e-2]):
        assign_gradients(plain, [gradient.float() for gradient in gradients(step, dtype)])
        assign_gradients(model, gradients(step, dtype))
        nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm or 1e9)
        for group, scale in zip(reference.param_groups, scales.values(), strict=True):
            group["lr"] = rate * scale
        reference.step()
        optimizer.step(torch.tensor(rate, device=DEVICE))
        # The interpreter rounds to bf16 towards zero, a GPU to the nearest: at most one unit in the last place.
        torch.testing.assert_close(flat.compute.float(), flat.master, rtol=0 if dtype == FP32 else 2**-7, atol=0)
        assert {parameter.grad for parameter in model.parameters()} == {None}
        for expected, found in zip(plain.parameters(), model.parameters(), strict=True):
            start = found.storage_offset()
            master = flat.master[start : start + found.numel()].view(found.shape)
            torch.testing.assert_close(master, expected.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("first", [TorchAdamW, TritonAdamW])
def test_a_run_can_be_resumed_with_the_other_adamw(first: type) -> None:
    def optimizer_of(kind: type, flat: FlatParameters) -> Any:
        return TorchAdamW(flat, 0.05) if kind is TorchAdamW else TritonAdamW(flat, 0.05, kernels)

    model = TwoLayers().to(DEVICE)
    flat = FlatParameters(model, 0.1, 1.0, FP32)
    last = TritonAdamW if first is TorchAdamW else TorchAdamW
    whole, half = optimizer_of(first, flat), None
    other_model = TwoLayers().to(DEVICE)
    other = FlatParameters(other_model, 0.1, 1.0, FP32)
    for step in range(4):
        if step == 2:
            other.master.copy_(flat.master)
            half = optimizer_of(last, other)
            half.load({name: tensor.clone() for name, tensor in whole.state().items()})
        for optimizer, each in ((whole, model), (half, other_model)):
            if optimizer:
                assign_gradients(each, gradients(step, FP32))
                rate = 1e-2
                optimizer.step(torch.tensor(rate, device=DEVICE) if isinstance(optimizer, TritonAdamW) else rate)
    torch.testing.assert_close(other.master, flat.master, rtol=0, atol=1e-6)
    for name, expected in whole.state().items():
        torch.testing.assert_close(half.state()[name].float(), expected.float(), rtol=1e-5, atol=1e-8)


def normed_by_torch(inputs: list[torch.Tensor], kept: Any, scale: float) -> torch.Tensor:
    branch, residual, offset, weight, bias = (tensor.float() for tensor in inputs)
    dropped = (branch + offset) * kept * scale
    return functional.layer_norm(dropped + residual, (branch.shape[-1],), weight, bias, 1e-5).to(inputs[0].dtype)


def norm_inputs(rows: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = ((rows, width), (rows, width), (width,), (width,), (width,))
    return [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (3, 40), (2, 64)])  # odd rows: two a program in the backward pass
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_dropout_add_norm_and_its_gradients(rows: int, width: int, dtype: torch.dtype, dropout_p: float) -> None:
    inputs = norm_inputs(rows, width, dtype)
    grad_normed = randn(rows, width, dtype=dtype, seed=9).detach()
    normed = DropoutAddNorm.apply(*inputs, seed(5), 3, dropout_p, 1e-5, kernels)
    found = torch.autograd.grad(normed, inputs, grad_normed)
    kept = (found[0] != 0) if dropout_p else 1.0  # what is dropped has no gradient
    expected = normed_by_torch(inputs, kept, 1 / (1 - dropout_p))
    torch.testing.assert_close(normed, expected, **close_for(dtype))
    tolerance = close_for(dtype) if dtype == FP32 else {"rtol": 5e-2, "atol": 5e-2}
    torch.testing.assert_close(found, torch.autograd.grad(expected, inputs, grad_normed), **tolerance)


def drawn(counter: int, stream: int, dropout_p: float = 0.5) -> torch.Tensor:
    """Return which of 2 x 256 elements are kept."""
    inputs = [torch.ones(2, 256, device=DEVICE, requires_grad=True), torch.zeros(2, 256, device=DEVICE)]
    inputs += [
        torch.zeros(256, device=DEVICE),
        torch.linspace(1, 2, 256, device=DEVICE),
        torch.zeros(256, device=DEVICE),
    ]
    normed = DropoutAddNorm.apply(*inputs, seed(counter), stream, dropout_p, 1e-5, kernels)
    return normed > 0  # of ones and zeros, the ones are above the mean


def test_dropout_is_drawn_from_counter_and_stream() -> None:
    mask = drawn(7, 2)
    assert torch.equal(drawn(7, 2), mask)
    assert torch.equal(drawn(2, 7), mask)  # the seed is their sum, and DropoutRng keeps sums apart
    assert 0.4 < mask.float().mean() < 0.6
    assert 0.4 < (drawn(7, 3) == mask).float().mean() < 0.6
    assert not torch.equal(mask[0], mask[1])
    assert 0.8 < drawn(7, 2, dropout_p=0.1).float().mean() < 0.97


def test_seeds_of_all_streams_and_steps_differ() -> None:
    rng = DropoutRng(torch.device(DEVICE))
    streams = [rng.new_stream() for _ in range(300)]
    seeds = []
    rng.seek(0)
    for _ in range(5):
        seeds += [int(rng.seed) + stream for stream in streams]
        rng.advance()
    assert len(set(seeds)) == 5 * 300
    rng.seek(4)
    assert seeds[-300:] == [int(rng.seed) + stream for stream in streams]


def masked(lengths: list[int], longest: int) -> torch.Tensor:
    return (torch.arange(longest) < torch.tensor(lengths)[:, None]).long().to(DEVICE)


HEADS = 2


@pytest.mark.parametrize(("length", "width"), [(1, 32), (9, 64), (16, 32), (33, 32)])
@pytest.mark.parametrize("dtype", [FP32, HALF], ids=str)
def test_attention_reads_and_writes_chunks_of_a_matrix_and_contiguous_tensors(
    length: int, width: int, dtype: torch.dtype
) -> None:
    matrix = randn(2, length, 3, HEADS, width, dtype=dtype).detach()  # [B, S, query key value, H, W]
    mask = masked([length, max(1, length - 3)], length)
    grad_mixed = randn(2, length, HEADS, width, dtype=dtype, seed=1).detach()
    chunks = [part.requires_grad_() for part in matrix.clone().unbind(2)]
    contiguous = [part.clone(memory_format=torch.contiguous_format).requires_grad_() for part in matrix.unbind(2)]
    plain = [part.clone().requires_grad_() for part in matrix.unbind(2)]
    expected = functional.scaled_dot_product_attention(
        *(part.transpose(1, 2).float() for part in plain), mask[:, None, None, :].bool()
    ).transpose(1, 2)
    expected_grads = torch.autograd.grad(expected, plain, grad_mixed.float())
    for parts in (chunks, contiguous):
        mixed = ShortAttention.apply(*parts, mask, seed(), 1, 0.0, width**-0.5, kernels)
        found = torch.autograd.grad(mixed, parts, grad_mixed)
        torch.testing.assert_close(mixed, expected.to(dtype), **close_for(dtype))
        torch.testing.assert_close(found, expected_grads, **close_for(dtype))
        offsets = [part.storage_offset() for part in found]
        step = HEADS * width if parts is chunks else 2 * length * HEADS * width
        assert offsets == [0, step, 2 * step]  # gradients lie as what they belong to
        assert {part.untyped_storage().data_ptr() for part in found} == {found[0].untyped_storage().data_ptr()}


def test_attention_drops_the_same_weights_in_both_passes() -> None:
    """With the unit matrix for values, the output is the weights after dropout."""
    length, width = 9, 32
    query, key = randn(1, length, 2, width), randn(1, length, 2, width, seed=1)
    unit = torch.eye(length, width, device=DEVICE)[None, :, None, :].repeat(1, 1, 2, 1).requires_grad_()
    mask = masked([7], length)
    arguments = mask, seed(3), 2, 0.5, 0.3, kernels
    found = ShortAttention.apply(query, key, unit, *arguments)
    kept = (found != 0).transpose(1, 2)[..., :length]  # [B, H, S, S]
    assert not kept[..., 7:].any()
    assert 0.3 < kept[..., :7].float().mean() < 0.7
    assert torch.equal(found, ShortAttention.apply(query, key, unit, *arguments))
    assert not torch.equal(found, ShortAttention.apply(query, key, unit, mask, seed(4), 2, 0.5, 0.3, kernels))

    scores = torch.einsum("bshw,bthw->bhst", query, key) * 0.3
    weights = scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf).softmax(-1) * kept * 2
    expected = torch.einsum("bhst,bthw->bshw", weights, unit)
    torch.testing.assert_close(found, expected, **CLOSE)
    gradient = randn(1, length, 2, width, seed=2).detach()
    inputs = [query, key, unit]
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), **CLOSE
    )


def attention_module(state: FusedState | None) -> nn.Module:
    module = nn.Module()
    if state:
        vars(module)[STATE] = state
    return module


@pytest.mark.parametrize(
    ("length", "mask", "fused", "by_kernel"),
    [(5, True, True, True), (65, True, True, False), (5, False, True, False), (5, True, False, False)],
    ids=["short", "too long", "no mask", "module is not fused"],
)
def test_attention_is_the_kernel_where_it_fits_and_torch_elsewhere(
    length: int, mask: bool, fused: bool, by_kernel: bool
) -> None:
    query, key, value = (randn(1, 2, length, 32, seed=i) for i in range(3))
    visible = masked([length - 1], length) if mask else None
    module = attention_module(FusedState(nn.Module, kernels, DropoutRng(torch.device(DEVICE)), 1) if fused else None)
    mixed, _ = attend(module, query, key, value, visible)
    assert ("ShortAttention" in type(mixed.grad_fn).__name__) == by_kernel
    expected = functional.scaled_dot_product_attention(
        query, key, value, None if visible is None else visible[:, None, None, :].bool()
    )
    torch.testing.assert_close(mixed, expected.transpose(1, 2), **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(attend(module, query, key, value, visible)[0], mixed, **CLOSE)


SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CONFIGS = {
    "bert": transformers.BertConfig(**SIZES),
    "electra": transformers.ElectraConfig(**SIZES, embedding_size=64),
    "roberta": transformers.RobertaConfig(**SIZES, pad_token_id=0),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=30, dim=64, n_layers=1, n_heads=2, hidden_dim=64, initializer_range=0.2,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
    ),
    "mpnet": transformers.MPNetConfig(**SIZES, pad_token_id=0),
}  # fmt: skip


def classifier(kind: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(CONFIGS[kind], dtype=FP32)
    return model.train().to(DEVICE)


def outputs_of(model: Any) -> Any:
    """Return the outputs for two sentences of three and two tokens, after a backward pass."""
    ids, mask = torch.tensor([[5, 9, 7], [8, 4, 0]], device=DEVICE), masked([3, 2], 3)
    outputs = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1], device=DEVICE))
    outputs.loss.backward()
    return outputs


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_fused_model_gives_the_same_logits_and_gradients(kind: str) -> None:
    plain, model = classifier(kind), classifier(kind)
    fuse(model, DropoutRng(torch.device(DEVICE)), kernels)
    flat = FlatParameters(model, 0.01, 1.0, FP32)
    ids, mask = torch.tensor([[5, 9, 7]], device=DEVICE), masked([3], 3)
    find_noise(model, {"input_ids": ids, "attention_mask": mask})  # a pass with frozen weights leaves nothing behind
    found, expected = outputs_of(model), outputs_of(plain)
    torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
    ends = [module for module in model.modules() if isinstance(module, FusedResidual)]
    assert len(ends) == {"bert": 2, "electra": 2, "roberta": 2, "distilbert": 0, "mpnet": 1}[kind]
    # Gradients of fused layers are written to the flat tensor; autograd keeps none.
    layers = [module for module in model.modules() if type(module) is FusedLinear] + ends
    assert {parameter.grad for layer in layers for parameter in layer.parameters()} == {None}
    flat.collect_gradients()
    for (name, reference), parameter in zip(plain.named_parameters(), model.parameters(), strict=True):
        start = parameter.storage_offset()
        gradient = flat.grads[start : start + parameter.numel()].view(parameter.shape)
        if reference.grad is None:
            assert not gradient.any(), name
        else:
            torch.testing.assert_close(gradient, reference.grad, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
