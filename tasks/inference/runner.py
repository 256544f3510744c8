"""Runs an ONNX Runtime session on batches of token ids, from any number of threads.

On a GPU a small batch computes faster than its kernels are launched one by one. From its third run on, a small shape is
captured as a CUDA graph (https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview),
which replays all kernels in one launch; its inputs and outputs have fixed addresses. The sentences of any other batch
on a GPU are padded to a length for which attention is fused (`packed_shapes.py`). Padding is dropped from the logits.

Shape letters: B sentences of a batch, S tokens.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from .onnx_runtime import onnxruntime
from .packed_shapes import attention_is_fused, packed_length
from .sessions import CUDA, gpu_of, uses_cuda_graphs
from .tokenization import TokenIds

CAPTURED_BATCHES = (1, 2, 4, 8, 16, 32)  # batch sizes that are captured; a batch is padded to the next one
CAPTURED_LENGTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128)  # their lengths, in tokens
CAPTURE_AFTER = 2  # eager runs of a shape before it is captured: capturing takes as long as thirty runs
EAGER = "-1"  # gpu_graph_id of a run that is neither captured nor replayed


class ReadWriteLock:
    """Fair readers-writer lock: any number of readers at a time, or one writer.

    A writer holds `_entry` from the moment it waits for readers to leave until it is done, so new readers queue behind
    it.
    """

    def __init__(self) -> None:
        self._entry = threading.Lock()
        self._reader_left = threading.Condition()
        self._readers = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        with self._entry, self._reader_left:
            self._readers += 1
        try:
            yield
        finally:
            with self._reader_left:
                self._readers -= 1
                self._reader_left.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock exclusively."""
        with self._entry:
            with self._reader_left:
                self._reader_left.wait_for(lambda: not self._readers)
            yield


class Runner:
    """Runs a session; thread-safe."""

    def __init__(self, session: onnxruntime.InferenceSession, max_length: int, device: str = "cuda") -> None:
        """Prepare to run a session.

        Args:
            session: as `open_session` returns it.
            max_length: tokens that the model reads of a sentence.
            device: where captured runs keep their inputs and outputs.
        """
        self._session, self._max_length, self._device = session, max_length, device
        self.provider: str = session.get_providers()[0]
        self._inputs = {node.name for node in session.get_inputs()}
        self._captures = uses_cuda_graphs(session)
        self._options = onnxruntime.RunOptions()
        if self._captures:
            self._options.add_run_config_entry("gpu_graph_id", EAGER)
        # Capture and replay take the write lock: a capture needs the GPU alone, and a replay writes to memory that the
        # allocator may have given to another run since. Large batches take the read lock: one is copied while another
        # computes.
        self._lock = ReadWriteLock()
        self._graphs: dict[tuple[int, int], _CapturedGraph] = {}
        self._thread = threading.local()  # ONNX Runtime captures separately for each thread

    def logits(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        """Return logits [B, 2] of token ids and attention mask [B, S]."""
        if self.provider != CUDA and not self._captures:
            return self._run(ids, mask)
        sentences, tokens = ids.shape
        shape = bucket_shape(sentences, tokens, self._max_length) if self._captures else None
        if shape is None:
            if more := packed_length(sentences, tokens, self._max_length) - tokens:
                ids, mask = (np.pad(each, ((0, 0), (0, more))) for each in (ids, mask))
            with self._lock.read():
                return self._run(ids, mask)
        with self._lock.write():
            if self._count_run(shape) <= CAPTURE_AFTER:
                return self._run(ids, mask)
            if shape not in self._graphs:
                number = len(self._graphs)
                self._graphs[shape] = _CapturedGraph(self._session, self._inputs, shape, number, self._device)
            return self._graphs[shape].run(self._session, ids, mask)

    def run_batches(self, batches: Iterable[tuple[TokenIds, TokenIds]]) -> Iterator[NDArray[np.float32]]:
        """Yield logits [B, 2] of each batch of token ids and attention mask [B, S]."""
        return (self.logits(ids, mask) for ids, mask in batches)

    def _run(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (logits,) = self._session.run(None, {name: feed[name] for name in self._inputs}, self._options)
        return np.asarray(logits)

    def _count_run(self, shape: tuple[int, int]) -> int:
        """Return how many runs of a shape this thread has begun, this one included."""
        counts = self._thread.__dict__.setdefault("counts", {})
        counts[shape] = counts.get(shape, 0) + 1
        return int(counts[shape])


def bucket_shape(sentences: int, tokens: int, max_length: int) -> tuple[int, int] | None:
    """Return the smallest captured shape that holds a batch; None if there is none, or the batch is empty.

    Attention is fused in it, but where `max_length`, beyond which the encoder may have no positions, leaves fewer
    tokens.
    """
    if sentences == 0 or sentences > CAPTURED_BATCHES[-1] or tokens > CAPTURED_LENGTHS[-1]:
        return None
    batch = next(size for size in CAPTURED_BATCHES if size >= sentences)
    length = next(size for size in CAPTURED_LENGTHS if size >= tokens and attention_is_fused(batch, size))
    return batch, max(tokens, min(length, max_length))


def _fill(padded: TokenIds, ids: TokenIds, mask: TokenIds) -> None:
    """Write token ids and attention mask into an array [2, B, S], and padding around them."""
    sentences, tokens = ids.shape
    padded[:] = 0
    padded[1, :, 0] = 1  # padding rows attend to one token: softmax over none is NaN
    padded[0, :sentences, :tokens] = ids
    padded[1, :sentences, :tokens] = mask


class _CapturedGraph:
    """Inputs and outputs of one shape at fixed addresses on a device, and the run bound to them."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: set[str],
        shape: tuple[int, int],
        number: int,
        device: str,
    ) -> None:
        self._host = np.zeros((2, *shape), np.int64)  # ids and mask in one array: one copy transfers both
        gpu = gpu_of(session)
        self._tokens = onnxruntime.OrtValue.ortvalue_from_numpy(self._host, device, gpu)
        self._token_types = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.int64), device, gpu)
        self._logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type([shape[0], 2], np.float32, device, gpu)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))
        address = self._tokens.data_ptr()
        addresses = {"input_ids": address, "attention_mask": address + self._host[0].nbytes}
        addresses["token_type_ids"] = self._token_types.data_ptr()
        self._binding = session.io_binding()
        for name in inputs:
            self._binding.bind_input(name, device, gpu, np.int64, list(shape), addresses[name])
        self._binding.bind_ortvalue_output("logits", self._logits)

    def run(self, session: onnxruntime.InferenceSession, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        """Return logits [B, 2] of a batch no larger than the shape."""
        _fill(self._host, ids, mask)
        self._tokens.update_inplace(self._host)
        session.run_with_iobinding(self._binding, self._options)
        return np.array(self._logits.numpy()[: len(ids)])
