"""Exports a classifier by torch's exporters: where no description fits, or a written fp32 graph differs from torch.

torch has two exporters. ONNX Runtime's optimiser fuses attention, embeddings and normalisation completely in graphs of
the tracing exporter (with eager attention) and partly in those of the dynamo exporter, but the tracing exporter is
deprecated. The export with more fused attention is taken.
"""

import contextlib
import copy
import io
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnxruntime.transformers.onnx_model import OnnxModel
from onnxruntime.transformers.optimizer import optimize_model

from tasks.core.errors import VerdictError, summarise_error
from tasks.export.feature_sizes import measure_sizes
from tasks.export.graph_editor import upstream_nodes
from tasks.export.int8 import quantise_blocks, quantise_rows, split_skip_layernorm
from tasks.export.sequence_packing import pack_rows
from tasks.export.torch_reference import LogitsModule, random_inputs
from tasks.inference.tokenization import TokenIds

OPSETS = {"tracing": 17, "dynamo": 20}
MODEL_COPIES = 8  # that an export takes in the temporary folder, at most
ATTENTION_OPS = ("Attention", "MultiHeadAttention")
INTEGER_TYPES = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
ELEMENTWISE_OPS = {
    "Abs",
    "Add",
    "Ceil",
    "Div",
    "Floor",
    "Log",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Round",
    "Sign",
    "Sub",
    "Where",
}


class ExportedGraphs(NamedTuple):
    """A graph as exported, and the same graph optimised, with how many of its attention layers are fused."""

    exporter: str
    plain: onnx.ModelProto
    optimised: OnnxModel
    fused: int


def choose_exporter(logits: LogitsModule, fused: bool = True) -> tuple[ExportedGraphs, list[str]]:
    """Export with the first exporter whose graph has all attention fused, else with the one that has most.

    Args:
        logits: the model.
        fused: whether that matters; it does not for fp32, and the first one that succeeds will do.

    Returns:
        The export, and a remark for each exporter that failed or left attention unfused.

    Raises:
        VerdictError: if no exporter succeeds.
    """
    config = logits.model.config
    layers = config.num_hidden_layers
    best: ExportedGraphs | None = None
    remarks = []
    for exporter in EXPORTERS:
        try:
            exported = export_by(exporter, logits)
        except Exception as error:  # exporters raise any exception
            remarks.append(f"the {exporter} exporter failed: {summarise_error(error, 200)}")
            continue
        if best is None or exported.fused > best.fused:
            best = exported
        if exported.fused >= layers or not fused:
            break
        remarks.append(f"in the {exporter} exporter's graph {exported.fused} of {layers} attention layers are fused")
    if best is None:
        raise VerdictError(f"no exporter can write {config.model_type}: {'; '.join(remarks)}{_describe_space(logits)}")
    return best, remarks


def _describe_space(logits: LogitsModule) -> str:
    """Say how much space the temporary folder has, where it may be too little."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free > MODEL_COPIES * sum(tensor.nbytes for tensor in logits.parameters()):
        return ""
    return f"; it takes some copies of the model in {folder} ({free // 10**6:,} MB free): set TMPDIR"


def export_by(exporter: str, logits: LogitsModule) -> ExportedGraphs:
    """Export with a named exporter, optimise, and count fused attention layers."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "plain.onnx"
        EXPORTERS[exporter](logits, path)
        plain = onnx.load(path)
        config = logits.model.config
        # Level 1 only folds constants, so the graph runs on any device.
        with _quiet_exporter():
            optimised = optimize_model(
                str(path),
                "bert",
                getattr(config, "num_attention_heads", 0),
                config.hidden_size,
                opt_level=1,
                use_gpu=False,
            )
    fused = sum(len(optimised.get_nodes_by_op_type(name)) for name in ATTENTION_OPS)
    return ExportedGraphs(exporter, plain, optimised, fused)


def _trace(logits: LogitsModule, path: Path) -> None:
    """Export by tracing an example, with dynamic batch and sequence axes."""
    axes = {name: {0: "batch", 1: "sequence"} for name in logits.names} | {"logits": {0: "batch"}}
    _export(logits, path, dynamic_axes=axes, opset_version=OPSETS["tracing"], dynamo=False)


def _translate(logits: LogitsModule, path: Path) -> None:
    """Export with torch.export, with dynamic batch and sequence axes."""
    # A bar of progress there makes a semaphore of the system, which stays behind where this process is killed.
    import_module("tqdm").tqdm.set_lock(threading.RLock())
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = (tuple(axes for _ in logits.names),)
    _export(
        logits,
        path,
        dynamic_shapes=shapes,
        opset_version=OPSETS["dynamo"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with paths, which would change the digest
    del model.graph.value_info[:]  # contradicts the shapes that the optimiser infers, which then stops
    onnx.save_model(model, path, save_as_external_data=False)


def _export(logits: LogitsModule, path: Path, **options: Any) -> None:
    """Export with an example, to the names that all graphs have."""
    torch.onnx.export(logits, _example(logits), path, input_names=logits.names, output_names=["logits"], **options)


def _example(logits: LogitsModule) -> tuple[torch.Tensor, ...]:
    """Return example inputs whose sizes are not 0 or 1, which torch.export treats as constants."""
    return tuple(torch.from_numpy(array) for array in random_inputs(logits, 2, 8).values())


def make_fp32(exported: ExportedGraphs) -> onnx.ModelProto:
    """Return the graph as the exporter wrote it, in fp32."""
    return exported.plain


def make_fp16(exported: ExportedGraphs) -> onnx.ModelProto:
    """Return a graph with packed rows that stores and computes in fp16; inputs stay int64 and outputs fp32."""
    model = OnnxModel(copy.deepcopy(exported.optimised.model))
    packed = pack_rows(model)
    if packed:  # symbolic shape inference fails on attention over packed rows
        model.disable_shape_inference()
    with _quiet_exporter():
        model.convert_float_to_float16(
            keep_io_types=True, use_symbolic_shape_infer=not packed, node_block_list=_rounded_to_integers(model)
        )
    return model.model


def _rounded_to_integers(model: OnnxModel) -> list[str]:
    """Return the names of nodes whose result is cast to an integer; they stay in fp32.

    They compute the bucket of a relative position by a logarithm. In fp16 some positions fall into the next bucket:
    MPNet's logits for sentences of 22 tokens were off by 0.06.
    """
    casts = [
        node for node in model.get_nodes_by_op_type("Cast") if model.get_node_attribute(node, "to") in INTEGER_TYPES
    ]
    rounded = (name for node in casts for name in node.input)
    return sorted(upstream_nodes(model, rounded, lambda node: node.op_type in ELEMENTWISE_OPS))


def _quiet_exporter() -> contextlib.redirect_stdout[io.StringIO]:
    """Discard prints of ONNX Runtime's tools about failed shape inference of its own operators."""
    return contextlib.redirect_stdout(io.StringIO())


def make_int8_per_token(exported: ExportedGraphs, inputs: Sequence[dict[str, TokenIds]] = ()) -> onnx.ModelProto:
    """Return a graph with int8 products and a scale per token; features are measured as the writer's are."""
    model = OnnxModel(copy.deepcopy(exported.optimised.model))
    pack_rows(model, 1)  # one sentence per row: only the last layer's dropped tokens save time on a CPU
    split_skip_layernorm(model)
    quantise_rows(model, measure_sizes(model.model, inputs))
    return model.model


def make_int8_blockwise(exported: ExportedGraphs, _: Sequence[dict[str, TokenIds]] = ()) -> onnx.ModelProto:
    """Return a graph with int8 weights and a scale per block: closer to torch, and slower.

    It starts from the unoptimised graph because the quantiser cannot reach weights inside fused attention.
    """
    return quantise_blocks(copy.deepcopy(exported.plain))


EXPORTERS: dict[str, Callable[[LogitsModule, Path], None]] = {"tracing": _trace, "dynamo": _translate}
# The makers of each variant in order of preference: the next is used if a graph exceeds the parity limits.
EXPORTED_MAKERS: dict[str, list[Callable[..., onnx.ModelProto]]] = {
    "fp32": [make_fp32],
    "fp16": [make_fp16],
    "int8": [make_int8_per_token, make_int8_blockwise],
}
