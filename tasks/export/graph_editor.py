"""Adds nodes and constants to an ONNX graph, with a name prefix that no exporter uses."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel

MICROSOFT_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators


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


class GraphEditor:
    """Adds to a graph; the names of new nodes and constants begin with `prefix`."""

    def __init__(self, model: OnnxModel, prefix: str) -> None:
        self.model, self.prefix, self._count = model, prefix, 0

    def add(
        self, operator: str, inputs: list[str], output: str = "", domain: str = "", **attributes: float | list[int]
    ) -> str:
        """Add a node and return the name of its output."""
        name = self._name(operator)
        node = helper.make_node(operator, inputs, [output or name], name=name, domain=domain, **attributes)
        self.model.add_node(node)
        return output or name

    def constant(self, values: object, kind: type = np.int64) -> str:
        """Add a constant and return its name."""
        tensor = numpy_helper.from_array(np.asarray(values, kind), self._name("constant"))
        self.model.add_initializer(tensor)
        return tensor.name

    def scalar(self, value: float) -> str:
        """Add an fp32 scalar and return its name."""
        return self.constant(value, np.float32)

    def value(self, name: str) -> NDArray[np.float32]:
        """Return the value of a constant of the graph."""
        return numpy_helper.to_array(self.model.get_initializer(name))

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self.prefix}{kind}_{self._count}"
