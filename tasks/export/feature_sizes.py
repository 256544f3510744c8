"""Measures how large the features are that normalisations of a graph put out, for int8 products of these.

Shape letters: K features.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from tasks.export.torch_reference import ParityCase
from tasks.inference.onnx_runtime import onnxruntime
from tasks.inference.sessions import CPU
from tasks.inference.tokenization import TokenIds

NORMALISATIONS = ("LayerNormalization", "EmbedLayerNormalization")
MEASURED_BATCHES = 4  # of sentences; which features are large hardly depends on the sentence


def choose_inputs(cases: Sequence[ParityCase]) -> list[dict[str, TokenIds]]:
    """Return the inputs of a few batches from the shortest to the longest sentences."""
    step = -(-len(cases) // MEASURED_BATCHES) or 1
    return [case.inputs for case in cases[::step]]


def measure_sizes(model: onnx.ModelProto, inputs: Sequence[dict[str, TokenIds]]) -> dict[str, NDArray[np.float32]]:
    """Return the root mean square of each feature of each normalisation's output, [K] by name, over all tokens.

    Args:
        model: fp32 graph; it stays as it is.
        inputs: of batches of sentences; without any, nothing is measured.
    """
    names = [node.output[0] for node in model.graph.node if node.op_type in NORMALISATIONS]
    if not inputs or not names:
        return {}
    outputs = len(model.graph.output)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    try:
        content = model.SerializeToString()
    finally:
        del model.graph.output[outputs:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(content, options, providers=[CPU])
    squares = [[_mean_squares(values) for values in session.run(names, each)] for each in inputs]
    by_name = zip(names, zip(*squares, strict=True), strict=True)
    return {name: np.sqrt(np.mean(means, axis=0)) for name, means in by_name}


def _mean_squares(values: NDArray[np.float32]) -> NDArray[np.float32]:
    means: NDArray[np.float32] = np.square(values.reshape(-1, values.shape[-1])).mean(axis=0)
    return means
