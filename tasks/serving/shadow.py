"""Shadow deployment: the challenger computes the champion's batches again, off the path of requests.

A thread takes answered batches from a bounded queue; where that is full, they are dropped and counted. It computes for
at most a share of the time (`load`), so that it costs the champion no more than that where both share the cores: under
full load it sees a sample of the batches, otherwise all. As both compute the same batches, their latencies compare.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from tasks.core.errors import summarise_error
from tasks.core.timestamps import utc_now
from tasks.evaluation.metrics import confusion
from tasks.evaluation.shadow_summary import SHADOW_SCHEMA_VERSION, ShadowSummary, SideFigures, side_figures
from tasks.serving.challenger import Challenger
from tasks.serving.champion import Champion, ChampionAnswer, LoadedModel

log = logging.getLogger(__name__)

SHADOW_QUEUE = 64  # batches that wait
SHADOW_WINDOW = 10_000  # latest batches whose latencies are kept, and latest flagged sentences
PUBLISH_S = 300.0  # between two summaries in the registry


class Tally:
    """What two versions answered to the same sentences."""

    def __init__(self, champion: str, challenger: str) -> None:
        self.champion, self.challenger = champion, challenger
        self.since = utc_now()
        self.sentences = self.equal = self.dropped = self.failures = 0
        self.seconds: collections.deque[tuple[float, float]] = collections.deque(maxlen=SHADOW_WINDOW)
        self.flags: dict[str, tuple[int, int, int]] = {}  # label, champion's, challenger's

    def add(
        self, ours: Sequence[ChampionAnswer], theirs: Sequence[ChampionAnswer], seconds: tuple[float, float]
    ) -> None:
        """Compare the answers of champion and challenger to a batch, which took them so many seconds."""
        self.sentences += len(ours)
        self.equal += sum(one["label"] == other["label"] for one, other in zip(ours, theirs, strict=True))
        self.seconds.append(seconds)

    def add_flag(self, sentence: str, labels: tuple[int, int, int]) -> None:
        """Keep the last label that a person gave a sentence, beside those of champion and challenger."""
        self.flags.pop(sentence, None)
        self.flags[sentence] = labels
        if len(self.flags) > SHADOW_WINDOW:
            del self.flags[next(iter(self.flags))]

    def summary(self) -> ShadowSummary:
        """Return the figures so far."""
        return ShadowSummary(
            schema_version=SHADOW_SCHEMA_VERSION,
            since=self.since,
            until=utc_now(),
            servers=1,
            sentences=self.sentences,
            equal=self.equal,
            dropped=self.dropped,
            failures=self.failures,
            flags=len(self.flags),
            champion=self._side(self.champion, 0),
            challenger=self._side(self.challenger, 1),
        )

    def _side(self, version: str, index: int) -> SideFigures:
        times = [1_000 * both[index] for both in tuple(self.seconds)]
        p50, p99 = np.percentile(times, [50, 99]) if times else (0.0, 0.0)
        labels = np.array(tuple(self.flags.values()), np.int64).reshape(-1, 3)
        return side_figures(version, float(p50), float(p99), confusion(labels[:, 0], labels[:, 1 + index]))


class Shadow:
    """Lets a challenger answer what the champion answered.

    Args:
        champion: answers requests.
        challenger: never does.
        load: share of the time, above 0 and at most 1, in which it may compute.
        publish: called with the summary every `publish_s` seconds in which it changed, and at the end; None: nobody is.
        publish_s: seconds.
    """

    def __init__(
        self,
        champion: Champion,
        challenger: Challenger,
        load: float,
        publish: Callable[[ShadowSummary], None] | None = None,
        publish_s: float = PUBLISH_S,
    ) -> None:
        self._champion, self._challenger, self._load = champion, challenger, load
        self._publish, self._publish_s, self._published = publish, publish_s, time.monotonic()
        self._tally: Tally | None = None
        self._changed = False
        self._batches: collections.deque[tuple[list[ChampionAnswer], float]] = collections.deque()
        self._flags: collections.deque[tuple[str, int]] = collections.deque(maxlen=SHADOW_QUEUE)
        self._arrived, self._closed = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, answers: list[ChampionAnswer], seconds: float) -> None:
        """Queue a batch that the champion answered in so many seconds; never waits for the challenger."""
        with self._arrived:
            if len(self._batches) < SHADOW_QUEUE:
                self._batches.append((answers, seconds))
                self._arrived.notify()
            elif tally := self._tally:
                tally.dropped += len(answers)

    def flag(self, sentence: str, label: int) -> None:
        """Queue a sentence that a person labelled; both models answer it."""
        with self._arrived:
            self._flags.append((sentence, label))
            self._arrived.notify()

    def summary(self) -> ShadowSummary | None:
        """Return the figures of the versions that are loaded, or were last; None before the first comparison."""
        tally = self._tally
        return tally.summary() if tally else None

    def close(self) -> None:
        """End the thread after the batch that it computes; publish what was measured."""
        self._closed.set()
        with self._arrived:
            self._arrived.notify()
        self._thread.join()
        self._publish_changes()

    def _work(self) -> None:
        while not self._closed.is_set():
            with self._arrived:
                if not self._batches and not self._flags:
                    self._arrived.wait(self._publish_s)
                flag = self._flags.popleft() if self._flags else None
                batch = self._batches.popleft() if self._batches and not flag else None
            started = time.perf_counter()
            try:
                if flag:
                    self._judge_flag(*flag)
                elif batch:
                    self._compare(*batch)
            except Exception as error:  # whatever the challenger raises, the champion is not affected
                self._count_failure(error)
            self._closed.wait((time.perf_counter() - started) * (1 / self._load - 1))
            if time.monotonic() - self._published > self._publish_s:
                self._publish_changes()

    def _compare(self, answers: list[ChampionAnswer], seconds: float) -> None:
        challenger = self._challenger.facing(answers[0]["version"])
        if challenger is None:
            return
        tally = self._tally_of(answers[0]["version"], challenger.version)
        started = time.perf_counter()
        theirs = challenger.predict([answer["sentence"] for answer in answers])
        tally.add(answers, theirs, (seconds, time.perf_counter() - started))
        self._changed = True

    def _judge_flag(self, sentence: str, label: int) -> None:
        champion = self._champion.current()
        challenger = self._challenger.facing(champion.version)
        if challenger is None:
            return
        tally = self._tally_of(champion.version, challenger.version)
        tally.add_flag(sentence, (label, _label_of(champion, sentence), _label_of(challenger, sentence)))
        self._changed = True

    def _tally_of(self, champion: str, challenger: str) -> Tally:
        """Return the tally of two versions; that of others is published and ended."""
        tally = self._tally
        if tally is None or (tally.champion, tally.challenger) != (champion, challenger):
            self._publish_changes()
            tally = self._tally = Tally(champion, challenger)
            log.info("shadow: version %s is compared with version %s", challenger, champion)
        return tally

    def _count_failure(self, error: Exception) -> None:
        tally = self._tally
        if tally:
            tally.failures += 1
            self._changed = True
        if not tally or tally.failures == 1:
            log.warning("shadow: the challenger failed (%s); the champion is not affected", summarise_error(error))

    def _publish_changes(self) -> None:
        self._published = time.monotonic()
        if not self._changed or self._tally is None or self._publish is None:
            return
        self._changed = False
        try:
            self._publish(self._tally.summary())
        except Exception as error:  # the store may be away; the next summary holds the same figures
            self._changed = True
            log.warning("shadow: the summary could not be written to the registry (%s)", summarise_error(error))


def _label_of(model: LoadedModel, sentence: str) -> int:
    (answer,) = model.predict([sentence])
    return model.classifier.manifest["labels"].index(answer["label"])
