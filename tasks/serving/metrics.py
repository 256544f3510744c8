"""Metrics of the server in Prometheus' text format; one registry for each server, so that tests share no counts."""

import contextlib
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tasks.core.errors import VerdictError
from tasks.serving.champion import ChampionAnswer, ChampionStatus
from tasks.serving.summary_file import read_summary

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)


class StateCollector(Collector):
    """Reads figures at each scrape, and not when it is registered."""

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not call `collect`."""
        return []


class ServerMetrics:
    """Counters and histograms of one server."""

    def __init__(self, status: Callable[[], ChampionStatus], waiting: Callable[[], int]) -> None:
        """Create the metrics.

        Args:
            status: called at each scrape, returns the state of the model.
            waiting: called at each scrape, returns the number of sentences in the queue.
        """
        self.registry = CollectorRegistry()
        self.registry.register(_ModelCollector(status, waiting))
        registry = self.registry
        self.requests = Counter(
            "verdict_requests", "Requests by route and HTTP status code.", ["route", "code"], registry=registry
        )
        self.seconds = Histogram(
            "verdict_request_seconds",
            "Seconds from request to response.",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.sentences = Counter(
            "verdict_sentences", "Sentences by version of the model that judged them.", ["version"], registry=registry
        )
        self.truncated = Counter(
            "verdict_truncated_sentences",
            "Sentences longer than the model reads, by version of the model.",
            ["version"],
            registry=registry,
        )
        self.batches = Histogram(
            "verdict_batch_sentences", "Sentences in a batch.", buckets=BATCH_SIZE_BUCKETS, registry=registry
        )
        self.computing = Histogram(
            "verdict_batch_seconds", "Seconds of inference for a batch.", buckets=LATENCY_BUCKETS_S, registry=registry
        )
        self.logged = Counter(
            "verdict_request_log_sentences", "Sentences written to the request log.", registry=registry
        )
        self.dropped = Counter(
            "verdict_request_log_dropped",
            "Sentences that the request log had no room for, or that could not be written.",
            registry=registry,
        )
        self.flags = Counter("verdict_flags", "Sentences that people flagged on the page.", registry=registry)

    def follow_summary(self, folder: Path) -> None:
        """Show the estimate of the last summary of a request log, which is read at each scrape."""
        self.registry.register(_EstimateCollector(folder))

    def count_batch(self, answers: list[ChampionAnswer], seconds: float) -> None:
        """Count a batch."""
        self.batches.observe(len(answers))
        self.computing.observe(seconds)

    def count_answers(self, answers: list[ChampionAnswer]) -> None:
        """Count the sentences of a request by version, and how many of them were truncated."""
        for version in {answer["version"] for answer in answers}:
            truncated = [answer["truncated"] for answer in answers if answer["version"] == version]
            self.sentences.labels(version).inc(len(truncated))
            self.truncated.labels(version).inc(sum(truncated))

    def count_logged(self, logged: int, dropped: int) -> None:
        """Count sentences that the request log wrote, and those that it dropped."""
        self.logged.inc(logged)
        self.dropped.inc(dropped)

    def count_flag(self, sentence: str, label: int) -> None:
        """Count a sentence that a person flagged."""
        self.flags.inc()

    def count_request(self, route: str, code: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(code)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _ModelCollector(StateCollector):
    """Reads the state of model and queue at each scrape."""

    def __init__(self, status: Callable[[], ChampionStatus], waiting: Callable[[], int]) -> None:
        self._status, self._waiting = status, waiting

    def collect(self) -> Iterator[Metric]:
        """Yield the length of the queue and the state of the model."""
        status = self._status()
        yield GaugeMetricFamily("verdict_queue_sentences", "Sentences in the queue.", value=self._waiting())
        yield GaugeMetricFamily("verdict_model_ready", "1 while a model is loaded.", value=bool(status["version"]))
        model = GaugeMetricFamily(
            "verdict_model_info", "The model that is loaded.", labels=["model", "version", "digest", "provider"]
        )
        if status["version"]:
            model.add_metric(
                [status["model"], status["version"], status["digest"] or "", status["provider"] or ""], 1.0
            )
        yield model
        yield CounterMetricFamily(
            "verdict_model_moves", "Times that another version was loaded.", value=status["moves"]
        )
        yield CounterMetricFamily(
            "verdict_refresh_failures",
            "Polls of the registry that failed, or found a version that cannot be loaded.",
            value=status["failures"],
        )
        yield GaugeMetricFamily(
            "verdict_refresh_timestamp_seconds",
            "Unix time of the last answer of the registry.",
            value=status["checked"] or 0.0,
        )


class _EstimateCollector(StateCollector):
    """Reads the last summary of a request log at each scrape."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """Yield the estimated MCC, if there is one."""
        summary = None
        with contextlib.suppress(VerdictError):
            summary = read_summary(self._folder)
        if summary is None or summary["estimate"] is None:
            return
        estimated = GaugeMetricFamily(
            "verdict_estimated_mcc",
            "MCC estimated without labels by `verdict requests`, and the bounds of its 95% interval.",
            labels=["version", "bound"],
        )
        for bound in ("mcc", "low", "high"):
            estimated.add_metric([str(summary["version"]), bound], summary["estimate"][bound])
        yield estimated
        yield GaugeMetricFamily(
            "verdict_estimate_timestamp_seconds",
            "Unix time of the estimate.",
            value=datetime.datetime.fromisoformat(summary["time"]).timestamp(),
        )
