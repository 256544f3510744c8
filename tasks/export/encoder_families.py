"""Describes encoders of transformers from their configuration and weights: one short function for each family.

Each function states what the family's PyTorch module computes (transformers/models/*/modeling_*.py).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig

from tasks.export.encoder_description import (
    MASK_VALUE,
    Attention,
    Convolution,
    Disentangled,
    EncoderDescription,
    FeedForward,
    Layer,
    Linear,
    Norm,
    Rotation,
    Step,
    Table,
    Values,
)
from tasks.export.module_writer import ACTIVATIONS

WEIGHTS = "model.safetensors"


class NotDescribedError(Exception):
    """No description fits a model; the text says which value of its configuration, or which weight, has no place."""


class Weights:
    """The weights of a model by name; what was not taken in the end is an error."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors, self._taken = tensors, set[str]()

    def take(self, name: str) -> Values:
        """Return the values of a weight.

        Raises:
            NotDescribedError: if it is missing or not in fp32.
        """
        if name not in self._tensors:
            raise NotDescribedError(f"there is no weight {name}")
        self._taken.add(name)
        values = self._tensors[name]
        if values.dtype != torch.float32:
            raise NotDescribedError(f"the weight {name} is in {values.dtype}")
        return values.numpy()

    def table(self, name: str) -> Table:
        """Return an embedding."""
        return Table(f"{name}.weight", self.take(f"{name}.weight"))

    def linear(self, name: str, bias: bool = True) -> Linear:
        """Return a product."""
        return Linear(name, self.take(f"{name}.weight"), self.take(f"{name}.bias") if bias else None)

    def norm(self, name: str, epsilon: float, bias: bool = True) -> Norm:
        """Return a normalisation."""
        return Norm(name, self.take(f"{name}.weight"), self.take(f"{name}.bias") if bias else None, epsilon)

    def check_all_taken(self) -> None:
        """Raise NotDescribedError if a weight was not taken."""
        rest = sorted(self._tensors.keys() - self._taken)
        if rest:
            raise NotDescribedError(f"{len(rest)} weights have no place in the description, such as {rest[0]}")


def load_encoder(folder: str) -> EncoderDescription:
    """Describe a fine-tuned classifier.

    Args:
        folder: with config.json and model.safetensors, as transformers saves them.

    Raises:
        NotDescribedError: if no description fits.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise NotDescribedError(f"there is no {WEIGHTS}")
    return describe_encoder(
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False), load_file(path)
    )


def describe_encoder(config: PreTrainedConfig, tensors: dict[str, torch.Tensor]) -> EncoderDescription:
    """Describe a classifier; see `load_encoder`."""
    describe = FAMILIES.get(config.model_type)
    if describe is None:
        raise NotDescribedError(f"the family {config.model_type} has no description")
    weights = Weights(tensors)
    encoder = describe(config, weights)
    weights.check_all_taken()
    return encoder


def _require(config: PreTrainedConfig, **expected: Any) -> None:
    """Raise NotDescribedError for a value of the configuration that differs from the expected one; absent is equal."""
    for name, value in expected.items():
        found = getattr(config, name, value)
        if found != value:
            raise NotDescribedError(f"{name} = {found!r} has no description")


def _activation(config: PreTrainedConfig, name: str) -> str:
    """Return the activation that the configuration names."""
    found = getattr(config, name)
    if found not in ACTIVATIONS:
        raise NotDescribedError(f"{name} = {found!r} has no description")
    return found


class LayerNames(NamedTuple):
    """Names of the modules of a post-norm layer."""

    query: str
    key: str
    value: str
    output: str
    attention_norm: str
    widen: str
    narrow: str
    output_norm: str


BERT_NAMES = LayerNames(
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
DEBERTA_NAMES = BERT_NAMES._replace(
    query="attention.self.query_proj", key="attention.self.key_proj", value="attention.self.value_proj"
)
MPNET_NAMES = LayerNames(
    "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm",
    "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
DISTILBERT_NAMES = LayerNames(
    "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
    "ffn.lin1", "ffn.lin2", "output_layer_norm",
)  # fmt: skip


def _post_norm_layers(
    config: PreTrainedConfig, weights: Weights, prefix: str, names: LayerNames, epsilon: float, activation: str
) -> tuple[Layer, ...]:
    """Return the layers under `prefix`, which all families but ModernBERT share."""
    scale = (config.hidden_size // config.num_attention_heads) ** -0.5
    linear, norm = weights.linear, weights.norm
    layers = []
    for number in range(config.num_hidden_layers):
        name = LayerNames(*(f"{prefix}.{number}.{module}" for module in names))
        attention = Attention(linear(name.query), linear(name.key), linear(name.value), linear(name.output), scale)
        feed_forward = FeedForward(linear(name.widen), None, activation, linear(name.narrow))
        layers.append(
            Layer(attention, norm(name.attention_norm, epsilon), feed_forward, norm(name.output_norm, epsilon))
        )
    return tuple(layers)


def _words_and_segments(weights: Weights, prefix: str) -> tuple[Table, Table | None]:
    """Return both embeddings; the only segment of a model that has one becomes part of the words."""
    words = weights.table(f"{prefix}.word_embeddings")
    segments = weights.table(f"{prefix}.token_type_embeddings")
    if len(segments.values) > 1:
        return words, segments
    return Table(words.name, words.values + segments.values), None


def _distances(positions: int) -> NDArray[np.int64]:
    """Return the distances from a token to another, [2P]; the order that `Attention.distances` has."""
    return np.arange(1 - positions, positions + 1)


def _bert_encoder(
    config: PreTrainedConfig, weights: Weights, prefix: str, head: tuple[Step, ...], pad_position: int | None = None
) -> EncoderDescription:
    """Return what BERT, ELECTRA and RoBERTa share: learned positions, segments and post-norm layers."""
    _require(config, is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    embeddings = f"{prefix}.embeddings"
    words, segments = _words_and_segments(weights, embeddings)
    return EncoderDescription(
        words=words,
        positions=weights.table(f"{embeddings}.position_embeddings"),
        pad_position=pad_position,
        segments=segments,
        embedding=(weights.norm(f"{embeddings}.LayerNorm", config.layer_norm_eps),),
        layers=_post_norm_layers(
            config, weights, f"{prefix}.encoder.layer", BERT_NAMES, config.layer_norm_eps,
            _activation(config, "hidden_act"),
        ),
        heads=config.num_attention_heads,
        head=head,
    )  # fmt: skip


def describe_bert(config: PreTrainedConfig, weights: Weights) -> EncoderDescription:
    """BERT and MiniLM: a pooler with tanh over the first token."""
    return _bert_encoder(
        config, weights, "bert", (weights.linear("bert.pooler.dense"), "tanh", weights.linear("classifier"))
    )


def describe_electra(config: PreTrainedConfig, weights: Weights) -> EncoderDescription:
    """ELECTRA: embeddings may be narrower than the layers; the head's activation is GELU."""
    head = (weights.linear("classifier.dense"), "gelu", weights.linear("classifier.out_proj"))
    encoder = _bert_encoder(config, weights, "electra", head)
    if config.embedding_size == config.hidden_size:
        return encoder
    return replace(encoder, embedding=(*encoder.embedding, weights.linear("electra.embeddings_project")))


def describe_roberta(config: PreTrainedConfig, weights: Weights) -> EncoderDescription:
    """RoBERTa, XLM-RoBERTa and CamemBERT: positions count the tokens that are no padding."""
    if config.pad_token_id is None:
        raise NotDescribedError("pad_token_id = None has no description")
    head = (weights.linear("classifier.dense"), "tanh", weights.linear("classifier.out_proj"))
    return _bert_encoder(config, weights, "roberta", head, config.pad_token_id)


def describe_distilbert(config: PreTrainedConfig, weights: Weights) -> EncoderDescription:
    """DistilBERT: no segments; a layer with ReLU before the classifier."""
    epsilon = 1e-12  # fixed in its module
    return EncoderDescription(
        words=weights.table("distilbert.embeddings.word_embeddings"),
        positions=weights.table("distilbert.embeddings.position_embeddings"),
        embedding=(weights.norm("distilbert.embeddings.LayerNorm", epsilon),),
        layers=_post_norm_layers(
            config, weights, "distilbert.transformer.layer", DISTILBERT_NAMES, epsilon,
            _activation(config, "activation"),
        ),
        heads=config.num_attention_heads,
        head=(weights.linear("pre_classifier"), "relu", weights.linear("classifier")),
    )  # fmt: skip


def describe_mpnet(config: PreTrainedConfig, weights: Weights) -> EncoderDescription:
    """MPNet: one bias by relative distance for all layers; positions count the tokens other than id 1."""
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder  # brings all code that models are made of

    epsilon = config.layer_norm_eps
    buckets = MPNetEncoder.relative_position_bucket(torch.from_numpy(_distances(config.max_position_embeddings)))
    bias = weights.take("mpnet.encoder.relative_attention_bias.weight")[buckets.numpy()].T
    layers = _post_norm_layers(
        config, weights, "mpnet.encoder.layer", MPNET_NAMES, epsilon, _activation(config, "hidden_act")
    )
    return EncoderDescription(
        words=weights.table("mpnet.embeddings.word_embeddings"),
        positions=weights.table("mpnet.embeddings.position_embeddings"),
        pad_position=1,  # fixed in its module, whatever the configuration says
        embedding=(weights.norm("mpnet.embeddings.LayerNorm", epsilon),),
        layers=tuple(replace(layer, attention=replace(layer.attention, distances=bias)) for layer in layers),
        heads=config.num_attention_heads,
        head=(weights.linear("classifier.dense"), "tanh", weights.linear("classifier.out_proj")),
    )


def describe_modernbert(config: PreTrainedConfig, weights: Weights) -> EncoderDescription:
    """ModernBERT: pre-norm, rotary positions, gated GELU; some layers see only a window of tokens around each."""
    norm = partial(weights.norm, epsilon=config.norm_eps, bias=config.norm_bias)
    distances = _distances(config.max_position_embeddings)
    window = np.where(np.abs(distances) <= config.sliding_window, 0, -MASK_VALUE).astype(np.float32)[None]
    rotations = {kind: _rotation(config, kind) for kind in sorted(set(config.layer_types))}
    layers = []
    for number, kind in enumerate(config.layer_types):
        name = f"model.layers.{number}"
        query, key, value = _split(weights.linear(f"{name}.attn.Wqkv", config.attention_bias), 3)
        widen, gate = _split(weights.linear(f"{name}.mlp.Wi", config.mlp_bias), 2)
        attention = Attention(
            query, key, value, weights.linear(f"{name}.attn.Wo", config.attention_bias),
            scale=(config.hidden_size // config.num_attention_heads) ** -0.5,
            distances=window if kind == "sliding_attention" else None,
            rotation=rotations[kind],
        )  # fmt: skip
        narrow = weights.linear(f"{name}.mlp.Wo", config.mlp_bias)
        last = number == config.num_hidden_layers - 1
        layers.append(
            Layer(
                attention,
                norm(f"{name}.mlp_norm"),
                FeedForward(widen, gate, _activation(config, "hidden_activation"), narrow),
                norm("model.final_norm" if last else f"model.layers.{number + 1}.attn_norm"),
            )
        )
    return EncoderDescription(
        words=weights.table("model.embeddings.tok_embeddings"),
        embedding=(norm("model.embeddings.norm"),),
        layers=tuple(layers),
        heads=config.num_attention_heads,
        head=(
            weights.linear("head.dense", config.classifier_bias),
            _activation(config, "classifier_activation"),
            norm("head.norm"),
            weights.linear("classifier"),
        ),
        residual="sum",
        pooling="first" if config.classifier_pooling == "cls" else "mean",
    )


def _split(linear: Linear, count: int) -> list[Linear]:
    """Divide the outputs of a product evenly."""
    weights = np.split(linear.weight, count)
    biases = [None] * count if linear.bias is None else np.split(linear.bias, count)
    return [Linear(f"{linear.name}.{i}", weights[i], biases[i]) for i in range(count)]


def _rotation(config: PreTrainedConfig, kind: str) -> Rotation:
    """Return the rotation of a kind of ModernBERT's layers."""
    parameters = config.rope_parameters[kind]
    if parameters["rope_type"] != "default":
        raise NotDescribedError(f"rope_type = {parameters['rope_type']!r} has no description")
    features = config.hidden_size // config.num_attention_heads
    frequencies = 1 / parameters["rope_theta"] ** (torch.arange(0, features, 2, dtype=torch.float) / features)
    return Rotation(f"rotation.{kind}", frequencies.numpy(), config.max_position_embeddings)


def describe_deberta(config: PreTrainedConfig, weights: Weights) -> EncoderDescription:
    """DeBERTa-v2 and v3: disentangled attention, optionally with a convolution beside the first layer."""
    prefix, epsilon = "deberta.embeddings", config.layer_norm_eps
    if config.type_vocab_size:
        words, segments = _words_and_segments(weights, prefix)
    else:
        words, segments = weights.table(f"{prefix}.word_embeddings"), None
    embedding: tuple[Step, ...] = (weights.norm(f"{prefix}.LayerNorm", epsilon),)
    if words.values.shape[1] != config.hidden_size:
        embedding = (weights.linear(f"{prefix}.embed_proj", bias=False), *embedding)
    layers = _post_norm_layers(
        config, weights, "deberta.encoder.layer", DEBERTA_NAMES, epsilon, _activation(config, "hidden_act")
    )
    return EncoderDescription(
        words=words,
        positions=weights.table(f"{prefix}.position_embeddings") if config.position_biased_input else None,
        segments=segments,
        embedding=embedding,
        layers=_disentangle(config, weights, layers),
        heads=config.num_attention_heads,
        head=(weights.linear("pooler.dense"), _activation(config, "pooler_hidden_act"), weights.linear("classifier")),
        convolution=_convolution(config, weights) if getattr(config, "conv_kernel_size", 0) > 0 else None,
    )


def _convolution(config: PreTrainedConfig, weights: Weights) -> Convolution:
    config.conv_act = getattr(config, "conv_act", "tanh")
    return Convolution(
        weights.linear("deberta.encoder.conv.conv"),
        getattr(config, "conv_groups", 1),
        _activation(config, "conv_act"),
        weights.norm("deberta.encoder.conv.LayerNorm", config.layer_norm_eps),
    )


def _disentangle(config: PreTrainedConfig, weights: Weights, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Add DeBERTa's attention to relative positions to layers, and its scale."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    features = config.hidden_size // config.num_attention_heads
    _require(config, attention_head_size=features)
    kinds = config.pos_att_type or []
    scale = (features * (1 + ("c2p" in kinds) + ("p2c" in kinds))) ** -0.5
    layers = tuple(replace(layer, attention=replace(layer.attention, scale=scale)) for layer in layers)
    if not (config.relative_attention and kinds):
        return layers
    furthest = getattr(config, "max_relative_positions", -1)
    furthest = config.max_position_embeddings if furthest < 1 else furthest
    buckets = getattr(config, "position_buckets", -1)
    span = buckets if buckets > 0 else furthest
    distances = torch.from_numpy(_distances(config.max_position_embeddings))
    own = make_log_bucket_position(-distances, buckets, furthest).long() if buckets > 0 else -distances
    rows = weights.take("deberta.encoder.rel_embeddings.weight")[: 2 * span]
    if "layer_norm" in getattr(config, "norm_rel_ebd", "none").lower():
        rows = _normalise(rows, weights.norm("deberta.encoder.LayerNorm", config.layer_norm_eps))

    def project(linear: Linear) -> Values:
        """Return the projections [N, D, U] of the buckets, divided by the scores' scale."""
        assert linear.bias is not None
        projected = (rows @ linear.weight.T + linear.bias) * np.float32(scale)
        return projected.reshape(len(rows), config.num_attention_heads, features).transpose(1, 2, 0)

    found = []
    for number, layer in enumerate(layers):
        name = f"deberta.encoder.layer.{number}.attention.self"
        key, query = layer.attention.key, layer.attention.query
        if not getattr(config, "share_att_key", False):
            key = weights.linear(f"{name}.pos_key_proj") if "c2p" in kinds else key
            query = weights.linear(f"{name}.pos_query_proj") if "p2c" in kinds else query
        disentangled = Disentangled(
            name,
            keys=project(key) if "c2p" in kinds else None,
            queries=project(query) if "p2c" in kinds else None,
            key_buckets=np.clip(own.numpy() + span, 0, 2 * span - 1),
            query_buckets=np.clip(span - own.numpy(), 0, 2 * span - 1),
        )
        found.append(replace(layer, attention=replace(layer.attention, disentangled=disentangled)))
    return tuple(found)


def _normalise(rows: Values, norm: Norm) -> Values:
    """Apply a normalisation to rows [U, H]."""
    shape = (rows.shape[1],)
    scale, shift = torch.from_numpy(norm.scale), None if norm.shift is None else torch.from_numpy(norm.shift)
    return torch.nn.functional.layer_norm(torch.from_numpy(rows), shape, scale, shift, norm.epsilon).numpy()


FAMILIES: dict[str, Callable[[PreTrainedConfig, Weights], EncoderDescription]] = {
    "bert": describe_bert,
    "electra": describe_electra,
    "distilbert": describe_distilbert,
    "roberta": describe_roberta,
    "xlm-roberta": describe_roberta,
    "camembert": describe_roberta,
    "mpnet": describe_mpnet,
    "modernbert": describe_modernbert,
    "deberta-v2": describe_deberta,
}
