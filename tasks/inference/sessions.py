"""Opens graphs in ONNX Runtime on a CPU or CUDA device, without its silent fallback to the CPU."""

import contextlib
import ctypes
import logging
import re
import sys
from pathlib import Path
from typing import Any

from ..core.errors import UsageError, VerdictError, first_line
from .cpu_limits import compute_threads
from .onnx_runtime import onnxruntime

log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
GPU_OPTIONS = {
    "arena_extend_strategy": "kSameAsRequested",  # the default doubles the arena each time it grows
    # Without cuDNN's (8), which ONNX Runtime prefers from compute capability 9.0 on (seen in 1.31.1) and which plans
    # each new shape for tens of milliseconds; packed_shapes.py has shapes for the others.
    "sdpa_kernel": str(1 | 2 | 4 | 16 | 32 | 64),  # Flash, memory-efficient, TensorRT's for encoders, unfused
}
CUDA_GRAPH_OPTION = "enable_cuda_graph"


def open_session(
    graph: Path, device: str, capture: bool = False, threads: int = 0, spin: bool = True, gpu: int = 0
) -> onnxruntime.InferenceSession:
    """Open a graph.

    On a GPU ONNX Runtime makes it the calling thread's current one, for torch too (seen in 1.31.1 with torch 2.11).

    Args:
        graph: ONNX file.
        device: cpu, cuda, or auto: cuda if a GPU works, else cpu.
        capture: enable CUDA graphs if the graph allows them. Each run of such a session must set `gpu_graph_id`, as
            `runner.Runner` does.
        threads: intra-op threads on a CPU; 0 for one on each physical core that the process may use. ONNX Runtime's
            own default is one on each core of the machine, whatever affinity and CPU limit say.
        spin: let these threads wait for their next operator in a loop, as ONNX Runtime does by default. Asleep they
            leave the CPU to others: beside busy processes a batch takes half the time.
        gpu: number of the GPU, of those that the process sees.

    Raises:
        UsageError: if there is no GPU of that number.
        VerdictError: if device is cuda and the session does not run on it.
    """
    if not should_try_gpu(device):
        return _open(graph, [CPU], threads=threads, spin=spin)
    if gpu and gpu not in range(count := count_gpus()):
        raise UsageError(f"gpu = {gpu} is refused: this process sees {count} GPUs, counted from 0; see: verdict doctor")
    onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed
    options = GPU_OPTIONS
    if gpu:
        options = options | {"device_id": str(gpu)}
        # With a number, also 0, ONNX Runtime warns that no plugin has that GPU. The level is that of the whole process.
        onnxruntime.set_default_logger_severity(3)
    session = (_try_capturing(graph, options) if capture else None) or _open(graph, [(CUDA, options), CPU], spin=spin)
    # get_available_providers() lists what was compiled in, and a provider that fails to load falls back to the CPU
    # without an error: only the open session shows where it runs.
    if device == "cuda" and session.get_providers()[0] != CUDA:
        raise VerdictError(
            "device cuda was requested, but ONNX Runtime runs on the CPU only; expected a GPU and onnxruntime-gpu "
            "(the extra 'gpu'); see: verdict doctor"
        )
    session.disable_fallback()  # a GPU that fails later is an error: captured graphs cannot move to the CPU
    return session


def warn_if_older(compared_on: str, bundle: Path) -> None:
    """Log a warning if ONNX Runtime is older than the version on which a bundle was compared with torch."""
    if _version(onnxruntime.__version__) < _version(compared_on):
        log.warning(
            "%s was compared with torch on ONNX Runtime %s, installed is %s: operators may be missing or answer "
            "differently; run: pip install 'onnxruntime>=%s' (or onnxruntime-gpu)",
            bundle, compared_on, onnxruntime.__version__, compared_on,
        )  # fmt: skip


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def uses_cuda_graphs(session: onnxruntime.InferenceSession) -> bool:
    """Return whether CUDA graphs are enabled in a session."""
    return session.get_provider_options().get(CUDA, {}).get(CUDA_GRAPH_OPTION) == "1"


def gpu_of(session: onnxruntime.InferenceSession) -> int:
    """Return the number of the GPU that a session runs on; 0 on a CPU."""
    return int(session.get_provider_options().get(CUDA, {}).get("device_id", 0))


def _try_capturing(graph: Path, options: dict[str, str]) -> onnxruntime.InferenceSession | None:
    """Open a graph with CUDA graphs enabled; None if that fails, as it does where some nodes run on the CPU."""
    try:
        return _open(graph, [(CUDA, options | {CUDA_GRAPH_OPTION: "1"}), CPU], quiet=True)
    except Exception as error:  # pybind errors of ONNX Runtime have no narrower common base
        log.debug("%s: small batches are not captured as CUDA graphs (%s)", graph, first_line(error, 200))
        return None


def _open(
    graph: Path, providers: list[Any], quiet: bool = False, threads: int = 0, spin: bool = True
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or compute_threads()
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4 if quiet else 3  # fatal; errors
    # The fallback from a provider that fails is to the CPU; from the CPU it prints to standard output and tries again.
    fallback = int(providers != [CPU])
    with contextlib.redirect_stdout(sys.stderr):  # it prints that; standard output may be piped into another program
        return onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=fallback)


def should_try_gpu(device: str) -> bool:
    """Return whether to try a GPU for cpu, cuda or auto; only an open session shows whether it works."""
    return device == "cuda" or (device == "auto" and CUDA in onnxruntime.get_available_providers() and has_gpu())


def has_gpu() -> bool:
    """Return whether NVIDIA's driver is loaded and reports a GPU."""
    return count_gpus() > 0


def count_gpus() -> int:
    """Return how many GPUs NVIDIA's driver reports to this process; 0 where it is not loaded."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
