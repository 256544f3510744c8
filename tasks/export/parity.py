"""Measures ONNX graphs against torch's answers to random tokens and to the validation sentences.

Whether a graph ships is decided by `shipping_rule`.

Shape letters: B sentences, S tokens.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tasks.evaluation.metrics import mcc
from tasks.evaluation.paired_tests import contingency, difference_quantile
from tasks.export.shipping_rule import LOSS_CONFIDENCE, PARITY_LIMITS, Parity
from tasks.export.torch_reference import PARITY_BATCH, Logits, ParityCase, TorchReference, largest_difference
from tasks.inference.cpu_limits import compute_threads
from tasks.inference.onnx_runtime import onnxruntime
from tasks.inference.sessions import CUDA, open_session
from tasks.inference.tokenization import TokenIds

# fp32 computes what torch computes: a wrong graph differs on every sentence, or on those of some length, or on padded
# ones, and the random tokens have lengths and padding of their own. So a few batches from the longest to the shortest
# sentences are enough, and a CPU takes seconds for all. fp16 and int8, whose labels are counted, get every sentence.
FP32_SENTENCES = 128
GPU_SENTENCES = 256  # of a batch on a GPU, which plans attention anew for each shape
PARITY_DEVICES = {"fp32": "cpu", "fp16": "auto", "int8": "cpu"}  # auto: a GPU if there is one


def compare_variant(variant: str, graph: Path, reference: TorchReference) -> Parity:
    """Measure a graph of a variant on the device that it is for, or on a CPU; fp32 on some of the sentences."""
    real = reference.real
    if variant == "fp32":
        step = -(-len(real) * PARITY_BATCH // FP32_SENTENCES) or 1
        real = real[::-1][::step][::-1]  # with the longest sentences
    cases = reference.random + real
    provider, answers = _run_graph(cases, graph, PARITY_DEVICES[variant], reference.pad_id)
    parity = _summarise(provider, cases, answers)
    factor = PARITY_LIMITS[variant].half_factor
    if np.isfinite(factor) and real and not parity["not_finite"]:
        distances = [largest_difference(case, answer) for case, answer in zip(cases, answers, strict=True)]
        parity["half"] = reference.half.measure(distances[len(reference.random) :], factor)
    return parity


def _run_graph(cases: list[ParityCase], graph: Path, device: str, pad_id: int) -> tuple[str, list[Logits]]:
    """Return the provider that ran a graph, and its logits [B, 2] for each case; a CPU runs a case on each core."""
    session = open_session(graph, device, threads=1)
    provider = session.get_providers()[0]
    if provider == CUDA:
        return provider, run_merged(session, cases, pad_id)

    def run(case: ParityCase) -> Logits:
        logits: Logits = session.run(None, case.inputs)[0]
        return logits

    with ThreadPoolExecutor(compute_threads()) as pool:
        return provider, list(pool.map(run, cases[::-1]))[::-1]  # the longest sentences first


def run_merged(session: onnxruntime.InferenceSession, cases: list[ParityCase], pad_id: int) -> list[Logits]:
    """Return the logits [B, 2] of each case, with neighbours of one name in batches of up to `GPU_SENTENCES`."""
    answers: list[Logits] = []
    for group in _groups(cases):
        logits = session.run(None, _merge(group, pad_id))[0]
        answers += np.split(logits, np.cumsum([len(case.expected) for case in group])[:-1])
    return answers


def _groups(cases: list[ParityCase]) -> Iterator[list[ParityCase]]:
    """Divide cases into groups of one name and up to `GPU_SENTENCES` sentences."""
    group: list[ParityCase] = []
    for case in cases:
        sentences = sum(len(each.expected) for each in [*group, case])
        if group and (case.name != group[0].name or sentences > GPU_SENTENCES):
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def _merge(cases: list[ParityCase], pad_id: int) -> dict[str, TokenIds]:
    """Stack the inputs of cases, padded on the right to the longest."""
    longest = max(case.inputs["input_ids"].shape[1] for case in cases)

    def stack(name: str) -> TokenIds:
        fill = pad_id if name == "input_ids" else 0
        arrays = [case.inputs[name] for case in cases]
        return np.concatenate(
            [np.pad(each, [(0, 0), (0, longest - each.shape[1])], constant_values=fill) for each in arrays]
        )

    return {name: stack(name) for name in cases[0].inputs}


def _summarise(provider: str, cases: list[ParityCase], answers: list[Logits]) -> Parity:
    """Summarise a graph's logits by their differences from torch's, labels and MCC."""
    difference: dict[str, float] = {}
    for case, answer in zip(cases, answers, strict=True):
        before = difference.get(case.name, 0.0)
        difference[case.name] = float(np.maximum(largest_difference(case, answer), before))  # unlike max(), keeps NaN
    not_finite = [name for name, largest in difference.items() if not np.isfinite(largest)]
    parity = Parity(
        provider=provider,
        difference={name: largest for name, largest in difference.items() if name not in not_finite},
        not_finite=not_finite,
        sentences=0,
        changed=0,
        mcc=0.0,
        torch_mcc=0.0,
        mcc_loss_low=0.0,
        half=None,
    )
    labelled = [
        (case.labels, answer.argmax(axis=1), case.expected.argmax(axis=1))
        for case, answer in zip(cases, answers, strict=True)
        if case.labels is not None
    ]
    if labelled:
        labels, ours, torchs = (np.concatenate(part) for part in zip(*labelled, strict=True))
        parity["sentences"], parity["changed"] = len(labels), int((ours != torchs).sum())
        parity["mcc"], parity["torch_mcc"] = mcc(labels, ours), mcc(labels, torchs)
        parity["mcc_loss_low"] = 0.0 - difference_quantile(contingency(labels, ours, torchs), LOSS_CONFIDENCE)
    return parity
