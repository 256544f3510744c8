"""Keeps passwords and signatures of addresses out of everything but the request that needs them.

An address is hidden where it is read: settings, flow parameters, records and messages hold it without its secrets. The
address as it was given stays in this process's memory, for whoever makes the request.
"""

import json
from urllib.parse import quote, unquote, urlsplit

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
        for form in (
            secret,
            quote(secret, safe=""),
            quote(secret),
            unquote(secret),
            json.dumps(secret, ensure_ascii=False)[1:-1],
        ):
            text = text.replace(form, HIDDEN)
    return text


def check_address(variable: str, address: str, http: bool = False) -> None:
    """Check the form of a server's address, which libraries find wrong late, each in its own way.

    Args:
        variable: of the environment that holds it.
        address: to check; a path or an empty one passes.
        http: only HTTP and HTTPS are expected, and no path.

    Raises:
        UsageError: if it has another form. It is not shown: it may have a password anywhere.
    """
    if not address or not (http or "://" in address):
        return
    if address.startswith("sqlite:///file:"):
        raise UsageError(
            f"{variable} names a file: address of SQLite, which would be read as a relative path; expected a path: "
            "sqlite:////FOLDER/mlflow.db, or unset it"
        )
    try:
        parts = urlsplit(address)
        web = parts.scheme in ("http", "https")
        right = parts.port != 0 and (bool(parts.hostname) if web else not http)
    except ValueError:
        right = False
    if not right:
        raise UsageError(f"{variable} is no address of a server; expected for example http://HOST:PORT, or unset it")


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
