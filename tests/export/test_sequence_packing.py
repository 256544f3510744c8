"""Packed rows: the same logits for every shape of batch, and graphs that are left alone."""

import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from architectures import export_once
from numpy.typing import NDArray
from onnxruntime.transformers.onnx_model import OnnxModel
from placement import copied_tensors

from tasks.export.sequence_packing import pack_rows
from tasks.inference.packed_shapes import sentences_of_row

FUSABLE = ["bert", "roberta"]
ROW = 24  # tokens, so that small batches fill several


class Pair:
    """A fused graph before and after packing."""

    def __init__(self, name: str) -> None:
        self.name = name
        logits, exported, _ = export_once(name)
        self.config = logits.model.config
        optimised = exported.optimised.model
        self.packed = OnnxModel(copy.deepcopy(optimised))
        assert pack_rows(self.packed, ROW)
        self.sessions = [
            onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            for model in (optimised, self.packed.model)
        ]

    def logits(self, lengths: list[int]) -> list[NDArray[np.float32]]:
        """Return both graphs' logits for a batch of random sentences of these lengths."""
        width = max(lengths)
        mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.random.default_rng(sum(lengths)).integers(5, self.config.vocab_size, mask.shape)
        feed = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": 0 * mask}
        return [
            session.run(None, {node.name: feed[node.name] for node in session.get_inputs()})[0]
            for session in self.sessions
        ]


@pytest.fixture(scope="module", params=FUSABLE)
def pair(request: Any) -> Pair:
    return Pair(request.param)


@pytest.mark.parametrize(
    "lengths",
    [
        [5],
        [1],
        [4, 4, 4, 4, 4, 4],  # one full row
        [4, 4, 4, 4, 4, 4, 4],  # one more
        [3, 1, 2, 3, 1, 2, 3, 3, 3],  # one row and a bit, lengths that differ
        [12, 3],
        [13, 2, 7],  # more than half a row: each alone
        [24, 24],
        [30, 1],  # longer than a row
        [2] * 40,
    ],
)
def test_packed_sentences_have_the_logits_of_unpacked_ones(pair: Pair, lengths: list[int]) -> None:
    apart, together = pair.logits(lengths)
    np.testing.assert_allclose(together, apart, atol=2e-5)


def test_other_sentences_of_a_row_change_nothing(pair: Pair) -> None:
    alone = pair.logits([4])[1]
    ids = np.random.default_rng(4).integers(5, pair.config.vocab_size, (1, 4))
    others = np.random.default_rng(0).integers(5, pair.config.vocab_size, (5, 4))
    batch = np.concatenate([ids, others])
    feed = {"input_ids": batch, "attention_mask": np.ones_like(batch), "token_type_ids": 0 * batch}
    session = pair.sessions[1]
    among = session.run(None, {node.name: feed[node.name] for node in session.get_inputs()})[0]
    np.testing.assert_allclose(among[:1], alone, atol=2e-5)


def test_each_layer_attends_over_rows_and_the_last_keeps_only_first_tokens(pair: Pair) -> None:
    layers = pair.config.num_hidden_layers
    assert len(pair.packed.get_nodes_by_op_type("MultiHeadAttention")) == layers
    assert not pair.packed.get_nodes_by_op_type("Attention")
    cuts = [node for node in pair.packed.get_nodes_by_op_type("Gather") if node.attribute and node.attribute[0].i == 1]
    assert len(cuts) == 3  # the last layer's attention output, its residual, and the head's choice


def test_rows_have_as_many_sentences_as_the_written_graph_s(pair: Pair) -> None:
    model = copy.deepcopy(pair.packed.model)
    asking = pair.packed.get_nodes_by_op_type("MultiHeadAttention")[0].input[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(asking))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for tokens in range(1, ROW + 3):
        for sentences in (1, 7, 40):
            ids = np.ones((sentences, tokens), np.int64)
            feed = {node.name: ids for node in session.get_inputs()} | {"token_type_ids": 0 * ids}
            (queries,) = session.run([asking], {node.name: feed[node.name] for node in session.get_inputs()})
            group = min(sentences, sentences_of_row(tokens, ROW))
            assert queries.shape[:2] == (-(-sentences // group), group * tokens)


def test_sizes_are_computed_on_the_cpu_and_none_is_copied(pair: Pair) -> None:
    model = OnnxModel(copy.deepcopy(export_once(pair.name)[1].optimised.model))
    assert pack_rows(model)  # rows of the product's size
    assert copied_tensors(model.model) == []


def test_no_weight_is_kept_twice(pair: Pair) -> None:
    held = {tensor.name for tensor in pair.packed.model.graph.initializer}
    used = {name for node in pair.packed.nodes() for name in node.input}
    assert held <= used


def test_a_graph_without_fused_attention_is_left_alone() -> None:
    model = OnnxModel(copy.deepcopy(export_once("modernbert")[1].optimised.model))
    before = model.model.SerializeToString()
    assert not pack_rows(model)
    assert model.model.SerializeToString() == before


@pytest.mark.parametrize("operator", ["Softmax", "ReduceMean"])
def test_a_graph_that_mixes_tokens_outside_attention_is_left_alone(operator: str) -> None:
    model = OnnxModel(copy.deepcopy(export_once("bert")[1].optimised.model))
    model.get_nodes_by_op_type("BiasGelu")[0].op_type = operator
    before = model.model.SerializeToString()
    assert not pack_rows(model)
    assert model.model.SerializeToString() == before
