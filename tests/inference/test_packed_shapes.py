"""Batches of a GPU: every sentence once, rows of as many tokens as attention is fused for, little padding."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from toy import SIGN, WORDS

from tasks.export.encoder_layout import PackedLayout
from tasks.export.graph_builder import GraphBuilder
from tasks.inference.classifier import Classifier
from tasks.inference.packed_shapes import (
    BATCH_TOKENS,
    FUSED_TOKENS,
    PACK_TOKENS,
    attention_is_fused,
    packed_batches,
    packed_length,
    sentences_of_row,
)
from tasks.inference.runner import Runner
from tasks.inference.sessions import CUDA
from tasks.inference.tokenization import TokenIds

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong


@cache
def exporter_sizes() -> Callable[[int, int], tuple[int, int]]:
    """Return how the exporter's graph computes rows and tokens of a row from the shape [B, S] of a batch."""
    graph = onnx.GraphProto(name="sizes")
    graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"]))
    builder = GraphBuilder(graph)
    layout = PackedLayout(builder, ["attention_mask"], np.float32, PACK_TOKENS)
    masks = builder.add("Unsqueeze", [layout.ids["attention_mask"], builder.constant([2])])
    shape = builder.add("Shape", [layout.rows(masks)])
    graph.output.append(helper.make_tensor_value_info(shape, TensorProto.INT64, [3]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def sizes(sentences: int, tokens: int) -> tuple[int, int]:
        (found,) = session.run(None, {"attention_mask": np.ones((sentences, tokens), np.int64)})
        return int(found[0]), int(found[1])

    return sizes


@unhurried
@given(lengths=st.lists(st.one_of(st.integers(1, 40), st.integers(1, 700)), max_size=400), copies=st.integers(1, 20))
def test_batches_hold_every_sentence_once_and_fit(lengths: list[int], copies: int) -> None:
    array = np.array(lengths * copies, np.int64)
    batches = packed_batches(array)
    assert sorted(np.concatenate([*batches, np.array([], np.int64)])) == list(range(len(array)))
    for batch in batches:
        assert array[batch].max() == array[batch[0]]
        length = packed_length(PACK_TOKENS, int(array[batch[0]]))
        assert len(batch) == 1 or len(batch) * length <= BATCH_TOKENS
    for batch in batches[:-1]:
        tokens = packed_length(PACK_TOKENS, int(array[batch[0]]))
        group = sentences_of_row(tokens)
        assert len(batch) % group == 0, "the last row is full"
        assert (len(batch) + group) * tokens > BATCH_TOKENS


def test_full_rows_have_a_multiple_of_eight_tokens_with_little_padding() -> None:
    for tokens in range(1, 1_025):
        length = packed_length(PACK_TOKENS, tokens)
        group = sentences_of_row(length)
        assert group * length % FUSED_TOKENS == 0
        assert group * length <= PACK_TOKENS or group == 1
        assert 0 <= length - tokens <= (0 if tokens <= 16 else 1 if tokens <= 32 else 3 if tokens <= 64 else 7)


def test_attention_of_any_batch_is_fused_and_of_few_sentences_with_little_padding() -> None:
    for sentences in range(1, 131):
        for tokens in range(1, 200):
            length = packed_length(sentences, tokens)
            of_row = min(sentences, exporter_sizes()(sentences, length)[1] // length)
            assert attention_is_fused(sentences, length)
            assert of_row * length % FUSED_TOKENS == 0
            assert 0 <= length - tokens <= 7
            assert not any(attention_is_fused(sentences, shorter) for shorter in range(tokens, length))


@pytest.mark.parametrize(
    ("tokens", "sentences"),
    [(1, 128), (7, 16), (8, 16), (9, 8), (12, 10), (16, 8), (18, 4), (40, 3), (64, 2), (72, 1), (128, 1), (136, 1)],
)
def test_a_row_has_the_most_sentences_of_which_attention_is_fused(tokens: int, sentences: int) -> None:
    assert sentences_of_row(tokens) == sentences
    assert all(more * tokens % FUSED_TOKENS for more in range(sentences + 1, PACK_TOKENS // tokens + 1))


def test_a_row_is_the_exporter_s() -> None:
    for tokens in range(1, 2 * PACK_TOKENS):
        group = sentences_of_row(tokens)
        for sentences in {1, group, 3 * group, 3 * group + 1}:
            of_row = min(sentences, group)
            assert exporter_sizes()(sentences, tokens) == (-(-sentences // of_row), of_row * tokens)


@pytest.mark.parametrize("tokens", [1, 13, 33, 65, 97, 129, 300])
def test_no_sentence_becomes_longer_than_the_model_reads(tokens: int) -> None:
    assert packed_length(40, tokens, tokens) == tokens


def test_a_batch_of_empty_sentences_has_a_token() -> None:
    assert packed_length(0, 0) == 1


# Through a bundle, on the CPU as if it were a GPU


def sentences_of_many_lengths(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice([*WORDS, SIGN], rng.integers(0, 20))) for _ in range(count)]


def as_if_on_a_gpu(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Let a classifier batch for a GPU; return the shapes that it computes from now on."""
    computed: list[tuple[int, ...]] = []
    real = Runner._run

    def record(self: Runner, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        computed.append(ids.shape)
        return real(self, ids, mask)

    monkeypatch.setattr(Runner, "_run", record)
    monkeypatch.setattr(classifier, "provider", CUDA)
    monkeypatch.setattr(classifier._runner, "provider", CUDA)
    monkeypatch.setattr(classifier, "_pool", None)
    return computed


@pytest.mark.parametrize("variant", ["fp32", "fp16"])
@pytest.mark.parametrize("count", [1, 40, 700, 2_500])
def test_padded_answers_are_those_of_batches_for_a_cpu(
    complete: Any, monkeypatch: pytest.MonkeyPatch, variant: str, count: int
) -> None:
    classifier = Classifier.from_bundle(complete["bundle"], "cpu", variant)
    sentences = sentences_of_many_lengths(count)
    expected = classifier.probabilities(sentences)
    computed = as_if_on_a_gpu(classifier, monkeypatch)
    found = classifier.probabilities(sentences)
    np.testing.assert_allclose(found, expected, atol=1e-3 if variant == "fp16" else 1e-6)
    assert computed
    most = classifier.manifest["max_length"]
    assert all(tokens == packed_length(sentences, tokens, most) for sentences, tokens in computed)
