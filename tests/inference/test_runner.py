"""How batches run: shapes that are captured, and that fixed places change no answer. A CPU has no graphs to capture,
but the places, the filling up and the taking of turns are the same there."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.inference import runner as runners
from tasks.inference.runner import CAPTURE_AFTER, CAPTURED_BATCHES, Runner, bucket_shape
from tasks.inference.sessions import open_session, uses_cuda_graphs
from tasks.inference.tokenization import TokenIds


@pytest.fixture
def runner(exported: Any, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runs a real graph on the CPU as if it were captured."""
    monkeypatch.setattr(runners, "captures", lambda session: True)
    return Runner(open_session(Path(exported["bundle"]) / "model.onnx", "cpu"), "cpu")


def batch(sentences: int, tokens: int, seed: int = 0) -> tuple[TokenIds, TokenIds]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, tokens + 1, sentences)
    lengths[0] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return rng.integers(5, 20, mask.shape) * mask, mask


def plain(runner: Runner, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
    return runner._run(ids, mask)


@pytest.mark.parametrize(
    ("sentences", "tokens", "shape"),
    [(1, 1, (1, 8)), (1, 8, (1, 8)), (1, 9, (1, 12)), (3, 13, (4, 16)), (32, 128, (32, 128)), (17, 65, (32, 96))],
)
def test_a_small_batch_takes_the_smallest_shape_that_holds_it(
    sentences: int, tokens: int, shape: tuple[int, int]
) -> None:
    assert bucket_shape(sentences, tokens) == shape


@pytest.mark.parametrize(("sentences", "tokens"), [(33, 8), (1, 129), (0, 8)])
def test_a_large_or_empty_batch_is_never_captured(sentences: int, tokens: int) -> None:
    assert bucket_shape(sentences, tokens) is None


def test_a_shape_gets_its_places_when_it_comes_again_and_again(runner: Runner) -> None:
    for time in range(1, CAPTURE_AFTER + 3):
        runner.logits(*batch(1, 8))
        assert len(runner._shapes) == (time > CAPTURE_AFTER)


@pytest.mark.parametrize(("sentences", "tokens"), [(1, 3), (1, 8), (3, 5), (4, 12), (5, 14), (32, 16)])
def test_fixed_places_change_no_answer(runner: Runner, sentences: int, tokens: int) -> None:
    for seed in range(CAPTURE_AFTER + 4):  # the later ones meet what the earlier ones left in the places
        ids, mask = batch(sentences, tokens, seed)
        np.testing.assert_allclose(runner.logits(ids, mask), plain(runner, ids, mask), atol=1e-6)
    assert len(runner._shapes) == 1


def test_an_answer_is_not_overwritten_by_the_next(runner: Runner) -> None:
    for seed in range(CAPTURE_AFTER):
        runner.logits(*batch(2, 8, seed))
    first = runner.logits(*batch(2, 8, 10))
    kept = first.copy()
    runner.logits(*batch(2, 8, 11))
    np.testing.assert_array_equal(first, kept)


def test_threads_that_ask_at_once_get_their_own_answers(runner: Runner) -> None:
    batches = [batch(1 + seed % 4, 5 + seed % 6, seed) for seed in range(12)]
    expected = [plain(runner, *each) for each in batches]
    wrong: list[int] = []

    def ask() -> None:
        for _ in range(3):
            for number, each in enumerate(batches):
                if not np.allclose(runner.logits(*each), expected[number], atol=1e-6):
                    wrong.append(number)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_large_batches_run_side_by_side_and_small_ones_alone(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=20)  # which a run leaves only when another one has come
    real = runner._run

    def meet(ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        if len(ids) > CAPTURED_BATCHES[-1]:
            meeting.wait()
        else:
            assert runner._gate._door.locked()
            assert not runner._gate._inside
        return real(ids, mask)

    monkeypatch.setattr(runner, "_run", meet)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda size: runner.logits(*batch(size, 8)), [CAPTURED_BATCHES[-1] + 1] * 2))
    assert [len(answer) for answer in answers] == [CAPTURED_BATCHES[-1] + 1] * 2
    assert len(runner.logits(*batch(1, 8))) == 1


def test_a_session_on_the_cpu_captures_nothing(exported: Any) -> None:
    assert not uses_cuda_graphs(open_session(Path(exported["bundle"]) / "model.onnx", "cpu"))
