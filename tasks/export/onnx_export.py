"""Makes the ONNX graphs of a classifier: fp32 as the reference, fused fp16 for CUDA, int8 for CPUs.

The writer makes them from the encoder's description (`encoder_families`, `encoder_graph`). A model that no description
fits goes through torch's exporters and ONNX Runtime's optimiser (`torch_export`). Each graph is compared with torch.
"""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import onnx
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.core.errors import VerdictError, summarise_error
from tasks.export.encoder_description import EncoderDescription
from tasks.export.encoder_families import NotDescribedError, load_encoder
from tasks.export.encoder_graph import write_encoder
from tasks.export.feature_sizes import choose_inputs, measure_sizes
from tasks.export.int8 import quantise_blocks, quantise_rows
from tasks.export.module_writer import (
    CPU_TARGET,
    CUDA_ONLY_TARGET,
    CUDA_TARGET,
    FP32_RESIDUAL_TARGET,
    PORTABLE_TARGET,
    fused_gate_width,
)
from tasks.export.parity import compare_variant
from tasks.export.shipping_rule import Attempt, Parity, parity_error
from tasks.export.torch_reference import TorchReference, load_logits
from tasks.inference.bundle import VARIANTS, ModelInfo
from tasks.inference.cpu_limits import compute_threads
from tasks.inference.external_data import reject_external_data
from tasks.inference.sessions import should_try_gpu
from tasks.inference.tokenization import TokenIds

FUSED_OPS = (
    "Attention",
    "MultiHeadAttention",
    "EmbedLayerNormalization",
    "SkipLayerNormalization",
    "BiasGelu",
    "BiasSplitGelu",
    "FastGelu",
    "RotaryEmbedding",
)
MAX_GRAPH_BYTES = onnx.checker.MAXIMUM_PROTOBUF  # of one file


class WrittenGraphs(TypedDict):
    """The written graphs: model info, exporter, fused operators, parity by variant, reason for each variant left out.

    `exporter` is writer, tracing or dynamo; `fused` counts each fused operator in the graph that has most of it.
    `attempts` has every way in which each variant was made. `remarks` has a line for each exporter and each maker of a
    variant that was tried before and failed. `digests` has the SHA-256 of each graph by file name, `seconds` what each
    part took; variants are made side by side.
    """

    facts: ModelInfo
    exporter: str
    fused: dict[str, int]
    parity: dict[str, Parity]
    left_out: dict[str, str]
    attempts: dict[str, list[Attempt]]
    remarks: list[str]
    digests: dict[str, str]
    seconds: dict[str, float]


VariantMaker = Callable[[], onnx.ModelProto]


class WrittenVariant(NamedTuple):
    """An attempt with each maker that was tried, of which the last ships if it has no fault.

    `fused` counts the fused operators of the graph that ships, `digest` is its file's SHA-256, `seconds` has what each
    part of each attempt took.
    """

    attempts: list[Attempt]
    fused: Counter[str]
    digest: str
    seconds: dict[str, float]


class GraphSource(NamedTuple):
    """What makes a model's graphs: writer, tracing or dynamo, and the makers of each variant in order of preference."""

    exporter: str
    makers: dict[str, list[VariantMaker]]


def write_graphs(model_folder: str, folder: str, facts: ModelInfo, reference: TorchReference) -> WrittenGraphs:
    """Write model.onnx and every other variant within its parity limits into a folder.

    Args:
        model_folder: output of `fine_tune`.
        folder: receives the graphs; must exist.
        facts: written to each graph's metadata.
        reference: torch's answers; without sentences only fp32 is written.

    Raises:
        VerdictError: if the fp32 graph exceeds its limits.
    """
    seconds: dict[str, float] = {}
    with timed(seconds, "describe"):
        source, remarks = choose_source(model_folder, choose_inputs(reference.real))
    graphs = WrittenGraphs(
        facts=facts, exporter=source.exporter, fused={}, parity={}, left_out={}, attempts={}, remarks=remarks,
        digests={}, seconds=seconds,
    )  # fmt: skip

    def write(variant: str) -> WrittenVariant:
        return write_variant(variant, source.makers[variant], Path(folder) / VARIANTS[variant], facts, reference)

    # ONNX Runtime's optimisers redirect the standard output of the whole process: they run one after another.
    threads = min(len(VARIANTS), compute_threads()) if source.exporter == "writer" else 1
    with ThreadPoolExecutor(threads) as pool:
        for variant, written in zip(VARIANTS, pool.map(write, VARIANTS), strict=True):
            _add_variant(graphs, variant, written)
    return graphs


def _add_variant(graphs: WrittenGraphs, variant: str, written: WrittenVariant) -> None:
    """Add what was written of a variant.

    Raises:
        VerdictError: if it is fp32, and not within its limits.
    """
    graphs["attempts"][variant] = written.attempts
    graphs["fused"] = dict(Counter(graphs["fused"]) | written.fused)
    graphs["seconds"] |= written.seconds
    last = written.attempts[-1]
    if last["parity"] and not last["fault"]:
        graphs["parity"][variant] = last["parity"]
        graphs["digests"][VARIANTS[variant]] = written.digest
    elif variant == "fp32":
        raise VerdictError(f"ONNX graph {last['fault']}; not shipped: {VARIANTS[variant]}")
    else:
        graphs["left_out"][variant] = str(last["fault"])
    graphs["remarks"] += [f"the {variant} graph of {each['maker']} {each['fault']}" for each in written.attempts[:-1]]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Keep the seconds that the block takes."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = round(time.perf_counter() - started, 3)


def write_variant(
    variant: str, makers: list[VariantMaker], path: Path, facts: ModelInfo, reference: TorchReference
) -> WrittenVariant:
    """Write one variant with the first maker whose graph is within the limits; write no file if there is none.

    The makers are in order of speed: a slower one is tried where what was measured of those before it refuses them.
    A failure of fp16 or int8 leaves the variant out of the bundle instead of failing the run.
    """
    if variant != "fp32" and not reference.real:
        fault = "was not made: there are no sentences for a comparison with torch"
        return WrittenVariant([Attempt(maker="", parity=None, fault=fault)], Counter(), "", {})
    attempts: list[Attempt] = []
    seconds: dict[str, float] = {}
    for make in makers:
        attempt = Attempt(maker=make.__name__, parity=None, fault=None)
        attempts.append(attempt)
        try:
            with timed(seconds, f"{variant}: {make.__name__}"):
                fused, digest = _make_file(make, path, facts, variant)
            with timed(seconds, f"{variant}: compare {make.__name__}"):
                parity = compare_variant(variant, path, reference)
            attempt["parity"], attempt["fault"] = parity, parity_error(variant, parity)
        except Exception as error:
            if variant == "fp32":
                raise
            attempt["fault"] = f"could not be made: {summarise_error(error, 200)}"
        if not attempt["fault"]:
            return WrittenVariant(attempts, fused, digest, seconds)
    path.unlink(missing_ok=True)
    return WrittenVariant(attempts, Counter(), "", seconds)


def _make_file(make: VariantMaker, path: Path, facts: ModelInfo, variant: str) -> tuple[Counter[str], str]:
    """Make a graph and write it; return its fused operators and its file's SHA-256. The graph's memory is released."""
    model = make()
    digest = save_graph(model, path, facts, variant)
    reject_external_data(path)
    return count_fused(model), digest


def count_fused(model: onnx.ModelProto) -> Counter[str]:
    """Count the operators of a graph that do the work of several standard ones."""
    return Counter(node.op_type for node in model.graph.node if node.op_type in FUSED_OPS)


def choose_source(model_folder: str, inputs: Sequence[dict[str, TokenIds]] = ()) -> tuple[GraphSource, list[str]]:
    """Choose the writer if a description fits the model, else the exporter of torch that fuses most attention.

    Args:
        model_folder: output of `fine_tune`.
        inputs: of batches of sentences, on which int8 measures features; without any, fp32 alone is wanted.

    Returns:
        The source, and a remark for each one that was tried before and failed.

    Raises:
        VerdictError: if no exporter succeeds.
    """
    try:
        encoder = load_encoder(model_folder)
    except Exception as error:  # of a transformers version whose configuration has another form, too
        from tasks.export.torch_export import EXPORTED_MAKERS, choose_exporter  # brings torch.onnx

        reason = str(error) if isinstance(error, NotDescribedError) else summarise_error(error, 200)
        exported, remarks = choose_exporter(load_logits(model_folder), fused=bool(inputs))
        remarks.insert(0, f"the graphs come from torch's exporters: {reason}")
        return GraphSource(exported.exporter, _bind(EXPORTED_MAKERS, exported, inputs)), remarks

    def export_fp32() -> onnx.ModelProto:
        """Return torch's export, for a model that computes something else than its description says."""
        from tasks.export.torch_export import choose_exporter, make_fp32

        return make_fp32(choose_exporter(load_logits(model_folder), fused=False)[0])

    makers = _bind(WRITTEN_MAKERS, encoder, inputs)
    makers["fp32"].append(export_fp32)
    if should_try_gpu("auto") and any(fused_gate_width(layer.feed_forward) for layer in encoder.layers):
        makers["fp16"].insert(0, update_wrapper(partial(write_fp16_cuda_only, encoder), write_fp16_cuda_only))
    return GraphSource("writer", makers), []


def _bind(
    makers: dict[str, list[Callable[..., onnx.ModelProto]]], source: Any, inputs: Sequence[dict[str, TokenIds]]
) -> dict[str, list[VariantMaker]]:
    """Return the makers of each variant with their arguments; each keeps its name. Those of int8 get the inputs too."""
    bound: dict[str, list[VariantMaker]] = {}
    for variant, each in makers.items():
        arguments = (source, inputs) if variant == "int8" else (source,)
        bound[variant] = [update_wrapper(partial(make, *arguments), make) for make in each]
    return bound


def write_fp32(encoder: EncoderDescription) -> onnx.ModelProto:
    """Return a graph of standard operators in fp32, for any runtime."""
    return write_encoder(encoder, PORTABLE_TARGET)


def write_fp16(encoder: EncoderDescription) -> onnx.ModelProto:
    """Return a graph with packed rows that stores and computes in fp16."""
    return write_encoder(encoder, CUDA_TARGET)


def write_fp16_cuda_only(encoder: EncoderDescription) -> onnx.ModelProto:
    """Return the same graph with an operator that CPUs do not have; tried where it can be compared with torch."""
    return write_encoder(encoder, CUDA_ONLY_TARGET)


def write_fp16_products(encoder: EncoderDescription) -> onnx.ModelProto:
    """Return the same graph with residual stream and normalisations in fp32, for encoders with large features."""
    return write_encoder(encoder, FP32_RESIDUAL_TARGET)


def write_int8_per_token(encoder: EncoderDescription, inputs: Sequence[dict[str, TokenIds]] = ()) -> onnx.ModelProto:
    """Return a graph with int8 products and a scale per token: three times as fast as torch in fp32.

    Args:
        encoder: to write.
        inputs: of batches of sentences, on which features are measured; without any they are not scaled.
    """
    model = OnnxModel(write_encoder(encoder, CPU_TARGET))
    quantise_rows(model, measure_sizes(model.model, inputs))
    return model.model


def write_int8_blockwise(encoder: EncoderDescription, _: Sequence[dict[str, TokenIds]] = ()) -> onnx.ModelProto:
    """Return a graph with int8 weights and a scale per block: closer to torch, and slower."""
    return quantise_blocks(write_encoder(encoder, PORTABLE_TARGET))


def save_graph(model: onnx.ModelProto, path: Path, facts: ModelInfo, variant: str) -> str:
    """Write a graph as one file with the model info in its metadata; return the file's SHA-256.

    Raises:
        VerdictError: if the file would exceed ONNX's limit of 2 GB.
    """
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(model, values | {"variant": variant})
    size = sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )
    if size > MAX_GRAPH_BYTES:  # ByteSize() fails there
        raise VerdictError(
            f"the {variant} graph has {size / 1e9:.1f} GB, an ONNX file at most {MAX_GRAPH_BYTES / 1e9:.1f}; "
            "choose a smaller encoder with --encoder"
        )
    content = model.SerializeToString()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(hashlib.sha256, content)
        path.write_bytes(content)
        return digest.result().hexdigest()


# The makers of each variant in order of preference: the next is used if a graph exceeds the parity limits.
WRITTEN_MAKERS: dict[str, list[Callable[..., onnx.ModelProto]]] = {
    "fp32": [write_fp32],
    "fp16": [write_fp16, write_fp16_products],
    "int8": [write_int8_per_token, write_int8_blockwise],
}
