"""Finds the report of a version, and opens it in a browser."""

import webbrowser
from pathlib import Path
from typing import TypedDict

from flows.commands.predict import find_model
from tasks.core.errors import VerdictError
from tasks.core.files import sha256_of
from tasks.inference.bundle import REPORT_FILE, read_manifest


class FoundReport(TypedDict):
    """A version (`sha256:...` for a bundle's folder) and the path of its report."""

    version: str
    report: str


def find_report(version: str, home: str) -> FoundReport:
    """Return where the report of a version is; one of another store is downloaded.

    Args:
        version: number, registry address, or a bundle's folder.
        home: folder of the stores.

    Raises:
        UsageError: if it is none of these.
        VerdictError: if there is no such version, or its report is missing or not the one that was registered.
    """
    found = find_model(version, home)
    path, manifest = Path(found.bundle, REPORT_FILE), read_manifest(Path(found.bundle), found.manifest_digest)
    if not path.is_file():
        raise VerdictError(f"version {found.version} has no {REPORT_FILE} in {found.bundle}; see: verdict verify")
    if sha256_of(path) != manifest["files"].get(REPORT_FILE):
        raise VerdictError(f"{path} is not the report that was registered; see: verdict status")
    return FoundReport(version=found.version, report=str(path.absolute()))


def open_in_browser(path: str) -> None:
    """Open a report in a browser.

    Raises:
        VerdictError: if there is none.
    """
    if not webbrowser.open(Path(path).as_uri()):
        raise VerdictError(f"no browser was found here; open {path} in one, or name one: BROWSER=firefox")
