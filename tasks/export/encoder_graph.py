"""Writes the ONNX graph of a described encoder: one skeleton for all families, with the operators of a target.

Exact simplifications, up to rounding: softmax cancels K's bias, which shifts all scores of a query equally (not where
keys are rotated or meet relative positions); softmax weights sum to 1, so V's bias becomes part of the output bias; and
where the head reads only the first token, the last layer computes no other.

Shape letters: B sentences, S tokens of a sentence, R rows, T tokens of a row, H features, N heads, D features of a
head, P positions. A tensor of tokens is [R, T, H]; see `encoder_layout` for rows.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tasks.export.encoder_description import (
    Attention,
    Convolution,
    Disentangled,
    EncoderDescription,
    FeedForward,
    Linear,
    Norm,
    Rotation,
    Step,
    Table,
    Values,
)
from tasks.export.encoder_layout import PackedLayout, PaddedLayout, skew, span_of_distances
from tasks.export.graph_builder import MICROSOFT_DOMAIN, GraphBuilder

OPSET, IR_VERSION = 20, 9  # the first with Gelu; ONNX Runtime 1.17 reads both
PACKED_ROW_TOKENS = 128  # the fastest of 32 to 128 on an H200
# Operator and attributes of each activation, by the name that transformers gives it.
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
}
BIASED_ACTIVATIONS = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}


@dataclass(frozen=True)
class Target:
    """What a graph is written for.

    Attributes:
        row: tokens of a row into which sentences are packed; 0: each sentence is a row.
        fused: ONNX Runtime's own operators for attention, embeddings and biased activations.
        fused_norm: ONNX Runtime's operator for sum and normalisation. It is fast on GPUs; on CPUs (1.31) it takes
            several times as long as its parts.
        products: type of products, attention and activations.
        residual: type of the residual stream and normalisations.
    """

    row: int = 0
    fused: bool = False
    fused_norm: bool = False
    products: type = np.float32
    residual: type = np.float32


PORTABLE_TARGET = Target()
CPU_TARGET = Target(fused=True)
CUDA_TARGET = Target(PACKED_ROW_TOKENS, fused=True, fused_norm=True, products=np.float16, residual=np.float16)
FP32_RESIDUAL_TARGET = Target(PACKED_ROW_TOKENS, fused=True, fused_norm=True, products=np.float16)


def write_encoder(encoder: EncoderDescription, target: Target) -> onnx.ModelProto:
    """Write the graph of a classifier.

    Its inputs are int64 [B, S]: input_ids, attention_mask and, if segments are distinguished, token_type_ids. Its
    output is logits, fp32 [B, 2].
    """
    writer = _EncoderWriter(encoder, target)
    writer.write()
    opsets = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid(MICROSOFT_DOMAIN, 1)] * target.fused
    return helper.make_model(writer.builder.graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="verdict")


class _EncoderWriter:
    """Writes one graph."""

    def __init__(self, encoder: EncoderDescription, target: Target) -> None:
        self.encoder, self.target = encoder, target
        self.builder = GraphBuilder(onnx.GraphProto(name="encoder"))
        self.add = self.builder.add
        names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (encoder.segments is not None)
        self.builder.graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names
        )
        layout = PackedLayout if target.row and _is_packable(encoder) else PaddedLayout
        with self.builder.scope("layout"):
            self.layout: PaddedLayout = layout(self.builder, names, target.products, target.row)
        self._biases: dict[tuple[int, bool], str] = {}  # by identity of the distances; of the last layer or not
        self._rotations: dict[int, tuple[str, str]] = {}  # by identity

    def write(self) -> None:
        """Write all nodes."""
        encoder = self.encoder
        with self.builder.scope("embeddings"):
            embedded = self.embed()
        stream, tokens = embedded, self.cast(embedded, self.target.residual, self.target.products)
        for number, layer in enumerate(encoder.layers):
            first_only = layer is encoder.layers[-1] and encoder.pooling == "first"
            with self.builder.scope(f"layer_{number}"):
                product = self.attend(layer.attention, tokens, first_only)
                if first_only:
                    stream = self.layout.first_tokens(stream)
                bias = _output_bias(layer.attention)
                stream, tokens = self.add_and_normalise(product, bias, stream, layer.attention_norm)
                product = self.feed_forward(layer.feed_forward, tokens)
                bias = layer.feed_forward.narrow.bias
                stream, tokens = self.add_and_normalise(product, bias, stream, layer.output_norm)
                if number == 0 and encoder.convolution:
                    stream, tokens = self.convolve(encoder.convolution, embedded, stream, first_only)
        with self.builder.scope("head"):
            pooled = tokens if encoder.pooling == "first" else self.layout.mean(tokens)
            features = encoder.layers[-1].output_norm.scale.size
            pooled = self.add("Reshape", [pooled, self.builder.constant([-1, features])])
            logits, _ = self.steps(encoder.head, pooled, self.target.products, flat=True)
            self.add("Cast", [self.layout.sentences(logits)], "logits", to=TensorProto.FLOAT)
        classes = ["batch", _last_linear(encoder.head).weight.shape[0]]
        self.builder.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, classes))

    def embed(self) -> str:
        """Return the embeddings [R, T, H] in the residual type."""
        encoder, layout, kind = self.encoder, self.layout, self.target.residual
        first, *rest = encoder.embedding
        if self.target.fused and isinstance(first, Norm) and encoder.positions:
            total = self._embed_and_normalise(first)
        else:
            rest = list(encoder.embedding)
            total = self.add("Gather", [self._table(encoder.words, kind), layout.ids["input_ids"]])
            if encoder.positions:
                table = self._table(encoder.positions, kind)
                if encoder.pad_position is None:
                    positions = self.add("Slice", [table, self.builder.constant([0]), layout.tokens])
                else:
                    positions = self.add("Gather", [table, self._positions(encoder.pad_position)])
                total = self.add("Add", [total, positions])
            if encoder.segments:
                segments = self.add("Gather", [self._table(encoder.segments, kind), layout.ids["token_type_ids"]])
                total = self.add("Add", [total, segments])
        total, kind = self.steps(tuple(rest), total, kind)
        return layout.rows(self.cast(total, kind, self.target.residual))

    def _embed_and_normalise(self, norm: Norm) -> str:
        """Sum and normalise in one operator, which takes int32 ids."""
        encoder, kind = self.encoder, self.target.residual
        tables = [
            self._table(table, kind) if table else "" for table in (encoder.words, encoder.positions, encoder.segments)
        ]
        ids = self.add("Cast", [self.layout.ids["input_ids"]], to=TensorProto.INT32)
        segments = positions = ""
        if encoder.segments:
            segments = self.add("Cast", [self.layout.ids["token_type_ids"]], to=TensorProto.INT32)
        if encoder.pad_position is not None:
            positions = self.add("Cast", [self._positions(encoder.pad_position)], to=TensorProto.INT32)
        inputs = [ids, segments, *tables, *self._norm(norm), "", positions]
        return self.add(
            "EmbedLayerNormalization", inputs, domain=MICROSOFT_DOMAIN, extra=("",), epsilon=norm.epsilon
        )  # shape inference fails without the place of its second output

    def _positions(self, pad: int) -> str:
        """Return positions [B, S]: how many tokens up to this one are not padding, plus pad; for padding, pad."""
        constant = self.builder.constant
        real = self.add("Not", [self.add("Equal", [self.layout.ids["input_ids"], constant(pad)])])
        real = self.add("Cast", [real], to=TensorProto.INT32)
        count = self.add("Mul", [self.add("CumSum", [real, constant(1)]), real])
        return self.add("Add", [count, constant(pad, np.int32)])

    def attend(self, attention: Attention, tokens: str, first_only: bool) -> str:
        """Return the output product of attention, of first tokens only or of all, without its bias."""
        with self.builder.scope("attention"):
            asking = self.layout.first_tokens(tokens) if first_only else tokens
            query = self.linear(attention.query, asking)
            key, value = self.product(attention.key, tokens), self.product(attention.value, tokens)
            if attention.rotation or attention.disentangled:
                key = self.add_bias(key, attention.key)
            if attention.rotation:  # a first token's position is 0, and its rotation none
                query = query if first_only else self.rotate(attention.rotation, query)
                key = self.rotate(attention.rotation, key)
            bias = self.score_bias(attention, query, key, first_only)
            context = (self._attend_fused if self.target.fused else self._attend_in_steps)(
                attention, query, key, value, bias
            )
            return self.product(attention.output, context)

    def _attend_fused(self, attention: Attention, query: str, key: str, value: str, bias: str) -> str:
        inputs = [query, key, value, "", "", bias]
        heads, scale = self.encoder.heads, attention.scale
        return self.add("MultiHeadAttention", inputs, domain=MICROSOFT_DOMAIN, num_heads=heads, scale=scale)

    def _attend_in_steps(self, attention: Attention, query: str, key: str, value: str, bias: str) -> str:
        query = self.add("Mul", [query, self.builder.scalar(attention.scale, self.target.products)])
        scores = self.add("MatMul", [self.split_heads(query), self.split_heads(key, [0, 2, 3, 1])])
        shares = self.add("Softmax", [self.add("Add", [scores, bias])], axis=-1)
        context = self.add("MatMul", [shares, self.split_heads(value)])
        context = self.add("Transpose", [context], perm=[0, 2, 1, 3])
        return self.add("Reshape", [context, self.builder.constant([0, 0, attention.value.weight.shape[0]])])

    def split_heads(self, tokens: str, axes: tuple[int, ...] | list[int] = (0, 2, 1, 3)) -> str:
        """Return [R, N, T, D] of [R, T, N * D]; other axes give another order of [R, T, N, D]."""
        heads = self.add("Reshape", [tokens, self.builder.constant([0, 0, self.encoder.heads, -1])])
        return self.add("Transpose", [heads], perm=list(axes))

    def rotate(self, rotation: Rotation, tokens: str) -> str:
        """Return queries or keys [R, T, H] rotated by their positions."""
        cosines, sines = self._rotations.get(id(rotation)) or self._rotation(rotation)
        if self.target.fused:
            inputs = [tokens, self.layout.positions(len(rotation.cosines)), cosines, sines]
            return self.add("RotaryEmbedding", inputs, domain=MICROSOFT_DOMAIN)
        heads = self.add("Reshape", [tokens, self.builder.constant([0, 0, self.encoder.heads, -1])])
        left = self.add("Split", [heads], extra=("right",), axis=-1, num_outputs=2)
        names = [left, f"{left}_right"]
        (ac, bs), (bc, as_) = (
            [self.add("Mul", [name, angles]) for name, angles in zip(order, (cosines, sines), strict=True)]
            for order in (names, names[::-1])
        )
        halves = [self.add("Sub", [ac, bs]), self.add("Add", [bc, as_])]
        return self.add("Reshape", [self.add("Concat", halves, axis=-1), self.builder.constant([0, 0, -1])])

    def _rotation(self, rotation: Rotation) -> tuple[str, str]:
        """Add cosines and sines: the whole tables for the fused operator, else [S, 1, D / 2] of a sentence."""
        tables = []
        for name, values in ((f"{rotation.name}.cos", rotation.cosines), (f"{rotation.name}.sin", rotation.sines)):
            if self.target.fused:
                tables.append(self.builder.weight(name, _convert(values, self.target.products)))
                continue
            table = self.builder.weight(name, _convert(values[:, None], self.target.products))
            tables.append(self.add("Slice", [table, self.builder.constant([0]), self.layout.tokens]))
        self._rotations[id(rotation)] = (tables[0], tables[1])
        return self._rotations[id(rotation)]

    def score_bias(self, attention: Attention, query: str, key: str, first_only: bool) -> str:
        """Return what is added to the scores: masks and relative positions. Layers with equal distances share it."""
        if attention.disentangled:
            relative = self._relative_scores(attention.disentangled, query, key, first_only)
            mask = self._shared_bias(None, first_only)
            return self.add("Add", [relative, mask])
        return self._shared_bias(attention.distances, first_only)

    def _shared_bias(self, distances: Values | None, first_only: bool) -> str:
        slot = (id(distances), first_only)
        if slot not in self._biases:
            self._biases[slot] = self.layout.score_bias(distances, first_only, expand=self.target.fused)
        return self._biases[slot]

    def _relative_scores(self, found: Disentangled, query: str, key: str, first_only: bool) -> str:
        """Return the sum of both relative scores [B, N, S, S], or of the first token only."""
        total = []
        if found.keys is not None:
            table = self._distance_table(found.name + ".keys", found.keys, found.key_buckets)
            total.append(skew(self.builder, self.add("MatMul", [self.split_heads(query), table]), self.layout.tokens))
        if found.queries is not None:
            table = self._distance_table(found.name + ".queries", found.queries, found.query_buckets)
            scores = skew(self.builder, self.add("MatMul", [self.split_heads(key), table]), self.layout.tokens)
            scores = self.add("Transpose", [scores], perm=[0, 1, 3, 2])
            total.append(self.layout.first_rows(scores) if first_only else scores)
        return self.add("Sum", total)

    def _distance_table(self, name: str, table: Values, buckets: NDArray[np.int64]) -> str:
        """Return [N, D, 2S]: the keys or queries of the distances in a sentence."""
        near = span_of_distances(self.builder, self.builder.constant(buckets), self.layout.tokens, 0, len(buckets))
        return self.add("Gather", [self.builder.weight(name, _convert(table, self.target.products)), near], axis=2)

    def feed_forward(self, part: FeedForward, tokens: str) -> str:
        """Return the last product, without its bias."""
        with self.builder.scope("feed_forward"):
            wide = self.product(part.widen, tokens)
            fused = BIASED_ACTIVATIONS.get(part.activation) if self.target.fused else None
            if fused and part.widen.bias is not None:
                wide = self.add(fused, [wide, self._bias(part.widen)], domain=MICROSOFT_DOMAIN)
            else:
                wide = self.activate(part.activation, self.add_bias(wide, part.widen))
            if part.gate:
                wide = self.add("Mul", [wide, self.linear(part.gate, tokens)])
            return self.product(part.narrow, wide)

    def convolve(self, part: Convolution, embedded: str, stream: str, first_only: bool) -> tuple[str, str]:
        """Add a convolution over the embeddings to the first layer's output, and normalise."""
        with self.builder.scope("convolution"):
            kind, width = self.target.products, part.linear.weight.shape[2]
            weight = self.builder.weight(f"{part.linear.name}.weight", _convert(part.linear.weight, kind))
            tokens = self.layout.without_padding(self.cast(embedded, self.target.residual, kind))
            tokens = self.add("Transpose", [tokens], perm=[0, 2, 1])
            inputs = [tokens, weight, self._bias(part.linear)]
            tokens = self.add("Conv", inputs, group=part.groups, pads=[(width - 1) // 2] * 2, kernel_shape=[width])
            tokens = self.activate(part.activation, self.add("Transpose", [tokens], perm=[0, 2, 1]))
            tokens = self.layout.first_tokens(tokens) if first_only else tokens
            return self.add_and_normalise(tokens, None, stream, part.norm)

    def add_and_normalise(self, product: str, bias: Values | None, stream: str, norm: Norm) -> tuple[str, str]:
        """Add a product and its bias to the stream and normalise; return stream and tokens for the next part."""
        kind = self.target.residual
        product = self.cast(product, self.target.products, kind)
        biases = [] if bias is None else [self.builder.constant(bias, kind)]
        if self.target.fused_norm:
            inputs = [product, stream, *self._norm(norm), *biases]
            extra = ("", "", "sum") if self.encoder.residual == "sum" else ()
            name = self.add(
                "SkipLayerNormalization", inputs, domain=MICROSOFT_DOMAIN, extra=extra, epsilon=norm.epsilon
            )
            total = f"{name}_sum"
        else:
            total = self.add("Sum", [product, stream, *biases])  # an Add would be fused when the graph is loaded
            name = self.normalise(norm, total)
        tokens = self.cast(name, kind, self.target.products)
        return (name if self.encoder.residual == "normalised" else total), tokens

    def steps(self, steps: tuple[Step, ...], tensor: str, kind: type, flat: bool = False) -> tuple[str, type]:
        """Apply steps to a tensor of a type, flat if it is [B, H]; return the result and its type."""
        for step in steps:
            wanted = self.target.residual if isinstance(step, Norm) else self.target.products
            tensor, kind = self.cast(tensor, kind, wanted), wanted
            if isinstance(step, Norm):
                tensor = self.normalise(step, tensor)
            elif isinstance(step, Linear):
                tensor = self.flat_linear(step, tensor) if flat else self.linear(step, tensor)
            else:
                tensor = self.activate(step, tensor)
        return tensor, kind

    def product(self, linear: Linear, tensor: str) -> str:
        """Multiply by the weights."""
        weight = self.builder.weight(f"{linear.name}.weight", _transposed(linear.weight, self.target.products))
        return self.add("MatMul", [tensor, weight])

    def linear(self, linear: Linear, tensor: str) -> str:
        """Multiply by the weights and add the bias."""
        return self.add_bias(self.product(linear, tensor), linear)

    def flat_linear(self, linear: Linear, tensor: str) -> str:
        """Multiply [B, K] by the weights and add the bias, by an operator that int8 leaves alone."""
        weight = self.builder.weight(f"{linear.name}.weight", _convert(linear.weight, self.target.products))
        biases = [] if linear.bias is None else [self._bias(linear)]
        return self.add("Gemm", [tensor, weight, *biases], transB=1)

    def add_bias(self, tensor: str, linear: Linear) -> str:
        return tensor if linear.bias is None else self.add("Add", [tensor, self._bias(linear)])

    def activate(self, activation: str, tensor: str) -> str:
        operator, attributes = ACTIVATIONS[activation]
        return self.add(operator, [tensor], **attributes)

    def normalise(self, norm: Norm, tensor: str) -> str:
        scale, shift = self._norm(norm)
        inputs = [tensor, scale, shift] if shift else [tensor, scale]
        return self.add("LayerNormalization", inputs, axis=-1, epsilon=norm.epsilon)

    def cast(self, tensor: str, kind: type, wanted: type) -> str:
        if kind is wanted:
            return tensor
        return self.add("Cast", [tensor], to=helper.np_dtype_to_tensor_dtype(np.dtype(wanted)))

    def _norm(self, norm: Norm) -> list[str]:
        """Add scale and shift; the name of an absent shift is empty."""
        scale, shift = (f"{norm.name}.{part}" for part in ("weight", "bias"))
        kind = self.target.residual
        self.builder.weight(scale, _convert(norm.scale, kind))
        return [scale, "" if norm.shift is None else self.builder.weight(shift, _convert(norm.shift, kind))]

    def _bias(self, linear: Linear) -> str:
        assert linear.bias is not None
        return self.builder.weight(f"{linear.name}.bias", _convert(linear.bias, self.target.products))

    def _table(self, table: Table, kind: type) -> str:
        return self.builder.weight(table.name, _convert(table.values, kind))


def _is_packable(encoder: EncoderDescription) -> bool:
    """Return whether tokens of different sentences meet only in attention, with scores that a bias can mask."""
    return not any(layer.attention.disentangled for layer in encoder.layers)


def _output_bias(attention: Attention) -> Values | None:
    """Return the bias after attention's output product, V's included."""
    output, value = attention.output, attention.value
    if value.bias is None:
        return output.bias
    passed = output.weight @ value.bias
    return passed if output.bias is None else output.bias + passed


def _last_linear(steps: tuple[Step, ...]) -> Linear:
    return [step for step in steps if isinstance(step, Linear)][-1]


def _transposed(weight: Values, kind: type) -> NDArray[np.generic]:
    """Return [K, M] of [M, K], in another type."""
    return np.ascontiguousarray(_convert(weight, kind).T)


def _convert(values: Values, kind: type) -> NDArray[np.generic]:
    """Return values in fp32 or fp16, by torch: NumPy takes 30 times as long."""
    return torch.from_numpy(values).to(torch.float16 if kind is np.float16 else torch.float32).numpy()
