"""Pushes bundles to the Hugging Face hub as model repositories, and pulls them from there.

A repository holds the files of one bundle at its root, with the model card also as README.md. The hub is only where
the files lie: who reads a pulled bundle checks it exactly as a folder on this machine, digests and signature.

    CACHE/models--ORG--NAME/     snapshot cache of huggingface_hub: files by commit, branches, locks
"""

import contextlib
import glob
import logging
import re
from pathlib import Path
from typing import NamedTuple, TypedDict

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    errors,
    get_token,
    hf_hub_download,
    snapshot_download,
)

from tasks.core.addresses import HUB_PREFIX
from tasks.core.errors import UnreachableError, UsageError, VerdictError, summarise_error
from tasks.core.signing import SIGNATURE
from tasks.data.hub_access import (
    COMMIT,
    NOT_CACHED,
    REPOSITORY,
    REVISION,
    explain_refusal,
    explain_silence,
    hub_requests,
)
from tasks.inference.bundle import (
    CARD_FILE,
    MANIFEST,
    PROFILE,
    REPORT_FILE,
    TOKENIZER,
    VARIANTS,
    digest_version,
    read_manifest,
    verify,
)

README = "README.md"
# Files that an earlier bundle may have had and this one has not; a signature that stayed would be another bundle's.
REPLACED = {*VARIANTS.values(), TOKENIZER, PROFILE, SIGNATURE, CARD_FILE, REPORT_FILE}
ADDRESS_FORM = f"{HUB_PREFIX}ORG/NAME"
_MODEL_ADDRESS = re.compile(rf"{HUB_PREFIX}(?P<name>{REPOSITORY}){REVISION}")

log = logging.getLogger(__name__)


class HubAddress(NamedTuple):
    """A parsed address; revision is empty where it names none."""

    text: str
    name: str
    revision: str


class PushedBundle(TypedDict):
    """Where a bundle is on the hub; `unchanged` if it was there already, `created` if its repository is new."""

    repository: str
    commit: str
    address: str
    page: str
    private: bool
    created: bool
    unchanged: bool


def parse_address(address: str) -> HubAddress:
    """Return the parts of hf:ORG/NAME[@REVISION].

    Raises:
        UsageError: if it has another form.
    """
    found = _MODEL_ADDRESS.fullmatch(address)
    if not found:
        raise UsageError(
            f"model address {address!r} is malformed; expected {ADDRESS_FORM}, optionally with @REVISION (branch, "
            "tag or commit)"
        )
    return HubAddress(address, found["name"], found["revision"] or "")


def pull_bundle(address: str, cache: str) -> str:
    """Return the folder of a bundle of the hub, downloading what is not cached; its files are not verified yet.

    The hub is queried for the revision's commit, except where the address names a commit that is cached. With
    HF_HUB_OFFLINE=1 the revision means the commit of its last download. A commit that the address does not name is
    logged.

    Args:
        address: hf:ORG/NAME[@REVISION].
        cache: cache folder.

    Raises:
        UsageError: if the address is malformed, or its repository or revision is unknown or not readable by this user.
        UnreachableError: if the hub does not answer, or nothing is cached while offline.
        VerdictError: if the repository holds no bundle, or the cache cannot be written.
    """
    wanted, offline = parse_address(address), bool(constants.HF_HUB_OFFLINE)
    try:
        with hub_requests():
            folder = _pull_cached(wanted, cache) or _pull(wanted, cache, offline)
    except VerdictError:
        raise
    except Exception as error:
        raise _pull_error(wanted, cache, error, offline) from error
    if wanted.revision != folder.name:
        log.info("%s is commit %s; to pin it: %s%s@%s", address, folder.name, HUB_PREFIX, wanted.name, folder.name)
    return str(folder)


def _pull_cached(wanted: HubAddress, cache: str) -> Path | None:
    """Return the folder of a commit that is cached whole; None for other revisions."""
    if COMMIT.fullmatch(wanted.revision):
        with contextlib.suppress(*NOT_CACHED):
            return _pull(wanted, cache, offline=True)
    return None


def _pull(wanted: HubAddress, cache: str, offline: bool) -> Path:
    """Return the folder of a revision after the download of the files that its manifest lists."""
    revision = wanted.revision or "main"
    # By default the library sets no timeout for this request.
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    commit = "" if offline else str(HfApi().model_info(wanted.name, revision=revision, timeout=timeout).sha)
    try:
        manifest = hf_hub_download(wanted.name, MANIFEST, revision=revision, cache_dir=cache, local_files_only=offline)
    except errors.RemoteEntryNotFoundError as error:
        raise VerdictError(
            f"model {wanted.text!r} is no bundle: it holds no {MANIFEST}; expected a repository that "
            "`verdict export-hub` wrote"
        ) from error
    files = read_manifest(Path(manifest).parent)["files"]
    snapshot = snapshot_download(
        wanted.name,
        revision=revision,  # not the commit: under this name the library records the commit for offline use
        cache_dir=cache,
        allow_patterns=[glob.escape(name) for name in (MANIFEST, SIGNATURE, *files)],
        local_files_only=offline,
    )
    found = Path(snapshot).name
    if commit and found != commit:  # the revision moved meanwhile, or the hub stopped answering
        raise errors.LocalEntryNotFoundError(f"the hub gave commit {found} for {commit}")
    return Path(snapshot)


def _pull_error(wanted: HubAddress, cache: str, error: Exception, offline: bool) -> VerdictError:
    """Return the error to show: the address, the network or the disk is at fault."""
    if offline and isinstance(error, NOT_CACHED):
        return UnreachableError(
            f"model {wanted.text!r} is not cached in {cache} and the hub is not queried while offline; expected an "
            "earlier download: run once with a network and without HF_HUB_OFFLINE"
        )
    if problem := explain_refusal(error, wanted.revision, ADDRESS_FORM):
        return UsageError(f"model {wanted.name!r} {problem}")
    if reason := explain_silence(error):
        instead = ", or use the cached copy: HF_HUB_OFFLINE=1" if _is_cached(wanted, cache) else ""
        return UnreachableError(
            f"model {wanted.text!r} cannot be fetched, the hub gave no usable answer ({reason}); check the network and "
            f"try again{instead}"
        )
    return VerdictError(
        f"model {wanted.text!r} cannot be cached in {cache} ({summarise_error(error, 200)}); expected a folder with "
        "space to write to: check it and run again"
    )


def _is_cached(wanted: HubAddress, cache: str) -> bool:
    with contextlib.suppress(Exception):
        return bool(_pull(wanted, cache, offline=True))
    return False


def check_repository(repository: str) -> None:
    """Raise UsageError unless this can be the name of a repository, and there is a token to push to it with."""
    if not re.fullmatch(REPOSITORY, repository):
        raise UsageError(f"repository {repository!r} is malformed; expected ORG/NAME")
    if not get_token():
        raise UsageError(
            f"there is no token to push to {repository} with; expected one with write access: set HF_TOKEN"
        )


def push_bundle(folder: Path, repository: str, public: bool, manifest_digest: str = "") -> PushedBundle:
    """Verify a bundle and push it to a repository of the hub in one commit; unchanged files are not sent.

    Args:
        folder: of the bundle.
        repository: ORG/NAME; it is created where it is missing.
        public: whether a new repository may be read by everybody; one that exists stays as it is.
        manifest_digest: that the bundle must have; empty: any.

    Raises:
        UsageError: if the hub refuses.
        UnreachableError: if the hub does not answer.
        VerdictError: if the bundle is damaged; nothing is sent then.
    """
    version = digest_version(verify(folder, manifest_digest))
    try:
        with hub_requests():
            return _push(folder, repository, public, f"Verdict bundle {version}")
    except UsageError:
        raise
    except Exception as error:
        if problem := explain_refusal(error, "", "ORG/NAME"):
            raise UsageError(f"repository {repository!r} {problem}") from error
        reason = explain_silence(error) or summarise_error(error, 200)
        raise UnreachableError(
            f"the bundle was not pushed to {repository!r}, the hub gave no usable answer ({reason}); run it again"
        ) from error


def _push(folder: Path, repository: str, public: bool, message: str) -> PushedBundle:
    api, created = HfApi(), False
    try:
        before = api.model_info(repository, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except errors.RepositoryNotFoundError:
        repository, created = api.create_repo(repository, private=not public).repo_id, True
        before = api.model_info(repository, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    files = {path.name: path for path in sorted(folder.iterdir())}
    if CARD_FILE in files:
        files[README] = files[CARD_FILE]
    gone = (REPLACED - files.keys()) & {file.rfilename for file in before.siblings or []}
    # The library leaves unchanged files out, and makes no commit where none is left.
    commit = api.create_commit(
        repository,
        [
            *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in sorted(gone)),
        ],
        commit_message=message,
        parent_commit=before.sha,  # refused where somebody else pushed meanwhile
    )
    return PushedBundle(
        repository=repository,
        commit=commit.oid,
        address=f"{HUB_PREFIX}{repository}@{commit.oid}",
        page=f"{api.endpoint}/{repository}",
        private=bool(before.private),
        created=created,
        unchanged=commit.oid == before.sha,
    )
