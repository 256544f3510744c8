"""Fused pieces compute what a model's own compute, and leave it as it was.

The Triton kernels themselves run on a CPU where Triton is installed:

    TRITON_INTERPRET=1 pytest tests/test_fused.py
"""

import os
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from tasks.training import fused_layers as fused
from tasks.training.flat_parameters import FlatParameters
from tasks.training.fused_layers import DropoutRng, FusedLinear, FusedProjection, FusedResidual, fuse, unfuse

SIZES = {
    "vocab_size": 30,
    "hidden_size": 64,  # so that biases fill whole stretches of the flat parameters
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DISTILBERT = {"vocab_size": 30, "dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "initializer_range": 0.2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "electra": lambda: transformers.ElectraConfig(**SIZES, embedding_size=64),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, pad_token_id=0),
    "distilbert": lambda: transformers.DistilBertConfig(
        **DISTILBERT, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0
    ),
    "mpnet": lambda: transformers.MPNetConfig(**SIZES, pad_token_id=0),
}
# The gradient of a key's bias is zero in exact numbers, softmax being blind to it: hence absolute tolerances.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
KERNELS_CLOSE = {"rtol": 1e-5, "atol": 1e-5}
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs with Triton installed and TRITON_INTERPRET=1"
)


def tiny(kind: str = "bert") -> Any:
    """Return a classifier in training mode, without dropout."""
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(CONFIGS[kind](), dtype=torch.float32).train()


def fused_tiny(kind: str = "bert", weight_decay: float = 0.01) -> tuple[Any, FlatParameters]:
    model = tiny(kind)
    fuse(model, DropoutRng(torch.device("cpu")))
    return model, FlatParameters(model, weight_decay, 1.0, torch.float32)


def sentences(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return sentences of up to 9 tokens, and padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(9) < torch.tensor([9, 4, 7])[:, None]).long()
    ids = torch.randint(2, 30, (3, 9), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}


def logits_and_gradients(model: Any, seeds: tuple[int, ...] = (0,)) -> dict[str, torch.Tensor]:
    """Return logits and gradients by name, of passes that belong to one step."""
    logits = []
    for seed in seeds:
        answer = model(**sentences(seed))
        answer.loss.backward()
        logits.append(answer.logits.detach())
    return {"logits": torch.cat(logits)} | {name: part.grad for name, part in model.named_parameters()}


def collected(model: Any, flat: FlatParameters, seeds: tuple[int, ...] = (0,)) -> dict[str, torch.Tensor]:
    """Return the same of a model that is laid out."""
    found = logits_and_gradients(model, seeds)
    flat.collect_gradients()
    starts = {name: part.storage_offset() for name, part in model.named_parameters()}
    return found | {
        name: flat.grads[starts[name] : starts[name] + part.numel()].view(part.shape)
        for name, part in model.named_parameters()
        if part.requires_grad
    }


def assert_alike(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], close: dict[str, float] = CLOSE
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:  # no gradient reaches it; laid out, it is zero
            assert found[name] is None or not found[name].any(), name
        else:
            torch.testing.assert_close(found[name], value, **close, msg=lambda text, name=name: f"{name}: {text}")


def projections(model: nn.Module) -> list[tuple[nn.Linear, nn.Linear, nn.Linear]]:
    """Return query, key and value of every layer."""
    found: list[Any] = [module for module in model.modules() if isinstance(module, FusedProjection)]
    return [(found[at], found[at + 1], found[at + 2]) for at in range(0, len(found), 3)]


def are_one_product(parts: tuple[nn.Linear, ...]) -> bool:
    x = torch.randn(3, 9, 64)
    made = {output.grad_fn for output in [part(x) for part in parts]}
    return len(made) == 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_laid_out_query_key_and_value_are_one_product(kind: str) -> None:
    model, _ = fused_tiny(kind)
    assert [are_one_product(parts) for parts in projections(model)] == [True, True]


@pytest.mark.parametrize("kind", CONFIGS)
def test_fused_pieces_give_the_same_logits_and_gradients(kind: str) -> None:
    expected = logits_and_gradients(tiny(kind))
    assert_alike(collected(*fused_tiny(kind)), expected)
    not_laid_out = tiny(kind)
    fuse(not_laid_out, DropoutRng(torch.device("cpu")))
    assert_alike(logits_and_gradients(not_laid_out), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_of_several_passes_in_a_step_add_up(kind: str) -> None:
    assert_alike(collected(*fused_tiny(kind), (0, 1, 2)), logits_and_gradients(tiny(kind), (0, 1, 2)))


def test_each_step_starts_anew() -> None:
    model, flat = fused_tiny()
    collected(model, flat, (0, 1))
    assert_alike(collected(model, flat, (2,)), logits_and_gradients(tiny(), (2,)))


def test_gradients_of_one_product_are_written_where_the_optimiser_reads_them() -> None:
    model, _ = fused_tiny()
    logits_and_gradients(model)
    assert [part.weight.grad for parts in projections(model) for part in parts] == [None] * 6
    assert [part.bias.grad for parts in projections(model) for part in parts] == [None] * 6


def test_released_parameters_stay_one_product_whose_gradients_autograd_gets() -> None:
    model, flat = fused_tiny()
    flat.restore_fp32()
    assert are_one_product(projections(model)[0])
    assert_alike(logits_and_gradients(model), logits_and_gradients(tiny()))


def test_a_frozen_key_is_left_alone() -> None:
    plain, model = tiny(), tiny()
    for each in (plain, model):
        each.bert.encoder.layer[0].attention.self.key.requires_grad_(False)
    fuse(model, DropoutRng(torch.device("cpu")))
    flat = FlatParameters(model, 0.01, 1.0, torch.float32)
    assert [are_one_product(parts) for parts in projections(model)] == [False, True]
    assert_alike(collected(model, flat), logits_and_gradients(plain))


def test_a_key_without_bias_is_left_alone() -> None:
    plain, model = tiny(), tiny()
    for each in (plain, model):
        each.bert.encoder.layer[1].attention.self.key.bias = None
    fuse(model, DropoutRng(torch.device("cpu")))
    flat = FlatParameters(model, 0.01, 1.0, torch.float32)
    assert [are_one_product(parts) for parts in projections(model)] == [True, False]
    assert_alike(collected(model, flat), logits_and_gradients(plain))


def test_weights_between_which_biases_lie_are_left_alone() -> None:
    """Without weight decay, matrices and biases share a stretch."""
    model, flat = fused_tiny(weight_decay=0.0)
    assert [are_one_product(parts) for parts in projections(model)] == [False, False]
    assert_alike(collected(model, flat), logits_and_gradients(tiny()))


def test_neighbours_of_other_memory_are_no_neighbours() -> None:
    first, second = torch.zeros(8).view(2, 4).unbind()
    other = torch.zeros(8)[4:]
    assert other.storage_offset() == second.storage_offset()
    assert fused._as_stacked([first, second]).shape == (8,)
    assert fused._as_stacked([first, other]) is None
    assert fused._as_stacked([second, first]) is None


def test_other_orders_and_inputs_get_their_own_products() -> None:
    model, _ = fused_tiny()
    query, key, value = projections(model)[0]
    x, other = torch.randn(2, 3, 9, 64)

    def right(part: nn.Linear, inputs: torch.Tensor) -> bool:
        return torch.allclose(part(inputs), functional.linear(inputs, part.weight, part.bias), **CLOSE)

    assert right(key, x)  # before the query
    assert right(query, x)
    assert right(value, x)
    assert right(key, x)
    assert right(query, x)
    assert right(key, other)  # as in cross-attention
    assert right(value, other)
    assert right(query, other)
    assert right(query, x)
    assert right(query, x[0])  # no batch
    assert right(value, x[0])


def test_parts_that_are_not_used_have_no_say_in_gradients() -> None:
    model, flat = fused_tiny()
    plain = tiny().bert.encoder.layer[0].attention.self.value
    query, _, value = projections(model)[0]
    x, same = (torch.linspace(-1, 1, 3 * 9 * 64).view(3, 9, 64).requires_grad_() for _ in range(2))
    query(x)
    value(x).square().sum().backward()
    plain(same).square().sum().backward()
    flat.collect_gradients()
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-5, atol=1e-4)
    at = value.weight.storage_offset()
    torch.testing.assert_close(flat.grads[at : at + 64 * 64].view(64, 64), plain.weight.grad, rtol=1e-5, atol=1e-4)
    assert not flat.grads[query.weight.storage_offset() :][: 64 * 64].any()


def test_without_gradients_answers_are_the_same() -> None:
    model, _ = fused_tiny()
    plain = tiny()
    with torch.no_grad():
        query, *_ = projections(model)[0]
        assert query(torch.randn(2, 3, 64)).is_contiguous()  # not a share of something larger
        torch.testing.assert_close(model.eval()(**sentences()).logits, plain.eval()(**sentences()).logits, **CLOSE)


def test_nothing_is_kept_alive_between_two_passes() -> None:
    model, _ = fused_tiny()
    seen: list[weakref.ref[torch.Tensor]] = []

    def note(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.extend([weakref.ref(inputs[0]), weakref.ref(output)])

    for parts in projections(model):
        for part in parts:
            part.register_forward_hook(note)
    logits_and_gradients(model)
    assert len(seen) == 12
    assert [reference() for reference in seen] == [None] * 12


@pytest.mark.parametrize("kind", CONFIGS)
def test_unfusing_gives_a_model_its_own_pieces_back(kind: str) -> None:
    model = tiny(kind)
    before = [(type(module), set(vars(module))) for module in model.modules()]
    attention = model.config._attn_implementation
    fuse(model, DropoutRng(torch.device("cpu")))
    assert {FusedLinear, FusedProjection} <= {type(module) for module in model.modules()}
    unfuse(model)
    assert [(type(module), set(vars(module))) for module in model.modules()] == before
    assert model.config._attn_implementation == attention
    assert_alike(logits_and_gradients(model), logits_and_gradients(tiny(kind)))


@interpreted
@pytest.mark.parametrize("kind", CONFIGS)
def test_kernels_give_the_same_logits_and_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_has_kernels", lambda _: True)
    model, flat = fused_tiny(kind)
    found = collected(model, flat, (0, 1))
    assert_alike(found, logits_and_gradients(tiny(kind), (0, 1)), KERNELS_CLOSE)


@interpreted
def test_gradients_of_normalisations_are_written_where_the_optimiser_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused, "_has_kernels", lambda _: True)
    model, _ = fused_tiny()
    logits_and_gradients(model)
    ends = [module for module in model.modules() if isinstance(module, FusedResidual)]
    assert len(ends) == 4
    assert {part.grad for end in ends for part in end.parameters()} == {None}


@interpreted
def test_what_is_dropped_on_the_way_there_is_dropped_on_the_way_back() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(size).requires_grad_() for size in ((7, 40), (7, 40), (40,), (40,), (40,))]
    branch, residual, offset, weight, bias = inputs
    normed = fused._DropoutAddNorm.apply(*inputs, torch.zeros((), dtype=torch.int32), 3, 0.5, 1e-12)
    incoming = torch.randn(7, 40)
    found = torch.autograd.grad(normed, inputs, incoming)
    kept = found[0] != 0
    assert 0.3 < kept.float().mean() < 0.7
    plain = functional.layer_norm((branch + offset) * kept * 2 + residual, (40,), weight, bias, 1e-12)
    torch.testing.assert_close(normed, plain, **KERNELS_CLOSE)
    torch.testing.assert_close(found, torch.autograd.grad(plain, inputs, incoming), **KERNELS_CLOSE)


@interpreted
@pytest.mark.parametrize(("length", "width"), [(1, 32), (9, 64), (16, 32), (33, 32)])
def test_attention_reads_and_writes_side_by_side_what_lies_so(length: int, width: int) -> None:
    torch.manual_seed(0)
    whole = torch.randn(2, length, 3, 3, width)  # [B, S, parts, heads, width]
    mask = (torch.arange(length) < torch.tensor([length, max(1, length - 3)])[:, None]).long()
    incoming = torch.randn(2, length, 3, width)
    rest = mask, torch.zeros((), dtype=torch.int32), 1, 0.0, width**-0.5
    beside = [part.requires_grad_() for part in whole.clone().unbind(2)]
    tight = [part.clone(memory_format=torch.contiguous_format).requires_grad_() for part in whole.unbind(2)]
    plain = [part.clone().requires_grad_() for part in whole.unbind(2)]
    expected = functional.scaled_dot_product_attention(
        *(part.transpose(1, 2) for part in plain), mask[:, None, None, :].bool()
    ).transpose(1, 2)
    gradients = torch.autograd.grad(expected, plain, incoming)
    for parts in (beside, tight):
        mixed = fused._Attention.apply(*parts, *rest)
        found = torch.autograd.grad(mixed, parts, incoming)
        torch.testing.assert_close(mixed, expected, **KERNELS_CLOSE)
        torch.testing.assert_close(found, gradients, **KERNELS_CLOSE)
        apart = [part.storage_offset() for part in found]
        step = 3 * width if parts is beside else 2 * length * 3 * width
        assert apart == [0, step, 2 * step]
        assert {part.untyped_storage().data_ptr() for part in found} == {found[0].untyped_storage().data_ptr()}
