"""Resolves addresses of data (folders, files, URLs, hub data sets, the sample corpus) to files by role.

    DIR or FILE                                       on this machine; a table in several files is a folder, too
    https://HOST/FILE#sha256=HEX                      downloaded once, cached by its digest
    https://HOST/FILE.zip#sha256=HEX&member=PATH      a file or folder inside a zip
    hf:ORG/NAME/CONFIG[@REVISION]                     a data set of the Hugging Face hub
    sample                                            the bundled corpus

In a folder CoLA's file names decide: `in_domain_train.tsv` is the training file, `out_of_domain_dev.tsv` the holdout,
and `in_domain_dev.tsv`, where there is one, a secondary holdout, whose metrics are reported only. Several addresses are
merged role by role.
"""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict
from urllib.parse import parse_qs, urldefrag

from tasks.core.addresses import HUB_PREFIX, SAMPLE_ADDRESS
from tasks.core.errors import UsageError
from tasks.core.printable import shorten
from tasks.data.archives import extract_member
from tasks.data.download import download
from tasks.data.file_kinds import COMPRESSED, COMPRESSED_INSIDE, FORMATS, split_name
from tasks.data.hf_hub import fetch_dataset
from tasks.data.sample_corpus import HOLDOUT_FILE, TRAIN_FILE, write_sample
from tasks.data.table_folders import table_parts, tables_in

SECONDARY_FILE = "in_domain_dev.tsv"
MAX_NAME = 60  # characters of the name of data in lists
TABLE_SUFFIXES = tuple(
    suffix + packed
    for suffix, name in FORMATS.items()
    if name != "txt"
    for packed in ("", *(COMPRESSED if name not in COMPRESSED_INSIDE else ()))
)
# File names of each role without suffix, in order of preference; the last ones are splits of the Hugging Face hub.
FILE_ROLES = {
    "train": (TRAIN_FILE.removesuffix(".tsv"), "train"),
    "holdout": (HOLDOUT_FILE.removesuffix(".tsv"), "holdout", "validation", "valid", "val", "dev", "test"),
    "secondary": (SECONDARY_FILE.removesuffix(".tsv"),),
}
ADDRESS_HINT = "a folder, a file, https://...#sha256=HEX, hf:ORG/NAME or sample"

log = logging.getLogger(__name__)


class Sources(TypedDict):
    """The files of one run by role. Without a holdout file, one is split off the training rows."""

    train: list[str]
    holdout: list[str]
    secondary: list[str]


class ResolvedAddress(NamedTuple):
    """The files of one address.

    Args:
        address: as given.
        files: paths by name: one of a file, several of a table in parts.
        single: whether the address is one file or table.
        folder: folder of the files; empty for a single file or a hub data set.
        outside: where links of the folder lead that lead out of it, by name; followed only if named.
    """

    address: str
    files: dict[str, list[str]]
    single: bool = False
    folder: str = ""
    outside: dict[str, str] = {}


def locate_sources(addresses: Sequence[str], train: str, holdout: str, home: str, *, offline: bool = False) -> Sources:
    """Find the files behind addresses, downloading what is not cached.

    Args:
        addresses: see above; several are merged.
        train: training file: a name in one of the folders, a path, a URL or a split; empty for the default names.
        holdout: holdout file, likewise.
        home: folder of the stores; receives downloads and the sample corpus.
        offline: use only files on this machine.

    Raises:
        UsageError: if an address or a file does not exist.
        UnreachableError: if a server does not answer, or offline and nothing is cached.
        DataRejected: if a file does not have the digest of its address.
    """
    if not addresses or not all(addresses):
        raise UsageError(f"no data given; expected {ADDRESS_HINT}: --data ADDRESS")
    resolved = [_open_address(address, home, offline) for address in addresses]
    named = {"train": train, "holdout": holdout}
    found = {
        role: _find(resolved, named[role], role, home, offline) if named.get(role) else _pick(resolved, role)
        for role in FILE_ROLES
    }
    _reject_missing(resolved, found)
    used = [Path(file) for role in ("train", "holdout") for file in found[role]]
    both = [file for file in found["train"] if any(Path(file).samefile(other) for other in found["holdout"])]
    if both:
        raise UsageError(
            f"{both[0]} is both training file and holdout; expected two files: --train FILE --holdout FILE"
        )
    _reject_unused(resolved, found)
    secondary = [file for file in found["secondary"] if not any(Path(file).samefile(other) for other in used)]
    return Sources(train=found["train"], holdout=found["holdout"], secondary=secondary)


def locate_text(address: str, home: str, *, offline: bool = False) -> str:
    """Return the path of a file of sentences without labels, downloading it where needed; "" for no address.

    Raises:
        UsageError: if it does not exist, is not a file, or its suffix is of no known format.
        UnreachableError: if a server does not answer, or offline and nothing is cached.
        DataRejected: if the file does not have the digest of its address.
    """
    if not address:
        return ""
    formats = ", ".join(FORMATS)
    wanted = f"expected a file of sentences ({formats}, or .gz) or https://...#sha256=HEX: --set data.text=ADDRESS"
    file = Path(_fetch(address, home, offline)) if _is_url(address) else _existing(address)
    if file is None:
        raise UsageError(f"text {address!r} does not exist; {wanted}")
    if not file.is_file() or not split_name(file.name)[1]:
        raise UsageError(f"text {address!r} is no file, or its ending tells no format; {wanted}")
    return str(file)


def shown_addresses(addresses: Sequence[str]) -> str:
    """Return addresses in one line, to be recorded."""
    return " + ".join(addresses)


def name_data(addresses: Sequence[str]) -> str:
    """Return a short name of data for lists: the last part of each address, of the hub the data set."""
    names = []
    for address in addresses:
        place = address.partition("#")[0].partition("?")[0]
        names.append(
            place.removeprefix(HUB_PREFIX).partition("@")[0]
            if place.startswith(HUB_PREFIX)
            else Path(place).resolve().name
        )
    return shorten(shown_addresses(names), MAX_NAME)


def _is_url(address: str) -> bool:
    return address.startswith(("https://", "http://"))


def _open_address(address: str, home: str, offline: bool) -> ResolvedAddress:
    """Return the files of one address, downloading what is not cached."""
    if address == SAMPLE_ADDRESS:
        folder = Path(home) / "sample"
        write_sample(folder)
        return _open_path(address, folder)
    if address.startswith(HUB_PREFIX):
        splits = fetch_dataset(address, f"{home}/downloads/hub", offline=offline)
        return ResolvedAddress(address, {split: [file] for split, file in splits.items()})
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
    """Download a URL whose fragment has its digest and, for a zip, the member; return the path."""
    url, fragment = urldefrag(address)
    parts = parse_qs(fragment.replace("+", "%2B"))  # a plus is not a space here
    unknown = sorted(set(parts) - {"sha256", "member"})
    if unknown or "sha256" not in parts:
        problem = f"the unknown part {unknown[0]!r}" if unknown else "no digest"
        raise UsageError(
            f"address {address!r} has {problem}; expected {url}#sha256=HEX, for a zip &member=PATH too "
            "(sha256sum of a copy that you trust prints HEX)"
        )
    path = download(url, parts["sha256"][0], f"{home}/downloads", offline=offline)
    member = parts.get("member", [""])[0]
    return extract_member(path, member) if member or path.lower().endswith(".zip") else path


def _existing(name: str) -> Path | None:
    """Return the path of a file or folder; None if there is none, or the name is not a valid path."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name that is too long, ~ of an unknown user
        return None


def _open_path(address: str, path: Path) -> ResolvedAddress:
    if path.is_file():
        return ResolvedAddress(address, {path.name: [str(path)]}, single=True)
    if not path.is_dir():
        raise UsageError(
            f"data {address!r} is a pipe or device, and is read more than once; expected a file: --data FILE"
        )
    try:
        if parts := table_parts(path):
            return ResolvedAddress(address, {path.resolve().name: parts}, single=True)
        files = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
        home = path.resolve()
        outside = {name: str(real) for name, file in files.items() if home not in (real := file.resolve()).parents}
        inside = {name: [str(file)] for name, file in files.items() if name not in outside}
        return ResolvedAddress(address, tables_in(path) | inside, folder=str(path), outside=outside)
    except OSError as error:  # a folder that may not be read
        raise UsageError(
            f"data {address!r} cannot be listed ({error.strerror}); expected {ADDRESS_HINT}: --data ADDRESS"
        ) from error


def _pick(resolved: Sequence[ResolvedAddress], role: str) -> list[str]:
    """Return the files that have a role by their names; a single file of any other name is a training file."""
    names = [f"{stem}{suffix}" for stem in FILE_ROLES[role] for suffix in (*TABLE_SUFFIXES, "")]
    files: list[str] = []
    for entry in resolved:
        present = next((name for name in names if name in entry.files or name in entry.outside), None)
        if present in entry.outside:
            raise UsageError(
                f"{present} of {entry.address} is a link that leads out of the folder, to {entry.outside[present]}; "
                "expected a file in it, or each file by its own address: --data FILE"
            )
        found = entry.files[present] if present else None
        if found is None and role == "train" and entry.single and not _has_role(next(iter(entry.files))):
            found = next(iter(entry.files.values()))
        files += found or []
    return files


def _has_role(name: str) -> bool:
    return any(split_name(name)[0] == stem for role in ("holdout", "secondary") for stem in FILE_ROLES[role])


def _find(resolved: Sequence[ResolvedAddress], given: str, role: str, home: str, offline: bool) -> list[str]:
    """Return the paths of a named file or table: in one of the addresses, or an address itself."""
    for entry in resolved:
        if given in entry.files:
            return entry.files[given]
        below = _existing(f"{entry.folder}/{given}") if entry.folder else None
        if below and (parts := _parts_of(below)):
            return parts
    elsewhere = _existing(given)
    if _is_url(given) or (elsewhere and _parts_of(elsewhere)):
        entry = _open_address(given, home, offline)
        if entry.single:
            return next(iter(entry.files.values()))
    raise UsageError(_missing(resolved[0], given, role))


def _parts_of(path: Path) -> list[str]:
    """Return the files of a file or of a table in a folder."""
    if path.is_dir():
        return table_parts(path)
    return [str(path)] if path.is_file() else []


def _reject_missing(resolved: Sequence[ResolvedAddress], found: dict[str, list[str]]) -> None:
    """Reject data without a training file, and folders without a holdout.

    Single files and hub data sets may lack a holdout: a share of their sentences is split off.
    """
    if not found["train"]:
        raise UsageError(_missing(resolved[0], TRAIN_FILE, "train"))
    folders = [entry for entry in resolved if not entry.single and not entry.address.startswith(HUB_PREFIX)]
    if folders and not found["holdout"]:
        missing = _missing(folders[0], HOLDOUT_FILE, "holdout")
        raise UsageError(f"{missing}, or hold a share out: --data {shlex.quote(found['train'][0])}")


def _reject_unused(resolved: Sequence[ResolvedAddress], found: dict[str, list[str]]) -> None:
    """Reject an address none of whose files has a role; log one whose role a named file took."""
    taken = {Path(file).resolve() for files in found.values() for file in files}
    around = {folder for file in taken for folder in file.parents}  # a named file may lie in a subfolder
    for entry in resolved if len(resolved) > 1 else ():
        listed = {Path(part).resolve() for parts in entry.files.values() for part in parts}
        if listed & taken or (entry.folder and Path(entry.folder).resolve() in around):
            continue
        if not any(_pick([entry], role) for role in FILE_ROLES):
            raise UsageError(
                f"nothing of {entry.address} is used (it holds {_names(entry)}); "
                "expected the usual names, or the file's own path: --data FILE"
            )
        log.warning("nothing of %s is used: --train or --holdout names another file", entry.address)


def _missing(entry: ResolvedAddress, name: str, role: str) -> str:
    alone = next(iter(entry.files.values())) if len(entry.files) == 1 and entry.folder and role == "train" else []
    option = f"--data {shlex.quote(alone[0])}" if len(alone) == 1 and split_name(alone[0])[1] else f"--{role} FILE"
    below = Path(entry.folder) / "data"  # where repositories of the hub keep them
    if entry.folder and role == "train" and below.is_dir():
        option += f", or --data {shlex.quote(str(below))}"
    return f"{entry.address} holds no file {name!r} (it holds {_names(entry)}); name it: {option}"


def _names(entry: ResolvedAddress) -> str:
    return ", ".join(sorted(entry.files)[:8]) or "no file"
