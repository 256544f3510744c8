"""Writes the ONNX graph of a described encoder: one skeleton for all families.

Exact simplifications, up to rounding: softmax cancels K's bias, which shifts all scores of a query equally (not where
keys are rotated or meet relative positions); softmax weights sum to 1, so V's bias becomes part of the output bias; and
where the head reads only the first token, the last layer computes no other (on GPUs, after attention). Of the positions
of two rotated tokens a score depends on the distance only, so packed tokens are rotated by their positions in the row.

Shape letters: B sentences, S tokens of a sentence, R rows, T tokens of a row (`encoder_layout`), H features, N heads,
D features of a head, P positions. Tokens are [R, T, H].
"""

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tasks.export.encoder_description import (
    Attention,
    Convolution,
    Disentangled,
    EncoderDescription,
    FeedForward,
    Layer,
    Linear,
    Norm,
    Rotation,
    Values,
)
from tasks.export.encoder_layout import PackedLayout, PaddedLayout
from tasks.export.graph_builder import MICROSOFT_DOMAIN
from tasks.export.module_writer import ModuleWriter, Target, convert, fused_gate_width, rotation_tables, stack_gate

OPSET, IR_VERSION = 20, 9  # the first with Gelu; ONNX Runtime 1.17 reads both


def write_encoder(encoder: EncoderDescription, target: Target) -> onnx.ModelProto:
    """Write the graph of a classifier.

    Its inputs are int64 [B, S]: input_ids, attention_mask and, if segments are distinguished, token_type_ids. Its
    output is logits, fp32 [B, 2].
    """
    writer = _EncoderWriter(encoder, target)
    writer.write()
    model = writer.model  # helper.make_model() would copy all weights
    model.ir_version, model.producer_name = IR_VERSION, "verdict"
    opsets = {"": OPSET} | ({MICROSOFT_DOMAIN: 1} if target.fused else {})
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
    return model


class _EncoderWriter(ModuleWriter):
    """Writes one graph.

    The stream is what the next part is added to, in the residual type; tokens are what it reads, in the type of
    products: the normalised stream.
    """

    def __init__(self, encoder: EncoderDescription, target: Target) -> None:
        super().__init__(target)
        self.encoder = encoder
        names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (encoder.segments is not None)
        self.builder.graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names
        )
        with self.builder.scope("layout"):
            self.layout: PaddedLayout = (
                PackedLayout(self.builder, names, target.products, target.row)
                if target.row and _is_packable(encoder)
                else PaddedLayout(self.builder, names, target.products)
            )
        self._biases: dict[tuple[int, bool], str] = {}  # by identity of distances and `first_asks`
        self._rotations: dict[int, tuple[str, str]] = {}  # by identity

    def write(self) -> None:
        """Write all nodes."""
        encoder = self.encoder
        with self.builder.scope("embeddings"):
            embedded = stream = self.layout.rows(self.embed())
        tokens = self.cast(embedded, self.target.residual, self.target.products)
        for number, layer in enumerate(encoder.layers):
            first_only = number == len(encoder.layers) - 1 and encoder.pooling == "first"
            with self.builder.scope(f"layer_{number}"):
                stream, tokens = self.apply(layer, stream, tokens, first_only)
                if number == 0 and encoder.convolution:
                    stream, tokens = self.convolve(encoder.convolution, embedded, stream, first_only)
        with self.builder.scope("head"):
            pooled = tokens if encoder.pooling == "first" else self.layout.mean(tokens)
            classifier, features = encoder.head[-1], encoder.layers[-1].output_norm.scale.size
            assert isinstance(classifier, Linear)
            pooled = self.add("Reshape", [pooled, self.constant([-1, features])])
            logits, _ = self.steps(encoder.head, pooled, self.target.products, flat=True)
            self.add("Cast", [self.layout.sentences(logits)], "logits", to=TensorProto.FLOAT)
        self.builder.graph.output.append(
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(classifier.weight)])
        )

    def apply(self, layer: Layer, stream: str, tokens: str, first_only: bool) -> tuple[str, str]:
        """Apply a layer; return stream and tokens, of first tokens only or of all."""
        output = _with_value_bias(layer.attention)
        product = self.product(output, self.attend(layer.attention, tokens, first_only))
        stream = self.layout.first_tokens(stream) if first_only else stream
        stream, tokens = self.add_and_normalise(product, output, stream, layer.attention_norm)
        product = self.feed_forward(layer.feed_forward, tokens)
        return self.add_and_normalise(product, layer.feed_forward.narrow, stream, layer.output_norm)

    def add_and_normalise(self, product: str, linear: Linear | None, stream: str, norm: Norm) -> tuple[str, str]:
        """Add a product, and the bias that belongs to it, to the stream; return stream and tokens."""
        dtype = self.target.residual
        terms = [self.cast(product, self.target.products, dtype), stream]
        biases = [] if linear is None or linear.bias is None else [self.bias(linear, dtype)]
        if self.target.fused_norm:
            extra = ("", "", "sum") if self.encoder.residual == "sum" else ()
            inputs = [*terms, *self.norm(norm), *biases]
            normalised = self.add(
                "SkipLayerNormalization", inputs, domain=MICROSOFT_DOMAIN, extra=extra, epsilon=norm.epsilon
            )
            total = f"{normalised}_sum"
        else:
            total = self.add("Sum", [*terms, *biases])  # an Add would be fused when the graph is loaded
            normalised = self.normalise(norm, total)
        tokens = self.cast(normalised, dtype, self.target.products)
        return (normalised if self.encoder.residual == "normalised" else total), tokens

    def embed(self) -> str:
        """Return the embeddings [B, S, H] in the residual type."""
        encoder, steps = self.encoder, self.encoder.embedding
        ids, segments = (self.layout.ids.get(name, "") for name in ("input_ids", "token_type_ids"))
        tables = [self.table(each) if each else "" for each in (encoder.words, encoder.positions, encoder.segments)]
        if self.target.fused and isinstance(steps[0], Norm) and encoder.positions:
            total, steps = self._embed_and_normalise(steps[0], ids, segments, tables), steps[1:]
        else:
            total = self.add("Gather", [tables[0], ids])
            if encoder.positions and encoder.pad_position is None:
                total = self.add("Add", [total, self.add("Slice", [tables[1], self.constant([0]), self.layout.tokens])])
            elif encoder.pad_position is not None:
                total = self.add("Add", [total, self.add("Gather", [tables[1], self._positions(ids)])])
            if segments:
                total = self.add("Add", [total, self.add("Gather", [tables[2], segments])])
        return self.cast(*self.steps(steps, total, self.target.residual), self.target.residual)

    def _embed_and_normalise(self, norm: Norm, ids: str, segments: str, tables: list[str]) -> str:
        """Sum and normalise in one operator, which takes int32 ids."""
        ids, segments = (self.add("Cast", [name], to=TensorProto.INT32) if name else "" for name in (ids, segments))
        positions = "" if self.encoder.pad_position is None else self._positions(self.layout.ids["input_ids"])
        inputs = [ids, segments, *tables, *self.norm(norm), "", positions]
        extra = ("",)  # shape inference fails where the second output is not left out by name
        return self.add("EmbedLayerNormalization", inputs, domain=MICROSOFT_DOMAIN, extra=extra, epsilon=norm.epsilon)

    def _positions(self, ids: str) -> str:
        """Return int32 positions [B, S]: padding's id plus, except for padding, the count of others up to there."""
        pad = self.encoder.pad_position
        real = self.add("Not", [self.add("Equal", [ids, self.constant(pad)])])
        real = self.add("Cast", [real], to=TensorProto.INT32)
        count = self.add("Mul", [self.add("CumSum", [real, self.constant(1)]), real])
        return self.add("Add", [count, self.constant(pad, np.int32)])

    def attend(self, attention: Attention, tokens: str, first_only: bool) -> str:
        """Return what attention hands to its output product, of first tokens only or of all."""
        # On GPUs all tokens ask: attention of another number of queries, which is rarely a multiple of 8, is not fused.
        first_asks = first_only and not self.target.row
        queries, keys = attention.query, attention.key
        if attention.rotation and self.target.rotated_features:  # the same order in both leaves scores as they are
            queries, keys = (_interleave_halves(linear, self.encoder.heads) for linear in (queries, keys))
        with self.builder.scope("attention"):
            query = self.linear(queries, self.layout.first_tokens(tokens) if first_asks else tokens)
            key, value = self.product(keys, tokens), self.product(attention.value, tokens)
            if attention.rotation or attention.disentangled:
                key = self.add_bias(keys, key)
            if attention.rotation:  # a first token's position is 0, and its rotation none
                query = query if first_asks else self.rotate(attention.rotation, query)
                key = self.rotate(attention.rotation, key)
            if attention.disentangled:
                bias = self._disentangled_bias(attention.disentangled, query, key, first_asks)
            else:
                bias = self._shared_bias(attention.distances, first_asks)
            if self.target.fused:
                inputs, heads, scale = [query, key, value, "", "", bias], self.encoder.heads, attention.scale
                context = self.add("MultiHeadAttention", inputs, domain=MICROSOFT_DOMAIN, num_heads=heads, scale=scale)
            else:
                context = self._attend_in_steps(query, key, value, bias, attention.scale)
            return self.layout.first_tokens(context) if first_only and not first_asks else context

    def _attend_in_steps(self, query: str, key: str, value: str, bias: str, scale: float) -> str:
        query = self.add("Mul", [query, self.builder.scalar(scale, self.target.products)])
        scores = self.add("MatMul", [self.heads(query), self.heads(key, [0, 2, 3, 1])])
        shares = self.add("Softmax", [self.add("Add", [scores, bias])], axis=-1)
        context = self.add("Transpose", [self.add("MatMul", [shares, self.heads(value)])], perm=[0, 2, 1, 3])
        return self.add("Reshape", [context, self.constant([0, 0, -1])])

    def heads(self, tokens: str, axes: list[int] | None = None) -> str:
        """Return [R, N, T, D] of [R, T, N * D]; other axes give another order of [R, T, N, D]."""
        heads = self.add("Reshape", [tokens, self.constant([0, 0, self.encoder.heads, -1])])
        return self.add("Transpose", [heads], perm=axes or [0, 2, 1, 3])

    def rotate(self, rotation: Rotation, tokens: str) -> str:
        """Return queries or keys [R, T, H] rotated by their positions in the row."""
        cosines, sines = self._rotations.get(id(rotation)) or self._add_rotation(rotation)
        if self.target.fused:
            inputs = [tokens, self.constant([0]), cosines, sines]  # [0]: positions count from 0 in each row
            interleaved = int(self.target.rotated_features > 0)
            return self.add("RotaryEmbedding", inputs, domain=MICROSOFT_DOMAIN, interleaved=interleaved)
        heads = self.add("Reshape", [tokens, self.constant([0, 0, self.encoder.heads, -1])])
        left = self.add("Split", [heads], extra=("right",), axis=-1, num_outputs=2)
        right = f"{left}_right"

        def multiply(half: str, factor: str) -> str:
            return self.add("Mul", [half, factor])

        halves = [
            self.add("Sub", [multiply(left, cosines), multiply(right, sines)]),
            self.add("Add", [multiply(right, cosines), multiply(left, sines)]),
        ]
        return self.add("Reshape", [self.add("Concat", halves, axis=-1), self.constant([0, 0, -1])])

    def _add_rotation(self, rotation: Rotation) -> tuple[str, str]:
        """Add cosines and sines: for the fused operator of all positions, for a block of heads; else [S, 1, D / 2]."""
        positions = max(rotation.positions, self.target.row)
        tables = []
        for name, values in zip(("cosines", "sines"), rotation_tables(rotation, positions), strict=True):
            if self.target.fused:
                values = np.tile(values, self._heads_rotated_as_one(rotation))
                tables.append(self.builder.weight(f"{rotation.name}.{name}", convert(values, self.target.products)))
                continue
            table = self.builder.weight(f"{rotation.name}.{name}", convert(values[:, None], self.target.products))
            tables.append(self.add("Slice", [table, self.constant([0]), self.layout.tokens]))
        self._rotations[id(rotation)] = cosines, sines = tables[0], tables[1]
        return cosines, sines

    def _heads_rotated_as_one(self, rotation: Rotation) -> int:
        """Return how many heads RotaryEmbedding takes for one: the most that fit and divide N."""
        fitting = self.target.rotated_features // (2 * len(rotation.frequencies))
        return max((count for count in range(1, fitting + 1) if self.encoder.heads % count == 0), default=1)

    def _shared_bias(self, distances: Values | None, first_asks: bool) -> str:
        """Return the bias of scores from masks and distances, one for all layers with the same distances."""
        slot = (id(distances), first_asks)
        if slot not in self._biases:
            self._biases[slot] = self.layout.score_bias(distances, first_asks, expand=self.target.fused)
        return self._biases[slot]

    def _disentangled_bias(self, found: Disentangled, query: str, key: str, first_asks: bool) -> str:
        """Return the bias of scores from masks and DeBERTa's relative scores."""
        total = []
        if found.keys is not None:
            table = self._near_buckets(f"{found.name}.keys", found.keys, found.key_buckets)
            total.append(self._bucket_scores(query, table, self.constant([1]) if first_asks else self.layout.tokens))
        if found.queries is not None:
            table = self._near_buckets(f"{found.name}.queries", found.queries, found.query_buckets)
            scores = self.add("Transpose", [self._bucket_scores(key, table, self.layout.tokens)], perm=[0, 1, 3, 2])
            total.append(self.layout.first_scores(scores) if first_asks else scores)
        return self.layout.masked(self.add("Sum", total))

    def _bucket_scores(self, tokens: str, table: str, count: str) -> str:
        """Return the scores [N, B, Q, S] of Q = count tokens of each sentence for a table [N, D, 2S]."""
        features = self.encoder.layers[0].attention.query.weight.shape[0] // self.encoder.heads
        heads = self.add("Reshape", [tokens, self.constant([-1, self.encoder.heads, features])])
        scores = self.add("MatMul", [self.add("Transpose", [heads], perm=[1, 0, 2]), table])
        return self.layout.scores_by_token(scores, count)

    def _near_buckets(self, name: str, table: Values, buckets: NDArray[np.int64]) -> str:
        """Return [N, D, 2S]: the keys or queries of the distances in a sentence."""
        near = self.layout.near(self.constant(buckets), 0, len(buckets))
        return self.add("Gather", [self.builder.weight(name, convert(table, self.target.products)), near], axis=2)

    def feed_forward(self, part: FeedForward, tokens: str) -> str:
        """Return the last product, without its bias."""
        with self.builder.scope("feed_forward"):
            if part.gate and self.target.fused_gate and (width := fused_gate_width(part)):
                both = stack_gate(part.gate, part.widen, width)
                inputs = [self.product(both, tokens), self.bias(both, self.target.products)]
                padding = [(0, 0), (0, width - len(part.widen.weight))]
                narrow = replace(part.narrow, weight=np.pad(part.narrow.weight, padding))
                return self.product(narrow, self.add("BiasSplitGelu", inputs, domain=MICROSOFT_DOMAIN))
            wide = self.activate_biased(part.activation, part.widen, self.product(part.widen, tokens))
            if part.gate:
                wide = self.add("Mul", [wide, self.linear(part.gate, tokens)])
            return self.product(part.narrow, wide)

    def convolve(self, part: Convolution, embedded: str, stream: str, first_only: bool) -> tuple[str, str]:
        """Add a convolution over the embeddings to the first layer's output; return stream and tokens."""
        with self.builder.scope("convolution"):
            dtype, width = self.target.products, part.linear.weight.shape[2]
            weight = self.builder.weight(f"{part.linear.name}.weight", convert(part.linear.weight, dtype))
            tokens = self.layout.without_padding(self.cast(embedded, self.target.residual, dtype))
            inputs = [self.add("Transpose", [tokens], perm=[0, 2, 1]), weight, self.bias(part.linear, dtype)]
            tokens = self.add("Conv", inputs, group=part.groups, pads=[(width - 1) // 2] * 2, kernel_shape=[width])
            tokens = self.activate(part.activation, self.add("Transpose", [tokens], perm=[0, 2, 1]))
            tokens = self.layout.first_tokens(tokens) if first_only else tokens
            return self.add_and_normalise(tokens, None, stream, part.norm)


def _is_packable(encoder: EncoderDescription) -> bool:
    """Return whether tokens of different sentences meet only in attention, where a bias masks them."""
    return not encoder.convolution


def _interleave_halves(linear: Linear, heads: int) -> Linear:
    """Return a product whose output features i and i + D / 2 of each head are neighbours, at 2i and 2i + 1."""
    order = np.arange(len(linear.weight)).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
    bias = None if linear.bias is None else linear.bias[order]
    return replace(linear, weight=linear.weight[order], bias=bias)


def _with_value_bias(attention: Attention) -> Linear:
    """Return the output product of attention, whose bias includes what V's bias becomes in it."""
    output, value = attention.output, attention.value
    if value.bias is None:
        return output
    passed = output.weight @ value.bias
    return replace(output, bias=passed if output.bias is None else output.bias + passed)
