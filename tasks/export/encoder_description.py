"""What an encoder with a classification head computes: the parts that `encoder_graph` writes as a graph.

Weights keep the names and the shapes that torch gives them.

Shape letters: V words, P positions, E features of an embedding, H features, K inputs and M outputs of a product,
N heads, D features of a head, U relative distances or buckets of them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
MASK_VALUE = 10_000.0  # subtracted from the scores of tokens that are not attended to; representable in fp16


@dataclass(frozen=True)
class Table:
    """Rows that are looked up by a number: [V, E], [P, E]."""

    name: str
    values: Values


@dataclass(frozen=True)
class Linear:
    """A product with a constant matrix: y = x weight^T + bias, with weight [M, K] and bias [M]."""

    name: str
    weight: Values
    bias: Values | None


@dataclass(frozen=True)
class Norm:
    """A normalisation over features, with scale and shift [H]."""

    name: str
    scale: Values
    shift: Values | None
    epsilon: float


Step = Linear | Norm | str  # a string is the name of an activation in `module_writer.ACTIVATIONS`


@dataclass(frozen=True)
class Rotation:
    """Rotary position embeddings: position p turns features i and i + D / 2 of a head by the angle p * frequencies[i].

    `frequencies` is [D / 2], `positions` is P.
    """

    name: str
    frequencies: Values
    positions: int


@dataclass(frozen=True)
class Disentangled:
    """DeBERTa's attention to relative positions, with keys and queries of U buckets, multiplied by the scores' scale.

    To the score of token i for token j are added i's query times the key of the bucket of j - i, and j's key times the
    query of the bucket of i - j. `key_buckets` and `query_buckets` [2P] hold the buckets of the distances from
    -(P - 1) to P.
    """

    name: str
    keys: Values | None  # [N, D, U]
    queries: Values | None  # [N, D, U]
    key_buckets: NDArray[np.int64]
    query_buckets: NDArray[np.int64]


@dataclass(frozen=True)
class Attention:
    """Self-attention.

    `distances` [N or 1, 2P] is added to the scores by distance j - i, from -(P - 1) to P; layers with equal distances
    share one array. `scale` multiplies the scores.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    scale: float
    distances: Values | None = None
    rotation: Rotation | None = None
    disentangled: Disentangled | None = None


@dataclass(frozen=True)
class FeedForward:
    """Two products with an activation between them, which is multiplied by a third product where there is a gate."""

    widen: Linear
    gate: Linear | None
    activation: str
    narrow: Linear


@dataclass(frozen=True)
class Layer:
    """Attention and feed-forward; each is added to the stream, and a normalisation of the sum follows."""

    attention: Attention
    attention_norm: Norm
    feed_forward: FeedForward
    output_norm: Norm


@dataclass(frozen=True)
class Convolution:
    """A convolution over tokens of the first layer's input, added to its output: weight [H, H / groups, width]."""

    linear: Linear
    groups: int
    activation: str
    norm: Norm


@dataclass(frozen=True)
class EncoderDescription:
    """A classifier: embeddings, layers, pooling and head.

    Attributes:
        words: embeddings of token ids.
        embedding: steps after the sum of the embeddings.
        layers: from input to output.
        heads: N.
        head: steps from the pooled features [B, H] to the logits.
        positions: embeddings of positions; None where there are none.
        pad_position: id of the token that has no position; positions then count the other tokens, from one after that
            id on. None where a token's position is its index.
        segments: embeddings of segment ids; None where segments are not distinguished.
        residual: what the next part is added to: the normalised sum of the last one (post-norm), or the sum itself.
        pooling: what the head reads: the first token or the mean of all.
        convolution: beside the first layer, if any.
    """

    words: Table
    embedding: tuple[Step, ...]
    layers: tuple[Layer, ...]
    heads: int
    head: tuple[Step, ...]
    positions: Table | None = None
    pad_position: int | None = None
    segments: Table | None = None
    residual: Literal["normalised", "sum"] = "normalised"
    pooling: Literal["first", "mean"] = "first"
    convolution: Convolution | None = None
