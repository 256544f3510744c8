"""The exceptions for users; every message names the value, what was expected and the next command.

VerdictError             exit 1: the work failed
├── UnreachableError     exit 1: a store or a hub did not answer; a retry may succeed
├── NoChampion           exit 1: the registry answers, and the alias is not set yet
├── UnknownModel         exit 1: the registry answers, and holds no such model or version
├── NoAnswer             exit 1: a model gives NaN for a sentence
├── UsageError           exit 2: an option, setting or address is wrong; nothing was started
└── DataRejected         exit 3: the data is damaged or empty, or the gate rejected it; nothing was trained
"""

import errno
from pathlib import Path

from .printable import escape_controls, redact

OUT_OF_MEMORY = (
    "memory ran out, of the machine or a GPU; expected more of it: end other programs, let fewer share a GPU (score "
    "--ray: --workers), or raise the limit (ulimit -v, the container's memory), then run the same command again"
)
# Of the file system and its permissions, not of the program.
STORAGE_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EFBIG,
}  # fmt: skip
# What the system says of a full disk; C++ and Rust libraries repeat it without the number.
FULL_MESSAGES = ("No space left on device", "Disk quota exceeded", "File too large")
# What libraries say without MemoryError: the loader of shared libraries, the system, C++ (ONNX Runtime, torch),
# threads, CUDA
MEMORY_MESSAGES = (
    "failed to map segment",
    "annot allocate memory",
    "can't allocate memory",
    "bad_alloc",
    "bad allocation",
    "Failed to allocate memory",
    "can't start new thread",
    "ThreadPoolBuildError",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA failure 2: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

# CPython's parser raises these, too, where it gets no memory for the source of an import. It asks for a mebibyte at a
# time, so the address space is full to within this many bytes (3.11 and 3.13, measured).
PARSER_ERRORS = (SyntaxError, SystemError)
PARSER_BYTES = 2**21


def first_line(error: BaseException, max_chars: int = 500) -> str:
    """Return the first line of an error's message, or its type if it has none.

    Control characters are escaped, and passwords and signatures of addresses hidden: the message may be another
    library's.
    """
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return escape_controls(redact(first)[:max_chars], keep="")


def summarise_error(error: BaseException, max_chars: int = 500) -> str:
    """Return an error's type and the first line of its message, if it has one."""
    kind, message = type(error).__name__, first_line(error, max_chars)
    return kind if message == kind else f"{kind}: {message}"


class VerdictError(Exception):
    """A failure that is shown in one or two lines, without a traceback."""

    exit_code = 1


class UnreachableError(VerdictError):
    """A store or a hub did not answer."""


class NoChampion(VerdictError):
    """The registry answers, and the alias is not set yet."""


class NoAnswer(VerdictError):
    """A model gives NaN for a sentence; its text is not repeated, which logs would hold."""

    def __init__(self, index: int, variant: str) -> None:
        """Name the sentence by its index, from 0, and the model's variant."""
        super().__init__(index, variant)  # as pickle calls this again
        self.index, self.variant = index, variant

    def __str__(self) -> str:
        return (
            f"sentence {self.index + 1} has no answer: the model's variant {self.variant} gives NaN; expected a "
            "probability: leave the sentence out, or take another version: verdict status"
        )


class UnknownModel(VerdictError):
    """The registry answers, and holds no such model or version."""


class UsageError(VerdictError):
    """An option, setting or address is wrong."""

    exit_code = 2


class DataRejected(VerdictError):
    """The data is damaged or empty, or the gate rejected it."""

    exit_code = 3


def is_out_of_memory(error: BaseException | None) -> bool:
    """Check whether an error, or the one behind it, says that this process could not get memory."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if isinstance(error, PARSER_ERRORS) and _address_space_was_full():
            return True
        ours = isinstance(error, VerdictError)  # its message may quote anything
        if not ours and any(words in str(error) for words in MEMORY_MESSAGES):
            return True
        error = error.__cause__ or (None if ours or error.__suppress_context__ else error.__context__)
    return False


def _address_space_was_full() -> bool:
    """Check whether this process has come close to its limit of address space; False outside Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return False
    import resource  # not on every system

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return False
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmPeak:"))
    return limit - int(peak.split()[1]) * 1024 < PARSER_BYTES


def is_disk_full(error: BaseException) -> bool:
    """Check whether an error, of whatever type, says that a disk has no space left, or a file is over a limit."""
    return any(words in str(error) for words in FULL_MESSAGES)
