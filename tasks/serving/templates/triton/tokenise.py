"""Python backend of Triton: sentences in, the graph's inputs and `truncated` out. Needs tokenizers and numpy.

Shape letters: N sentences of a request, S tokens.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

MULTIPLE = 8  # tokens; Triton batches requests of equal shape only, and rounding up makes more of them equal


class TritonPythonModel:
    """Turns `text`, UTF-8 in [N, 1], into token ids, mask and type ids [N, S]: those that the graph takes.

    `truncated` [N, 1] is true where a sentence has more than `max_length` tokens.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load tokenizer.json, which lies beside this file."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.pad_id, self.max_length = int(parameters["pad_id"]), int(parameters["max_length"])
        self.dtypes = {item["name"]: pb_utils.triton_string_to_numpy(item["data_type"]) for item in config["output"]}
        self.tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.max_length)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a batch, padded to one length; one that is not UTF-8 fails alone."""
        tokenised = [self._tokenise(request) for request in requests]
        longest = max((len(row) for rows in tokenised if not isinstance(rows, str) for row in rows), default=0)
        length = min(-(-longest // MULTIPLE) * MULTIPLE, self.max_length)
        return [self._answer(rows, length) for rows in tokenised]

    def _tokenise(self, request: Any) -> Sequence[Encoding] | str:
        """Return a request's sentences tokenised, or an error message."""
        raw = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        try:
            sentences = [text.decode("utf-8") for text in raw]
        except UnicodeDecodeError as error:
            return f"text is not UTF-8: {error.reason} at byte {error.start}"
        return self.tokenizer.encode_batch_fast(sentences)

    def _answer(self, rows: Sequence[Encoding] | str, length: int) -> Any:
        if isinstance(rows, str):
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(rows))
        # `overflowing` is slow, it builds objects for the rest of a sentence.
        truncated = [len(row) == self.max_length and bool(row.overflowing) for row in rows]
        values = self._pad([row.ids for row in rows], length) | {"truncated": np.array(truncated).reshape(-1, 1)}
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(name, values[name].astype(dtype)) for name, dtype in self.dtypes.items()]
        )

    def _pad(self, rows: list[list[int]], length: int) -> dict[str, NDArray[Any]]:
        """Return inputs of N sentences [N, S], padded on the right."""
        mask = np.arange(length) < np.array([len(row) for row in rows]).reshape(-1, 1)
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask] = np.array([token for row in rows for token in row], np.int64)
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
