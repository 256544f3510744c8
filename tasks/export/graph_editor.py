"""Adds nodes and constants to an existing ONNX graph, with a name prefix that no exporter uses."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.graph_builder import GraphBuilder


def upstream_nodes(model: OnnxModel, tensors: Iterable[str], wanted: Callable[[NodeProto], bool]) -> set[str]:
    """Return the names of the nodes upstream of tensors, following only nodes for which `wanted` is true."""
    producers = model.output_name_to_node()
    waiting, found = list(tensors), set[str]()
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in found and wanted(node):
            found.add(node.name)
            waiting.extend(node.input)
    return found


class GraphEditor(GraphBuilder):
    """Adds to a graph; the names of new nodes and constants begin with `prefix`."""

    def __init__(self, model: OnnxModel, prefix: str) -> None:
        super().__init__(model.model.graph, prefix)
        self.model, self.prefix = model, prefix

    def value(self, name: str) -> NDArray[np.float32]:
        """Return the value of a constant of the graph."""
        return numpy_helper.to_array(self.model.get_initializer(name))
