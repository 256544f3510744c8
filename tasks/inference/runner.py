"""Runs an open graph on batches of tokens.

On a GPU a small batch is launched faster than its kernels can be started one by one: from its third time on a shape is
captured as a CUDA graph, with inputs and outputs at fixed places.

Shape letters: B sentences of a batch, S tokens.
"""

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .gates import ReadWriteLock
from .sessions import uses_cuda_graphs
from .tokenization import TokenIds

CAPTURED_BATCHES = (1, 2, 4, 8, 16, 32)  # sizes of batches that are captured, smaller ones are filled up
CAPTURED_LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128)  # their lengths
CAPTURE_AFTER = 2  # times that a shape runs as it comes: capturing takes as long as thirty runs
EAGER = "-1"  # the graph id of a run that is neither captured nor replayed


class Runner:
    """Runs a session; any number of threads may call it."""

    def __init__(self, session: onnxruntime.InferenceSession, device: str = "cuda") -> None:
        self._session, self._device = session, device
        self.provider: str = session.get_providers()[0]
        self._inputs = {node.name for node in session.get_inputs()}
        self._small = uses_cuda_graphs(session)
        self._options = onnxruntime.RunOptions()
        if self._small:
            self._options.add_run_config_entry("gpu_graph_id", EAGER)
        # While one thread captures, no other may touch the GPU, and a captured run works in memory that others may have
        # been given since: both are alone. Large batches may overlap, so that one is copied while another computes.
        self._gate = ReadWriteLock()
        self._shapes: dict[tuple[int, int], _CapturedGraph] = {}
        self._thread = threading.local()  # ONNX Runtime captures for each thread anew

    def logits(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        """Return logits [B, 2] of token ids and attention mask [B, S]."""
        if not self._small:
            return self._run(ids, mask)
        shape = bucket_shape(*ids.shape)
        if shape is None:
            with self._gate.read():
                return self._run(ids, mask)
        with self._gate.write():
            if self._times(shape) <= CAPTURE_AFTER:
                return self._run(ids, mask)
            if shape not in self._shapes:
                self._shapes[shape] = _CapturedGraph(
                    self._session, self._inputs, shape, len(self._shapes), self._device
                )
            return self._shapes[shape].run(self._session, ids, mask)

    def run_batches(self, batches: Iterable[tuple[TokenIds, TokenIds]]) -> Iterator[NDArray[np.float32]]:
        """Yield logits [B, 2] of each batch of token ids and attention mask [B, S]."""
        return (self.logits(ids, mask) for ids, mask in batches)

    def _run(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (logits,) = self._session.run(None, {name: feed[name] for name in self._inputs}, self._options)
        return np.asarray(logits)

    def _times(self, shape: tuple[int, int]) -> int:
        """Count how often this thread met a shape, this time included."""
        times = self._thread.__dict__.setdefault("times", {})
        times[shape] = times.get(shape, 0) + 1
        return int(times[shape])


def bucket_shape(sentences: int, tokens: int) -> tuple[int, int] | None:
    """Return the smallest captured shape that holds a batch; None where there is none, or the batch is empty."""
    if sentences == 0 or sentences > CAPTURED_BATCHES[-1] or tokens > CAPTURED_LENGTHS[-1]:
        return None
    return next(size for size in CAPTURED_BATCHES if size >= sentences), next(
        size for size in CAPTURED_LENGTHS if size >= tokens
    )


class _CapturedGraph:
    """Fixed places for batches of one shape on a device, and the run that knows them."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: set[str],
        shape: tuple[int, int],
        number: int,
        device: str,
    ) -> None:
        self._host = np.zeros((2, *shape), np.int64)  # ids and mask side by side: one copy brings both
        self._tokens = onnxruntime.OrtValue.ortvalue_from_numpy(self._host, device, 0)
        self._kinds = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.int64), device, 0)
        self._logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type([shape[0], 2], np.float32, device, 0)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))
        address = self._tokens.data_ptr()
        places = {"input_ids": address, "attention_mask": address + self._host[0].nbytes}
        places["token_type_ids"] = self._kinds.data_ptr()
        self._binding = session.io_binding()
        for name in inputs:
            self._binding.bind_input(name, device, 0, np.int64, list(shape), places[name])
        self._binding.bind_ortvalue_output("logits", self._logits)

    def run(self, session: onnxruntime.InferenceSession, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        """Return logits [B, 2] of a batch that fits."""
        sentences, tokens = ids.shape
        self._host[:] = 0
        self._host[1, :, 0] = 1  # of what fills up, so that no sentence is empty
        self._host[0, :sentences, :tokens] = ids
        self._host[1, :sentences, :tokens] = mask
        self._tokens.update_inplace(self._host)
        session.run_with_iobinding(self._binding, self._options)
        return np.array(self._logits.numpy()[:sentences])
