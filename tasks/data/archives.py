"""Extracts a file or a folder of a zip, beside the zip.

FOLDER/CORPUS.zip
FOLDER/DIGEST/MEMBER    the extracted file or folder; DIGEST is that of the zip's bytes and the member's name
FOLDER/DIGEST.lock      held by the process that extracts
"""

import errno
import lzma
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from filelock import FileLock

from tasks.core.errors import DataRejected, UsageError, VerdictError, first_line
from tasks.core.files import atomic_directory, json_digest, sha256_of
from tasks.data.compression import expansion_limit

MAX_LISTED_MEMBERS = 8  # members that an error message names
TOP_LEVEL = "."  # the folder name of the zip's top level


def extract_member(archive: str, member: str) -> str:
    """Extract a member of a zip, if it is not extracted yet, and return its path.

    Members whose names point out of the zip, symbolic links and macOS metadata files are ignored.

    Args:
        archive: path of the zip.
        member: a file, or a folder of which the files directly in it are extracted; "." is the top level. Empty for
            the only file or, with several files, the only folder.

    Raises:
        UsageError: if the zip or the member does not exist, or the member is empty and ambiguous.
        DataRejected: if the file is no zip, or is damaged or encrypted.
        VerdictError: if the files cannot be written beside the zip.
    """
    source = Path(archive)
    if not source.is_file():
        raise UsageError(f"zip file {archive!r} does not exist; expected the path of a zip; name another")
    try:
        with zipfile.ZipFile(source) as opened:
            members = _list_members(opened)
            name = _resolve(archive, members, member)
            folder = source.parent / json_digest([sha256_of(source), name])[:32]
            target = folder / (PurePosixPath(name).name or "files")
            if not target.exists():
                with FileLock(folder.with_suffix(".lock")):
                    if not target.exists():
                        _extract(opened, members, name, target)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # bz2 errors, and seeking to an offset of a damaged index
            raise _damaged(archive, error) from error
        raise VerdictError(
            f"{archive} cannot be unpacked beside itself ({first_line(error)}); "
            "expected a writable folder with free space; free some or copy the zip elsewhere"
        ) from error
    return str(target)


def _damaged(archive: str, error: Exception) -> DataRejected:
    return DataRejected(
        f"{archive} is no zip or is damaged ({first_line(error)}); expected a complete zip; download or copy it again"
    )


def _list_members(opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files of a zip that are safe to extract, by their names with forward slashes."""
    found = {}
    for info in opened.infolist():
        path = PureWindowsPath(info.filename)  # parses both kinds of slashes, and drives
        outside = path.anchor or ".." in path.parts
        metadata = "__MACOSX" in path.parts or path.name.startswith("._") or path.name == ".DS_Store"
        link = stat.S_ISLNK(info.external_attr >> 16)
        if path.name and not (info.is_dir() or outside or metadata or link):
            found[path.as_posix()] = info
    return found


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _resolve(archive: str, members: dict[str, zipfile.ZipInfo], member: str) -> str:
    """Return the name of the file or folder that is meant.

    Raises:
        UsageError: if there is none, or several.
    """
    folders = {_parent(name) for name in members}
    if member:
        name = PureWindowsPath(member).as_posix()
        if name in members or name in folders:
            return name
        problem = f"no member {member!r}"
    else:
        for candidates in (list(members), [folder for folder in folders if folder != TOP_LEVEL]):
            if len(candidates) == 1:
                return candidates[0]
        problem = "no single file or folder"
    present = [*sorted(f"{folder}/" for folder in folders), *sorted(members)]
    shown = ", ".join(map(repr, present[:MAX_LISTED_MEMBERS])) or "no file"
    more = f" and {len(present) - MAX_LISTED_MEMBERS} more" if len(present) > MAX_LISTED_MEMBERS else ""
    raise UsageError(f"{archive} holds {problem}; it holds {shown}{more}; name one of them")


def _extract(opened: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, target: Path) -> None:
    """Write a file, or the files directly in a folder, so that the target's parent appears atomically.

    Raises:
        DataRejected: if a file is encrypted, or they take more than a zip of this size may hold.
    """
    single = name in members
    files = [name] if single else [file for file in members if _parent(file) == name]
    limit = expansion_limit(Path(str(opened.filename)).stat().st_size)
    if sum(members[file].file_size for file in files) > limit:  # no more is unpacked of a member than it says
        raise DataRejected(
            f"{opened.filename} holds more than {limit:,} bytes in {name!r}, the limit of a zip of its size; "
            "expected sentences: unpack it and name the file if they are"
        )
    with atomic_directory(target.parent) as temporary:
        folder = temporary if single else temporary / target.name
        folder.mkdir(exist_ok=True)
        for file in files:
            if members[file].flag_bits & 1:
                raise DataRejected(
                    f"{opened.filename} is encrypted ({file!r}); expected a zip without password; unpack it manually"
                )
            # Only the base name is used, so nothing is written outside the folder.
            with opened.open(members[file]) as stream, (folder / PurePosixPath(file).name).open("xb") as copy:
                shutil.copyfileobj(stream, copy)
