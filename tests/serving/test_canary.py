"""A canary answers a share of the sentences, the same ones always, and is taken back where it fails or is slow."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from challengers import ScriptedAddress, ScriptedModel
from prometheus_client import CollectorRegistry, generate_latest

from tasks.core.errors import NoAnswer, UsageError
from tasks.serving.batcher import Batcher
from tasks.serving.canary import Canary, CanaryLimits, is_in_share
from tasks.serving.challenger import parse_share
from tasks.serving.challenger_metrics import CanaryCollector

SENTENCES = [f"sentence {number}" for number in range(2_000)]


class Pair:
    """A canary of two scripted models."""

    def __init__(self, share: float, limits: CanaryLimits) -> None:
        self.ours, self.theirs = ScriptedModel("1"), ScriptedModel("2")
        self.address = ScriptedAddress(self.theirs)
        self.batchers = [Batcher(lambda: self.ours, max_wait=0.0), Batcher(self.address.current, max_wait=0.0)]  # type: ignore[arg-type,return-value]
        self.now = 0.0
        self.ours.sleep = self.theirs.sleep = self.advance
        self.canary = Canary(share, self.address, *self.batchers, limits, lambda: self.now)  # type: ignore[arg-type]

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, *requests: list[str]) -> list[Any]:
        async def submit() -> list[Any]:
            return [await self.canary.submit(sentences, self.ours.version) for sentences in requests]

        return asyncio.run(submit())

    def versions(self, *requests: list[str]) -> list[str]:
        return [answer["version"] for reply in self.ask(*requests) for answer in reply.answers]


@contextlib.contextmanager
def canary_of(share: float = 1.0, **limits: Any) -> Iterator[Pair]:
    pair = Pair(share, CanaryLimits(**limits))
    yield pair
    for batcher in pair.batchers:
        batcher.close()


def test_the_share_is_exact_to_the_hash_and_grows_without_moving_a_sentence() -> None:
    counts = {share: sum(is_in_share(sentence, share) for sentence in SENTENCES) for share in (0.05, 0.5, 1.0)}
    assert counts == {0.05: 90, 0.5: 1_014, 1.0: 2_000}
    assert all(is_in_share(sentence, 0.5) for sentence in SENTENCES if is_in_share(sentence, 0.05))


def test_a_sentence_always_has_the_same_model_and_each_answer_names_it() -> None:
    chosen = ["2" if is_in_share(sentence, 0.3) else "1" for sentence in SENTENCES[:60]]
    with canary_of(0.3) as pair:
        assert pair.versions(SENTENCES[:60]) == chosen
        assert pair.versions(*([sentence] for sentence in reversed(SENTENCES[:60]))) == chosen[::-1]
        reply = pair.ask(SENTENCES[:60])[0]
    assert [answer["sentence"] for answer in reply.answers] == SENTENCES[:60]
    assert (reply.version, set(chosen)) == ("1", {"1", "2"})


def test_failures_are_answered_by_the_champion_and_end_the_canary(caplog: pytest.LogCaptureFixture) -> None:
    with canary_of() as pair:
        assert pair.versions(["a"], ["b"]) == ["2", "2"]
        pair.theirs.fails = True
        assert pair.versions(["a"], ["b"], ["c"], ["d"]) == ["1"] * 4
        assert len(pair.theirs.seen) == 2 + 3  # the last request was not tried
        pair.theirs.fails = False
        assert pair.versions(["a"]) == ["1"]
        assert pair.canary.status()["stopped"] == "3 of 5 requests failed, at most 0.01 of them may"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "canary: version 2 answers no longer: 3 of 5 requests failed, at most 0.01 of them may (last: RuntimeError: "
        "a fault); the champion answers everything until a restart or a new challenger"
    ]


@pytest.mark.parametrize("failing", ["1", "2"])
def test_a_sentence_without_an_answer_is_named_by_its_place_in_the_request(failing: str) -> None:
    texts = SENTENCES[:60]
    chosen = ["2" if is_in_share(sentence, 0.3) else "1" for sentence in texts]
    place = 40 + chosen[40:].index(failing)
    with canary_of(0.3) as pair:
        pair.ours.broken = texts[place]  # the champion answers what the challenger does not
        pair.theirs.fails = failing == "2"
        with pytest.raises(NoAnswer, match=f"sentence {place + 1} has no answer"):
            pair.ask(texts)


def test_a_slow_challenger_is_taken_back() -> None:
    requests = [[sentence] for sentence in SENTENCES[:80]]
    with canary_of(0.5, min_requests=15) as pair:
        pair.ours.seconds, pair.theirs.seconds = 0.010, 0.019
        assert pair.versions(*requests).count("2") == sum(is_in_share(sentence, 0.5) for (sentence,) in requests)
        assert pair.canary.status()["ratio"] == pytest.approx(1.9)
    with canary_of(0.5, min_requests=15) as pair:
        pair.ours.seconds, pair.theirs.seconds = 0.010, 0.025
        assert pair.versions(*requests).count("2") == 30  # the champion has answered 15 too by then
        assert pair.canary.status()["stopped"] == (
            "30 of 30 requests took longer than 2 times the champion's p99 latency, at most 0.01 of them may"
        )


def count_stopped(failing: float, slow: float, runs: int = 12) -> int:
    """Return how many of so many canaries are taken back within 1,500 requests.

    Args:
        failing: probability that the challenger fails to answer.
        slow: probability that it takes ten times as long; one in 200 answers of the champion does.
    """
    stopped = 0
    for run in range(runs):
        random = np.random.default_rng(run)
        with canary_of(0.5) as pair:

            async def submit(pair: Pair = pair, random: np.random.Generator = random) -> None:
                for sentence in SENTENCES[:1_500]:
                    pair.theirs.fails = random.random() < failing
                    for model, share in ((pair.ours, 0.005), (pair.theirs, slow)):
                        model.seconds = 0.1 if random.random() < share else 0.01
                    await pair.canary.submit([sentence], "1")

            asyncio.run(submit())
            stopped += pair.canary.status()["stopped"] is not None
    return stopped


def test_chance_takes_no_challenger_back_that_is_within_the_limits() -> None:
    assert count_stopped(failing=0.005, slow=0.005) == 0


@pytest.mark.parametrize(("failing", "slow"), [(0.05, 0.005), (0.0, 0.05)], ids=["fails", "is slow"])
def test_a_challenger_that_is_five_times_above_a_limit_is_taken_back(failing: float, slow: float) -> None:
    assert count_stopped(failing, slow, 4) == 4


def test_an_answer_that_does_not_come_is_the_champion_s() -> None:
    with canary_of(timeout=0.05) as pair:
        pair.theirs.seconds, pair.theirs.sleep = 0.2, time.sleep
        assert pair.versions(["a"]) == ["1"]
        assert (pair.canary.status()["errors"], pair.canary.status()["stopped"]) == (1, None)


def test_another_version_starts_anew_and_a_removed_one_answers_nothing() -> None:
    with canary_of(level=0.05) as pair:
        pair.theirs.fails = True
        assert pair.versions(["a"], ["b"]) == ["1", "1"]
        pair.address.model = ScriptedModel("3")
        assert pair.versions(["a"], ["b"]) == ["3", "3"]
        pair.address.model = None
        assert pair.versions(["a"]) == ["1"]
        pair.address.model = ScriptedModel("1")  # it has become the champion
        assert pair.versions(["a"]) == ["1"]


def test_metrics_say_whether_the_canary_answers() -> None:
    with canary_of(0.25, level=0.05) as pair:
        registry = CollectorRegistry()
        registry.register(CanaryCollector(pair.canary))
        pair.theirs.fails = True
        pair.versions(SENTENCES[:20])
        text = generate_latest(registry).decode()
    for line in ('share{version="2"} 0.25', 'stopped{version="2"} 1.0', 'window_errors{version="2"} 1.0'):
        assert f"verdict_canary_{line}" in text


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("100%", 1.0), (" 1 ", 1.0)])
def test_a_share_is_a_percentage_or_a_number(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "0", "5", "-1%", "101%", "nan", "five", "5%%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a share of the sentences such as 5% or"):
        parse_share(text)
