"""What the server counts, in Prometheus' text format; one registry a server, so that tests do not share counts."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tasks.serving.champion import ChampionStatus

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)


class ServerMetrics:
    """Counters and histograms of one server."""

    def __init__(self, status: Callable[[], ChampionStatus], waiting: Callable[[], int]) -> None:
        """Start at zero.

        Args:
            status: asked at each scrape for the model.
            waiting: asked at each scrape for the sentences that wait.
        """
        self.registry = CollectorRegistry()
        self.registry.register(_ModelCollector(status, waiting))
        registry = self.registry
        self.requests = Counter(
            "verdict_requests", "Requests answered, by route and HTTP code.", ["route", "code"], registry=registry
        )
        self.seconds = Histogram(
            "verdict_request_seconds",
            "Seconds from request to answer.",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.sentences = Counter(
            "verdict_sentences", "Sentences answered, by model version.", ["version"], registry=registry
        )
        self.batches = Histogram(
            "verdict_batch_sentences", "Sentences of a batch.", buckets=BATCH_SIZE_BUCKETS, registry=registry
        )
        self.computing = Histogram(
            "verdict_batch_seconds", "Seconds the model took for a batch.", buckets=LATENCY_BUCKETS_S, registry=registry
        )

    def count_batch(self, sentences: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.observe(sentences)
        self.computing.observe(seconds)

    def count_request(self, route: str, code: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(code)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _ModelCollector(Collector):
    """Asks at each scrape what there is no need to count."""

    def __init__(self, status: Callable[[], ChampionStatus], waiting: Callable[[], int]) -> None:
        self._status, self._waiting = status, waiting

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not ask."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the queue's length and the model's state."""
        status = self._status()
        yield GaugeMetricFamily("verdict_queue_sentences", "Sentences that wait.", value=self._waiting())
        yield GaugeMetricFamily("verdict_model_ready", "1 while a model is loaded.", value=bool(status["version"]))
        model = GaugeMetricFamily(
            "verdict_model_info", "The model that answers.", labels=["model", "version", "digest", "provider"]
        )
        if status["version"]:
            model.add_metric(
                [status["model"], status["version"], status["digest"] or "", status["provider"] or ""], 1.0
            )
        yield model
        yield CounterMetricFamily("verdict_model_moves", "Times another version took over.", value=status["moves"])
        yield CounterMetricFamily(
            "verdict_refresh_failures",
            "Looks that found the store away or a version unfit.",
            value=status["failures"],
        )
        yield GaugeMetricFamily(
            "verdict_refresh_timestamp_seconds",
            "When the registry last answered, in seconds since 1970.",
            value=status["checked"] or 0.0,
        )
