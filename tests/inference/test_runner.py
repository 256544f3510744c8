"""Captured shapes, padding to them and locking. A CPU captures no graphs, but the buffers, padding and locks are the
same there."""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.core.errors import UsageError
from tasks.inference import runner as runner_module
from tasks.inference import sessions
from tasks.inference.packed_shapes import attention_is_fused, packed_length
from tasks.inference.runner import CAPTURE_AFTER, CAPTURED_BATCHES, CAPTURED_LENGTHS, Runner, bucket_shape
from tasks.inference.sessions import CUDA, open_session, uses_cuda_graphs
from tasks.inference.tokenization import TokenIds


@pytest.fixture
def runner(exported: Any, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Runs a real graph on the CPU as if it were captured."""
    monkeypatch.setattr(runner_module, "uses_cuda_graphs", lambda session: True)
    return Runner(open_session(Path(exported["bundle"]) / "model.onnx", "cpu"), 16, "cpu")


def batch(sentences: int, tokens: int, seed: int = 0) -> tuple[TokenIds, TokenIds]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, tokens + 1, sentences)
    lengths[0] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    return rng.integers(5, 20, mask.shape) * mask, mask


def run_eagerly(runner: Runner, ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
    return runner._run(ids, mask)


@pytest.mark.parametrize(
    ("sentences", "tokens", "shape"),
    [
        (1, 1, (1, 8)),
        (1, 8, (1, 8)),
        (1, 9, (1, 16)),
        (2, 9, (2, 12)),
        (3, 13, (4, 16)),
        (32, 128, (32, 128)),
        (17, 65, (32, 96)),
    ],
)
def test_a_small_batch_takes_the_smallest_shape_that_holds_it(
    sentences: int, tokens: int, shape: tuple[int, int]
) -> None:
    assert bucket_shape(sentences, tokens, 512) == shape


def test_attention_is_fused_in_every_captured_shape() -> None:
    for sentences in range(1, CAPTURED_BATCHES[-1] + 1):
        for tokens in range(1, CAPTURED_LENGTHS[-1] + 1):
            shape = bucket_shape(sentences, tokens, 512)
            assert shape is not None
            assert attention_is_fused(*shape)


@pytest.mark.parametrize(("sentences", "tokens"), [(33, 8), (1, 129), (0, 8)])
def test_a_large_or_empty_batch_is_never_captured(sentences: int, tokens: int) -> None:
    assert bucket_shape(sentences, tokens, 512) is None


def test_a_captured_shape_has_no_more_tokens_than_the_encoder_has_positions(
    exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bucket_shape(2, 70, 80) == (2, 80)
    monkeypatch.setattr(runner_module, "uses_cuda_graphs", lambda session: True)
    runner = Runner(open_session(Path(exported["bundle"]) / "model.onnx", "cpu"), 80, "cpu")  # 80 positions
    for seed in range(CAPTURE_AFTER + 1):
        ids, mask = batch(2, 70, seed)
        np.testing.assert_allclose(runner.logits(ids, mask), run_eagerly(runner, ids, mask), atol=1e-6)
    assert list(runner._graphs) == [(2, 80)]


def test_a_shape_is_captured_after_eager_runs(runner: Runner) -> None:
    for run in range(1, CAPTURE_AFTER + 3):
        runner.logits(*batch(1, 8))
        assert len(runner._graphs) == (run > CAPTURE_AFTER)


@pytest.mark.parametrize(("sentences", "tokens"), [(1, 3), (1, 8), (3, 5), (4, 12), (5, 14), (32, 16)])
def test_captured_runs_give_the_logits_of_eager_runs(runner: Runner, sentences: int, tokens: int) -> None:
    for seed in range(CAPTURE_AFTER + 4):  # later runs find the values of earlier ones in the buffers
        ids, mask = batch(sentences, tokens, seed)
        np.testing.assert_allclose(runner.logits(ids, mask), run_eagerly(runner, ids, mask), atol=1e-6)
    assert len(runner._graphs) == 1


def test_logits_are_not_overwritten_by_the_next_run(runner: Runner) -> None:
    for seed in range(CAPTURE_AFTER):
        runner.logits(*batch(2, 8, seed))
    first = runner.logits(*batch(2, 8, 10))
    kept = first.copy()
    runner.logits(*batch(2, 8, 11))
    np.testing.assert_array_equal(first, kept)


def test_concurrent_threads_get_their_own_logits(runner: Runner) -> None:
    batches = [batch(1 + seed % 4, 5 + seed % 6, seed) for seed in range(12)]
    expected = [run_eagerly(runner, *each) for each in batches]
    wrong: list[int] = []

    def run_all() -> None:
        for _ in range(3):
            for number, each in enumerate(batches):
                if not np.allclose(runner.logits(*each), expected[number], atol=1e-6):
                    wrong.append(number)

    threads = [threading.Thread(target=run_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_large_batches_run_concurrently_and_small_ones_exclusively(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = 1, CAPTURED_BATCHES[-1] + 1
    running: list[int] = []
    seen: list[list[int]] = []
    real = runner._run

    def record(ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        size = min(len(ids), large)  # a large batch is padded
        running.append(size)
        time.sleep(0.002)
        seen.append(list(running))
        running.remove(size)
        return real(ids, mask)

    monkeypatch.setattr(runner, "_run", record)
    monkeypatch.setattr(runner_module, "CAPTURE_AFTER", 1_000)  # all runs are eager
    sizes = np.random.default_rng(0).choice([small, large], 200, p=[0.3, 0.7]).tolist()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda size: runner.logits(*batch(size, 8)), sizes))
    assert [len(answer) for answer in answers] == sizes
    assert [runs for runs in seen if small in runs and len(runs) > 1] == []
    assert any(runs.count(large) > 1 for runs in seen)


@pytest.mark.parametrize(
    ("sentences", "tokens", "length"), [(33, 3, 4), (500, 17, 18), (2049, 33, 36), (40, 65, 72), (40, 77, 78)]
)
def test_a_large_batch_is_padded_and_gives_the_logits_of_its_sentences(
    exported: Any, monkeypatch: pytest.MonkeyPatch, sentences: int, tokens: int, length: int
) -> None:
    monkeypatch.setattr(runner_module, "uses_cuda_graphs", lambda session: True)
    runner = Runner(open_session(Path(exported["bundle"]) / "model.onnx", "cpu"), 78, "cpu")  # of 80 positions
    ids, mask = batch(sentences, tokens)
    expected = run_eagerly(runner, ids, mask)
    computed: list[tuple[int, ...]] = []
    real = runner._run

    def record(ids: TokenIds, mask: TokenIds) -> NDArray[np.float32]:
        computed.append(ids.shape)
        assert mask.sum(axis=1).min() > 0  # softmax over no token is NaN
        logits = real(ids, mask)
        assert np.isfinite(logits).all()
        return logits

    monkeypatch.setattr(runner, "_run", record)
    np.testing.assert_allclose(runner.logits(ids, mask), expected, atol=1e-6)
    assert computed == [(sentences, length)] == [(sentences, packed_length(sentences, tokens, 78))]


def test_without_captured_graphs_a_small_batch_on_a_gpu_is_padded_too(
    exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(open_session(Path(exported["bundle"]) / "model.onnx", "cpu"), 80, "cpu")
    monkeypatch.setattr(runner, "provider", CUDA)
    computed: list[tuple[int, ...]] = []
    monkeypatch.setattr(runner, "_run", lambda ids, _: computed.append(ids.shape) or np.zeros((len(ids), 2)))
    assert runner.logits(*batch(3, 19)).shape == (3, 2)
    assert computed == [(3, 24)]


def test_a_batch_on_the_cpu_is_computed_as_it_is(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(open_session(Path(exported["bundle"]) / "model.onnx", "cpu"), 16, "cpu")
    computed: list[tuple[int, ...]] = []
    monkeypatch.setattr(runner, "_run", lambda ids, _: computed.append(ids.shape) or np.zeros((len(ids), 2)))
    runner.logits(*batch(33, 9))
    assert computed == [(33, 9)]


def test_a_session_on_the_cpu_captures_nothing(exported: Any) -> None:
    assert not uses_cuda_graphs(open_session(Path(exported["bundle"]) / "model.onnx", "cpu"))


@pytest.mark.parametrize(("fails", "gpu"), [(False, 0), (True, 3)])
def test_sessions_are_on_the_gpu_that_was_named_and_leave_out_cudnn_s_attention(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool, gpu: int
) -> None:
    opened = []

    class Session:
        def __init__(self, graph: Path, options: object, providers: list[Any], **_: object) -> None:
            opened.append(providers)
            if fails and len(opened) == 1:
                raise RuntimeError("This session cannot use the graph capture feature")

        def get_providers(self) -> list[str]:
            return [CUDA]

        def disable_fallback(self) -> None:
            opened.append("stays")

    monkeypatch.setattr(sessions.onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(sessions.onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(sessions, "count_gpus", lambda: 4)
    monkeypatch.setattr(sessions.onnxruntime, "set_default_logger_severity", lambda _: None)
    with caplog.at_level(logging.DEBUG, logger=sessions.log.name):
        open_session(Path("model.onnx"), "cuda", capture=True, gpu=gpu)
    assert opened.pop() == "stays"
    for (name, options), cpu in opened:
        assert (name, cpu) == (CUDA, sessions.CPU)
        kernels = int(options["sdpa_kernel"])
        assert not kernels & 8
        assert kernels & 2
        assert kernels & 16
        assert options.get("device_id", "0") == str(gpu)
    assert [options.get("enable_cuda_graph") for (_, options), _ in opened] == (["1", None] if fails else ["1"])
    assert ("small batches are not captured" in caplog.text) is fails


@pytest.mark.parametrize("gpu", [-1, 2])
def test_a_number_that_no_gpu_has_is_refused(monkeypatch: pytest.MonkeyPatch, gpu: int) -> None:
    monkeypatch.setattr(sessions, "count_gpus", lambda: 2)
    with pytest.raises(UsageError, match=f"gpu = {gpu} is refused: this process sees 2 GPUs, counted from 0"):
        open_session(Path("model.onnx"), "cuda", gpu=gpu)


def test_what_onnx_runtime_prints_is_kept_from_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sessions.onnxruntime, "InferenceSession", lambda *_, **__: print("*** EP Error ***"))
    sessions._open(Path("model.onnx"), [sessions.CPU])
    assert capsys.readouterr() == ("", "*** EP Error ***\n")
