"""Turns a torch classifier into ONNX graphs: fp32 as the reference, fused fp16 for CUDA, int8 for CPUs.

Two exporters of torch can write the graph. The tracing one, with eager attention, writes graphs that ONNX Runtime's
optimiser recognises whole (attention, embeddings, normalisation); those of the newer one it recognises in part only,
but the older one is to be removed. So the counts of fused operators decide, not the exporter's name.
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
from tasks.export.int8 import quantise_rows
from tasks.export.normalising import split_skip_layernorm
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
# Relative positions and rotary embeddings: the optimiser knows no such attention (ONNX Runtime 1.31), whoever exports.
UNFUSABLE = {"deberta-v2", "modernbert", "mpnet"}
# Weights of a block: with 32 the 22 M encoder gave all of 409 sentences torch's label, with 128 99.8%.
INT8_BLOCK = 32
INT8_PRODUCTS = 4  # accuracy level of MatMulNBits: activations in int8 too
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
PARITY_PROVIDERS = {
    "fp32": "cpu",
    "fp16": "auto",
    "int8": "cpu",
}  # device of the comparison; auto: a GPU where one works


class WrittenGraphs(TypedDict):
    """What was written: the facts, the exporter, fused operators by name, parity by variant, reasons of what is left.

    `remarks` tells what an exporter or another way to make a variant, tried before, did not achieve.
    """

    facts: ModelInfo
    exporter: str
    fused: dict[str, int]
    parity: dict[str, Parity]
    left_out: dict[str, str]
    remarks: list[str]


class ExportedGraphs(NamedTuple):
    """A graph as exported, the same optimised, and how often each fused operator stands in it."""

    exporter: str
    plain: onnx.ModelProto
    optimised: OnnxModel
    fused: dict[str, int]


def write_graphs(model_folder: str, folder: str, origin: Origin, rows_path: str | None) -> WrittenGraphs:
    """Write model.onnx and every other variant that answers like torch into a folder.

    Args:
        model_folder: what `fine_tune` wrote.
        folder: receives the graphs; exists.
        origin: goes into each graph's metadata.
        rows_path: snapshot with the sentences to compare on; without any only fp32 is written.

    Raises:
        VerdictError: if the fp32 graph does not compute what torch computes.
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
        remarks += [f"{variant}, as it is made first, {fault}" for fault in faults]
    return graphs


def write_variant(
    variant: str, exported: ExportedGraphs, path: Path, facts: ModelInfo, cases: list[ParityCase]
) -> tuple[Parity | None, list[str]]:
    """Write one variant, in the first way that answers like torch; leave no file where none does.

    Whatever goes wrong with fp16 or int8 is a reason to ship without it, never one to lose the training.

    Returns:
        How far the variant is from torch, None where it is not shipped, and what was wrong with each way that failed.
    """
    if variant != "fp32" and not any(case.name == REAL_CASE for case in cases):
        return None, ["was not made: there are no sentences to compare it with torch on"]
    faults: list[str] = []
    for make in VARIANT_MAKERS[variant]:
        try:
            save_graph(make(exported), path, facts, variant)
            reject_external_data(path)
            parity = compare_with_torch(cases, path, PARITY_PROVIDERS[variant])
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
    """Export by the first path that lets all attention be fused, else by the one that fuses most.

    The second path is tried only where the first fails or leaves attention that the optimiser could know.

    Returns:
        The export, and a remark for each path that was not enough.

    Raises:
        VerdictError: if no path exports the model.
    """
    config = logits.model.config
    layers = 0 if config.model_type in UNFUSABLE else config.num_hidden_layers
    best: ExportedGraphs | None = None
    remarks = []
    for exporter in EXPORTERS:
        try:
            exported = export_by(exporter, logits)
        except Exception as error:  # the exporters raise whatever their parts raise
            remarks.append(f"the {exporter} exporter failed: {summarise_error(error, 200)}")
            continue
        found = attention_of(exported)
        if best is None or found > attention_of(best):
            best = exported
        if found >= layers:
            break
        remarks.append(f"of the {exporter} exporter's graph {found} of {layers} attentions can be fused")
    if best is None:
        raise VerdictError(f"no exporter can write {config.model_type}: {'; '.join(remarks)}")
    return best, remarks


def export_by(exporter: str, logits: LogitsModule) -> ExportedGraphs:
    """Export by a named path, optimise, and count what was fused."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "plain.onnx"
        EXPORTERS[exporter](logits, path)
        plain = onnx.load(path)
        config = logits.model.config
        # Level 1 folds constants only: what it writes runs on any device.
        with _quiet_exporter():
            optimised = optimize_model(
                str(path), "bert", config.num_attention_heads, config.hidden_size, opt_level=1, use_gpu=False
            )
    counts = {name: len(optimised.get_nodes_by_op_type(name)) for name in FUSED_OPS}
    return ExportedGraphs(exporter, plain, optimised, {name: count for name, count in counts.items() if count})


def attention_of(exported: ExportedGraphs) -> int:
    """Count fused attention operators."""
    return sum(exported.fused.get(name, 0) for name in ATTENTION_OPS)


def _trace(logits: LogitsModule, path: Path) -> None:
    """Export by running the model once on an example, both axes free."""
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
    """Export by translating the model's code, both axes free."""
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
        del node.metadata_props[:]  # stack traces: two folders would give two digests
    del model.graph.value_info[:]  # contradicts what the optimisers infer, which then give up
    onnx.save_model(model, path, save_as_external_data=False)


def _example(logits: LogitsModule) -> tuple[torch.Tensor, ...]:
    """Make an example whose axes are neither 0 nor 1: the newer exporter takes those for constants."""
    return tuple(torch.from_numpy(array) for array in random_inputs(logits, 2, 8).values())


def make_fp32(exported: ExportedGraphs) -> onnx.ModelProto:
    """Return the graph as the exporter wrote it, in fp32."""
    return exported.plain


def make_fp16(exported: ExportedGraphs) -> onnx.ModelProto:
    """Store and compute in fp16, short sentences side by side; token ids in and logits out stay what they are."""
    model = OnnxModel(copy.deepcopy(exported.optimised.model))
    packed = pack_rows(model)
    if packed:  # symbolic shape inference does not know attention over rows
        model.disable_shape_inference()
    with _quiet_exporter():
        model.convert_float_to_float16(
            keep_io_types=True, use_symbolic_shape_infer=not packed, node_block_list=_rounded_to_integers(model)
        )
    return model.model


def _rounded_to_integers(model: OnnxModel) -> list[str]:
    """Name the nodes that compute what becomes a whole number: buckets of distances between words, from a logarithm.

    In fp16 some distances fall into the next bucket: MPNet's answers to sentences of 22 tokens were off by 0.06.
    """
    casts = [
        node for node in model.get_nodes_by_op_type("Cast") if model.get_node_attribute(node, "to") in INTEGER_TYPES
    ]
    rounded = (name for node in casts for name in node.input)
    return sorted(upstream_nodes(model, rounded, lambda node: node.op_type in ELEMENTWISE_OPS))


def _quiet_exporter() -> contextlib.redirect_stdout[io.StringIO]:
    """Keep what ONNX Runtime's tools print off the terminal: that shape inference fails on operators of its own."""
    return contextlib.redirect_stdout(io.StringIO())


def make_int8_per_token(exported: ExportedGraphs) -> onnx.ModelProto:
    """Compute products in int8, with a scale for each token: three times as fast as torch in fp32."""
    model = OnnxModel(copy.deepcopy(exported.optimised.model))
    pack_rows(model, 1)  # nothing side by side: of this only the fewer tokens in the last layer pay on a CPU
    split_skip_layernorm(model)
    quantise_rows(model)
    return model.model


def make_int8_blockwise(exported: ExportedGraphs) -> onnx.ModelProto:
    """Store weights as int8 with a scale for each block: closer to torch, and slower.

    The plain graph is taken because fused attention keeps its weights inside; ONNX Runtime fuses the rest when it
    loads it.
    """
    quantiser = MatMulNBitsQuantizer(
        copy.deepcopy(exported.plain), bits=8, block_size=INT8_BLOCK, is_symmetric=True, accuracy_level=INT8_PRODUCTS
    )
    quantiser.process()
    return quantiser.model.model


def save_graph(model: onnx.ModelProto, path: Path, facts: ModelInfo, variant: str) -> None:
    """Write one file with the facts in its metadata."""
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(model, values | {"variant": variant})
    onnx.save_model(model, path, save_as_external_data=False)


EXPORTERS: dict[str, Callable[[LogitsModule, Path], None]] = {"tracing": _trace, "dynamo": _translate}
VariantMaker = Callable[[ExportedGraphs], onnx.ModelProto]
# The ways to make each variant, the best first: the next is taken where one does not answer like torch.
VARIANT_MAKERS: dict[str, list[VariantMaker]] = {
    "fp32": [make_fp32],
    "fp16": [make_fp16],
    "int8": [make_int8_per_token, make_int8_blockwise],
}
