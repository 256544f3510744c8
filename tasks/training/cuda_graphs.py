"""CUDA graphs as the training step uses them, and what a model and torch need to be captured.

A graph is a recording of kernel launches on the GPU that is replayed with one call, with the addresses and host values
of the recording. https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import contextlib
from collections.abc import Callable, Iterator
from types import MethodType, ModuleType
from typing import Any, Protocol, cast

import torch
from torch import nn


class Graph(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Run what was recorded."""


class GraphRecorder(Protocol):
    """What `CudaGraphStep` needs of a device: CUDA in production, a stand-in on the CPU in tests."""

    def load_kernels(self) -> ModuleType:
        """Return the module of Triton kernels.

        Raises:
            ImportError: if Triton is not installed.
        """

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work that is to be recorded; it may allocate and synchronise."""

    def record(self, work: Callable[[], None]) -> Graph:
        """Record work without running it.

        Raises:
            RuntimeError: if the work synchronises with the host or copies from it.
        """

    def synchronize(self) -> None:
        """Wait for the work of this thread."""

    def release_memory(self) -> None:
        """Return cached memory to the device."""


class CudaRecorder:
    """Records CUDA graphs on the current GPU; all its graphs share one memory pool, as only one runs at a time.

    It has a stream of its own: cuBLAS has a workspace for each stream, and graphs that were recorded on one stream must
    not run at the same time.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        self._memory_released = False

    def load_kernels(self) -> ModuleType:
        """Import the kernels; Triton is installed where there is a GPU only."""
        from tasks.training import triton_kernels

        return triton_kernels

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run work on the stream of the captures."""
        with self._own_stream():
            work()

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Capture the work's kernels; unlike torch.cuda.graph without waiting for other streams of the GPU."""
        graph = torch.cuda.CUDAGraph()
        with self._own_stream():
            self._stream.synchronize()
            if not self._memory_released:  # a capture cannot use what warm-ups have left in the cache
                torch.cuda.empty_cache()
                self._memory_released = True
            # In mode "global" a CUDA call of another thread, such as NCCL's watchdog, would invalidate the capture.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                # The pool ends with its last graph, and torch 2.11 fails at the next capture into it.
                self._pool, self._memory_released = torch.cuda.graph_pool_handle(), False
                raise
            finally:
                graph.capture_end()
        return graph

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def synchronize(self) -> None:
        """Wait for the current stream."""
        torch.cuda.current_stream().synchronize()

    def release_memory(self) -> None:
        """Return cached memory to the GPU."""
        torch.cuda.empty_cache()


@contextlib.contextmanager
def cudnn_attention_disabled() -> Iterator[None]:
    """Keep torch's scaled_dot_product_attention from choosing cuDNN's kernel while the context lasts.

    cuDNN builds a plan for each new shape, which takes longer than an epoch of short sentences. The switch is a global
    of torch; the previous value is restored. Works as a decorator, too.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


def patch_for_cuda_graphs(model: nn.Module) -> None:
    """Replace methods that copy from the host in each forward pass, in place; outputs stay the same."""
    for module in model.modules():
        if type(module).__name__ == "MPNetEncoder":  # of older transformers
            cast(Any, module).compute_position_bias = MethodType(_position_bias, module)


def _position_bias(
    self: Any, x: torch.Tensor, position_ids: torch.Tensor | None = None, num_buckets: int = 32
) -> torch.Tensor:
    """Return MPNet's relative position bias [B, heads, S, S], computed on the device of `x` [B, S, K].

    Source: Song et al. 2020, https://arxiv.org/abs/2004.09297; the buckets are those of T5.
    """
    batch, length = x.shape[:2]
    positions = torch.arange(length, device=x.device)[None, :] if position_ids is None else position_ids
    relative = positions[:, None, :] - positions[:, :, None]
    bias = self.relative_attention_bias(self.relative_position_bucket(relative, num_buckets=num_buckets))
    return bias.permute(0, 3, 1, 2).expand(batch, -1, length, length).contiguous()
