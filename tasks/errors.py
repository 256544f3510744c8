"""The errors a user can meet; every message says the value, what was expected and what to do next.

VerdictError        exit 1: the work failed
├── Unreachable     exit 1: a store or a hub did not answer; trying again may help
├── WrongUsage      exit 2: an option, setting or address is wrong; nothing was started
└── DataRefused     exit 3: the gate refused the data; nothing was trained or registered
"""


class VerdictError(Exception):
    """A failure to be shown as one or two lines, without a traceback."""

    exit_code = 1


class Unreachable(VerdictError):
    """Something outside of this process did not answer."""


class WrongUsage(VerdictError):
    """What the user asked for cannot be meant."""

    exit_code = 2


class DataRefused(VerdictError):
    """The data is not fit to train on."""

    exit_code = 3
