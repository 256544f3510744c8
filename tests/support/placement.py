"""Where ONNX Runtime computes the sizes of a graph that runs on a GPU, and what it would have to copy for it."""

from math import prod

import onnx
from onnx import TensorProto

LARGEST_CONSTANT = 100  # numbers; kSmallInitializerThreshold of onnxruntime/core/framework/fallback_cpu_capability.cc
# Inputs that kernels of the CUDA provider read on the CPU.
HOST_INPUTS = {
    "ConstantOfShape": {0}, "Expand": {1}, "Range": {0, 1, 2}, "ReduceSum": {1}, "Reshape": {1},
    "Slice": {1, 2, 3, 4}, "Split": {1}, "Squeeze": {1}, "Tile": {1}, "Unsqueeze": {1},
}  # fmt: skip


def copied_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the tensors that are computed on one side and read on the other; a graph that has any is not captured.

    A node is computed on the CPU if it reads the output of one there, or a shape, and else small constants only; fp16
    constants keep it on the GPU.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    fed = {value.name for value in graph.input}  # read on either side
    small = {
        tensor.name
        for tensor in graph.initializer
        if prod(tensor.dims) <= LARGEST_CONSTANT and tensor.data_type != TensorProto.FLOAT16
    }
    on_host: set[str] = set()
    copied = []
    for node in graph.node:  # in topological order
        read = HOST_INPUTS.get(node.op_type, set())
        given = [name for name in node.input if name]
        host = node.op_type in ("Shape", "Size") or (
            any(name in on_host for name in given)
            and on_host | small | fed >= set(given)
            and not any(name in on_host for index, name in enumerate(node.input) if index in read)
        )
        if host:
            on_host.update(node.output)
            continue
        for index, name in enumerate(node.input):
            if name and name not in constants and name not in fed and (index in read) != (name in on_host):
                copied.append(name)
    return copied
