"""Exports a torch classifier to ONNX: fp32 as the reference, fused fp16 for CUDA, int8 for CPUs.

torch has two exporters. ONNX Runtime's optimiser fuses attention, embeddings and normalisation completely in graphs of
the tracing exporter (with eager attention) and partly in those of the dynamo exporter, but the tracing exporter is
deprecated. The export with more fused attention is taken.
"""

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypedDict

import onnx
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.onnx_model import OnnxModel
from onnxruntime.transformers.optimizer import optimize_model

from tasks.core.errors import VerdictError, summarise_error
from tasks.export.graph_editor import upstream_nodes
from tasks.export.int8 import quantise_rows, split_skip_layernorm
from tasks.export.parity import (
    REAL_CASE,
    LogitsModule,
    Parity,
    ParityCase,
    compare_with_torch,
    parity_error,
    random_cases,
    random_inputs,
    real_cases,
)
from tasks.export.sequence_packing import pack_rows
from tasks.inference.bundle import VARIANTS, ModelInfo, Origin
from tasks.inference.external_data import reject_external_data
from tasks.training.model import load_classifier

OPSETS = {"tracing": 17, "dynamo": 20}
ATTENTION_OPS = ("Attention", "MultiHeadAttention")
FUSED_OPS = (*ATTENTION_OPS, "EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu")
# Relative positions and rotary embeddings: ONNX Runtime 1.31 cannot fuse such attention of either exporter.
UNFUSABLE = {"deberta-v2", "modernbert", "mpnet"}
INT8_BLOCK = 32  # weights: with 32 the 22 M encoder gave all of 409 sentences torch's label, with 128 99.8%
INT8_PRODUCTS = 4  # accuracy_level of MatMulNBits: activations in int8 too
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
PARITY_DEVICES = {"fp32": "cpu", "fp16": "auto", "int8": "cpu"}  # auto: a GPU if there is one


class WrittenGraphs(TypedDict):
    """The written graphs: model info, exporter, fused operators, parity by variant, reason for each variant left out.

    `remarks` has a line for each exporter and each maker of a variant that was tried before and failed.
    """

    facts: ModelInfo
    exporter: str
    fused: dict[str, int]
    parity: dict[str, Parity]
    left_out: dict[str, str]
    remarks: list[str]


class ExportedGraphs(NamedTuple):
    """A graph as exported, the same graph optimised, and the count of each fused operator."""

    exporter: str
    plain: onnx.ModelProto
    optimised: OnnxModel
    fused: dict[str, int]


def write_graphs(model_folder: str, folder: str, origin: Origin, rows_path: str | None) -> WrittenGraphs:
    """Write model.onnx and every other variant within its parity limits into a folder.

    Args:
        model_folder: output of `fine_tune`.
        folder: receives the graphs; must exist.
        origin: written to each graph's metadata.
        rows_path: snapshot with the sentences to compare on; if None only fp32 is written.

    Raises:
        VerdictError: if the fp32 graph exceeds its limits.
    """
    logits = LogitsModule(load_classifier(model_folder, attention="eager"))
    facts = ModelInfo(**origin, pad_id=logits.model.config.pad_token_id or 0)
    cases = random_cases(logits)
    if rows_path:
        cases += real_cases(logits, model_folder, facts["max_length"], rows_path)
    exported, remarks = choose_exporter(logits)
    graphs = WrittenGraphs(
        facts=facts, exporter=exported.exporter, fused=exported.fused, parity={}, left_out={}, remarks=remarks
    )
    for variant, name in VARIANTS.items():
        parity, faults = write_variant(variant, exported, Path(folder) / name, facts, cases)
        if parity:
            graphs["parity"][variant] = parity
        elif variant == "fp32":
            raise VerdictError(f"ONNX graph {faults[-1]}; not shipped: {name}")
        else:
            graphs["left_out"][variant] = faults.pop()
        remarks += [f"the first {variant} graph {fault}" for fault in faults]
    return graphs


def write_variant(
    variant: str, exported: ExportedGraphs, path: Path, facts: ModelInfo, cases: list[ParityCase]
) -> tuple[Parity | None, list[str]]:
    """Write one variant with the first maker whose graph is within the limits; write no file if there is none.

    A failure of fp16 or int8 leaves the variant out of the bundle instead of failing the run.

    Returns:
        The parity, None if the variant is left out, and the fault of each maker that failed.
    """
    if variant != "fp32" and not any(case.name == REAL_CASE for case in cases):
        return None, ["was not made: there are no sentences for a comparison with torch"]
    faults: list[str] = []
    for make in VARIANT_MAKERS[variant]:
        try:
            save_graph(make(exported), path, facts, variant)
            reject_external_data(path)
            parity = compare_with_torch(cases, path, PARITY_DEVICES[variant])
            fault = parity_error(variant, parity)
        except Exception as error:
            if variant == "fp32":
                raise
            fault = f"could not be made: {summarise_error(error, 200)}"
        if not fault:
            return parity, faults
        faults.append(fault)
    path.unlink(missing_ok=True)
    return None, faults


def choose_exporter(logits: LogitsModule) -> tuple[ExportedGraphs, list[str]]:
    """Export with the first exporter whose graph has all attention fused, else with the one that has most.

    Returns:
        The export, and a remark for each exporter that failed or left attention unfused.

    Raises:
        VerdictError: if no exporter succeeds.
    """
    config = logits.model.config
    layers = 0 if config.model_type in UNFUSABLE else config.num_hidden_layers
    best: ExportedGraphs | None = None
    remarks = []
    for exporter in EXPORTERS:
        try:
            exported = export_by(exporter, logits)
        except Exception as error:  # exporters raise any exception
            remarks.append(f"the {exporter} exporter failed: {summarise_error(error, 200)}")
            continue
        found = attention_of(exported)
        if best is None or found > attention_of(best):
            best = exported
        if found >= layers:
            break
        remarks.append(f"in the {exporter} exporter's graph {found} of {layers} attention layers are fused")
    if best is None:
        raise VerdictError(f"no exporter can write {config.model_type}: {'; '.join(remarks)}")
    return best, remarks


def export_by(exporter: str, logits: LogitsModule) -> ExportedGraphs:
    """Export with a named exporter, optimise, and count fused operators."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "plain.onnx"
        EXPORTERS[exporter](logits, path)
        plain = onnx.load(path)
        config = logits.model.config
        # Level 1 only folds constants, so the graph runs on any device.
        with _quiet_exporter():
            optimised = optimize_model(
                str(path), "bert", config.num_attention_heads, config.hidden_size, opt_level=1, use_gpu=False
            )
    counts = {name: len(optimised.get_nodes_by_op_type(name)) for name in FUSED_OPS}
    return ExportedGraphs(exporter, plain, optimised, {name: count for name, count in counts.items() if count})


def attention_of(exported: ExportedGraphs) -> int:
    """Return the number of fused attention operators."""
    return sum(exported.fused.get(name, 0) for name in ATTENTION_OPS)


def _trace(logits: LogitsModule, path: Path) -> None:
    """Export by tracing an example, with dynamic batch and sequence axes."""
    torch.onnx.export(
        logits,
        _example(logits),
        path,
        input_names=logits.names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in logits.names} | {"logits": {0: "batch"}},
        opset_version=OPSETS["tracing"],
        dynamo=False,
    )


def _translate(logits: LogitsModule, path: Path) -> None:
    """Export with torch.export, with dynamic batch and sequence axes."""
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        logits,
        _example(logits),
        path,
        input_names=logits.names,
        output_names=["logits"],
        dynamic_shapes=(tuple(axes for _ in logits.names),),
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


def make_int8_per_token(exported: ExportedGraphs) -> onnx.ModelProto:
    """Return a graph with int8 products and a scale per token: three times as fast as torch in fp32."""
    model = OnnxModel(copy.deepcopy(exported.optimised.model))
    pack_rows(model, 1)  # one sentence per row: only the last layer's dropped tokens save time on a CPU
    split_skip_layernorm(model)
    quantise_rows(model)
    return model.model


def make_int8_blockwise(exported: ExportedGraphs) -> onnx.ModelProto:
    """Return a graph with int8 weights and a scale per block: closer to torch, and slower.

    It starts from the unoptimised graph because the quantiser cannot reach weights inside fused attention.
    """
    quantiser = MatMulNBitsQuantizer(
        copy.deepcopy(exported.plain), bits=8, block_size=INT8_BLOCK, is_symmetric=True, accuracy_level=INT8_PRODUCTS
    )
    quantiser.process()
    return quantiser.model.model


def save_graph(model: onnx.ModelProto, path: Path, facts: ModelInfo, variant: str) -> None:
    """Write a graph as one file with the model info in its metadata."""
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(model, values | {"variant": variant})
    onnx.save_model(model, path, save_as_external_data=False)


EXPORTERS: dict[str, Callable[[LogitsModule, Path], None]] = {"tracing": _trace, "dynamo": _translate}
VariantMaker = Callable[[ExportedGraphs], onnx.ModelProto]
# The makers of each variant in order of preference: the next is used if a graph exceeds the parity limits.
VARIANT_MAKERS: dict[str, list[VariantMaker]] = {
    "fp32": [make_fp32],
    "fp16": [make_fp16],
    "int8": [make_int8_per_token, make_int8_blockwise],
}
