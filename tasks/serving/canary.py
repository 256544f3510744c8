"""Canary deployment: the challenger answers a share of the sentences, until its errors or latency pass a limit.

The share is decided by a hash of the sentence, so the same sentence always has the same model. What the challenger
fails to answer in time is answered by the champion. Beyond a limit the champion answers everything again, until the
server is restarted or the challenger is another version.
"""

import asyncio
import collections
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from tasks.core.errors import NoAnswer, summarise_error
from tasks.serving.batcher import Batcher, BatchReply
from tasks.serving.challenger import Challenger

log = logging.getLogger(__name__)

CHECK_EVERY = 10  # answers of the challenger between two checks of the latency
SLOW_SHARE = 0.01  # of requests take longer than the p99 latency


@dataclass(frozen=True)
class CanaryLimits:
    """When the champion takes over again."""

    errors: float = 0.01
    """share of the challenger's requests that may fail"""
    slowdown: float = 2.0
    """1% of the challenger's requests may take longer than this times the champion's p99 latency"""
    level: float = 1e-4
    """probability of as many failed or slow requests in the window, if their true share is the limit, below which the
    champion takes over: a window of few requests passes a limit by chance, and each request is another look"""
    min_requests: int = 100
    """of each that a p99 is made of"""
    window: int = 1_000
    """latest requests of each"""
    timeout: float = 5.0
    """seconds until the champion answers instead, which is an error of the challenger"""


class CanaryStatus(TypedDict):
    """State of a canary deployment; `stopped` says why the champion answers everything again, else it is None."""

    share: float
    version: str | None
    stopped: str | None
    requests: int
    errors: int
    ratio: float | None


class Canary:
    """Divides requests between two batchers, by sentence; used by one event loop."""

    def __init__(
        self,
        share: float,
        challenger: Challenger,
        ours: Batcher,
        theirs: Batcher,
        limits: CanaryLimits,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Set what answers.

        Args:
            share: of all sentences for the challenger, 0 to 1.
            challenger: which version is loaded.
            ours: the champion's batcher.
            theirs: the challenger's.
            limits: beyond which the champion answers everything.
            clock: returns seconds.
        """
        from scipy.special import bdtrc  # takes a quarter of a second to import

        self.share, self.limits, self._clock, self._upper_tail = share, limits, clock, bdtrc
        self._challenger, self._ours, self._theirs = challenger, ours, theirs
        self._stopped: str | None = None
        self._start(None)

    def status(self) -> CanaryStatus:
        """Return the state."""
        return CanaryStatus(
            share=self.share,
            version=self._version,
            stopped=self._stopped,
            requests=len(self._outcomes),
            errors=sum(self._outcomes),
            ratio=self._ratio(),
        )

    async def submit(self, sentences: list[str], champion: str) -> BatchReply:
        """Let both models answer a request.

        Args:
            sentences: of the request.
            champion: version that is loaded.

        Raises:
            NotReady, QueueFull, BatcherClosed: if the champion does not answer.
        """
        chosen = [is_in_share(sentence, self.share) for sentence in sentences]
        if not any(chosen) or not self._is_on(champion):
            chosen = [False] * len(sentences)
        if not any(chosen):
            return await self._ask_champion(sentences)
        if all(chosen):
            return await self._ask_challenger(sentences)
        ours, theirs = ([place for place, canary in enumerate(chosen) if canary is side] for side in (False, True))
        asked = (
            _placed(self._ask_champion([sentences[place] for place in ours]), ours),
            _placed(self._ask_challenger([sentences[place] for place in theirs]), theirs),
        )
        return _merge(chosen, *await asyncio.gather(*asked))

    def _is_on(self, champion: str) -> bool:
        """Return whether the challenger answers; a new version starts with empty windows."""
        challenger = self._challenger.facing(champion)
        if challenger is None:
            return False
        if challenger.version != self._version:
            self._start(challenger.version)
            log.info("canary: version %s answers %.3g%% of the sentences", challenger.version, 100 * self.share)
        return self._stopped is None

    def _start(self, version: str | None) -> None:
        self._version, self._stopped, self._answers = version, None, 0
        self._outcomes: collections.deque[bool] = collections.deque(maxlen=self.limits.window)  # True: failed
        self._our_seconds: collections.deque[float] = collections.deque(maxlen=self.limits.window)
        self._their_seconds: collections.deque[float] = collections.deque(maxlen=self.limits.window)

    async def _ask_champion(self, sentences: list[str]) -> BatchReply:
        started = self._clock()
        reply = await asyncio.wrap_future(self._ours.submit(sentences))
        self._our_seconds.append(self._clock() - started)
        return reply

    async def _ask_challenger(self, sentences: list[str]) -> BatchReply:
        """Return the challenger's answers; where it fails, the champion's."""
        started, version = self._clock(), self._version
        try:
            async with asyncio.timeout(self.limits.timeout):
                reply = await asyncio.wrap_future(self._theirs.submit(sentences))
        except Exception as error:  # whatever the challenger raises, the client is answered
            if version == self._version:
                self._outcomes.append(True)
                self._check_errors(error)
            return await self._ask_champion(sentences)
        if reply.version == self._version:
            self._outcomes.append(False)
            self._their_seconds.append(self._clock() - started)
            self._answers += 1
            if self._answers % CHECK_EVERY == 0:
                self._check_latency()
        return reply

    def _check_errors(self, error: Exception) -> None:
        failed, asked = sum(self._outcomes), len(self._outcomes)
        if self._is_above(failed, asked, self.limits.errors):
            self._stop(f"{failed} of {asked} requests failed, at most {self.limits.errors:.3g} of them may", error)

    def _check_latency(self) -> None:
        if self._ratio() is None:
            return
        limit = self.limits.slowdown * float(np.percentile(self._our_seconds, 99))
        slow, asked = sum(seconds > limit for seconds in self._their_seconds), len(self._their_seconds)
        if self._is_above(slow, asked, SLOW_SHARE):
            self._stop(
                f"{slow} of {asked} requests took longer than {self.limits.slowdown:g} times the champion's p99 "
                f"latency, at most {SLOW_SHARE:g} of them may"
            )

    def _is_above(self, count: int, asked: int, share: float) -> bool:
        """Return whether so many requests are too many for a true share of at most `share` (binomial test)."""
        return bool(self._upper_tail(count - 1, asked, share) < self.limits.level)

    def _ratio(self) -> float | None:
        """Return the challenger's p99 latency divided by the champion's; None before there are enough requests."""
        if min(len(self._our_seconds), len(self._their_seconds)) < self.limits.min_requests:
            return None
        return float(np.percentile(self._their_seconds, 99) / np.percentile(self._our_seconds, 99))

    def _stop(self, reason: str, error: Exception | None = None) -> None:
        if self._stopped is None:
            self._stopped = reason
            last = f" (last: {summarise_error(error)})" if error else ""
            log.error(
                "canary: version %s answers no longer: %s%s; the champion answers everything until a restart or a new "
                "challenger",
                *(self._version, reason, last),
            )


def is_in_share(sentence: str, share: float) -> bool:
    """Return whether a sentence is in a share of all sentences, 0 to 1; one in a share is in every larger one."""
    digest = hashlib.blake2b(sentence.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


async def _placed(asked: Awaitable[BatchReply], places: list[int]) -> BatchReply:
    """Return a reply to the sentences at these places of a request; one without an answer is named by its place."""
    try:
        return await asked
    except NoAnswer as error:
        raise NoAnswer(places[error.index], error.variant) from error


def _merge(chosen: list[bool], ours: BatchReply, theirs: BatchReply) -> BatchReply:
    """Return the answers of both models in the order of the request; the reply's version is the champion's."""
    left, right = iter(ours.answers), iter(theirs.answers)
    answers = [next(right) if theirs_too else next(left) for theirs_too in chosen]
    length = min(ours.max_length, theirs.max_length)
    return ours._replace(max_length=length, answers=answers, stages=ours.stages + theirs.stages)
