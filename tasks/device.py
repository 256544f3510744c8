"""Chooses where a run computes, and fails instead of falling back."""

import torch

from tasks.errors import VerdictError


def resolve_device(wanted: str) -> str:
    """Turn auto, cuda or cpu into cuda or cpu.

    Raises:
        VerdictError: if cuda is wanted and torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise VerdictError("device cuda was asked for, but torch sees no CUDA GPU; see: verdict doctor")
    return "cuda" if wanted != "cpu" and available else "cpu"


def device_name(device: str) -> str:
    """Return cpu, or the GPU's name."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
