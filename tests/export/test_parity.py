"""What is measured of a graph against torch, and that every kind of damage to a graph is refused."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from architectures import SIZES, random_model
from onnx import numpy_helper
from tiny import tiny_bert
from toy import origin
from transformers import BertConfig, MPNetConfig, PreTrainedConfig, RobertaConfig

from tasks.data.snapshots import read_snapshot
from tasks.data.token_limit import count_positions
from tasks.evaluation.metrics import mcc
from tasks.export import parity as measuring
from tasks.export import torch_reference as torchs
from tasks.export.parity import compare_variant, run_merged
from tasks.export.shipping_rule import parity_error
from tasks.export.torch_reference import (
    HalfReference,
    LogitsModule,
    ParityCase,
    TorchReference,
    load_logits,
    random_cases,
    random_inputs,
    torch_logits,
    torch_reference,
)
from tasks.inference.bundle import VARIANTS
from tasks.inference.sessions import open_session

Damage = Callable[[np.ndarray], np.ndarray]

HEAD, NORM = "classifier.weight", "bert.encoder.layer.0.output.LayerNorm.weight"


@pytest.fixture(scope="module")
def reference(trained: Any, toy_split: tuple[str, str, str]) -> TorchReference:
    return torch_reference(trained["model"], origin()["max_length"], toy_split[1])


def damaged(graph: Path, folder: Path, weight: str, damage: Damage) -> Path:
    """Write a copy of a graph with one weight changed."""
    model = onnx.load(graph)
    (tensor,) = [each for each in model.graph.initializer if each.name == weight]
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(damage(values).astype(values.dtype), weight))
    onnx.save_model(model, folder / graph.name)
    return folder / graph.name


def flip_row(values: np.ndarray) -> np.ndarray:
    return values * np.array([[1.0], [-1.0]])


def scale(factor: float) -> Damage:
    return lambda values: values * factor


def add_noise(size: float) -> Damage:
    return lambda values: values + size * np.random.default_rng(0).normal(size=values.shape)


def put(value: float) -> Damage:
    def damage(values: np.ndarray) -> np.ndarray:
        found = values.copy()
        found.flat[0] = value
        return found

    return damage


NOT_FINITE = "has NaN or Inf logits at 1x1, expected finite ones"
DAMAGES: dict[str, tuple[str, Damage, str, str]] = {  # weight, damage, part of why fp16 and int8 are refused
    "head scaled by 1.02": (HEAD, scale(1.02), "torch's own fp16 on cpu differs by", ""),
    "head scaled to 0": (HEAD, scale(0.0), "of 88 labels (", "of 88 labels ("),
    "row of the head negated": (HEAD, flip_row, "of 88 labels (", "of 88 labels ("),
    "little noise in a layer": (NORM, add_noise(0.02), "torch's own fp16 on cpu differs by", ""),
    "much noise in a layer": (NORM, add_noise(3.0), "of 88 labels (", "of 88 labels ("),
    "NaN in a weight": (NORM, put(np.nan), NOT_FINITE, NOT_FINITE),
    "Inf in a weight": (NORM, put(np.inf), NOT_FINITE, NOT_FINITE),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_graph_is_refused_with_the_reason(
    name: str, complete: Any, reference: TorchReference, tmp_path: Path
) -> None:
    weight, damage, *reasons = DAMAGES[name]
    for variant, reason in zip(("fp16", "int8"), reasons, strict=True):
        graph = damaged(Path(complete["bundle"]) / VARIANTS[variant], tmp_path, weight, damage)
        fault = parity_error(variant, compare_variant(variant, graph, reference))
        assert reason in fault if reason and fault else not (reason or fault)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_without_damage_ships(variant: str, complete: Any, reference: TorchReference) -> None:
    parity = compare_variant(variant, Path(complete["bundle"]) / VARIANTS[variant], reference)
    assert parity_error(variant, parity) is None
    assert parity | {"half": None} == complete["variants"][variant] | {"half": None}


def test_all_sentences_are_compared_from_short_to_long(
    reference: TorchReference, toy_split: tuple[str, str, str]
) -> None:
    labels = read_snapshot(toy_split[1])["label"].to_numpy()
    assert [len(case.expected) for case in reference.real] == [32, 32, 24]
    found = np.concatenate([case.labels for case in reference.real if case.labels is not None])
    assert sorted(found) == sorted(labels)
    lengths = [case.inputs["attention_mask"].sum(axis=1) for case in reference.real]
    assert np.all(np.diff(np.concatenate(lengths)) >= 0)


def test_fp32_is_compared_on_some_sentences_of_every_length(
    complete: Any, reference: TorchReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "FP32_SENTENCES", 56)
    graph = Path(complete["bundle"]) / VARIANTS["fp32"]
    assert compare_variant("fp32", graph, reference)["sentences"] == 24 + 32  # the longest batch and the shortest
    monkeypatch.setattr(measuring, "FP32_SENTENCES", 32)
    assert compare_variant("fp32", graph, reference)["sentences"] == 24  # the longest
    assert compare_variant("fp32", graph, reference._replace(real=[]))["sentences"] == 0


def labelled_case(labels: list[int], expected: list[int]) -> ParityCase:
    """Return a case whose torch logits say `expected`, for a graph that answers its input."""
    return ParityCase("sentences", {}, np.eye(2, dtype=np.float32)[expected], np.array(labels))


def test_labels_and_mcc_are_counted_over_all_batches() -> None:
    cases = [labelled_case([0, 1, 1], [0, 1, 0]), labelled_case([0, 1], [1, 1])]
    answers = [np.eye(2, dtype=np.float32)[part] for part in ([0, 0, 0], [0, 1])]
    parity = measuring._summarise("CPUExecutionProvider", cases, answers)
    assert (parity["sentences"], parity["changed"], parity["difference"]) == (5, 2, {"sentences": 1.0})
    assert parity["torch_mcc"] == mcc([0, 1, 1, 0, 1], [0, 1, 0, 1, 1])
    assert parity["mcc"] == mcc([0, 1, 1, 0, 1], [0, 0, 0, 0, 1])


def steep_model(factor: float) -> tuple[LogitsModule, list[ParityCase]]:
    """Return a model whose logits, and so its rounding errors, are large, and three cases of four sentences."""
    logits = LogitsModule(tiny_bert())
    logits.model.classifier.weight.data *= factor
    inputs = [random_inputs(logits, 4, length) for length in (5, 9, 20)]
    return logits, [
        ParityCase("sentences", each, expected, np.zeros(4, np.int64))
        for each, expected in zip(inputs, torch_logits(logits, inputs), strict=True)
    ]


def test_torchs_half_precision_is_computed_on_a_cpu_only_as_far_as_needed() -> None:
    logits, cases = steep_model(100.0)
    whole = HalfReference(lambda: logits, cases).measure([9.0, 9.0, 9.0], 2.0)
    assert whole["difference"] is not None
    assert (whole["precision"], whole["device"], whole["sentences"]) == ("fp16", "cpu", 12)
    assert 0.02 < whole["difference"] < 2
    assert HalfReference(lambda: logits, cases).measure([0.0, 0.005, 0.0], 2.0)["sentences"] == 0
    half = HalfReference(lambda: logits, cases)
    assert half.measure([0.0, 0.01, 0.0], 2.0)["sentences"] == 4  # torch differs by more than half of it there
    assert half.measure([9.0, 0.0, 0.0], 2.0) == whole  # the others are computed now
    assert next(logits.parameters()).dtype == torch.float32


def test_torchs_half_precision_may_overflow_and_then_limits_nothing() -> None:
    logits, cases = steep_model(1e6)
    assert HalfReference(lambda: logits, cases).measure([9.0, 9.0, 9.0], 2.0)["difference"] is None


def test_without_an_fp16_kernel_torch_computes_in_bf16_and_the_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LogitsModule.forward

    def refuse_half(self: LogitsModule, *inputs: torch.Tensor) -> torch.Tensor:
        if self.model.dtype == torch.float16:
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'")
        return forward(self, *inputs)

    monkeypatch.setattr(LogitsModule, "forward", refuse_half)
    logits, cases = steep_model(100.0)
    found = HalfReference(lambda: logits, cases).measure([99.0, 99.0, 99.0], 2.0)
    assert (found["precision"], found["device"], found["sentences"]) == ("bf16", "cpu", 12)
    assert found["difference"] is not None
    assert found["difference"] > 0.1


def test_where_the_gpus_memory_is_taken_torch_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    to = LogitsModule.to

    def refuse_gpu(self: LogitsModule, device: str) -> LogitsModule:
        if device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return to(self, device)

    logits, cases = steep_model(100.0)
    monkeypatch.setattr(LogitsModule, "to", refuse_gpu)
    monkeypatch.setattr(torchs, "resolve_device", lambda _: "cuda")
    again = torch_logits(logits, [case.inputs for case in cases])
    assert all(np.array_equal(case.expected, answer) for case, answer in zip(cases, again, strict=True))
    half = HalfReference(lambda: logits, cases)
    half.compute_on_gpu(logits)
    assert half.measure([9.0, 9.0, 9.0], 2.0)["device"] == "cpu"


def test_torchs_half_precision_goes_to_another_process_without_the_model(
    trained: Any, reference: TorchReference
) -> None:
    half, distances = HalfReference(partial(load_logits, trained["model"]), reference.real), [9.0] * len(reference.real)
    sent = pickle.dumps(half)
    assert len(sent) < 50_000
    expected = half.measure(distances, 2.0)
    assert pickle.loads(sent).measure(distances, 2.0) == expected
    assert expected["sentences"] == 88


def test_torch_computes_a_case_on_each_core_and_gets_its_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, seen = LogitsModule.forward, list[int]()

    def watch(self: LogitsModule, *inputs: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return forward(self, *inputs)

    monkeypatch.setattr(LogitsModule, "forward", watch)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        random_cases(LogitsModule(tiny_bert()))
        assert (seen, torch.get_num_threads()) == ([1] * 4, 3)
    finally:
        torch.set_num_threads(threads)


def test_on_a_gpu_cases_of_one_name_are_merged_and_answers_stay_those_of_each(
    complete: Any, reference: TorchReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(Path(complete["bundle"]) / VARIANTS["fp32"], "cpu")
    cases = reference.random + reference.real
    monkeypatch.setattr(measuring, "GPU_SENTENCES", 64)
    groups = [[len(case.expected) for case in group] for group in measuring._groups(cases)]
    assert groups == [[1], [1], [7], [32], [32, 32], [24]]
    answers = run_merged(session, cases, reference.pad_id)
    for case, answer in zip(cases, answers, strict=True):
        assert np.abs(answer - case.expected).max() < 1e-5


def test_random_tokens_are_the_same_each_time() -> None:
    first, again = (random_cases(LogitsModule(tiny_bert())) for _ in range(2))
    assert [case.name for case in first] == ["1x1", "1x5", "7x64", "32x17"]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.inputs["input_ids"], other.inputs["input_ids"])
        assert np.array_equal(one.expected, other.expected)


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SIZES, max_position_embeddings=16),
        RobertaConfig(**SIZES, max_position_embeddings=64, pad_token_id=1),
        MPNetConfig(**SIZES, max_position_embeddings=64, pad_token_id=1),
    ],
    ids=["bert-16", "roberta-62", "mpnet-62"],
)
def test_random_tokens_are_no_more_than_the_encoder_has_positions_for(config: PreTrainedConfig) -> None:
    longest = max(case.inputs["input_ids"].shape[1] for case in random_cases(random_model(config)))
    assert longest == count_positions(config.to_dict())
