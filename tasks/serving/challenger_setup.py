"""Lets a challenger compute beside the champion of a server: as a shadow, as a canary, or both."""

import contextlib
import functools
import uuid
from collections.abc import Callable

from tasks.evaluation.shadow_summary import ShadowSummary
from tasks.serving.batcher import Batcher
from tasks.serving.canary import Canary, CanaryLimits
from tasks.serving.challenger import Challenger, ChallengerConfig, ServedChampion
from tasks.serving.challenger_metrics import CanaryCollector, ShadowCollector
from tasks.serving.shadow import Shadow


def deploy_challenger(
    stack: contextlib.ExitStack,
    config: ChallengerConfig,
    served: ServedChampion,
    challenger: Challenger,
    batcher: Batcher | None,
    home: str,
) -> Canary | None:
    """Start what a challenger computes, which `stack` stops; return what divides the requests, if it answers any.

    Args:
        stack: stops it.
        config: what it computes.
        served: the champion.
        challenger: the challenger.
        batcher: the challenger's; None where it answers no requests.
        home: folder of the stores.
    """
    if config.shadow:
        in_registry = challenger.in_registry and served.champion.in_registry
        shadow = Shadow(served.champion, challenger, config.load, _publisher(home) if in_registry else None)
        stack.callback(shadow.close)
        served.batcher.listeners.append(shadow.offer)
        if served.feedback:
            served.feedback.listeners.append(shadow.flag)
        served.telemetry.registry.register(ShadowCollector(shadow))
    if batcher is None:
        return None
    batcher.listeners.append(served.telemetry.count_batch)
    limits = CanaryLimits(errors=config.max_errors, slowdown=config.max_slowdown)
    canary = Canary(config.share, challenger, served.batcher, batcher, limits)
    served.telemetry.registry.register(CanaryCollector(canary))
    return canary


def _publisher(home: str) -> Callable[[ShadowSummary], None]:
    from tasks.registry.shadow_record import record_shadow
    from tasks.registry.store import locate_store

    # A server that is started again has figures of its own, which leave the earlier ones in place.
    return functools.partial(record_shadow, locate_store(home), server=uuid.uuid4().hex[:12])
