"""Measures what serving a bundle costs: size, memory, latency and throughput of each variant.

Latency is that of a call with one sentence, throughput that of calls with `BATCH` sentences, both with tokenisation and
after a warm-up. Memory is what loading a variant and answering adds to a process, so each variant needs a process of
its own. The figures are those of one machine at one moment: they are recorded, and not measured again to recompute a
verdict.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from tasks.inference.bundle import DEVICE_VARIANT, VARIANTS
from tasks.inference.classifier import Classifier

BATCH = 64  # sentences of a call whose throughput is measured
SECONDS = 0.1  # that calls of either kind are repeated for
MIN_CALLS = 3  # of either kind, however long they take
MEGA = 1e6  # bytes of a megabyte


class VariantCosts(TypedDict):
    """What serving one variant costs; `latency_ms` is the median of one sentence, `latency_p95_ms` the 95th percentile.

    `memory_mb` is resident memory, on a GPU without that of the GPU.
    """

    provider: str
    size_mb: float
    memory_mb: float
    latency_ms: float
    latency_p95_ms: float
    sentences_per_second: float


class Costs(TypedDict):
    """What each variant costs to serve, on which hardware; `training_seconds` is what fine-tuning took."""

    hardware: str
    variants: dict[str, VariantCosts]
    training_seconds: NotRequired[float]


def measure_variant_costs(bundle: str, variant: str, device: str, sentences: list[str]) -> VariantCosts:
    """Load a variant in this process, on the device that would serve it, and measure it.

    Args:
        bundle: folder of a bundle with a manifest.
        variant: fp32, fp16 or int8; the last on the CPU even if there is a GPU.
        device: auto, cuda or cpu.
        sentences: at least one, to answer.

    Raises:
        VerdictError: if the bundle or the variant cannot be loaded.
    """
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    on = "cpu" if variant == DEVICE_VARIANT["cpu"] else device
    classifier = Classifier.from_bundle(bundle, on, variant, spin=False)
    batch = [sentences[number % len(sentences)] for number in range(BATCH)]
    classifier.answer(batch)
    classifier.answer(batch[:1])
    one = _time_calls(lambda number: classifier.answer([batch[number % BATCH]]))
    many = _time_calls(lambda number: classifier.answer(batch))
    return VariantCosts(
        provider=classifier.provider,
        size_mb=round((Path(bundle) / VARIANTS[variant]).stat().st_size / MEGA, 3),
        memory_mb=round((process.memory_info().rss - before) / MEGA, 1),
        latency_ms=round(1_000 * float(np.median(one)), 3),
        latency_p95_ms=round(1_000 * float(np.quantile(one, 0.95)), 3),
        sentences_per_second=round(BATCH / float(np.median(many)), 1),
    )


def _time_calls(call: Callable[[int], object]) -> list[float]:
    """Return the seconds of each of some calls, which get their number."""
    taken: list[float] = []
    while len(taken) < MIN_CALLS or sum(taken) < SECONDS:
        started = time.perf_counter()
        call(len(taken))
        taken.append(time.perf_counter() - started)
    return taken
