"""What is shown of an error that somebody else raised: one line, whatever it says."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.core.errors import VerdictError, first_line, is_out_of_memory, summarise_error

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "line", "with_kind"),
    [
        (ValueError("no such thing"), "no such thing", "ValueError: no such thing"),
        (ValueError("\n  first\nsecond"), "first", "ValueError: first"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(" \n"), "ValueError", "ValueError"),
        (KeyError("a"), "'a'", "KeyError: 'a'"),
        (OSError(2, "No such file"), "[Errno 2] No such file", "FileNotFoundError: [Errno 2] No such file"),
        (ValueError("é\ud800"), "é\\ud800", "ValueError: é\\ud800"),
        (VerdictError("bell\x07 and é"), "bell\\x07 and é", "VerdictError: bell\\x07 and é"),
    ],
)
def test_first_line_or_the_error_type_is_shown(error: Exception, line: str, with_kind: str) -> None:
    assert first_line(error) == line
    assert summarise_error(error) == with_kind


def test_a_long_line_is_cut_off_before_its_damaged_bytes_are_escaped() -> None:
    assert first_line(ValueError("bad \x1b[31m\x0f\nmore")) == r"bad \x1b[31m\x0f"
    assert first_line(ValueError("é\ud800" + "x" * 999), 200) == "é\\ud800" + "x" * 198
    assert first_line(ValueError("x" * 1000)) == "x" * 500
    assert first_line(ValueError("GET https://user:SECRET@host/f"), 20) == "GET https://***@host"
    assert first_line(ValueError("tab\there")) == r"tab\there"
    assert summarise_error(ValueError("x" * 1000), max_chars=3) == "ValueError: xxx"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_an_error_that_is_its_own_cause_is_searched_once() -> None:
    error, other = ValueError("no memory of it"), RuntimeError("another")
    assert not is_out_of_memory(caused(error, error))
    assert not is_out_of_memory(caused(error, caused(other, error)))


@pytest.mark.parametrize(
    ("error", "out_of_memory"),
    [
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"), True),
        (RuntimeError("can't start new thread"), True),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (ValueError("row 3 has two labels: 'My laptop ran out of memory.'"), False),
        (RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 15.77 GiB"), True),
        (caused(VerdictError("bundle x: model.onnx cannot be loaded"), MemoryError()), True),
        (caused(ImportError("see the traceback"), ImportError("x.so: failed to map segment")), True),
        (VerdictError("sentence 1, 'std::bad_alloc', is empty"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ImportError("no module named x"), False),
    ],
)
def test_a_lack_of_memory_is_recognised_whatever_library_reports_it(error: Exception, out_of_memory: bool) -> None:
    assert is_out_of_memory(error) is out_of_memory


def compile_with(spare_bytes: int) -> str:
    """Compile valid source with so little more address space in a process of its own; return the error and its kind."""
    code = f"""
import resource
from pathlib import Path
from tasks.core.errors import is_out_of_memory
source = "\\n".join(f"def f{{i}}(a, b): return [a, b, {{{{1: i}}}}, (a + b) * i]" for i in range(20_000))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + {spare_bytes}, most))
try:
    compile(source, "library.py", "exec")
except (MemoryError, SyntaxError, SystemError) as error:
    print(is_out_of_memory(error))
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    compile("def f(", "library.py", "exec")
except SyntaxError as error:
    print(is_out_of_memory(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    return done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the process used from Linux")
@pytest.mark.parametrize("spare_bytes", [200_000, 3_000_000, 20_000_000])
def test_source_that_gets_no_memory_for_its_compilation_is_no_syntax_error(spare_bytes: int) -> None:
    assert compile_with(spare_bytes) == "True\nFalse\n"
