"""Metrics of shadow and canary deployments, read at each scrape."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tasks.serving.canary import Canary
from tasks.serving.metrics import StateCollector
from tasks.serving.shadow import Shadow


class ShadowCollector(StateCollector):
    """Figures of the two versions that are compared; counters start again with each pair."""

    def __init__(self, shadow: Shadow) -> None:
        self._shadow = shadow

    def collect(self) -> Iterator[Metric]:
        """Yield agreement, latency, losses and MCC."""
        summary = self._shadow.summary()
        if summary is None:
            return
        pair = [summary["champion"]["version"], summary["challenger"]["version"]]
        for name, text, count in (
            ("sentences", "Sentences that both versions judged.", summary["sentences"]),
            ("equal_sentences", "Sentences that both gave the same label.", summary["equal"]),
            ("dropped_sentences", "Sentences that the shadow had no time for.", summary["dropped"]),
            ("failed_batches", "Batches that the challenger failed to judge.", summary["failures"]),
        ):
            counter = CounterMetricFamily(f"verdict_shadow_{name}", text, labels=["champion", "challenger"])
            counter.add_metric(pair, count)
            yield counter
        seconds = GaugeMetricFamily(
            "verdict_shadow_batch_seconds", "Seconds of the same batches.", labels=["version", "quantile"]
        )
        scores = GaugeMetricFamily("verdict_shadow_mcc", "MCC on flagged sentences.", labels=["version"])
        for side in (summary["champion"], summary["challenger"]):
            seconds.add_metric([side["version"], "0.5"], side["p50_ms"] / 1_000)
            seconds.add_metric([side["version"], "0.99"], side["p99_ms"] / 1_000)
            if side["mcc"] is not None:
                scores.add_metric([side["version"]], side["mcc"])
        yield seconds
        yield scores
        yield GaugeMetricFamily("verdict_shadow_flags", "Flagged sentences of the MCC.", value=summary["flags"])


class CanaryCollector(StateCollector):
    """State of the canary deployment."""

    def __init__(self, canary: Canary) -> None:
        self._canary = canary

    def collect(self) -> Iterator[Metric]:
        """Yield whether the challenger answers, and what it is judged by."""
        status = self._canary.status()
        version = status["version"] or ""
        for name, text, value in (
            ("share", "Share of the sentences for the challenger.", status["share"]),
            ("stopped", "1 where the challenger passed a limit and answers no longer.", bool(status["stopped"])),
            ("window_requests", "Requests to the challenger in the window.", status["requests"]),
            ("window_errors", "Of these, those that failed.", status["errors"]),
            ("latency_ratio", "Challenger's p99 latency divided by the champion's.", status["ratio"]),
        ):
            gauge = GaugeMetricFamily(f"verdict_canary_{name}", text, labels=["version"])
            if value is not None:
                gauge.add_metric([version], float(value))
            yield gauge
