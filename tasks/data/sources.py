"""Where data comes from: addresses of folders, files, URLs and hub data sets become files with a role.

    DIR or FILE                                       on this machine
    https://HOST/FILE#sha256=HEX                      fetched once, kept under its digest
    https://HOST/FILE.zip#sha256=HEX&member=PATH      a file or folder inside a zip
    hf:ORG/NAME/CONFIG[@REVISION]                     a data set of the Hugging Face hub
    sample                                            the bundled corpus

Of a folder the files with CoLA's names are taken: `in_domain_train.tsv` trains, `out_of_domain_dev.tsv` is the holdout
that judges, and `in_domain_dev.tsv`, where there is one, is a second holdout that is only reported. Several addresses
are merged role by role.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict
from urllib.parse import parse_qs, urldefrag

from tasks.core.errors import UsageError
from tasks.data.archives import extract_member
from tasks.data.download import download
from tasks.data.hf_hub import fetch_dataset
from tasks.data.record_readers import FORMATS
from tasks.data.sample_corpus import HOLDOUT_FILE, TRAIN_FILE, write_sample

SAMPLE_ADDRESS = "sample"
SECONDARY_FILE = "in_domain_dev.tsv"
TABLE_SUFFIXES = tuple(suffix for suffix, name in FORMATS.items() if name != "txt")
# Names of each role without their suffix, the first one that is there counts; the last ones are the hub's splits.
FILE_ROLES = {
    "train": (TRAIN_FILE.removesuffix(".tsv"), "train"),
    "holdout": (HOLDOUT_FILE.removesuffix(".tsv"), "holdout", "validation", "test"),
    "secondary": (SECONDARY_FILE.removesuffix(".tsv"),),
}
ADDRESS_HINT = "a folder, a file, https://...#sha256=HEX, hf:ORG/NAME or sample"

_CREDENTIALS = re.compile(r"^(https?://)[^/?#]*@")

log = logging.getLogger(__name__)


class Sources(TypedDict):
    """The files of one run by role; `reported` ones are measured and do not judge. No holdout: one is set apart."""

    train: list[str]
    holdout: list[str]
    secondary: list[str]


class ResolvedAddress(NamedTuple):
    """What one address gave: its files by name, whether it was one file, and else the folder that they lie in."""

    address: str
    files: dict[str, str]
    single: bool = False
    folder: str = ""


def locate_sources(addresses: Sequence[str], train: str, holdout: str, home: str, *, offline: bool = False) -> Sources:
    """Find, and where needed fetch, the files behind addresses.

    Args:
        addresses: see above; several are merged.
        train: name of the training file: in one of the folders, a path or URL of its own, or a split; empty for the
            usual names.
        holdout: name of the judging file, likewise.
        home: folder of the stores; downloads and the bundled corpus are kept there.
        offline: take only what is on this machine.

    Raises:
        WrongUsage: if an address or a file is not there.
        Unreachable: if a server does not answer, or offline and nothing is kept.
        DataRefused: if a file is not the one that its digest names.
    """
    if not addresses or not all(addresses):
        raise UsageError(f"no data given; expected {ADDRESS_HINT}: --data ADDRESS")
    places = [_open_address(address, home, offline) for address in addresses]
    named = {"train": train, "holdout": holdout}
    found = {
        role: [_find(places, named[role], role, home, offline)] if named.get(role) else _pick(places, role)
        for role in FILE_ROLES
    }
    _reject_missing(places, found)
    used = [Path(file) for role in ("train", "holdout") for file in found[role]]
    both = [file for file in found["train"] if any(Path(file).samefile(other) for other in found["holdout"])]
    if both:
        raise UsageError(
            f"{both[0]} is both training file and holdout; expected two files: --train FILE --holdout FILE"
        )
    _reject_unused(places, found)
    spare = [file for file in found["secondary"] if not any(Path(file).samefile(other) for other in used)]
    return Sources(train=found["train"], holdout=found["holdout"], secondary=spare)


def locate_text(address: str, home: str, *, offline: bool = False) -> str:
    """Return the path of a file of sentences without labels, fetching it where needed; of no address none.

    Raises:
        WrongUsage: if it is not there, is no file, or has an ending that tells no format.
        Unreachable: if a server does not answer, or offline and nothing is kept.
        DataRefused: if the file is not the one that its digest names.
    """
    if not address:
        return ""
    formats = ", ".join(FORMATS)
    wanted = f"expected a file of sentences ({formats}) or https://...#sha256=HEX: --set data.text=ADDRESS"
    file = Path(_fetch(address, home, offline)) if _is_url(address) else _existing(address)
    if file is None:
        raise UsageError(f"text {address!r} does not exist; {wanted}")
    if not file.is_file() or file.suffix.lower() not in FORMATS:
        raise UsageError(f"text {address!r} is no file, or its ending tells no format; {wanted}")
    return str(file)


def shown_addresses(addresses: Sequence[str]) -> str:
    """Return addresses in one line, as they may be recorded: without the user names and passwords of URLs."""
    return " + ".join(_CREDENTIALS.sub(r"\1", address) for address in addresses)


def _is_url(address: str) -> bool:
    return address.startswith(("https://", "http://"))


def _open_address(address: str, home: str, offline: bool) -> ResolvedAddress:
    """Return the files behind one address, fetching them where they are not here."""
    if address == SAMPLE_ADDRESS:
        folder = Path(home) / "sample"
        write_sample(folder)
        return _open_path(address, folder)
    if address.startswith("hf:"):
        splits = fetch_dataset(address, f"{home}/downloads/hub", offline=offline)
        return ResolvedAddress(address, splits)
    if _is_url(address):
        return _open_path(address, Path(_fetch(address, home, offline)))
    path = _existing(address)
    if path is not None and path.suffix.lower() == ".zip" and path.is_file():
        raise UsageError(
            f"data {address!r} is a zip; expected its folder or a file of it: unzip it, then --data ADDRESS"
        )
    if path is None:
        raise UsageError(f"data {address!r} does not exist; expected {ADDRESS_HINT}: --data ADDRESS")
    return _open_path(address, path)


def _fetch(address: str, home: str, offline: bool) -> str:
    """Fetch a URL whose fragment holds its digest and, for a zip, the member."""
    url, fragment = urldefrag(address)
    facts = parse_qs(fragment.replace("+", "%2B"))  # a plus is no space here
    unknown = sorted(set(facts) - {"sha256", "member"})
    if unknown or "sha256" not in facts:
        problem = f"the unknown part {unknown[0]!r}" if unknown else "no digest"
        raise UsageError(
            f"address {address!r} has {problem}; expected {url}#sha256=HEX, for a zip &member=PATH too "
            "(sha256sum of a copy that you trust prints HEX)"
        )
    path = download(url, facts["sha256"][0], f"{home}/downloads", offline=offline)
    member = facts.get("member", [""])[0]
    return extract_member(path, member) if member or path.lower().endswith(".zip") else path


def _existing(name: str) -> Path | None:
    """Return the path of a file or folder; None where there is none, or the name cannot be one."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name that is too long, ~ of an unknown user
        return None


def _open_path(address: str, path: Path) -> ResolvedAddress:
    if path.is_file():
        return ResolvedAddress(address, {path.name: str(path)}, single=True)
    try:
        files = {file.name: str(file) for file in sorted(path.iterdir()) if file.is_file()}
        return ResolvedAddress(address, files, folder=str(path))
    except OSError as error:  # a device, or a folder that may not be read
        raise UsageError(
            f"data {address!r} cannot be listed ({error.strerror}); expected {ADDRESS_HINT}: --data ADDRESS"
        ) from error


def _pick(places: Sequence[ResolvedAddress], role: str) -> list[str]:
    """Return the files that have a role by their names; a single file of any other name trains."""
    names = [f"{stem}{suffix}" for stem in FILE_ROLES[role] for suffix in (*TABLE_SUFFIXES, "")]
    files = []
    for place in places:
        found = next((place.files[name] for name in names if name in place.files), None)
        if found is None and role == "train" and place.single and not _has_role(next(iter(place.files))):
            found = next(iter(place.files.values()))
        if found:
            files.append(found)
    return files


def _has_role(name: str) -> bool:
    return any(Path(name).stem == stem for role in ("holdout", "secondary") for stem in FILE_ROLES[role])


def _find(places: Sequence[ResolvedAddress], given: str, role: str, home: str, offline: bool) -> str:
    """Return the path of a file that was named: in one of the places, or an address of its own."""
    for place in places:
        if given in place.files:
            return place.files[given]
        below = _existing(f"{place.folder}/{given}") if place.folder else None
        if below and below.is_file():
            return str(below)
    elsewhere = _existing(given)
    if _is_url(given) or (elsewhere and elsewhere.is_file()):
        place = _open_address(given, home, offline)
        if place.single:
            return next(iter(place.files.values()))
    raise UsageError(_missing(places[0], given, role))


def _reject_missing(places: Sequence[ResolvedAddress], found: dict[str, list[str]]) -> None:
    """Refuse data without training rows, and folders without a holdout.

    Single files and hub data sets may come without one: then a share of their sentences is set apart.
    """
    if not found["train"]:
        raise UsageError(_missing(places[0], TRAIN_FILE, "train"))
    folders = [place for place in places if not place.single and not place.address.startswith("hf:")]
    if folders and not found["holdout"]:
        raise UsageError(_missing(folders[0], HOLDOUT_FILE, "holdout"))


def _reject_unused(places: Sequence[ResolvedAddress], found: dict[str, list[str]]) -> None:
    """Refuse several addresses of which one has no file with a role; say where a named file took the role."""
    taken = {Path(file).resolve() for files in found.values() for file in files}
    around = {folder for file in taken for folder in file.parents}  # a named file may lie deeper than those listed
    for place in places if len(places) > 1 else ():
        listed = {Path(file).resolve() for file in place.files.values()}
        if listed & taken or (place.folder and Path(place.folder).resolve() in around):
            continue
        if not any(_pick([place], role) for role in FILE_ROLES):
            raise UsageError(
                f"nothing of {place.address} is used (it holds {_names(place)}); "
                "expected the usual names, or the file's own path: --data FILE"
            )
        log.warning("nothing of %s is used: --train or --holdout names another file", place.address)


def _missing(place: ResolvedAddress, name: str, role: str) -> str:
    return f"{place.address} holds no file {name!r} (it holds {_names(place)}); name it: --{role} FILE"


def _names(place: ResolvedAddress) -> str:
    return ", ".join(sorted(place.files)[:8]) or "no file"
