"""Parameters in one piece of memory: nothing is lost, doubled or changed by laying them out."""

import pytest
import torch
from tiny import tiny_bert
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from tasks.training.flat_parameters import (
    ALIGNMENT,
    FlatParameters,
    Segment,
    as_interleaved,
    as_stacked,
    claim_grad_views,
    layer_scales,
)

DTYPES = [torch.float32, torch.bfloat16]
SIZES = {"vocab_size": 20, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


class Tied(nn.Module):
    """Two layers with one weight, as encoders tie their output to their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def lay_out(model: nn.Module, layer_decay: float = 1.0, dtype: torch.dtype = torch.float32) -> FlatParameters:
    return FlatParameters(model, 0.01, layer_decay, dtype)


def segment_of(flat: FlatParameters, parameter: nn.Parameter) -> Segment:
    """Return the one segment that a parameter lies in, whole."""
    assert parameter.data.untyped_storage().data_ptr() == flat.compute.untyped_storage().data_ptr()
    start = parameter.storage_offset()
    (segment,) = (part for part in flat.segments if part.start <= start < part.end)
    assert start + parameter.numel() <= segment.end
    return segment


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_trained_parameter_is_in_exactly_one_segment_and_a_view_of_the_compute_weights(
    dtype: torch.dtype,
) -> None:
    model = tiny_bert()
    flat = lay_out(model, 0.5, dtype)
    assert {id(parameter) for parameter in flat.parameters} == {id(parameter) for parameter in model.parameters()}
    assert len(flat.parameters) == len(list(model.parameters()))
    taken = torch.zeros(len(flat.compute), dtype=torch.int64)
    for parameter in model.parameters():
        segment_of(flat, parameter)
        taken[parameter.storage_offset() : parameter.storage_offset() + parameter.numel()] += 1
    assert taken.max() == 1
    # A write to the compute weights is a write to the model.
    flat.compute.fill_(7)
    assert all((parameter == 7).all() for parameter in model.parameters())


def test_segments_lie_side_by_side_and_cover_everything() -> None:
    flat = lay_out(tiny_bert(), layer_decay=0.5)
    assert [part.start for part in flat.segments] == [0, *(part.end for part in flat.segments[:-1])]
    assert flat.segments[-1].end == len(flat.master) == len(flat.compute) == len(flat.grads)
    assert len({part[2:] for part in flat.segments}) == len(flat.segments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_laying_out_changes_no_value(dtype: torch.dtype) -> None:
    model = tiny_bert()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    lay_out(model, dtype=dtype)
    for name, parameter in model.named_parameters():
        assert parameter.shape == before[name].shape
        assert torch.equal(parameter, before[name].to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_parameter_starts_at_an_aligned_place(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1), nn.Linear(64, 1))
    flat = lay_out(model, dtype=dtype)
    assert {parameter.storage_offset() % ALIGNMENT for parameter in model.parameters()} == {0}
    # 15, 5 and 64 weights take one stretch each; so do 5, 1 and 1 biases.
    assert [(part.start, part.end, part.weight_decay) for part in flat.segments] == [(0, 192, 0.01), (192, 384, 0.0)]


def test_matrices_decay_and_biases_and_normalisation_do_not() -> None:
    model = tiny_bert()
    flat = lay_out(model)
    resting = {name for name, parameter in model.named_parameters() if segment_of(flat, parameter).weight_decay == 0.0}
    names = {name for name, _ in model.named_parameters()}
    assert resting == {name for name in names if name.endswith(".bias") or "LayerNorm" in name}
    assert {part.weight_decay for part in flat.segments} == {0.0, 0.01}


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_parameters_are_left_out_and_keep_every_bit(dtype: torch.dtype) -> None:
    model = tiny_bert()
    frozen = list(model.bert.embeddings.parameters())
    before = [parameter.detach().clone() for parameter in frozen]
    for parameter in frozen:
        parameter.requires_grad_(False)
    flat = lay_out(model, dtype=dtype)
    assert not {id(parameter) for parameter in flat.parameters} & {id(parameter) for parameter in frozen}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    flat.restore_fp32()
    assert all(torch.equal(parameter, old) for parameter, old in zip(frozen, before, strict=True))


def test_gradients_move_and_none_is_left() -> None:
    model = nn.Linear(3, 2)
    flat = lay_out(model)
    weight, bias = torch.arange(6.0).view(2, 3), torch.tensor([8.0, 9.0])
    model.weight.grad, model.bias.grad = weight, bias
    flat.collect_gradients()
    assert flat.grads[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert flat.grads[ALIGNMENT : ALIGNMENT + 2].tolist() == [8, 9]
    assert float(flat.grads.sum()) == 15 + 17  # the gaps stay zero
    assert model.weight.grad is None
    assert model.bias.grad is None


def test_a_parameter_without_gradient_counts_as_zero() -> None:
    model = nn.Linear(3, 2)
    flat = lay_out(model)
    model.weight.grad, model.bias.grad = torch.ones(2, 3), torch.ones(2)
    flat.collect_gradients()
    model.bias.grad = torch.full((2,), 5.0)
    flat.collect_gradients()
    assert flat.grads[:6].tolist() == [0] * 6
    assert flat.grads[ALIGNMENT : ALIGNMENT + 2].tolist() == [5, 5]
    flat.collect_gradients()
    assert not flat.grads.any()


def test_gradients_are_collected_in_the_type_that_the_model_computes_in() -> None:
    model = tiny_bert()
    flat = lay_out(model, dtype=torch.bfloat16)
    ids = torch.tensor([[2, 5, 6, 3]])
    model(input_ids=ids, labels=torch.tensor([1])).loss.backward()
    gradient = model.classifier.weight.grad.clone()
    flat.collect_gradients()
    start = model.classifier.weight.storage_offset()
    assert flat.grads.dtype == torch.bfloat16
    assert torch.equal(flat.grads[start : start + gradient.numel()].view_as(gradient), gradient)


@pytest.mark.parametrize("dtype", DTYPES)
def test_release_gives_fp32_views_of_the_master_weights(dtype: torch.dtype) -> None:
    model = tiny_bert()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    flat = lay_out(model, dtype=dtype)
    model.classifier.bias.grad = torch.zeros_like(model.classifier.bias)
    flat.restore_fp32()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
        assert parameter.untyped_storage().data_ptr() == flat.master.untyped_storage().data_ptr()
    flat.master.fill_(3)
    assert all((parameter == 3).all() for parameter in model.parameters())


def test_small_updates_are_not_lost_in_bf16() -> None:
    """From 1.0 the next number of bf16 is 1.0078125: a hundred steps of 1e-4 would not leave the spot."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    flat = lay_out(model, dtype=torch.bfloat16)
    for _ in range(100):
        flat.master[0] += 1e-4
        flat.sync_compute()
        assert torch.equal(flat.compute, flat.master.bfloat16())
    assert float(flat.master[0]) == pytest.approx(1.01, abs=1e-5)
    assert model.weight.item() == 1.0078125
    flat.restore_fp32()
    assert model.weight.item() == pytest.approx(1.01, abs=1e-5)


def test_in_fp32_master_and_compute_weights_are_one() -> None:
    flat = lay_out(nn.Linear(1, 1))
    assert flat.compute is flat.master
    flat.sync_compute()
    assert flat.compute is flat.master


@pytest.mark.parametrize("dtype", DTYPES)
def test_tied_parameters_appear_once_and_stay_tied(dtype: torch.dtype) -> None:
    model = Tied()
    flat = lay_out(model, dtype=dtype)
    assert len(flat.parameters) == 3  # a weight, two biases
    assert len(flat.master) == 3 * ALIGNMENT
    for _ in range(2):
        assert model.first.weight is model.second.weight
        flat.restore_fp32()


def test_another_model_of_the_same_kind_is_laid_out_alike() -> None:
    first, second = lay_out(tiny_bert(1), 0.9), lay_out(tiny_bert(2), 0.9, torch.bfloat16)
    assert first.segments == second.segments
    assert [one.shape for one in first.parameters] == [other.shape for other in second.parameters]


BERT = BertForSequenceClassification(BertConfig(**SIZES, num_hidden_layers=3))
DISTILBERT = DistilBertForSequenceClassification(
    DistilBertConfig(vocab_size=20, dim=16, n_layers=3, n_heads=2, hidden_dim=16)
)
ELECTRA = ElectraForSequenceClassification(ElectraConfig(**SIZES, num_hidden_layers=3, embedding_size=8))
PREFIXES = {
    "bert": (BERT, "bert.embeddings.", "bert.encoder.layer.", ("bert.pooler.", "classifier.")),
    "distilbert": (
        DISTILBERT,
        "distilbert.embeddings.",
        "distilbert.transformer.layer.",
        ("pre_classifier.", "classifier."),
    ),
    "electra": (ELECTRA, "electra.embeddings", "electra.encoder.layer.", ("classifier.",)),
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_each_layer_learns_at_a_share_of_the_one_above_it(kind: str) -> None:
    model, embeddings, layer, head = PREFIXES[kind]
    expected = {embeddings: 0.5**4, f"{layer}0.": 0.5**3, f"{layer}1.": 0.5**2, f"{layer}2.": 0.5}
    expected |= dict.fromkeys(head, 1.0)
    scales = layer_scales(model, 0.5)
    assert scales.keys() == {name for name, _ in model.named_parameters()}
    met = set()
    for name, scale in scales.items():
        (prefix,) = (prefix for prefix in expected if name.startswith(prefix))
        assert scale == expected[prefix], name
        met.add(prefix)
    assert met == expected.keys()


DECODER = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("config", "layer", "embeddings", "others"),
    [
        (
            GPT2Config(n_embd=16, n_layer=3, n_head=2, **DECODER),
            "transformer.h.",
            ("transformer.w",),
            "transformer.ln_f.",
        ),
        (
            LlamaConfig(**SIZES | DECODER, num_hidden_layers=3),
            "model.layers.",
            ("model.embed_tokens.",),
            "model.norm.",
        ),
    ],
    ids=["gpt2", "llama"],
)
def test_decoders_have_layers_and_embeddings_too(
    config: PreTrainedConfig, layer: str, embeddings: tuple[str, ...], others: str
) -> None:
    for name, scale in layer_scales(AutoModelForSequenceClassification.from_config(config), 0.5).items():
        if name.startswith(embeddings):
            assert scale == 0.5**4, name
        elif name.startswith(layer):
            assert scale == 0.5 ** (3 - int(name.removeprefix(layer)[0])), name
        else:
            assert name.startswith((others, "score.")), name
            assert scale == 1, name


def test_a_model_without_numbered_layers_is_named(caplog: pytest.LogCaptureFixture) -> None:
    layer_scales(nn.Linear(1, 1), 1.0)
    assert not caplog.records
    layer_scales(nn.Linear(1, 1), 0.9)
    assert "finetune.layer_decay lowers the learning rate of the embeddings alone: Linear has no layers" in caplog.text


@pytest.mark.parametrize("model", [BERT, DISTILBERT, ELECTRA], ids=lambda model: model.config.model_type)
def test_without_layer_decay_all_learn_alike(model: PreTrainedModel) -> None:
    assert set(layer_scales(model, 1.0).values()) == {1.0}


def test_twelve_layers_are_distinguished_from_two() -> None:
    """Layer 10 is not layer 1."""
    model = nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(1, 1) for _ in range(12)])})
    scales = layer_scales(model, 0.9)
    assert [scales[f"layer.{number}.weight"] for number in range(12)] == [0.9 ** (12 - number) for number in range(12)]


def test_segments_carry_their_share_of_the_learning_rate() -> None:
    model = tiny_bert()
    flat = lay_out(model, layer_decay=0.5)
    scales = layer_scales(model, 0.5)
    assert all(segment_of(flat, parameter).scale == scales[name] for name, parameter in model.named_parameters())
    assert len(flat.segments) == 2 * 4  # decaying and resting parts of embeddings, two layers and head


def test_gradients_that_were_written_in_place_stay_and_are_written_once_a_step() -> None:
    layer = nn.Linear(3, 2)
    flat = FlatParameters(layer, 0.0, 1.0, torch.float32)
    places = claim_grad_views(layer.weight, layer.bias)
    assert places is not None
    places[0].fill_(2.0)
    places[1].fill_(3.0)
    assert claim_grad_views(layer.weight, layer.bias) is None  # a second use in one step is added up by autograd
    layer.weight.grad = torch.ones(2, 3)
    flat.collect_gradients()
    assert flat.grads[:6].tolist() == [3.0] * 6
    assert flat.grads[ALIGNMENT : ALIGNMENT + 2].tolist() == [3.0] * 2
    flat.collect_gradients()  # a step without gradients
    assert flat.grads.count_nonzero() == 0


def test_only_laid_out_parameters_have_a_place_and_release_takes_it_away() -> None:
    layer = nn.Linear(3, 2)
    assert claim_grad_views(layer.weight, layer.bias) is None
    flat = FlatParameters(layer, 0.0, 1.0, torch.float32)
    assert claim_grad_views(layer.weight) is not None
    flat.restore_fp32()
    flat.collect_gradients()
    assert claim_grad_views(layer.weight) is None


def test_tensors_of_other_storages_or_in_another_order_are_not_stacked() -> None:
    first, second = torch.zeros(8).view(2, 4).unbind()
    other = torch.zeros(8)[4:]
    assert other.storage_offset() == second.storage_offset()
    assert as_stacked([first, second]).shape == (8,)
    assert as_stacked([first, other]) is None
    assert as_stacked([second, first]) is None


def test_chunks_of_a_matrix_are_interleaved_and_others_are_not() -> None:
    matrix = torch.arange(12.0).view(2, 6)
    chunks = matrix.chunk(3, 1)
    assert as_interleaved(chunks).tolist() == matrix.tolist()
    assert as_interleaved(chunks).data_ptr() == matrix.data_ptr()
    assert as_interleaved(chunks[:2]) is None  # a row holds three
    assert as_interleaved([chunks[1], chunks[0], chunks[2]]) is None
    assert as_interleaved([chunk.clone() for chunk in chunks]) is None
