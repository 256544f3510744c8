"""What every access to the Hugging Face hub has in common: addresses, silence, and why one failed.

HF_TOKEN names the user, HF_ENDPOINT another hub than the public one, HF_HUB_OFFLINE=1 forbids requests. The library
reads the last two when it is imported.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator

from huggingface_hub import errors, utils

from tasks.core.hidden_addresses import check_address

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.]|-(?!-))*"
REPOSITORY = rf"{_PART}(?:/{_PART})?"
REVISION = r"(?:@(?P<revision>[^\s\x00-\x1f@]+))?"
COMMIT = re.compile(r"[0-9a-f]{40}")
NOT_CACHED = (errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError)
# The base of the library's HTTP errors belongs to its HTTP client, which is another one from version 2 on.
_NO_ANSWER = (errors.HfHubHTTPError.__bases__[0], ConnectionError, TimeoutError, errors.LocalEntryNotFoundError)


@contextlib.contextmanager
def hub_requests() -> Iterator[None]:
    """Check the hub's address; keep the library's log lines and progress bars off standard error.

    Raises:
        UsageError: if HF_ENDPOINT is no address.
    """
    check_address("HF_ENDPOINT", os.environ.get("HF_ENDPOINT", ""), http=True)
    logger = logging.getLogger("huggingface_hub")
    level, had_bars = logger.level, not utils.are_progress_bars_disabled()
    try:
        logger.setLevel(logging.CRITICAL)
        utils.disable_progress_bars()
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            utils.enable_progress_bars()


def explain_refusal(error: Exception, revision: str, example: str) -> str:
    """Return what is wrong if a name does not exist or is not open to this user; else an empty text.

    Args:
        error: of the library.
        revision: that was wanted; empty: main.
        example: an address as it should be.
    """
    causes = _causes(error)
    for kind, problem in (
        # A gated repository is also one that was not found.
        (errors.GatedRepoError, "is gated; expected permission to read it: request it on its page, then set HF_TOKEN"),
        (
            errors.RevisionNotFoundError,
            f"has no revision {revision or 'main'!r}; expected a branch, tag or commit of it after the @, "
            "or none for the newest",
        ),
        (
            (errors.RepositoryNotFoundError, errors.HFValidationError),
            "is not on the hub, or is private; expected a name as the hub spells it, for example "
            f"{example}: check it, or set HF_TOKEN",
        ),
    ):
        if any(isinstance(cause, kind) for cause in causes):
            return problem
    closed = [status for cause in causes if (status := _status(cause)) in (401, 403)]
    return f"is refused by the hub (HTTP {closed[0]}); expected a valid token: set HF_TOKEN" if closed else ""


def explain_silence(error: Exception) -> str:
    """Return why the hub gave no usable answer; an empty text if that is not what failed."""
    unanswered = [cause for cause in _causes(error) if isinstance(cause, _NO_ANSWER)]
    if not unanswered:
        return ""
    status = _status(unanswered[-1])
    return f"HTTP {status}" if status else type(unanswered[-1]).__name__


def _causes(error: Exception) -> list[BaseException]:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of the hub's library."""
    return getattr(getattr(error, "response", None), "status_code", None)
