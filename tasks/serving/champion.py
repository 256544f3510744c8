"""The model that answers: loads it, follows its alias in the registry, and never stops answering because of a look.

    from tasks.serving.champion import Champion
    with Champion("models:/acceptability@champion", refresh_s=30) as champion:
        champion.predict(["The cat sat on the mat."])     # each answer carries the version

A thread asks the registry every `refresh_s` seconds. A new version is fetched, verified, loaded and warmed beside the
old one, and takes its place in one assignment: who asked before is answered by the old one. A version that is damaged
or cannot be fetched changes nothing but `status()` and one line on the log. What cannot be had at the start:

    NoChampion      the store answers, nobody set the alias     run: verdict retrain
    Unreachable     the store does not answer                   check it: verdict doctor
    UnknownModel    the store holds no such model or version    see: verdict status
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypedDict

import numpy as np

from tasks.core import log_format as logs
from tasks.core.errors import UnreachableError, UsageError, VerdictError, first_line, summarise_error
from tasks.inference.classifier import CPU_BATCH, Classifier, Prediction

if TYPE_CHECKING:
    from tasks.registry.versions import MlflowStore, RegisteredVersion

log = logging.getLogger(__name__)

MODEL_NAME = "acceptability"
CHAMPION_URI = f"models:/{MODEL_NAME}@champion"
DEFAULT_REFRESH_S = 30.0  # seconds
MAX_BACKOFF_S = 3_600.0  # seconds before a refused version is tried again
WARMUP_SENTENCES = "The cat sat on the mat."
VERSION_DIGITS = 12  # of a digest that stands for a version


class ChampionAnswer(Prediction):
    """The answer to one sentence, and which version gave it."""

    version: str


class ChampionStatus(TypedDict):
    """What answers, and how following goes; times are seconds since 1970, `problem` is None while all is well."""

    model: str
    version: str | None
    digest: str | None
    provider: str | None
    following: bool
    loaded: float | None
    checked: float | None
    moves: int
    failures: int
    problem: str | None


class NotReady(VerdictError):
    """Nothing is loaded yet."""


class LoadedModel(NamedTuple):
    """A classifier that is loaded and warm, and the version that it is."""

    classifier: Classifier
    version: str

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.classifier.manifest["digest"]

    def predict(self, sentences: Sequence[str]) -> list[ChampionAnswer]:
        """Judge sentences, in input order."""
        return [ChampionAnswer(**answer, version=self.version) for answer in self.classifier.predict(sentences)]


class _LoadFailure(NamedTuple):
    """A version that was refused, how often, and when it may be tried again."""

    version: str
    message: str
    times: int
    again: float


class Champion:
    """The model behind an address; may be asked from any number of threads."""

    def __init__(
        self,
        model: str = CHAMPION_URI,
        refresh_s: float = DEFAULT_REFRESH_S,
        device: str = "auto",
        home: str | None = None,
        must_load: bool = True,
    ) -> None:
        """Load the model and start to follow it.

        Args:
            model: models:/NAME@ALIAS, which is followed; models:/NAME/VERSION, a version number or a bundle's folder,
                which stay what they are.
            refresh_s: seconds between two looks.
            device: auto, cuda or cpu.
            home: folder of the stores; None: VERDICT_HOME, or ./.verdict.
            must_load: raise where an alias leads nowhere yet, or the store is away; else start empty and look again.

        Raises:
            NoChampion, Unreachable: if the model cannot be had yet.
            WrongUsage, UnknownModel: if it cannot be meant.
            VerdictError: if it is damaged, or does not run on the device.
        """
        if refresh_s <= 0:
            raise UsageError(f"refresh_s = {refresh_s} is refused; expected seconds above 0")
        self.name, self.model, self.following = MODEL_NAME, model, False
        self._device, self._refresh_s = device, refresh_s
        self._home = home or os.environ.get("VERDICT_HOME") or ".verdict"
        self._served: LoadedModel | None = None
        self._refusal: _LoadFailure | None = None
        self._trying = ""  # the version that is being loaded
        self._told: set[str] = set()  # versions whose trouble the log knows; "": the store's
        self._problem: str | None = None
        self._loaded: float | None = None
        self._checked: float | None = None
        self._moves = self._failures = 0
        self._looking, self._closed = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._store = self._locate()
        try:
            self._poll()
        except VerdictError as error:
            if must_load or not self.following or not _is_transient(error):
                raise
            self._record_failure(error)
        if self.following:
            self._thread = threading.Thread(target=self._follow, name="champion", daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        """Return this champion."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop following."""
        self.close()

    def current(self) -> LoadedModel:
        """Return what answers now; it stays usable when another version takes its place.

        Raises:
            NotReady: if nothing could be loaded yet; the message says why.
        """
        served = self._served
        if served is None:
            raise NotReady(f"no model is loaded yet: {self._problem or self.model}")
        return served

    def predict(self, sentences: Sequence[str]) -> list[ChampionAnswer]:
        """Judge sentences, all with one version.

        Raises:
            NotReady: if nothing could be loaded yet.
        """
        return self.current().predict(sentences)

    def status(self) -> ChampionStatus:
        """Return what answers and how following goes."""
        served = self._served
        return ChampionStatus(
            model=self.model,
            version=served.version if served else None,
            digest=served.digest if served else None,
            provider=served.classifier.provider if served else None,
            following=self.following,
            loaded=self._loaded,
            checked=self._checked,
            moves=self._moves,
            failures=self._failures,
            problem=self._problem,
        )

    def refresh(self) -> bool:
        """Look once, now; tell whether another version answers from here on. What goes wrong stands in `status()`."""
        with self._looking:
            if not self.following or self._closed.is_set():
                return False
            try:
                return self._poll()
            except Exception as error:  # whatever it is, the model that is loaded goes on answering
                self._record_failure(error)
                return False

    def close(self) -> None:
        """Stop following; what is loaded still answers."""
        self._closed.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(10)

    def _locate(self) -> "MlflowStore | None":
        """Find out where the model is kept; None for a folder."""
        if self.model and Path(self.model).is_dir():
            return None
        from tasks.registry import versions as registry

        if self.model.isdecimal():
            self.model = f"models:/{MODEL_NAME}/{self.model}"
        self.name, alias, _ = registry.split_address(self.model)
        self.following = bool(alias)
        return registry.locate_store(self._home)

    def _follow(self) -> None:
        while not self._closed.wait(self._refresh_s):
            self.refresh()

    def _poll(self) -> bool:
        """Resolve the address, and load what it leads to where that is not loaded.

        Raises:
            VerdictError: if it leads nowhere, or to what cannot be fetched, verified or loaded.
        """
        self._trying = ""
        if self._store is None:
            served = _load(self.model, "", self._device)
            self._swap(served._replace(version=f"sha256:{served.digest[:VERSION_DIGITS]}"))
            return True
        from tasks.registry import versions as registry

        if self._served and registry.is_uninitialised(self._store):  # asking would create an empty one
            raise UnreachableError(f"MLflow store {self._store['uri']} is gone; check it: verdict doctor")
        found = registry.resolve_version(self._store, self.model)
        self._checked = time.time()
        self._told.discard("")  # the store answers again
        if self._served and self._served.version == found["version"]:
            self._problem = self._refusal = None
            return False
        self._trying = found["version"]
        self._swap(self._load_version(self._store, found))
        return True

    def _load_version(self, store: "MlflowStore", found: "RegisteredVersion") -> LoadedModel:
        """Fetch a version into a folder that is gone when it is loaded; one that was refused is left alone for longer.

        Raises:
            Unreachable: if it cannot be fetched.
            VerdictError: if it is refused.
        """
        from tasks.registry import versions as registry

        last, version = self._refusal, found["version"]
        if last and last.version == version and time.monotonic() < last.again:
            raise VerdictError(last.message)
        with tempfile.TemporaryDirectory(prefix="verdict-model-", ignore_cleanup_errors=True) as folder:
            bundle = registry.fetch_bundle(store, self.name, version, folder)
            try:
                return _load(bundle, version, self._device, found["digest"])
            except VerdictError as error:
                times = last.times + 1 if last and last.version == version else 1
                reason = str(error).replace(f"bundle {bundle}", "its bundle")  # the folder is gone by then
                message = f"version {version} is refused: {reason}"
                pause = min(self._refresh_s * 2**times, MAX_BACKOFF_S)
                self._refusal = _LoadFailure(version, message, times, time.monotonic() + pause)
                raise VerdictError(message) from error

    def _swap(self, served: LoadedModel) -> None:
        """Let a classifier answer from here on."""
        old, self._served = self._served, served
        self._loaded = self._checked = time.time()
        self._problem = self._refusal = None
        self._moves += old is not None
        logs.bind_context(version=served.version, digest=served.digest)
        log.info(
            "%s: version %s answers on %s%s",
            self.model,
            served.version,
            served.classifier.provider,
            f", after version {old.version}" if old else "",
        )

    def _record_failure(self, error: Exception) -> None:
        """Remember what went wrong; tell it once for each version, and once for each time that the store is away."""
        self._problem = first_line(error) if isinstance(error, VerdictError) else summarise_error(error)
        self._failures += 1
        if self._trying not in self._told:
            self._told.add(self._trying)
            keeps = f"version {self._served.version} goes on answering" if self._served else "nothing answers yet"
            log.warning("%s: %s; %s", self.model, self._problem, keeps)


def _is_transient(error: VerdictError) -> bool:
    """Tell whether looking again may help."""
    from tasks.registry.versions import NoChampion

    return isinstance(error, NoChampion | UnreachableError)


def _load(bundle: str, version: str, device: str, digest: str = "") -> LoadedModel:
    """Verify, load and warm a bundle.

    Raises:
        VerdictError: if it is damaged, is not the one that was registered, or does not answer.
    """
    try:
        classifier = Classifier.from_bundle(bundle, device)
        held = classifier.manifest["digest"]
        if digest and held != digest:
            raise VerdictError(
                f"its digest is {held[:VERSION_DIGITS]}, registered was {digest[:VERSION_DIGITS]}; see: verdict status"
            )
        for count in (1, CPU_BATCH):  # the first run of each shape is the slow one
            if not np.isfinite(classifier.logits([WARMUP_SENTENCES] * count)).all():
                raise VerdictError("its answers are no numbers; see: verdict status")
    except VerdictError:
        raise
    except Exception as error:  # ONNX Runtime and the tokeniser raise what they like
        raise VerdictError(f"it cannot be loaded ({summarise_error(error, 200)}); see: verdict status") from error
    return LoadedModel(classifier, version)
