"""Many batches side by side: the same answers in the same order, opened once, and never a reason to fail."""

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
from tasks.inference import classifier as predict
from tasks.inference.batch_pool import BatchPool
from tasks.inference.bundle import MANIFEST, write_manifest
from tasks.inference.classifier import Classifier
from tasks.inference.runner import Runner
from tasks.inference.sessions import open_session
from tasks.inference.tokenization import TokenIds

SENTENCES = [f"{start} cat sees the dog{end}" for start in ("the", SIGN) for end in ("", " today", " here " * 9)] * 350
FEW = 300  # sentences that are judged one batch after another
assert len(SENTENCES) >= predict.POOL_MIN_SENTENCES > FEW


@pytest.fixture
def runner(exported: Any) -> Runner:
    return Runner(open_session(Path(exported["bundle"]) / "model.onnx", "cpu", threads=1), "cpu")


def batches(count: int) -> Iterator[tuple[TokenIds, TokenIds]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        ids = rng.integers(5, 20, rng.integers(1, 9, 2))
        yield ids, np.ones_like(ids)


def test_answers_come_in_order_and_are_those_of_one_after_another(runner: Runner) -> None:
    crowd = BatchPool(lambda: runner, runner, 3)
    side_by_side, one_by_one = list(crowd.run_batches(batches(50))), list(runner.run_batches(batches(50)))
    assert len(side_by_side) == 50
    for ours, theirs in zip(side_by_side, one_by_one, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_as_many_batches_run_at_a_time_as_there_are_threads(runner: Runner) -> None:
    meeting = threading.Barrier(3, timeout=20)  # which a run leaves only when two others have come

    class Meeting(Runner):
        def logits(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
            meeting.wait()
            return super().logits(ids, mask)

    crowd = BatchPool(lambda: Meeting(runner._session, "cpu"), runner, 3)
    assert len(list(crowd.run_batches(batches(6)))) == 6


def test_its_threads_stay(runner: Runner) -> None:
    seen = set()

    class Watched(Runner):
        def logits(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
            seen.add(threading.current_thread())
            return super().logits(ids, mask)

    crowd = BatchPool(lambda: Watched(runner._session, "cpu"), runner, 2)
    for _ in range(4):
        list(crowd.run_batches(batches(20)))
    assert 1 <= len(seen) <= 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of a fork beside threads
def test_a_fork_has_threads_of_its_own(runner: Runner) -> None:
    class Plain(Runner):
        def logits(self, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:  # ONNX Runtime itself is not asked
            return np.zeros((len(ids), 2), np.float32)

    crowd = BatchPool(lambda: Plain(runner._session, "cpu"), runner, 2)
    assert len(list(crowd.run_batches(batches(5)))) == 5
    child = os.fork()
    if not child:
        os._exit(0 if len(list(crowd.run_batches(batches(5)))) == 5 else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_it_is_opened_once_and_only_when_asked(runner: Runner) -> None:
    opened = []

    def opens() -> Runner:
        opened.append(1)
        return runner

    crowd = BatchPool(opens, runner, 2)
    assert opened == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: list(crowd.run_batches(batches(3))), range(8)))
    assert opened == [1]


def test_what_cannot_be_opened_is_told_once_and_costs_no_answer(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> Runner:
        raise VerdictError("bundle x: model.onnx is missing")

    crowd = BatchPool(fails, runner, 2)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert len(list(crowd.run_batches(batches(5)))) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "bundle x: model.onnx is missing; sentences are judged as before, only slower"
    ]


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_a_crowd_of_sentences_gets_the_answers_of_a_few(
    complete: Any, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "cores", lambda: 3)
    classifier = Classifier.from_bundle(complete["bundle"], "cpu", variant)
    few = np.concatenate([classifier.logits(SENTENCES[at : at + FEW]) for at in range(0, len(SENTENCES), FEW)])
    assert classifier._crowd is not None
    assert classifier._crowd._runner is None
    np.testing.assert_allclose(classifier.logits(SENTENCES), few, atol=1e-5)
    assert classifier._crowd._runner is not None
    assert classifier._crowd._runner is not classifier._runner  # which it takes where it cannot open its own


class Loaded(NamedTuple):
    """A classifier that has answered a few sentences, and the folder of the bundle that it was loaded from."""

    folder: Path
    classifier: Classifier
    few: NDArray[np.float32]


@pytest.fixture
def loaded(complete: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.setattr(predict, "cores", lambda: 2)
    folder = Path(shutil.copytree(complete["bundle"], tmp_path / "bundle"))
    classifier = Classifier.from_bundle(folder, "cpu")
    return Loaded(folder, classifier, classifier.logits(SENTENCES[:9]))


def test_a_bundle_that_was_altered_since_is_not_opened_again(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    (loaded.folder / "model.cpu.onnx").write_bytes((loaded.folder / "model.onnx").read_bytes())
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(loaded.classifier.logits(SENTENCES)[:9], loaded.few, atol=1e-5)
    assert "model.cpu.onnx is not the file that was sealed" in caplog.text


def test_another_bundle_in_its_place_is_not_opened(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    (loaded.folder / "model.cpu.onnx").write_bytes((loaded.folder / "model.onnx").read_bytes())
    (loaded.folder / MANIFEST).unlink()
    write_manifest(loaded.folder, facts(), {})  # whole, and not what was loaded
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(loaded.classifier.logits(SENTENCES)[:9], loaded.few, atol=1e-5)
    assert f"bundle {loaded.folder} is another one by now" in caplog.text


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process to one core")
def test_one_core_has_no_crowd(complete: Any) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert Classifier.from_bundle(complete["bundle"], "cpu")._crowd is None
    finally:
        os.sched_setaffinity(0, allowed)
