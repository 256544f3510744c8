"""Finds the report of a version, and opens it in a browser."""

import contextlib
import shutil
import webbrowser
from pathlib import Path
from typing import TypedDict

from flows.commands.predict import find_model
from flows.outcome import RESULT_FILE, RetrainOutcome
from tasks.core.errors import VerdictError
from tasks.core.files import read_json, sha256_of
from tasks.inference.bundle import REPORT_FILE, read_manifest
from tasks.registry.downloads import is_download


class FoundReport(TypedDict):
    """A version (`sha256:...` for a bundle's folder) and the path of its report."""

    version: str
    report: str


def find_report(version: str, home: str) -> FoundReport:
    """Return where the report of a version is: the one that its run left here, else the one in its bundle.

    The run's names the version and leads to the pages about it; the bundle's was written before it was registered. Of a
    bundle that was downloaded a copy of the report stays below `home`.

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
    path = _find_run_report(found.version, manifest["digest"], home) or path
    if is_download(path):
        kept = Path(home, "cache", "reports", f"{manifest['digest']}.html")
        kept.parent.mkdir(parents=True, exist_ok=True)
        path = Path(shutil.copyfile(path, kept))
    return FoundReport(version=found.version, report=str(path.absolute()))


def _find_run_report(version: str, digest: str, home: str) -> Path | None:
    """Return the report in the folder of the job that registered a version; None where that was another home's."""
    for result in Path(home, "runs").glob(f"*/{RESULT_FILE}"):
        with contextlib.suppress(VerdictError):  # the job's own next run reports it
            outcome, report = RetrainOutcome.from_json(read_json(result)), result.with_name(REPORT_FILE)
            if outcome and (outcome.version, outcome.digest) == (version, digest) and report.is_file():
                return report
    return None


def open_in_browser(path: str) -> None:
    """Open a report in a browser.

    Raises:
        VerdictError: if there is none.
    """
    if not webbrowser.open(Path(path).as_uri()):
        raise VerdictError(f"no browser was found here; open {path} in one, or name one: BROWSER=firefox")
