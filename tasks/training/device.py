"""Resolves the device that a run computes on; a wanted GPU that is missing is an error, not a fallback."""

import platform
from pathlib import Path

import torch

from tasks.core.errors import VerdictError
from tasks.inference.cpu_limits import available_cpus

CPU_INFO = Path("/proc/cpuinfo")  # Linux


def resolve_device(wanted: str) -> str:
    """Turn auto, cuda or cpu into cuda or cpu.

    Raises:
        VerdictError: if cuda is wanted and torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise VerdictError("device cuda is wanted, but torch sees no CUDA GPU; see: verdict doctor")
    return "cuda" if wanted != "cpu" and available else "cpu"


def cpu_supports_bf16(cpu_info: Path = CPU_INFO) -> bool:
    """Return whether this x86 CPU has instructions for bf16 products; without them bf16 is slower than fp32."""
    try:
        flags = cpu_info.read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:  # not Linux
        return False
    return bool({"avx512_bf16", "amx_bf16"}.intersection(flags))


def describe_hardware(cpu_info: Path = CPU_INFO) -> str:
    """Return the CPU's name, the number of logical CPUs that may be used, and the GPU's name, if there is one."""
    names = cpu_info.read_text().partition("model name")[2].splitlines() if cpu_info.is_file() else []
    name = names[0].strip("\t :") if names else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {available_cpus()} CPUs{gpu}"


def device_name(device: str) -> str:
    """Return cpu, or the GPU's name."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
