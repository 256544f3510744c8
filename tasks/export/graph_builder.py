"""Builds an ONNX graph node by node; the same calls give the same names, and so the same bytes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

MICROSOFT_DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators
SHARED_BYTES = 4_096  # equal constants up to this size are stored once


class GraphBuilder:
    """Adds nodes and constants to a graph; the names of nodes begin with the current scope."""

    def __init__(self, graph: onnx.GraphProto, scope: str = "") -> None:
        self.graph = graph
        self._root = self._scope = scope
        self._names = Counter[str]()
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put `name`/ before the names of all nodes that are added inside."""
        outer = self._scope
        self._scope = f"{outer}{name}/"
        try:
            yield
        finally:
            self._scope = outer

    def add(
        self,
        operator: str,
        inputs: list[str],
        output: str = "",
        domain: str = "",
        extra: tuple[str, ...] = (),
        **attributes: float | str | list[int],
    ) -> str:
        """Add a node and return the name of its first output.

        Args:
            operator: type of the node.
            inputs: names of tensors; "" leaves an optional input out.
            output: name of the first output; by default the name of the node.
            domain: of the operator; by default ONNX's own.
            extra: endings of the names of further outputs, which begin with the node's; "" leaves one out.
            attributes: of the node.
        """
        name = self._name(self._scope + operator)
        outputs = [output or name, *(f"{name}_{ending}" if ending else "" for ending in extra)]
        self.graph.node.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def constant(self, values: object, kind: type = np.int64) -> str:
        """Return the name of a constant, which is added unless a small equal one exists."""
        array: NDArray[np.generic] = np.asarray(values, kind)
        if array.nbytes > SHARED_BYTES:
            return self.weight(self._name(f"{self._root}constant"), array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.weight(self._name(f"{self._root}constant"), array)
        return self._shared[key]

    def scalar(self, value: float, kind: type = np.float32) -> str:
        """Return the name of a constant without axes, by default in fp32."""
        return self.constant(value, kind)

    def weight(self, name: str, values: NDArray[np.generic]) -> str:
        """Add a constant under a name of its own and return it."""
        tensor = self.graph.initializer.add()  # filled in place: append() would copy the values once more
        tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor.dims.extend(values.shape)
        tensor.raw_data = values.tobytes()
        return name

    def _name(self, kind: str) -> str:
        self._names[kind] += 1
        return f"{kind}_{self._names[kind]}"
