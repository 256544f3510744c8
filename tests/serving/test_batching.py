"""Which sentences share a batch: exact groups, by number, by tokens, and by tokens with what is padded."""

import threading
from typing import Any

import pytest

from tasks.serving.batcher import SPECIAL_TOKENS, Batcher


class Recorder:
    """A model that notes the estimated tokens of each batch's sentences; it answers the first one when it is let."""

    version, max_length = "1", 100

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started, self.go = threading.Event(), threading.Event()

    def predict(self, sentences: list[str]) -> list[Any]:
        self.started.set()
        assert self.go.wait(10)
        self.batches.append([SPECIAL_TOKENS + len(sentence) // 4 for sentence in sentences])
        return [{"sentence": sentence, "truncated": False} for sentence in sentences]


def groups(requests: list[list[int]], **limits: Any) -> list[list[int]]:
    """Return the batches of requests that wait together, each given by the tokens of its sentences."""
    model = Recorder()
    batcher = Batcher(lambda: model, max_wait=0.0, **limits)  # type: ignore[arg-type,return-value]
    first = batcher.submit([""])
    assert model.started.wait(10)
    futures = [batcher.submit(["x" * 4 * (tokens - SPECIAL_TOKENS) for tokens in request]) for request in requests]
    model.go.set()
    for request, future in zip(requests, futures, strict=True):
        assert [SPECIAL_TOKENS + len(answer["sentence"]) // 4 for answer in future.result(10).answers] == request
    first.result(10)
    batcher.close()
    assert model.batches[0] == [SPECIAL_TOKENS]
    return model.batches[1:]


SHORT, LONG = [10, 10], [90]


@pytest.mark.parametrize(
    ("padded", "expected"),
    [
        (0, [[10, 10, 10, 10, 90, 10, 10, 10], [10, 90]]),  # eight sentences, 256 tokens
        (10_000, [[10, 10, 10, 10, 90, 10, 10, 10], [10, 90]]),
        (450, [[10, 10, 10, 10, 90], [10, 10, 10, 10, 90]]),
        (449, [[10, 10, 10, 10], [90, 10, 10, 10], [10, 90]]),
    ],
)
def test_padded_tokens_divide_requests_that_wait(padded: int, expected: list[list[int]]) -> None:
    waiting = [SHORT, SHORT, LONG, [10, 10, 10], [10], LONG]
    assert groups(waiting, max_batch=8, max_padded=padded) == expected


def test_requests_that_were_cancelled_are_not_computed() -> None:
    model, seen = Recorder(), []
    batcher = Batcher(lambda: model, max_wait=0.0)  # type: ignore[arg-type,return-value]
    batcher.listeners.append(lambda answers, seconds: seen.append(len(answers)))
    first = batcher.submit([""])
    assert model.started.wait(10)
    cancelled = [batcher.submit(["x"]) for _ in range(3)]
    assert all(future.cancel() for future in cancelled)
    model.go.set()
    first.result(10)
    batcher.close()
    assert (model.batches, seen) == ([[SPECIAL_TOKENS]], [1])


def test_a_request_that_does_not_fit_is_divided() -> None:
    assert groups([[10, 10, 90, 90, 90, 10]], max_batch=8, max_padded=180) == [[10, 10], [90, 90], [90, 10]]
    assert groups([[10, 10, 90, 90, 90, 10]], max_batch=8) == [[10, 10, 90, 90], [90, 10]]


def test_one_sentence_above_every_limit_is_a_batch() -> None:
    assert groups([[90], [90]], max_batch=1, max_padded=10) == [[90], [90]]
