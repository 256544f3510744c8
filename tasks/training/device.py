"""Chooses where a run computes, and fails instead of falling back."""

from pathlib import Path

import torch

from tasks.core.errors import VerdictError

CPU_INFO = Path("/proc/cpuinfo")  # Linux


def resolve_device(wanted: str) -> str:
    """Turn auto, cuda or cpu into cuda or cpu.

    Raises:
        VerdictError: if cuda is wanted and torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise VerdictError("device cuda was asked for, but torch sees no CUDA GPU; see: verdict doctor")
    return "cuda" if wanted != "cpu" and available else "cpu"


def cpu_supports_bf16(described: Path = CPU_INFO) -> bool:
    """Tell whether this CPU, an x86, has instructions for products of bf16; without them bf16 is slower than fp32."""
    try:
        flags = described.read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:  # no Linux
        return False
    return bool({"avx512_bf16", "amx_bf16"}.intersection(flags))


def device_name(device: str) -> str:
    """Return cpu, or the GPU's name."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
