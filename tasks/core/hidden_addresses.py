"""Keeps passwords and signatures of addresses out of everything but the request that needs them.

An address is hidden where it is read: settings, flow parameters, records and messages hold it without its secrets. The
address as it was given stays in this process's memory, for whoever makes the request.
"""

from urllib.parse import quote, unquote

from .errors import UsageError
from .printable import HIDDEN, list_secrets, redact, redact_address

_given: dict[str, str] = {}  # by the shown address; neither has a fragment, which is not sent to a server


def hide(address: str) -> str:
    """Return an address without its secrets; `reveal` knows them from now on."""
    shown = redact_address(address)
    if shown != address:
        _given[_without_fragment(shown)] = _without_fragment(address.strip())
    return shown


def reveal(address: str) -> str:
    """Return an address without fragment as it was given."""
    return _given.get(address, address)


def conceal(text: str) -> str:
    """Return a library's message without the secrets of any hidden address, also where it quotes only their path."""
    for secret in sorted({each for given in _given.values() for each in list_secrets(given)}, key=len, reverse=True):
        for form in (secret, quote(secret, safe=""), quote(secret), unquote(secret)):
            text = text.replace(form, HIDDEN)
    return text


def reject_secrets(text: str, place: str) -> None:
    """Check that a text which a server stores has no address with a password or a signature.

    Raises:
        UsageError: if it has one.
    """
    if redact(text) != text:
        raise UsageError(
            f"{place} holds an address with a password or signature, which Prefect's server stores and shows; expected "
            "none there: set VERDICT_DATA__PATH in the worker's environment, and change the password if it was stored"
        )


def _without_fragment(address: str) -> str:
    return address.partition("#")[0]
