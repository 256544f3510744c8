"""Written graphs against torch: every family, in every target, at several lengths; what has no description is named."""

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from architectures import DEBERTA_V3, DISENTANGLED, SPECIAL_IDS, random_model
from onnxruntime.transformers.onnx_model import OnnxModel
from placement import copied_tensors
from transformers import (
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from tasks.export import encoder_layout
from tasks.export.encoder_description import FeedForward, Linear
from tasks.export.encoder_families import NotDescribedError, describe_encoder
from tasks.export.encoder_graph import write_encoder
from tasks.export.graph_builder import GraphBuilder
from tasks.export.int8 import quantise_rows
from tasks.export.module_writer import (
    CPU_TARGET,
    CUDA_ONLY_TARGET,
    CUDA_TARGET,
    FP32_RESIDUAL_TARGET,
    PORTABLE_TARGET,
    Target,
    fused_gate_width,
)
from tasks.export.onnx_export import count_fused
from tasks.export.torch_reference import LogitsModule
from tasks.inference.packed_shapes import PACK_TOKENS
from tasks.inference.tokenization import TokenIds

VOCABULARY, LAYERS, POSITIONS = 60, 3, 210
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
}
CONFIGURATIONS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZES),
    "bert-tanh-one-segment": BertConfig(**SIZES, hidden_act="gelu_new", type_vocab_size=1),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "electra-same-size": ElectraConfig(**SIZES, embedding_size=32, hidden_act="relu"),
    "distilbert": DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=LAYERS, n_heads=4, hidden_dim=48, max_position_embeddings=POSITIONS
    ),
    "roberta": RobertaConfig(**SIZES, type_vocab_size=1),
    "xlm-roberta": XLMRobertaConfig(**SIZES),
    "camembert": CamembertConfig(**SIZES, pad_token_id=5),
    "mpnet": MPNetConfig(**SIZES),
    # The window is shorter than the longest sentences, and the buckets are fewer than their distances.
    "modernbert": ModernBertConfig(**SIZES, **SPECIAL_IDS, local_attention=16),
    "modernbert-short": ModernBertConfig(**SIZES | {"max_position_embeddings": 64}, **SPECIAL_IDS, local_attention=16),
    "modernbert-mean-biases": ModernBertConfig(
        **SIZES, **SPECIAL_IDS, local_attention=16, classifier_pooling="mean", attention_bias=True, mlp_bias=True,
        norm_bias=True, classifier_bias=True,
    ),
    "deberta-v3": DebertaV2Config(**SIZES, **DEBERTA_V3, position_buckets=16),
    "deberta-v2": DebertaV2Config(
        **SIZES, **DISENTANGLED, share_att_key=False, type_vocab_size=2, conv_kernel_size=3, embedding_size=16
    ),
    "deberta-c2p": DebertaV2Config(**SIZES, relative_attention=True, pos_att_type="c2p", position_buckets=16),
    "deberta-absolute": DebertaV2Config(**SIZES),
    "deberta-absolute-convolution": DebertaV2Config(**SIZES, conv_kernel_size=3, conv_act="gelu"),
}  # fmt: skip
TARGETS = {
    "portable": PORTABLE_TARGET,
    "cpu": CPU_TARGET,
    "cuda": CUDA_TARGET,
    "cuda, fp32 residual": FP32_RESIDUAL_TARGET,
}
LARGEST_DIFFERENCE = {PORTABLE_TARGET: 1e-5, CPU_TARGET: 1e-5, CUDA_TARGET: 1e-2, FP32_RESIDUAL_TARGET: 5e-3}
RELATIVE_POSITIONS = ("rel_embeddings", "relative_attention_bias")


@cache
def model(name: str) -> LogitsModule:
    """Return a model whose relative positions weigh enough that a wrong bucket shows."""
    logits = random_model(CONFIGURATIONS[name])
    for parameter, values in logits.named_parameters():
        if any(part in parameter for part in RELATIVE_POSITIONS):
            values.data *= 5
    return logits


@cache
def graph(name: str, target: Target) -> onnx.ModelProto:
    logits = model(name)
    return write_encoder(describe_encoder(logits.model.config, logits.model.state_dict()), target)


@cache
def session(name: str, target: Target) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph(name, target).SerializeToString(), providers=["CPUExecutionProvider"])


def batch(name: str, lengths: list[int]) -> dict[str, TokenIds]:
    """Return sentences of random tokens, some of them the padding's, and random segments where there are two."""
    rng = np.random.default_rng(lengths)
    pad = model(name).model.config.pad_token_id
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = rng.integers(6, VOCABULARY, mask.shape)
    ids[rng.random(mask.shape) < 0.1] = pad  # inside of sentences too
    arrays = {
        "input_ids": np.where(mask, ids, pad),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, mask.shape),
    }
    return {name: arrays[name] for name in model(name).names}


def expected_logits(name: str, inputs: dict[str, TokenIds]) -> np.ndarray:
    with torch.inference_mode():
        return model(name)(*map(torch.from_numpy, inputs.values())).numpy()


@pytest.mark.parametrize("lengths", [[1], [5], [200], [64, 3, 1, 40], [11, 4, 9, 2, 7] * 8], ids=str)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_written_graph_answers_like_torch(name: str, lengths: list[int]) -> None:
    lengths = [min(length, CONFIGURATIONS[name].max_position_embeddings) for length in lengths]
    inputs = batch(name, lengths)
    expected = expected_logits(name, inputs)
    for target, limit in LARGEST_DIFFERENCE.items():
        (logits,) = session(name, target).run(None, inputs)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=limit, err_msg=str(target))


@pytest.mark.parametrize(("features", "as_one"), [(0, 1), (8, 1), (16, 2), (24, 2), (31, 2), (512, 4)])
@pytest.mark.parametrize("name", ["modernbert-short", "modernbert-mean-biases"])
def test_heads_rotated_as_one_give_the_same_answers(name: str, features: int, as_one: int) -> None:
    """In fp32, where neither another order of features nor positions in the row instead of the sentence may show."""
    target = Target(PACK_TOKENS, fused=True, fused_norm=True, rotated_features=features)
    written, positions = graph(name, target), max(CONFIGURATIONS[name].max_position_embeddings, PACK_TOKENS)
    tables = {tuple(tensor.dims) for tensor in written.graph.initializer if tensor.name.startswith("rotation.")}
    assert tables == {(positions, as_one * 4)}  # a head has 8 features
    for lengths in ([3], [11, 4, 9, 2, 7] * 8, [64, 3, 1, 40]):
        inputs = batch(name, lengths)
        (logits,) = session(name, target).run(None, inputs)
        np.testing.assert_allclose(logits, expected_logits(name, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_int8_products_change_a_written_graph_little(name: str) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(graph(name, CPU_TARGET))
    edited = OnnxModel(changed)
    products = 6 * LAYERS + {"electra": 1, "deberta-v2": 1}.get(name, 0) + LAYERS * name.startswith("modernbert")
    assert quantise_rows(edited) == products  # the head stays in fp32
    int8 = onnxruntime.InferenceSession(edited.model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = batch(name, [64, 3, 1, 40])
    difference = np.abs(int8.run(None, inputs)[0] - expected_logits(name, inputs))
    assert difference.mean() < 0.35  # of logits around 1: the weights are random and large, the features few


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_graph_for_a_gpu_computes_sizes_on_the_cpu_and_copies_none(name: str) -> None:
    for target in (CUDA_TARGET, FP32_RESIDUAL_TARGET, CUDA_ONLY_TARGET):
        assert copied_tensors(graph(name, target)) == []


def test_a_table_of_more_than_a_hundred_numbers_would_be_read_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_layout, "sentences_by_length", lambda row: [1] * 101)
    assert copied_tensors(graph.__wrapped__("bert", CUDA_TARGET))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_portable_graph_has_standard_operators_only(name: str) -> None:
    written = graph(name, PORTABLE_TARGET)
    onnx.checker.check_model(written, full_check=True)
    assert {node.domain for node in written.graph.node} == {""}
    assert [entry.domain for entry in written.opset_import] == [""]


POST_NORM = {"SkipLayerNormalization": 2 * LAYERS, "BiasGelu": LAYERS, "MultiHeadAttention": LAYERS}
EMBEDDED = POST_NORM | {"EmbedLayerNormalization": 1}


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("bert", EMBEDDED),
        ("bert-tanh-one-segment", {"FastGelu" if name == "BiasGelu" else name: n for name, n in EMBEDDED.items()}),
        ("electra", EMBEDDED),
        ("distilbert", EMBEDDED),
        ("roberta", EMBEDDED),
        ("mpnet", EMBEDDED),
        (
            "modernbert",
            POST_NORM | {"RotaryEmbedding": 2 * LAYERS},
        ),
        ("deberta-v3", POST_NORM),
    ],
)
def test_operators_for_cuda_are_fused(name: str, fused: dict[str, int]) -> None:
    assert count_fused(graph(name, CUDA_TARGET)) == fused


def test_a_layer_for_cuda_has_no_operator_too_many() -> None:
    """Each is a kernel to start, and one sentence spends its time in starting them."""
    written = graph("modernbert", CUDA_TARGET).graph
    last = Counter(node.op_type for node in written.node if node.name.startswith(f"layer_{LAYERS - 1}/"))
    assert last == {
        "MatMul": 7, "RotaryEmbedding": 2, "MultiHeadAttention": 1, "SkipLayerNormalization": 2, "BiasGelu": 1,
        "Mul": 1, "Slice": 2,  # the first tokens of stream and context
    }  # fmt: skip


GATED_CONFIGURATIONS = {
    biases: ModernBertConfig(
        **SIZES | {"intermediate_size": 1152}, **SPECIAL_IDS, local_attention=16, mlp_bias=biases
    )
    for biases in (False, True)
}  # fmt: skip


def on_cpus(model: onnx.ModelProto) -> bytes:
    """Return a graph with what BiasSplitGelu computes in operators that CPUs have."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    builder = GraphBuilder(changed.graph)
    nodes = list(changed.graph.node)
    del changed.graph.node[:]
    for node in nodes:
        if node.op_type != "BiasSplitGelu":
            changed.graph.node.append(node)
            continue
        left = builder.add("Split", [builder.add("Add", list(node.input))], extra=("right",), axis=-1, num_outputs=2)
        builder.add("Mul", [left, builder.add("Gelu", [f"{left}_right"])], node.output[0])
    return changed.SerializeToString()


@pytest.mark.parametrize("biases", GATED_CONFIGURATIONS)
def test_a_gate_in_one_operator_gives_the_same_answers(biases: bool) -> None:
    """The operator itself runs on GPUs only; here its inputs are proved."""
    logits = random_model(GATED_CONFIGURATIONS[biases])
    encoder = describe_encoder(logits.model.config, logits.model.state_dict())
    ids = np.random.default_rng(0).integers(6, VOCABULARY, (7, 11))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    with torch.inference_mode():
        expected = logits(*map(torch.from_numpy, inputs.values())).numpy()
    for target, limit in ((replace(CPU_TARGET, fused_gate=True), 1e-5), (CUDA_ONLY_TARGET, 1e-2)):
        written = write_encoder(encoder, target)
        layer = Counter(node.op_type for node in written.graph.node if "layer_1/feed_forward" in node.name)
        assert layer == {"MatMul": 2, "BiasSplitGelu": 1}
        widths = {weight.dims[-1] for weight in written.graph.initializer if weight.name.endswith("gated.weight")}
        assert widths == {2 * 1280}
        session = onnxruntime.InferenceSession(on_cpus(written), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, inputs)[0], expected, rtol=0, atol=limit)


@pytest.mark.parametrize(
    ("features", "gate", "activation", "width"),
    [
        (1152, True, "gelu", 1280), (1280, True, "gelu", 1280), (2560, True, "gelu", 2560), (5000, True, "gelu", 5120),
        (1281, True, "gelu", 0), (1137, True, "gelu", 0), (6000, True, "gelu", 0),
        (1152, True, "relu", 0), (1152, True, "gelu_new", 0), (1152, False, "gelu", 0),
    ],
)  # fmt: skip
def test_a_gate_is_fused_where_little_is_padded(features: int, gate: bool, activation: str, width: int) -> None:
    linear = Linear("", np.zeros((features, 1), np.float32), None)
    assert fused_gate_width(FeedForward(linear, linear if gate else None, activation, linear)) == width


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_only_sizes_are_computed_from_shapes_and_no_node_branches(name: str) -> None:
    """What a CUDA graph can hold: no control flow, and no tensor of a size that depends on values."""
    operators = {node.op_type for node in graph(name, CUDA_TARGET).graph.node}
    assert not operators & {"If", "Loop", "Scan", "NonZero", "Unique", "Compress", "GatherElements", "Range"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert", "deberta-v2"])
def test_equal_weights_give_equal_bytes(name: str, target: Target) -> None:
    logits = model(name)
    again = write_encoder(describe_encoder(logits.model.config, logits.model.state_dict()), target)
    assert again.SerializeToString(deterministic=True) == graph(name, target).SerializeToString(deterministic=True)


def test_every_weight_keeps_its_name_in_torch() -> None:
    names = {tensor.name for tensor in graph("bert", PORTABLE_TARGET).graph.initializer}
    dropped = ("key.bias", "value.bias")  # softmax cancels the first; the second is part of the output's
    assert names >= {name for name, _ in model("bert").model.named_parameters() if not name.endswith(dropped)}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BertConfig(**SIZES, is_decoder=True), "is_decoder = True has no description"),
        (BertConfig(**SIZES, hidden_act="quick_gelu"), "hidden_act = 'quick_gelu' has no description"),
        (
            BertConfig(**SIZES, position_embedding_type="relative_key"),
            "position_embedding_type = 'relative_key' has no description",
        ),
        (
            ModernBertConfig(
                **SIZES, **SPECIAL_IDS,
                rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            ),
            "rope_type = 'linear' has no description",
        ),
        (DebertaV2Config(**SIZES, attention_head_size=4), "attention_head_size = 4 has no description"),
    ],
)  # fmt: skip
def test_a_configuration_without_a_description_is_named(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(NotDescribedError, match=f"^{reason}$"):
        describe_encoder(config, random_model(config).model.state_dict())


def test_weights_that_are_missing_unknown_or_of_another_type_are_named() -> None:
    logits = model("bert")
    weights = logits.model.state_dict()
    changes: dict[str, Any] = {
        "there is no weight classifier.bias": {name: weights[name] for name in weights if name != "classifier.bias"},
        "1 weights have no place in the description, such as adapter.weight": weights
        | {"adapter.weight": torch.zeros(1)},
        "the weight classifier.bias is in torch.bfloat16": weights | {"classifier.bias": torch.zeros(2).bfloat16()},
    }
    for reason, changed in changes.items():
        with pytest.raises(NotDescribedError, match=f"^{reason}$"):
            describe_encoder(logits.model.config, changed)
