"""The model behind an address: loads it, follows its alias in the registry, and keeps answering while it does.

    from verdict_inference import Champion
    with Champion.open("models:/acceptability@champion", refresh_s=30) as champion:
        champion.predict(["The cat sat on the mat."])     # each answer carries the version

A thread polls the registry every `refresh_s` seconds. A new version is fetched, verified, loaded and warmed up beside
the old one, and replaces it in one assignment: calls in progress finish with the old one. If a version is corrupt or
cannot be fetched, the old one keeps answering, `status()` says why, and one line is logged. Errors at the start:

    NoChampion         the store answers, the alias is not set      run: verdict retrain
    UnreachableError   the store does not answer                    check it: verdict doctor
    UnknownModel       the store holds no such model or version     see: verdict status
"""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypedDict

import numpy as np

from ..core.errors import NoChampion, UnreachableError, UsageError, VerdictError, first_line, summarise_error
from ..core.signing import describe_signer
from ..inference.bundle import CHAMPION_URI, MODEL_NAME, VERSION_DIGITS, check_signature, digest_version
from ..inference.classifier import CPU_BATCH, Classifier, Prediction

if TYPE_CHECKING:  # these import mlflow, which a bundle's folder does not need
    from ..registry.lookup import RegisteredVersion
    from ..registry.store import MlflowStore

log = logging.getLogger(__name__)

DEFAULT_REFRESH_S = 30.0
MAX_BACKOFF_S = 3_600.0  # longest time until a rejected version is tried again
WARMUP_SENTENCE = "The cat sat on the mat."


class ChampionAnswer(Prediction):
    """Prediction for one sentence, with the version that made it."""

    version: str


class ChampionStatus(TypedDict):
    """What is loaded, and how polling goes; times in seconds since 1970, `problem` is None after a successful poll."""

    model: str
    version: str | None
    digest: str | None
    provider: str | None
    signature: str | None
    decision_threshold: float | None
    following: bool
    loaded: float | None
    checked: float | None
    moves: int
    failures: int
    problem: str | None


class NotReady(VerdictError):
    """No model is loaded yet."""


class LoadedModel(NamedTuple):
    """A classifier that is loaded and warmed up, and its version."""

    classifier: Classifier
    version: str
    signature: str = "not signed"
    """who signed its bundle, for people"""

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.classifier.manifest["digest"]

    @property
    def max_length(self) -> int:
        """The tokens of a sentence that the model reads."""
        return self.classifier.manifest["max_length"]

    def predict(self, sentences: Sequence[str], on_tokenised: Callable[[], None] | None = None) -> list[ChampionAnswer]:
        """Classify sentences, in input order; arguments as of `Classifier.predict`."""
        answers = self.classifier.predict(sentences, on_tokenised)
        return [ChampionAnswer(**answer, version=self.version) for answer in answers]


class ModelAddress(NamedTuple):
    """Where a model is: a registry address, or the folder of a bundle, for which `store` is None."""

    uri: str
    name: str
    follows: bool
    store: "MlflowStore | None"


class _LoadFailure(NamedTuple):
    """A version that was rejected, how often, and the time.monotonic() from which on it is tried again."""

    version: str
    message: str
    times: int
    retry_at: float


class Champion:
    """The model behind an address; thread-safe. Made by `Champion.open`."""

    _spin = True  # threads of the CPU wait busily for the next batch

    def __init__(
        self,
        address: ModelAddress,
        refresh_s: float = DEFAULT_REFRESH_S,
        device: str = "auto",
        on_load: Callable[[LoadedModel], None] | None = None,
    ) -> None:
        """Assign the configuration; `open` loads the model and starts to follow it."""
        self.model, self.name, self.following, self._store = address
        self._device, self._refresh_s, self._on_load = device, refresh_s, on_load
        self._served: LoadedModel | None = None
        self._failure: _LoadFailure | None = None
        self._loading = ""  # the version that is being loaded
        self._logged: set[str] = set()  # versions whose failure was logged; "" is a failure of the store
        self._problem: str | None = None
        self._loaded: float | None = None
        self._checked: float | None = None
        self._moves = self._failures = 0
        self._poll_lock, self._closed = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        model: str = CHAMPION_URI,
        refresh_s: float = DEFAULT_REFRESH_S,
        device: str = "auto",
        home: str | None = None,
        require_model: bool = True,
        on_load: Callable[[LoadedModel], None] | None = None,
    ) -> Self:
        """Load the model and start to follow it.

        Args:
            model: models:/NAME@ALIAS, which is followed; or models:/NAME/VERSION, a version number or the folder of a
                bundle, which are loaded once.
            refresh_s: seconds between two polls.
            device: auto, cuda or cpu.
            home: folder of the local stores; None: VERDICT_HOME, or ./.verdict.
            require_model: raise if an alias is not set yet, or the store does not answer; else start without a model
                and keep polling.
            on_load: called with each model that takes over, in the thread that loaded it.

        Raises:
            NoChampion, UnreachableError: if the model is not available yet.
            UsageError, UnknownModel: if the address or an argument is wrong.
            VerdictError: if the bundle is corrupt, or does not run on the device.
        """
        if refresh_s <= 0:
            raise UsageError(f"refresh_s = {refresh_s} is refused; expected seconds above 0")
        address = _locate(model, home or os.environ.get("VERDICT_HOME") or ".verdict")
        champion = cls(address, refresh_s, device, on_load)
        try:
            champion._poll()
        except VerdictError as error:
            if require_model or not champion.following or not champion._may_recover(error):
                raise
            champion._record_failure(error)
        if champion.following:
            champion._thread = threading.Thread(target=champion._follow, name="champion", daemon=True)
            champion._thread.start()
        return champion

    def __enter__(self) -> Self:
        """Return this champion."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop following."""
        self.close()

    @property
    def in_registry(self) -> bool:
        """Whether the address is a registry's; otherwise it is a bundle's folder."""
        return self._store is not None

    def current(self) -> LoadedModel:
        """Return the model that is loaded; it stays usable after another version has replaced it.

        Raises:
            NotReady: if none could be loaded yet; the message says why.
        """
        served = self._served
        if served is None:
            raise NotReady(f"no model is loaded yet: {self._problem or self.model}")
        return served

    def predict(self, sentences: Sequence[str]) -> list[ChampionAnswer]:
        """Classify sentences, all with one version.

        Raises:
            NotReady: if no model could be loaded yet.
            VerdictError: if an item is not a string.
        """
        return self.current().predict(sentences)

    def status(self) -> ChampionStatus:
        """Return what is loaded and how polling goes."""
        served = self._served
        return ChampionStatus(
            model=self.model,
            version=served.version if served else None,
            digest=served.digest if served else None,
            provider=served.classifier.provider if served else None,
            signature=served.signature if served else None,
            decision_threshold=served.classifier.threshold if served else None,
            following=self.following,
            loaded=self._loaded,
            checked=self._checked,
            moves=self._moves,
            failures=self._failures,
            problem=self._problem,
        )

    def refresh(self) -> bool:
        """Poll once, now; return whether another version took over. Errors are reported by `status()`."""
        with self._poll_lock:
            if not self.following or self._closed.is_set():
                return False
            try:
                return self._poll()
            except Exception as error:  # whatever it is, the loaded model keeps answering
                self._record_failure(error)
                return False

    def close(self) -> None:
        """Stop following; the loaded model stays usable."""
        self._closed.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(10)

    def _follow(self) -> None:
        while not self._closed.wait(self._refresh_s):
            self.refresh()

    def _poll(self) -> bool:
        """Resolve the address, and load the version unless it is loaded; return whether a version was loaded.

        Raises:
            VerdictError: if the address leads nowhere, or the version cannot be fetched, verified or loaded.
        """
        self._loading = ""
        if self._store is None:
            self._swap(_load(self.model, None, self._device, spin=self._spin))
            return True
        from ..registry import lookup
        from ..registry.store import is_uninitialised

        if self._served and is_uninitialised(self._store):  # a query would create an empty store
            raise UnreachableError(f"MLflow store {self._store['uri']} is gone; check it: verdict doctor")
        found = lookup.resolve_version(self._store, self.model)
        self._checked = time.time()
        self._logged.discard("")  # the store answers again
        if self._served and self._served.version == found["version"]:
            self._problem = self._failure = None
            return False
        self._loading = found["version"]
        self._swap(self._load_version(self._store, found))
        return True

    @staticmethod
    def _may_recover(error: VerdictError) -> bool:
        """Return whether a later poll may succeed."""
        return isinstance(error, NoChampion | UnreachableError)

    def _load_version(self, store: "MlflowStore", found: "RegisteredVersion") -> LoadedModel:
        """Fetch a version into a temporary folder and load it; retry a rejected one with exponential backoff.

        Raises:
            UnreachableError: if it cannot be fetched.
            VerdictError: if it is rejected.
        """
        from ..registry import lookup

        last, version = self._failure, found["version"]
        if last and last.version == version and time.monotonic() < last.retry_at:
            raise VerdictError(last.message)
        with tempfile.TemporaryDirectory(prefix="verdict-model-", ignore_cleanup_errors=True) as folder:
            bundle = lookup.fetch_bundle(store, self.name, version, folder)
            try:
                return _load(bundle, version, self._device, found["digest"], found["manifest_digest"], self._spin)
            except VerdictError as error:
                times = last.times + 1 if last and last.version == version else 1
                reason = str(error).replace(f"bundle {bundle}", "its bundle")  # the temporary folder is deleted
                message = f"version {version} is refused: {reason}"
                pause = min(self._refresh_s * 2**times, MAX_BACKOFF_S)
                self._failure = _LoadFailure(version, message, times, time.monotonic() + pause)
                raise VerdictError(message) from error

    def _swap(self, served: LoadedModel) -> None:
        """Let a model answer from here on."""
        old, self._served = self._served, served
        self._loaded = self._checked = time.time()
        self._problem = self._failure = None
        self._moves += old is not None
        if self._on_load:
            self._on_load(served)
        replaced = f", replacing version {old.version}" if old else ""
        log.info(
            "%s: version %s loaded on %s, %s%s",
            *(self.model, served.version, served.classifier.provider, served.signature, replaced),
        )

    def _record_failure(self, error: Exception) -> None:
        """Keep an error for `status()`; log it once per version, and once per outage of the store."""
        self._problem = first_line(error) if isinstance(error, VerdictError) else summarise_error(error)
        self._failures += 1
        if self._loading not in self._logged:
            self._logged.add(self._loading)
            state = f"version {self._served.version} keeps answering" if self._served else "no model is loaded"
            log.warning("%s: %s; %s", self.model, self._problem, state)


def _locate(model: str, home: str) -> ModelAddress:
    """Parse the address of a model; nothing is queried.

    Raises:
        UsageError: if it is not an address, or a registry's and MLflow is not installed.
    """
    if model and not model.isdecimal() and Path(model).is_dir():  # a number is a version's, whatever lies here
        return ModelAddress(model, MODEL_NAME, False, None)
    try:
        from ..registry import lookup
        from ..registry.store import locate_store
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mlflow":
            raise
        raise UsageError(
            f"model {model!r} is not a folder, and registry addresses need MLflow; "
            "run: pip install 'verdict-inference[mlflow]'"
        ) from error
    uri = f"models:/{MODEL_NAME}/{model}" if model.isdecimal() else model
    name, alias, _ = lookup.split_address(uri)
    return ModelAddress(uri, name, bool(alias), locate_store(home))


def _load(
    bundle: str, version: str | None, device: str, digest: str = "", manifest_digest: str = "", spin: bool = True
) -> LoadedModel:
    """Verify, load and warm up a bundle; without a version it is named by its digest.

    Raises:
        VerdictError: if it is corrupt, does not have the digests, or cannot be loaded, or its logits are not finite.
    """
    try:
        signature = describe_signer(check_signature(Path(bundle)))
        classifier = Classifier.from_bundle(bundle, device, spin=spin, expected=manifest_digest)
        held = classifier.manifest["digest"]
        if digest and held != digest:
            raise VerdictError(
                f"its digest is {held[:VERSION_DIGITS]}, registered was {digest[:VERSION_DIGITS]}; see: verdict status"
            )
        for count in (1, CPU_BATCH):  # the first run of each shape allocates memory
            if not np.isfinite(classifier.logits([WARMUP_SENTENCE] * count)).all():
                raise VerdictError("its logits are NaN or Inf; see: verdict status")
    except VerdictError:
        raise
    except Exception as error:  # ONNX Runtime and tokenizers raise exceptions of many types
        raise VerdictError(f"it cannot be loaded ({summarise_error(error, 200)}); see: verdict status") from error
    return LoadedModel(classifier, version or digest_version(classifier.manifest), signature)
