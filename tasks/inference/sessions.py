"""Opens graphs in ONNX Runtime, on the device that was asked for or not at all."""

import ctypes
import os
from pathlib import Path
from typing import Any

import onnxruntime

from ..core.errors import VerdictError

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# Memory grows by what is needed, where the default doubles it.
MEMORY_OPTIONS = {"arena_extend_strategy": "kSameAsRequested"}
CUDA_GRAPH_OPTION = "enable_cuda_graph"


def open_session(graph: Path, device: str, capture: bool = False, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a graph on cpu, cuda, or auto: a GPU where one works.

    Args:
        graph: file.
        device: cpu, cuda or auto.
        capture: let a GPU capture runs as CUDA graphs, where the graph allows it. Such a session answers only runs that
            say whether they are to be captured, as those of `tasks.inference.runner` do.
        threads: that an operator is shared among on a CPU; 0 for one a core.

    Raises:
        VerdictError: if cuda is wanted and the session does not run on it.
    """
    if not should_try_gpu(device):
        return _open(graph, [CPU], threads=threads)
    onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
    session = (_try_capturing(graph) if capture else None) or _open(graph, [(CUDA, MEMORY_OPTIONS), CPU])
    # The list of available providers says what was compiled in, and a provider that fails to load falls back to the
    # CPU without an error: only the open session knows.
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise VerdictError("device cuda was asked for, but ONNX Runtime runs on the CPU only; see: verdict doctor")
    return session


def uses_cuda_graphs(session: onnxruntime.InferenceSession) -> bool:
    """Tell whether a session can capture its work as CUDA graphs; then each run says whether it is to be."""
    return session.get_provider_options().get(CUDA, {}).get(CUDA_GRAPH_OPTION) == "1"


def _try_capturing(graph: Path) -> onnxruntime.InferenceSession | None:
    """Open a graph for capturing; None where it cannot be, as one with work for the CPU."""
    try:
        return _open(graph, [(CUDA, MEMORY_OPTIONS | {CUDA_GRAPH_OPTION: "1"}), CPU], quiet=True)
    except Exception:  # of the binding, which has no narrower one in common
        return None


def _open(graph: Path, providers: list[Any], quiet: bool = False, threads: int = 0) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4 if quiet else 3  # what is fatal, and errors too
    return onnxruntime.InferenceSession(graph, options, providers=providers)


def should_try_gpu(device: str) -> bool:
    """Tell whether a GPU is to be tried; whether it works only an open session knows."""
    return device == "cuda" or (device == "auto" and CUDA in onnxruntime.get_available_providers() and has_gpu())


def has_gpu() -> bool:
    """Tell whether NVIDIA's driver is loaded and shows a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def physical_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
