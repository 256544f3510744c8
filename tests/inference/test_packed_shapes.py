"""Batches of a GPU: every sentence once, no more rows than a batch has, and few shapes, whatever the sentences are."""

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

from tasks.export.encoder_layout import PACKED_ROW_TOKENS, PackedLayout
from tasks.export.graph_builder import GraphBuilder
from tasks.inference.classifier import Classifier
from tasks.inference.packed_shapes import PACK_ROWS, PACK_TOKENS, packed_batches, packed_shape
from tasks.inference.runner import Runner
from tasks.inference.sessions import CUDA
from tasks.inference.tokenization import TokenIds

LONG = 8_192  # tokens that a model reads at most
LENGTHS = 29  # to which sentences of at most a row are padded
ROW_COUNTS = 13
ROW_TOKENS = 10  # numbers of tokens of a row that these lengths give

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong


@cache
def exporter_sizes() -> Callable[[int, int], tuple[int, int]]:
    """Return how the exporter's graph computes rows and tokens of a row from the shape [B, S] of a batch."""
    graph = onnx.GraphProto(name="sizes")
    graph.input.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"]))
    builder = GraphBuilder(graph)
    layout = PackedLayout(builder, ["attention_mask"], np.float32, PACKED_ROW_TOKENS)
    masks = builder.add("Unsqueeze", [layout.ids["attention_mask"], builder.constant([2])])
    shape = builder.add("Shape", [layout.rows(masks)])
    graph.output.append(helper.make_tensor_value_info(shape, TensorProto.INT64, [3]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def sizes(sentences: int, tokens: int) -> tuple[int, int]:
        (found,) = session.run(None, {"attention_mask": np.ones((sentences, tokens), np.int64)})
        return int(found[0]), int(found[1])

    return sizes


def full_batch(tokens: int) -> int:
    return len(packed_batches(np.full(100_000, tokens))[0])


def batch_sizes(tokens: int) -> range:
    return range(1, full_batch(tokens) + 1)


@unhurried
@given(lengths=st.lists(st.one_of(st.integers(1, 40), st.integers(1, 700)), max_size=400), copies=st.integers(1, 20))
def test_batches_hold_every_sentence_once_and_fit(lengths: list[int], copies: int) -> None:
    array = np.array(lengths * copies, np.int64)
    batches = packed_batches(array)
    assert sorted(np.concatenate([*batches, np.array([], np.int64)])) == list(range(len(array)))
    for batch in batches:
        assert array[batch].max() == array[batch[0]]
        sentences, tokens = packed_shape(len(batch), int(array[batch[0]]), LONG)
        assert sentences >= len(batch)
        assert tokens >= array[batch].max()
        rows = -(-sentences // max(1, PACK_TOKENS // tokens))
        assert tokens > PACK_TOKENS or rows <= PACK_ROWS
        assert sentences * tokens <= PACK_ROWS * PACK_TOKENS
    for batch in batches[:-1]:
        tokens = packed_shape(len(batch), int(array[batch[0]]), LONG)[1]
        assert len(batch) == PACK_ROWS * (PACK_TOKENS // tokens) or len(batch) == PACK_ROWS * PACK_TOKENS // tokens


def test_a_row_is_the_exporter_s() -> None:
    assert PACK_TOKENS == PACKED_ROW_TOKENS


@pytest.mark.parametrize("tokens", range(1, PACK_TOKENS + 1))
def test_longer_sentences_cost_no_row_and_less_than_an_eighth_of_a_row_s_tokens(tokens: int) -> None:
    padded = packed_shape(1, tokens, LONG)[1]
    assert PACK_TOKENS // padded == PACK_TOKENS // tokens
    assert 0 <= (padded - tokens) * (PACK_TOKENS // tokens) < PACK_TOKENS // 8
    for sentences in {1, 33, full_batch(tokens) // 3, full_batch(tokens)}:
        rows, _ = exporter_sizes()(sentences, tokens)
        assert exporter_sizes()(sentences, padded)[0] == rows
    full = packed_shape(full_batch(tokens), tokens, LONG)
    assert full == (full_batch(tokens), padded)
    assert exporter_sizes()(*full) == (PACK_ROWS, padded * (PACK_TOKENS // tokens))


@pytest.mark.parametrize("tokens", [3, 8, 11, 30, 64, 100])
def test_sentences_that_are_added_fill_rows_of_which_there_are_few_numbers(tokens: int) -> None:
    found = set()
    for sentences in batch_sizes(tokens):
        needed = -(-sentences // (PACK_TOKENS // tokens))
        padded, length = packed_shape(sentences, tokens, LONG)
        rows = padded // (PACK_TOKENS // tokens)
        assert exporter_sizes()(padded, length) == (rows, PACK_TOKENS // tokens * length)
        assert needed <= rows < min(2 * needed, needed + PACK_ROWS // 8)
        found.add(rows)
    assert sorted(found) == [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256]
    assert len(found) == ROW_COUNTS


def test_all_batches_of_sentences_of_at_most_a_row_have_these_shapes() -> None:
    shapes = {
        packed_shape(sentences, tokens, LONG)
        for tokens in range(1, PACK_TOKENS + 1)
        for sentences in batch_sizes(tokens)
    }
    assert len({length for _, length in shapes}) == LENGTHS
    assert len(shapes) == LENGTHS * ROW_COUNTS
    computed = {(sentences // (PACK_TOKENS // length), PACK_TOKENS // length * length) for sentences, length in shapes}
    assert len(computed) == ROW_TOKENS * ROW_COUNTS


def test_longer_sentences_have_eight_lengths_from_one_power_of_two_to_the_next() -> None:
    for start in (128, 256, 512, 1_024):
        found = {packed_shape(1, tokens, LONG)[1] for tokens in range(start + 1, 2 * start + 1)}
        assert found == set(range(start + start // 8, 2 * start + 1, start // 8))
    shapes = {packed_shape(sentences, tokens, 512) for tokens in range(129, 513) for sentences in batch_sizes(tokens)}
    assert len(shapes) <= 16 * ROW_COUNTS


@pytest.mark.parametrize("tokens", [1, 13, 33, 65, 97, 129, 300])
def test_no_sentence_becomes_longer_than_the_model_reads(tokens: int) -> None:
    assert packed_shape(40, tokens, tokens)[1] == tokens


@pytest.mark.parametrize(("sentences", "tokens"), [(257, 128), (1_000, 70), (100, 512), (2, 40_000)])
def test_a_batch_above_the_full_size_gets_no_more_sentences(sentences: int, tokens: int) -> None:
    assert packed_shape(sentences, tokens, LONG)[0] == sentences


def test_an_empty_batch_stays_empty() -> None:
    assert packed_shape(0, 8, LONG) == (0, 8)


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
    assert all(shape == packed_shape(*shape, classifier.manifest["max_length"]) for shape in computed)


def test_other_sentences_have_the_same_shapes(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier.from_bundle(exported["bundle"], "cpu")
    sentences = sentences_of_many_lengths(8_000)
    computed = as_if_on_a_gpu(classifier, monkeypatch)
    for start in range(0, 8_000, 1_600):
        classifier.logits(sentences[start : start + 1_600 - start // 500])
    assert len(computed) == 5
    assert len(set(computed)) == 1
