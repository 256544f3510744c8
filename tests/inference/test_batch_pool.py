"""Batches in parallel: the same logits in the same order, opened once, with a fallback."""

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from toy import SIGN, facts

from tasks.core.errors import VerdictError
from tasks.inference import classifier as classifier_module
from tasks.inference.batch_pool import AHEAD, BatchPool
from tasks.inference.bundle import MANIFEST, write_manifest
from tasks.inference.classifier import Classifier
from tasks.inference.runner import Runner
from tasks.inference.sessions import open_session
from tasks.inference.tokenization import TokenIds

SENTENCES = [f"{start} cat sees the dog{end}" for start in ("the", SIGN) for end in ("", " today", " here " * 9)] * 350
FEW = 300  # sentences, below the pool's minimum
assert len(SENTENCES) >= classifier_module.POOL_MIN_SENTENCES > FEW


@pytest.fixture
def runner(exported: Any) -> Runner:
    return Runner(open_session(Path(exported["bundle"]) / "model.onnx", "cpu", threads=1), 16, "cpu")


def batches(count: int) -> Iterator[tuple[TokenIds, TokenIds]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        ids = rng.integers(5, 20, rng.integers(1, 9, 2))
        yield ids, np.ones_like(ids)


def test_logits_come_in_order_and_equal_those_of_sequential_runs(runner: Runner) -> None:
    pool = BatchPool(lambda: runner, runner, 3)
    parallel, sequential = list(pool.run_batches(batches(50))), list(runner.run_batches(batches(50)))
    assert len(parallel) == 50
    for found, expected in zip(parallel, sequential, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_batches_are_taken_a_few_ahead_of_the_results(runner: Runner) -> None:
    taken = [0]

    def counted() -> Iterator[tuple[TokenIds, TokenIds]]:
        for batch in batches(50):
            taken[0] += 1
            yield batch

    results = BatchPool(lambda: runner, runner, 2).run_batches(counted())
    for number in range(3):
        next(results)
        assert taken[0] == 2 * AHEAD + 1 + number
    results.close()  # type: ignore[attr-defined]
    assert taken[0] == 2 * AHEAD + 3


def test_as_many_batches_run_at_a_time_as_there_are_threads(runner: Runner) -> None:
    barrier = threading.Barrier(3, timeout=20)

    class Meeting(Runner):
        def logits(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
            barrier.wait()
            return super().logits(ids, mask)

    pool = BatchPool(lambda: Meeting(runner._session, "cpu"), runner, 3)
    assert len(list(pool.run_batches(batches(6)))) == 6


def test_threads_are_reused(runner: Runner) -> None:
    seen = set()

    class Watched(Runner):
        def logits(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
            seen.add(threading.current_thread())
            return super().logits(ids, mask)

    pool = BatchPool(lambda: Watched(runner._session, "cpu"), runner, 2)
    for _ in range(4):
        list(pool.run_batches(batches(20)))
    assert 1 <= len(seen) <= 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of a fork beside threads
def test_a_fork_has_threads_of_its_own(runner: Runner) -> None:
    class Plain(Runner):
        def logits(
            self, ids: TokenIds, mask: TokenIds
        ) -> NDArray[np.float32]:  # ONNX Runtime itself does not survive a fork
            return np.zeros((len(ids), 2), np.float32)

    pool = BatchPool(lambda: Plain(runner._session, "cpu"), runner, 2)
    assert len(list(pool.run_batches(batches(5)))) == 5
    child = os.fork()
    if not child:
        os._exit(0 if len(list(pool.run_batches(batches(5)))) == 5 else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_the_runner_is_opened_once_at_first_use(runner: Runner) -> None:
    opened = []

    def open_runner() -> Runner:
        opened.append(1)
        return runner

    pool = BatchPool(open_runner, runner, 2)
    assert opened == []
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(lambda _: list(pool.run_batches(batches(3))), range(8)))
    assert opened == [1]


def test_a_runner_that_fails_to_open_is_logged_once_and_replaced_by_the_fallback(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> Runner:
        raise VerdictError("bundle x: model.onnx is missing")

    pool = BatchPool(fails, runner, 2)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert len(list(pool.run_batches(batches(5)))) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "bundle x: model.onnx is missing; batches run one after another on the session that is loaded"
    ]


def count_opened_sessions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the thread count of each session that a classifier opens from now on."""
    opened: list[int] = []

    def open_counted(graph: Path, device: str, threads: int = 0) -> Any:
        opened.append(threads)
        return open_session(graph, device, threads=threads)

    monkeypatch.setattr(classifier_module, "open_session", open_counted)
    return opened


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_many_sentences_get_the_logits_of_a_few(complete: Any, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_module, "available_cpus", lambda: 3)
    classifier = Classifier.from_bundle(complete["bundle"], "cpu", variant)
    few = np.concatenate([classifier.logits(SENTENCES[i : i + FEW]) for i in range(0, len(SENTENCES), FEW)])
    opened = count_opened_sessions(monkeypatch)
    np.testing.assert_allclose(classifier.logits(SENTENCES), few, atol=1e-5)
    assert opened == [1]  # threads of the pool's session: it did not fall back


class Loaded(NamedTuple):
    """A classifier, the folder of its bundle and the logits of a few sentences."""

    folder: Path
    classifier: Classifier
    few: NDArray[np.float32]


@pytest.fixture
def loaded(complete: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.setattr(classifier_module, "available_cpus", lambda: 2)
    folder = Path(shutil.copytree(complete["bundle"], tmp_path / "bundle"))
    classifier = Classifier.from_bundle(folder, "cpu")
    return Loaded(folder, classifier, classifier.logits(SENTENCES[:9]))


def test_a_bundle_altered_after_loading_is_not_opened(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    (loaded.folder / "model.cpu.onnx").write_bytes((loaded.folder / "model.onnx").read_bytes())
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(loaded.classifier.logits(SENTENCES)[:9], loaded.few, atol=1e-5)
    assert "model.cpu.onnx does not match its SHA-256 in bundle.json" in caplog.text


def test_a_bundle_replaced_after_loading_is_not_opened(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    (loaded.folder / "model.cpu.onnx").write_bytes((loaded.folder / "model.onnx").read_bytes())
    (loaded.folder / MANIFEST).unlink()
    write_manifest(loaded.folder, facts(), {})  # valid, and not what was loaded
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(loaded.classifier.logits(SENTENCES)[:9], loaded.few, atol=1e-5)
    assert f"bundle {loaded.folder}: its manifest is " in caplog.text


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot restrict a process to one core")
def test_one_core_opens_no_second_session(complete: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        classifier = Classifier.from_bundle(complete["bundle"], "cpu")
        opened = count_opened_sessions(monkeypatch)
        assert len(classifier.logits(SENTENCES)) == len(SENTENCES)
        assert opened == []
    finally:
        os.sched_setaffinity(0, allowed)
