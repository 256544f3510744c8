"""Fused layers compute what a model's own layers compute, and `unfuse` leaves no trace.

Here torch's operators compute; test_triton_kernels.py does the same with kernels.
"""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from tasks.training.adversarial_noise import frozen, perturbed
from tasks.training.flat_parameters import FlatParameters
from tasks.training.fused_layers import FusedLinear, FusedProjection, fuse, unfuse
from tasks.training.fused_state import STATE, DropoutRng, state_of

SIZES = {
    "vocab_size": 30,
    "hidden_size": 64,  # a multiple of ALIGNMENT, so that biases are adjacent
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


def tiny(kind: str = "bert") -> Any:
    """Return a classifier in training mode, without dropout."""
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_config(CONFIGS[kind](), dtype=torch.float32).train()


def fused_tiny(kind: str = "bert", weight_decay: float = 0.01) -> tuple[Any, FlatParameters]:
    model = tiny(kind)
    fuse(model, DropoutRng(torch.device("cpu")), None)
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


def flat_gradients(model: Any, flat: FlatParameters, seeds: tuple[int, ...] = (0,)) -> dict[str, torch.Tensor]:
    """Return logits and flat gradients by name of a model whose parameters are flat."""
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
        if value is None:  # no gradient reaches it; in the flat tensor it is zero
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
def test_query_key_and_value_of_flat_parameters_are_one_product(kind: str) -> None:
    model, _ = fused_tiny(kind)
    assert [are_one_product(parts) for parts in projections(model)] == [True, True]


@pytest.mark.parametrize("kind", CONFIGS)
def test_fused_layers_give_the_same_logits_and_gradients(kind: str) -> None:
    expected = logits_and_gradients(tiny(kind))
    assert_alike(flat_gradients(*fused_tiny(kind)), expected)
    not_flat = tiny(kind)
    fuse(not_flat, DropoutRng(torch.device("cpu")), None)
    assert_alike(logits_and_gradients(not_flat), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_of_several_passes_in_a_step_accumulate(kind: str) -> None:
    assert_alike(flat_gradients(*fused_tiny(kind), (0, 1, 2)), logits_and_gradients(tiny(kind), (0, 1, 2)))


def test_a_pass_with_frozen_weights_leaves_no_gradient_of_them() -> None:
    model, flat = fused_tiny()
    noise = torch.zeros(3, 9, 64, requires_grad=True)
    with frozen(model), perturbed(model, noise):
        (slope,) = torch.autograd.grad(model(**sentences()).logits.sum(), noise)
    assert slope.any()
    assert_alike(flat_gradients(model, flat), logits_and_gradients(tiny()))


def test_no_gradient_is_carried_over_to_the_next_step() -> None:
    model, flat = fused_tiny()
    flat_gradients(model, flat, (0, 1))
    assert_alike(flat_gradients(model, flat, (2,)), logits_and_gradients(tiny(), (2,)))


def test_gradients_of_one_product_are_written_to_the_flat_tensor() -> None:
    model, _ = fused_tiny()
    logits_and_gradients(model)
    assert [part.weight.grad for parts in projections(model) for part in parts] == [None] * 6
    assert [part.bias.grad for parts in projections(model) for part in parts] == [None] * 6


def test_after_restore_fp32_gradients_go_to_autograd_again() -> None:
    model, flat = fused_tiny()
    flat.restore_fp32()
    assert are_one_product(projections(model)[0])
    assert_alike(logits_and_gradients(model), logits_and_gradients(tiny()))


def test_with_a_frozen_key_each_layer_computes_its_own_product() -> None:
    plain, model = tiny(), tiny()
    for each in (plain, model):
        each.bert.encoder.layer[0].attention.self.key.requires_grad_(False)
    fuse(model, DropoutRng(torch.device("cpu")), None)
    flat = FlatParameters(model, 0.01, 1.0, torch.float32)
    assert [are_one_product(parts) for parts in projections(model)] == [False, True]
    assert_alike(flat_gradients(model, flat), logits_and_gradients(plain))


def test_with_a_key_without_bias_each_layer_computes_its_own_product() -> None:
    plain, model = tiny(), tiny()
    for each in (plain, model):
        each.bert.encoder.layer[1].attention.self.key.bias = None
    fuse(model, DropoutRng(torch.device("cpu")), None)
    flat = FlatParameters(model, 0.01, 1.0, torch.float32)
    assert [are_one_product(parts) for parts in projections(model)] == [True, False]
    assert_alike(flat_gradients(model, flat), logits_and_gradients(plain))


def test_weights_that_are_not_adjacent_are_multiplied_one_by_one() -> None:
    """Without weight decay, matrices and biases are in one segment."""
    model, flat = fused_tiny(weight_decay=0.0)
    assert [are_one_product(parts) for parts in projections(model)] == [False, False]
    assert_alike(flat_gradients(model, flat), logits_and_gradients(tiny()))


def test_calls_in_another_order_or_with_another_input_compute_their_own_product() -> None:
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


def test_an_unused_key_contributes_no_gradient() -> None:
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


def test_without_gradients_outputs_are_the_same() -> None:
    model, _ = fused_tiny()
    plain = tiny()
    with torch.no_grad():
        query, *_ = projections(model)[0]
        assert query(torch.randn(2, 3, 64)).is_contiguous()  # not a share of something larger
        torch.testing.assert_close(model.eval()(**sentences()).logits, plain.eval()(**sentences()).logits, **CLOSE)


def test_no_activation_is_kept_alive_between_two_passes() -> None:
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
def test_unfuse_restores_classes_state_and_attention(kind: str) -> None:
    model = tiny(kind)
    before = [(type(module), set(vars(module))) for module in model.modules()]
    attention = model.config._attn_implementation
    fuse(model, DropoutRng(torch.device("cpu")), None)
    assert {FusedLinear, FusedProjection} <= {type(module) for module in model.modules()}
    unfuse(model)
    assert [(type(module), set(vars(module))) for module in model.modules()] == before
    assert model.config._attn_implementation == attention
    assert_alike(logits_and_gradients(model), logits_and_gradients(tiny(kind)))


def test_two_fused_models_keep_their_own_random_numbers() -> None:
    """The attention function that transformers knows is one for all models; what it needs lies in the modules."""
    rngs = [DropoutRng(torch.device("cpu")) for _ in range(2)]
    models = [tiny("bert") for _ in rngs]
    for model, rng in zip(models, rngs, strict=True):
        fuse(model, rng, None)
    attentions = [model.bert.encoder.layer[1].attention.self for model in models]
    assert [state_of(attention).rng for attention in attentions] == rngs
    unfuse(models[1])
    assert state_of(attentions[0]).rng is rngs[0]
    assert_alike(logits_and_gradients(models[0]), logits_and_gradients(tiny()))


def test_every_module_that_drops_has_its_own_stream_of_random_numbers() -> None:
    model = tiny()
    fuse(model, DropoutRng(torch.device("cpu")), None)
    streams = [state.stream for module in model.modules() if (state := vars(module).get(STATE)) and state.stream]
    assert sorted(streams) == [1, 2, 3, 4, 5, 6]  # of two layers: two ends of blocks and one attention each
