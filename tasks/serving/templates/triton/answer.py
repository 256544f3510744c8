"""Python backend of Triton: logits in, labels and their probabilities out. Runs inside Triton, needs numpy.

Shape letters: N sentences of a request, L labels.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Turns `logits` [N, L] into `label`, UTF-8 in [N, 1], and `probability` [N, 1], that of the label."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the labels and the decision threshold from the model's configuration."""
        parameters = json.loads(args["model_config"])["parameters"]
        labels = json.loads(parameters["labels"]["string_value"])
        self.labels = np.array([label.encode("utf-8") for label in labels], object)
        self.threshold = float(parameters["decision_threshold"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request of a batch."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        logits = pb_utils.get_input_tensor_by_name(request, "logits").as_numpy().astype(np.float64)
        if not np.isfinite(logits).all():
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError("logits are NaN or Inf"))
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        best = (probabilities[:, 1] > self.threshold).astype(np.int64)
        of_label = np.take_along_axis(probabilities, best.reshape(-1, 1), axis=1)
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("label", self.labels[best].reshape(-1, 1)),
                pb_utils.Tensor("probability", of_label.astype(np.float32)),
            ]
        )
