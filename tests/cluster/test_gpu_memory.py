"""The memory of GPUs as nvidia-smi prints it, here a program of that name, and what is taken where it prints none."""

from pathlib import Path

import pytest

from tasks.cluster import gpu_memory
from tasks.cluster.gpu_memory import UNKNOWN_BYTES, min_gpu_memory_here


def install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a program nvidia-smi the only one on the path."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_smallest_gpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, 'test "$1" = --query-gpu=memory.total && echo 143771 && echo 24576', monkeypatch)
    assert min_gpu_memory_here() == 24_576 << 20


@pytest.mark.parametrize(
    "script", ["exit 9", "echo No devices were found", ":", "echo '[N/A]'", "/bin/sleep 20"], ids=str.split
)
def test_a_gpu_of_unknown_memory_counts_as_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    install(tmp_path, script, monkeypatch)
    monkeypatch.setattr(gpu_memory, "QUERY_TIMEOUT_S", 0.2)
    assert min_gpu_memory_here() == UNKNOWN_BYTES


def test_a_machine_without_the_driver_counts_as_one_of_a_small_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert min_gpu_memory_here() == UNKNOWN_BYTES
