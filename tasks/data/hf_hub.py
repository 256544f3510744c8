"""A data set of the Hugging Face hub as Parquet files, one a split, kept by commit.

`hf:nyu-mll/glue/cola` names the config cola of the data set nyu-mll/glue. What was fetched lies in
CACHE/nyu-mll--glue--cola/COMMIT/SPLIT.parquet; revisions.json beside it tells which commit a branch or tag was when it
was last asked for. The library `datasets` is an optional extra and is imported only for a download.
"""

import contextlib
import importlib.util
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tasks.core.errors import UnreachableError, UsageError, VerdictError, summarise_error
from tasks.core.files import atomic_directory, read_json, write_json

log = logging.getLogger(__name__)

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.]|-(?!-))*"
_ADDRESS = re.compile(
    rf"hf:(?P<name>{_PART}(?:/{_PART})?)"
    # A config's name is free but for what no file name may hold.
    r"(?:/(?P<config>[^\s\x00-\x1f/@<>:\\|?*]{1,100}))?"
    r"(?:@(?P<revision>[^\s\x00-\x1f@]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_EXTRA = "pip install 'verdict-mlops[hub]'"
_REVISIONS = "revisions.json"
_NAMES_SHOWN = 12


class _Address(NamedTuple):
    """What an address asks for; config and revision are None where it names none."""

    text: str
    name: str
    config: str | None
    revision: str | None

    @property
    def slug(self) -> str:
        """The name of its folder. The hub's names hold no "--", so no two addresses share one."""
        return "--".join([*self.name.split("/"), *([self.config] if self.config else [])])


def fetch_dataset(address: str, cache: str, *, offline: bool = False) -> dict[str, str]:
    """Return the splits of a hub data set as Parquet files, downloading what is not kept yet.

    Online the hub is asked which commit is meant, except where the address names a commit that is kept. Offline
    (or with HF_HUB_OFFLINE=1) the commit last seen for the revision is used, or the last one kept.

    Args:
        address: hf:NAME, hf:ORG/NAME or hf:ORG/NAME/CONFIG, each with @REVISION (branch, tag or commit) if need be.
        cache: folder that keeps the files, whole or absent, by data set and commit.
        offline: ask nothing of the network.

    Returns:
        the path of a Parquet file by the name of its split.

    Raises:
        WrongUsage: if the address is malformed, its data set, config or revision is unknown or closed to this user, or
            the library is not installed.
        Unreachable: if the hub does not answer, or nothing is kept while offline.
        VerdictError: if the data set cannot be read as files, or not be kept.
    """
    from huggingface_hub import constants

    wanted = _parse(address)
    folder = Path(cache) / wanted.slug
    named = wanted.revision or ""
    if _COMMIT.fullmatch(named) and (kept := _cached_splits(folder / named)):
        return kept
    if offline or constants.HF_HUB_OFFLINE:
        return _newest_cached(wanted, folder)
    if importlib.util.find_spec("datasets") is None:
        raise _not_installed(wanted)
    with _quiet():
        name, commit = _resolve(wanted, folder)
        with _locked(folder):
            if not _cached_splits(folder / commit):
                _download(wanted._replace(name=name), commit, folder)
            _save_revision(folder, named, commit)
    return _cached_splits(folder / commit)


def _parse(address: str) -> _Address:
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise UsageError(
            f"data set address {address!r} is malformed; expected hf:NAME, hf:ORG/NAME or hf:ORG/NAME/CONFIG, "
            "with @REVISION if need be, for example hf:nyu-mll/glue/cola"
        )
    return _Address(address, found["name"], found["config"], found["revision"])


def _cached_splits(folder: Path) -> dict[str, str]:
    """Return the splits of a kept commit; none if it is not kept."""
    return {path.stem: str(path) for path in sorted(folder.glob("*.parquet"))}


def _newest_cached(wanted: _Address, folder: Path) -> dict[str, str]:
    """Return the splits of the commit last seen for the revision; without a revision also of the last one kept.

    Raises:
        Unreachable: if there is none.
    """
    named = wanted.revision or ""
    known = read_json(folder / _REVISIONS) if (folder / _REVISIONS).is_file() else {}
    commits = [folder / known[named]] if named in known else []
    if not named:
        kept = [path for path in folder.glob("*") if _COMMIT.fullmatch(path.name)]
        commits += sorted(kept, key=lambda path: path.stat().st_mtime, reverse=True)
    for commit in commits:
        if splits := _cached_splits(commit):
            log.info("offline: data set %s at its kept commit %s", wanted.text, commit.name[:12])
            return splits
    raise UnreachableError(
        f"data set {wanted.text!r} is not kept in {folder.parent} and the hub is not asked while offline; "
        "expected an earlier fetch: run once with a network and without HF_HUB_OFFLINE and data.offline"
    )


def _save_revision(folder: Path, named: str, commit: str) -> None:
    path = folder / _REVISIONS
    known = read_json(path) if path.is_file() else {}
    if known.get(named) != commit:
        write_json(path, known | {named: commit})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the libraries say, and their progress bars, off standard output and error."""
    from huggingface_hub import utils

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "fsspec")]
    levels = [logger.level for logger in loggers]
    showed = not utils.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            utils.disable_progress_bars()
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if showed:
                utils.enable_progress_bars()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: of two processes that want the same data set, the second waits and finds it kept."""
    from filelock import FileLock

    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _not_cached(folder, error) from error
    try:
        # What a killed process left: nobody else writes here now.
        for leftover in folder.glob(".*/"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def _resolve(wanted: _Address, folder: Path) -> tuple[str, str]:
    """Ask the hub for the data set's full name and the commit that the revision means."""
    from huggingface_hub import HfApi, constants

    api = HfApi()
    try:
        # Without a limit of its own this request would wait for ever.
        info = api.dataset_info(wanted.name, revision=wanted.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if info.gated:
            _check_access(api, info.id)
    except Exception as error:
        raise _refusal(wanted, error) or _unreachable(wanted, folder, _reason(error)) from error
    if not _COMMIT.fullmatch(info.sha or ""):
        raise UnreachableError(
            f"data set {wanted.text!r}: {api.endpoint} named no commit; expected a Hugging Face hub: check HF_ENDPOINT"
        )
    return info.id, str(info.sha)


def _check_access(api: Any, name: str) -> None:
    """Ask whether a gated data set, which tells its commit to everybody, gives its files to this user."""
    from huggingface_hub.errors import GatedRepoError

    try:
        api.auth_check(name, repo_type="dataset")
    except GatedRepoError:
        raise
    except Exception:
        # A mirror need not know this question; the download will tell.
        log.debug("no answer whether %s is open", name, exc_info=True)


def _download(wanted: _Address, commit: str, folder: Path) -> None:
    """Load the data set, by its full name, with the library and write each split as Parquet, all of them or none."""
    datasets = _library(wanted)
    log.info("downloading data set %s, commit %s, from the hub", wanted.text.partition("@")[0], commit[:12])
    try:
        # The library's own Arrow files are needed only until the Parquet files stand.
        with (
            _quiet(),  # once more: when it is first imported the library sets how much it says
            atomic_directory(folder / commit) as target,
            tempfile.TemporaryDirectory(prefix=".load-", dir=folder) as work,
        ):
            # The address with hf:// never means a folder of that name in the working directory.
            loaded = datasets.load_dataset(
                f"hf://datasets/{wanted.name}", wanted.config, revision=commit, cache_dir=work
            )
            for split, rows in loaded.items():
                rows.to_parquet(str(target / f"{split}.parquet"))
    except Exception as error:
        raise _refusal(wanted, error) or _failure(wanted, folder, error) from error


def _library(wanted: _Address) -> Any:
    """Import the library `datasets`, a version that never runs code of a data set."""
    try:
        import datasets

        version = datasets.__version__
    except (ImportError, AttributeError) as error:  # a mere folder of this name can be imported, too
        raise _not_installed(wanted) from error
    # Until version 3 a data set could bring a script; from 4 on there is no way to run one.
    if int(version.split(".")[0]) < 4:
        raise UsageError(
            f"data set {wanted.text!r} needs the library datasets from version 4 on, which runs no code of a data set; "
            f"{version} is installed; run: {_EXTRA}"
        )
    datasets.disable_progress_bars()
    return datasets


def _not_installed(wanted: _Address) -> UsageError:
    return UsageError(f"data set {wanted.text!r} needs the library datasets, which is not installed; run: {_EXTRA}")


def _refusal(wanted: _Address, error: Exception) -> UsageError | None:
    """Return the error to show if the address names something that is not there or not open; None otherwise."""
    from huggingface_hub import errors

    chain = _chain(error)
    what = f"data set {wanted.name!r}"
    if configs := _available_configs(error):
        return _which_config(wanted, configs)
    # In this order: a gated repository is also one that was not found.
    for kind, text in (
        (errors.GatedRepoError, "is gated; expected leave to read it: ask for it on its page, then set HF_TOKEN"),
        (
            errors.RevisionNotFoundError,
            f"has no revision {wanted.revision!r}; expected a branch, tag or commit of it after the @, "
            "or none for the newest",
        ),
        (
            (errors.RepositoryNotFoundError, errors.HFValidationError),
            "is not on the hub, or is private; expected a name as the hub spells it, for example hf:nyu-mll/glue: "
            "check it, or set HF_TOKEN",
        ),
    ):
        if any(isinstance(one, kind) for one in chain):
            return UsageError(f"{what} {text}")
    for status in map(_status, chain):
        if status in (401, 403):
            return UsageError(f"{what} is refused by the hub (HTTP {status}); expected a valid token: set HF_TOKEN")
    return None


def _available_configs(error: Exception) -> list[str]:
    """Return the names that the library lists when a config is unknown or missing; none for another error."""
    found = re.match(r"(?:BuilderConfig '.*' not found|Config name is missing)[^\[]*\[(.*?)\]", str(error), re.DOTALL)
    return re.findall(r"'([^']+)'", found[1]) if isinstance(error, ValueError) and found else []


def _which_config(wanted: _Address, configs: list[str]) -> UsageError:
    there = ", ".join(configs[:_NAMES_SHOWN])
    if len(configs) > _NAMES_SHOWN:
        there += f" and {len(configs) - _NAMES_SHOWN} more"
    lack = f"has no config {wanted.config!r}" if wanted.config else "has several configs"
    example = f"hf:{wanted.name}/{configs[0]}" + (f"@{wanted.revision}" if wanted.revision else "")
    return UsageError(f"data set {wanted.name!r} {lack}; expected one of {there}: {example}")


def _failure(wanted: _Address, folder: Path, error: Exception) -> VerdictError:
    """Return the error to show for a download that broke off: the network, the disk or the data set."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # Whichever httpx the hub's library speaks through: the base that its own errors have.
    transport = HfHubHTTPError.__bases__[0]
    for one in reversed(_chain(error)):
        status = _status(one)
        lost = isinstance(one, (transport, ConnectionError, TimeoutError, LocalEntryNotFoundError)) and status is None
        if lost or (status or 0) >= 429:
            return _unreachable(wanted, folder, _reason(one))
        # The library raises some errors anew and keeps only the text of the first one.
        if LocalEntryNotFoundError.__name__ in str(one):
            return _unreachable(wanted, folder, LocalEntryNotFoundError.__name__)
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno is not None:
            return _not_cached(folder, one)
    root = _chain(error)[-1]
    return VerdictError(
        f"data set {wanted.text!r} cannot be read ({summarise_error(root, 200)}); "
        "expected data files such as Parquet, CSV or JSON, no script: choose another data set or @REVISION"
    )


def _unreachable(wanted: _Address, folder: Path, reason: str) -> UnreachableError:
    kept = any(_COMMIT.fullmatch(path.name) for path in folder.glob("*"))
    instead = ", or use the copy that is kept: HF_HUB_OFFLINE=1" if kept else ""
    return UnreachableError(
        f"data set {wanted.text!r} cannot be fetched, the hub gave no usable answer ({reason}); "
        f"check the network and try again{instead}"
    )


def _not_cached(folder: Path, error: OSError) -> VerdictError:
    return VerdictError(
        f"data set cannot be kept in {folder} ({error.strerror or error}); expected a folder with space to write to: "
        "check it and run again"
    )


def _reason(error: BaseException) -> str:
    status = _status(error)
    return type(error).__name__ if status is None else f"HTTP {status}"


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of the hub's library carries."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, the last cause last."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain
