"""Downloads a data set of the Hugging Face hub as Parquet files, one a split.

`hf:nyu-mll/glue/cola` names the config cola of the data set nyu-mll/glue. Without @REVISION the hub's own conversion to
Parquet is read (https://huggingface.co/docs/dataset-viewer/parquet) or, where there is none (private data sets, some
mirrors), the Parquet files of the branch main; with @REVISION those of that branch, tag or commit. No code is run.

    CACHE/datasets--ORG--NAME/                     snapshot cache of huggingface_hub: files by commit, branches, locks
    CACHE/ORG--NAME--CONFIG/COMMIT/SPLIT.parquet   the shards of a split as one file; its name is its rows' source
"""

import contextlib
import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import HfApi, constants, errors, get_cached_repo_tree, snapshot_download

from tasks.core.addresses import HUB_PREFIX
from tasks.core.errors import UnreachableError, UsageError, VerdictError, summarise_error
from tasks.core.files import atomic_write
from tasks.data.hub_access import (
    COMMIT,
    NOT_CACHED,
    REPOSITORY,
    REVISION,
    explain_refusal,
    explain_silence,
    hub_requests,
)

CONVERTED = "refs/convert/parquet"  # branch with the hub's conversion
MAX_NAMES_SHOWN = 12
JOIN_ROWS = 1_024  # of a shard in memory at a time: equal values are stored once, and each is written out in memory

_ADDRESS = re.compile(
    rf"{HUB_PREFIX}(?P<name>{REPOSITORY})"
    # A config may have any name that a file may have.
    r"(?:/(?P<config>[^\s\x00-\x1f/@<>:\\|?*]{1,100}))?"
    rf"{REVISION}"
)
# cola/train/0000.parquet in the conversion; cola/train-00000-of-00001.parquet, train.parquet elsewhere.
_DATA_FILE = re.compile(r"(?:(?P<config>[^/]+)/)?(?P<split>[^/]+?)(?:/\d+|-\d+-of-\d+)?\.parquet")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Address:
    """A parsed address; config and revision are empty where it names none."""

    text: str
    name: str
    config: str
    revision: str

    @property
    def slug(self) -> str:
        """Folder name; names on the hub hold no "--", so no two addresses share one."""
        return "--".join([*self.name.split("/"), *filter(None, [self.config])])


def fetch_dataset(address: str, cache: str, *, offline: bool = False) -> dict[str, str]:
    """Return the splits of a hub data set as Parquet files, downloading what is not cached.

    Online the hub is queried for the revision's commit, except where the address names a commit that is cached. Offline
    (or with HF_HUB_OFFLINE=1) the revision means the commit of its last download.

    Args:
        address: hf:NAME, hf:ORG/NAME or hf:ORG/NAME/CONFIG, each optionally with @REVISION (branch, tag or commit).
        cache: cache folder.
        offline: make no request.

    Returns:
        path of a Parquet file by the name of its split.

    Raises:
        UsageError: if the address is malformed, or its data set, config or revision is unknown or not readable by this
            user.
        UnreachableError: if the hub does not answer, or nothing is cached while offline.
        VerdictError: if the data set has no readable Parquet files, or the cache cannot be written.
    """
    wanted = _parse(address)
    folder = Path(cache) / wanted.slug
    offline = offline or constants.HF_HUB_OFFLINE
    try:
        with hub_requests():
            commit, splits = _fetch(wanted, cache, offline)
        return {split: _join(shards, folder / commit / f"{split}.parquet") for split, shards in splits.items()}
    except VerdictError:
        raise
    except Exception as error:
        raise _user_error(wanted, folder, error, offline) from error


def _parse(address: str) -> _Address:
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise UsageError(
            f"data set address {address!r} is malformed; expected hf:NAME, hf:ORG/NAME or hf:ORG/NAME/CONFIG, "
            "optionally with @REVISION, for example hf:nyu-mll/glue/cola"
        )
    return _Address(address, found["name"], found["config"] or "", found["revision"] or "")


def _fetch(wanted: _Address, cache: str, offline: bool) -> tuple[str, dict[str, list[Path]]]:
    """Return the commit, and the files of each split in the snapshot cache, downloading what is missing."""
    if COMMIT.fullmatch(wanted.revision) and not offline:
        with contextlib.suppress(*NOT_CACHED):
            return _fetch(wanted, cache, offline=True)
    revision = wanted.revision or CONVERTED
    try:
        name, commit, files = _list_files(wanted.name, revision, cache, offline)
    except (errors.RevisionNotFoundError, errors.CachedRepoTreeNotFoundError):
        if wanted.revision:
            raise
        revision = "main"
        name, commit, files = _list_files(wanted.name, revision, cache, offline)
    splits = _select_splits(replace(wanted, name=name), files)
    if commit and not Path(cache, wanted.slug, commit).exists():
        log.info("downloading data set %s, commit %s, from the hub", wanted.text.partition("@")[0], commit)
    snapshot = snapshot_download(
        wanted.name,
        repo_type="dataset",
        revision=revision,  # not the commit: under this name the library records the commit for offline use
        cache_dir=cache,
        allow_patterns=[glob.escape(shard) for shards in splits.values() for shard in shards],
        local_files_only=offline,
    )
    found = Path(snapshot).name
    if commit and found != commit:  # where the hub stops answering, the library takes what is cached
        raise errors.LocalEntryNotFoundError(f"the hub gave commit {found} for {commit}")
    return found, {split: [Path(snapshot, shard) for shard in shards] for split, shards in splits.items()}


def _list_files(name: str, revision: str, cache: str, offline: bool) -> tuple[str, str, list[str]]:
    """Return the present name of a data set that may have been renamed, its commit (empty while offline), its files."""
    if offline:
        tree = get_cached_repo_tree(name, repo_type="dataset", revision=revision, cache_dir=cache)
        return name, "", [file.path for file in tree]
    # By default the library sets no timeout for this request.
    info = HfApi().dataset_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    return info.id, str(info.sha), [file.rfilename for file in info.siblings or []]


def _select_splits(wanted: _Address, files: Sequence[str]) -> dict[str, list[str]]:
    """Return the Parquet files of each split of the config that is meant.

    Raises:
        UsageError: if there is no such config, or none is named and there are several without a default.
        VerdictError: if there are no Parquet files in a known layout.
    """
    configs: dict[str, dict[str, list[str]]] = {}
    for file in sorted(files):
        if found := _DATA_FILE.fullmatch(file):
            configs.setdefault(found["config"] or "default", {}).setdefault(found["split"], []).append(file)
    if not configs:
        raise VerdictError(
            f"data set {wanted.text!r} has no Parquet files that can be read; "
            "expected CONFIG/SPLIT/0000.parquet, as the hub converts, or CONFIG/SPLIT.parquet, and no script: "
            "choose another data set or @REVISION"
        )
    config = wanted.config or (next(iter(configs)) if len(configs) == 1 else "default")
    if config not in configs:
        there = ", ".join(list(configs)[:MAX_NAMES_SHOWN])
        more = f" and {len(configs) - MAX_NAMES_SHOWN} more" if len(configs) > MAX_NAMES_SHOWN else ""
        problem = f"has no config {config!r}" if wanted.config else "has several configs"
        example = f"{HUB_PREFIX}{wanted.name}/{next(iter(configs))}" + (
            f"@{wanted.revision}" if wanted.revision else ""
        )
        raise UsageError(f"data set {wanted.name!r} {problem}; expected one of {there}{more}: {example}")
    return configs[config]


def _join(shards: Sequence[Path], target: Path) -> str:
    """Write shards, in their order, as one Parquet file, unless it is there already."""
    if not target.exists():
        with atomic_write(target) as temporary, pq.ParquetWriter(temporary, pq.read_schema(shards[0])) as writer:
            for shard in shards:
                for batch in pq.ParquetFile(shard).iter_batches(JOIN_ROWS):
                    writer.write_batch(batch)
    return str(target)


def _user_error(wanted: _Address, folder: Path, error: Exception, offline: bool) -> VerdictError:
    """Return the error to show: the address, the network, the disk or the data set is at fault."""
    if offline and isinstance(error, NOT_CACHED):
        return UnreachableError(
            f"data set {wanted.text!r} is not cached in {folder.parent} and the hub is not queried while offline; "
            "expected an earlier download: run once with a network and without HF_HUB_OFFLINE and data.offline"
        )
    if problem := explain_refusal(error, wanted.revision, "hf:nyu-mll/glue"):
        return UsageError(f"data set {wanted.name!r} {problem}")
    if reason := explain_silence(error):
        instead = ", or use the cached copy: HF_HUB_OFFLINE=1" if any(folder.glob("*/*.parquet")) else ""
        return UnreachableError(
            f"data set {wanted.text!r} cannot be fetched, the hub gave no usable answer ({reason}); "
            f"check the network and try again{instead}"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return VerdictError(
            f"data set cannot be cached in {folder} ({error.strerror or error}); "
            "expected a folder with space to write to: check it and run again"
        )
    return VerdictError(
        f"data set {wanted.text!r} cannot be read ({summarise_error(error, 200)}); "
        "expected complete Parquet files: choose another data set or @REVISION"
    )
