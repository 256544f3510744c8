"""The errors a user can meet; every message says the value, what was expected and what to do next.

VerdictError        exit 1: the work failed
├── Unreachable     exit 1: a store or a hub did not answer; trying again may help
├── WrongUsage      exit 2: an option, setting or address is wrong; nothing was started
└── DataRefused     exit 3: the gate refused the data; nothing was trained or registered
"""


def first_line(error: BaseException, longest: int = 500) -> str:
    """Return what an error says first, or else its kind; damaged bytes that it repeats are shown escaped."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in first)


def summarise_error(error: BaseException, longest: int = 500) -> str:
    """Return an error's kind and what it says first, where it says anything."""
    kind, said = type(error).__name__, first_line(error, longest)
    return kind if said == kind else f"{kind}: {said}"


class VerdictError(Exception):
    """A failure to be shown as one or two lines, without a traceback."""

    exit_code = 1


class UnreachableError(VerdictError):
    """Something outside of this process did not answer."""


class UsageError(VerdictError):
    """What the user asked for cannot be meant."""

    exit_code = 2


class DataRejected(VerdictError):
    """The data is not fit to train on."""

    exit_code = 3
