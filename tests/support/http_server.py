"""A store with versions of a real model, and a real HTTP server on loopback, for tests of serving."""

import contextlib
import functools
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from toy import SIGN, facts

from tasks.inference.bundle import CHAMPION, MODEL_NAME, write_manifest
from tasks.registry import lookup, register, tracking
from tasks.registry.store import MlflowStore, locate_store
from tasks.serving.batcher import Batcher
from tasks.serving.challenger import Challenger, ChallengerConfig, ServedChampion
from tasks.serving.challenger_setup import deploy_challenger
from tasks.serving.champion import Champion
from tasks.serving.connections import InferenceServer
from tasks.serving.feedback import Feedback
from tasks.serving.metrics import ServerMetrics
from tasks.serving.request_validation import RequestLimits
from tasks.serving.routes import Extensions, build_app
from tasks.serving.server import address_of, bind_socket

GOOD, BAD = "the cat sees the dog", f"the cat {SIGN} sees the dog"
DAMAGED = "3"  # the version whose files are not those that were registered


class RegistryHome(NamedTuple):
    """A folder of stores whose registry holds versions 1 and 2, and 3, which is damaged; no alias is set."""

    folder: Path

    @property
    def store(self) -> MlflowStore:
        return locate_store(str(self.folder))

    def set_champion(self, version: str) -> None:
        register.move_alias(self.store, CHAMPION, version)


def make_registry_home(folder: Path, empty_store: Path, exported: Any) -> Path:
    """Register three bundles in a new store; return its folder."""
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    store = MlflowStore(uri=f"sqlite:///{folder}/mlflow.db", artifacts=str(folder / "artifacts"))
    run = tracking.open_run(store, "a" * 16, {}, {})
    for length in (16, 15, 14):
        bundle = Path(shutil.copytree(exported["bundle"], folder / f"bundle-{length}"))
        digest = write_manifest(bundle, facts(max_length=length), {})["digest"]
        version = register.register_bundle(store, run, str(bundle), digest, {"verdict": "PROMOTE"}, "a bundle")
    tracking.close_run(store, run, "FINISHED")
    assert version == DAMAGED
    stored = Path(lookup.resolve_version(store, f"models:/{MODEL_NAME}/{DAMAGED}", fetch=True)["bundle"])
    (stored / "tokenizer.json").write_text("{}")
    return folder


def copy_registry_home(original: Path, folder: Path) -> RegistryHome:
    """Copy the database of a store; the artifacts, which no test changes, are shared."""
    folder.mkdir()
    (folder / "artifacts").symlink_to(original / "artifacts")
    shutil.copy(original / "mlflow.db", folder / "mlflow.db")
    return RegistryHome(folder)


class SlowModel:
    """A model that takes `slow` seconds for each batch, or as long as a call of `slow` takes."""

    def __init__(self, current: Callable[[], Any], slow: float | Callable[[], object]) -> None:
        self._real = current
        self._wait = slow if callable(slow) else functools.partial(time.sleep, slow)
        self.version, self.max_length = current().version, current().max_length

    def current(self) -> "SlowModel":
        return self

    def predict(self, sentences: list[str]) -> Any:
        self._wait()
        return self._real().predict(sentences)


@contextlib.contextmanager
def running_server(
    champion: Champion,
    limits: RequestLimits | None = None,
    slow: float | Callable[[], object] = 0.0,
    feedback: Feedback | None = None,
    connections: int = 0,
    beside: tuple[Challenger, ChallengerConfig, str] | None = None,
    **settings: Any,
) -> Iterator[Any]:
    """Serve in a thread, with the page where there is a feedback file; yield a client of the server.

    `beside` is a challenger, what it computes, and the folder of the stores.
    """
    batcher = Batcher(SlowModel(champion.current, slow).current if slow else champion.current, **settings)
    telemetry = ServerMetrics(champion.status, lambda: batcher.waiting)
    batcher.listeners.append(telemetry.count_batch)
    bound = bind_socket("127.0.0.1", 0)
    bound.listen(100)
    stack = contextlib.ExitStack()
    canary = None
    if beside:
        challenger, config, home = beside
        theirs = Batcher(challenger.current, **settings) if config.share else None
        stack.callback(theirs.close if theirs else lambda: None)
        served = ServedChampion(champion, batcher, telemetry, feedback)
        canary = deploy_challenger(stack, config, served, challenger, theirs, home)
    app = build_app(champion, batcher, telemetry, limits, feedback, extensions=Extensions(canary=canary))
    server = InferenceServer(app, connections)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        with httpx.Client(base_url=address_of(bound), timeout=30) as client:
            client.server = server  # type: ignore[attr-defined]
            yield client
    finally:
        server.should_exit = True
        thread.join()
        stack.close()
        batcher.close()
        if feedback:
            app.state.page.close()


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until a condition returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not true within {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
