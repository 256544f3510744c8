"""Where a run computes, and in what precision."""

from pathlib import Path

import pytest

from tasks.core.errors import VerdictError
from tasks.training import device
from tasks.training.device import cpu_supports_bf16, device_name, resolve_device


@pytest.mark.skipif(device.torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(VerdictError, match="verdict doctor"):
        resolve_device("cuda")


def test_a_cpu_is_named_so() -> None:
    assert device_name("cpu") == "cpu"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("processor : 0\nflags : fpu avx512f avx512_bf16 vnni\nbugs : none\n", True),
        ("flags\t\t: amx_tile amx_bf16\n", True),
        ("flags : fpu avx2 avx512f\nbugs : avx512_bf16\n", False),
        ("Features : fp asimd bf16\n", False),
        ("", False),
    ],
)
def test_bf16_is_used_where_the_cpu_says_that_it_multiplies_it(content: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(content)
    assert cpu_supports_bf16(path) is expected


def test_a_machine_without_cpu_information_uses_fp32(tmp_path: Path) -> None:
    assert cpu_supports_bf16(tmp_path / "absent") is False
