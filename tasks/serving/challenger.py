"""The challenger beside a served champion: a second model that follows an alias of its own."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tasks.core.errors import NoChampion, UnknownModel, UsageError, VerdictError
from tasks.core.refusals import suggest
from tasks.inference.bundle import CHALLENGER, CHAMPION, MODEL_NAME
from tasks.serving.champion import Champion, LoadedModel

if TYPE_CHECKING:
    from tasks.serving.batcher import Batcher
    from tasks.serving.feedback import Feedback
    from tasks.serving.metrics import ServerMetrics

log = logging.getLogger(__name__)

ADDRESS_MARKS = "/:@"  # a registry address or a path has one of them


@dataclass(frozen=True)
class ChallengerConfig:
    """What a second model does beside the champion."""

    model: str = CHALLENGER
    """alias, version number, registry address, or a bundle's folder"""
    shadow: bool = False
    """compute the champion's batches too"""
    load: float = 0.05
    """share of the time that a shadow may take"""
    share: float = 0.0
    """of the sentences that it answers as a canary; 0: none"""
    max_errors: float = 0.01
    """share of its requests that may fail"""
    max_slowdown: float = 2.0
    """its p99 latency, divided by the champion's, may be"""


class Challenger(Champion):
    """Follows an address as a champion does, but is unloaded where its alias is removed: a person has decided then.

    One that cannot be loaded does not keep the server from starting, where it is an alias and may be loaded later.
    """

    _spin = False

    def facing(self, champion: str | None) -> LoadedModel | None:
        """Return the model that is loaded; None without one, or where it is the champion's version."""
        served = self._served
        return served if served and served.version != champion else None

    def _record_failure(self, error: Exception) -> None:
        if isinstance(error, NoChampion):
            self._served = None
        super()._record_failure(error)

    @staticmethod
    def _may_recover(error: VerdictError) -> bool:
        return not isinstance(error, UsageError | UnknownModel)


class ServedChampion(NamedTuple):
    """What serves the champion, which a challenger is put beside."""

    champion: Champion
    batcher: "Batcher"
    telemetry: "ServerMetrics"
    feedback: "Feedback | None"


def open_challenger(config: ChallengerConfig, refresh_s: float, device: str, home: str) -> Challenger:
    """Load a challenger and follow it; warn of an alias that is not set and that no command sets.

    Raises:
        UsageError, UnknownModel: if it has no such address.
    """
    address, aliases = challenger_address(config.model), (CHAMPION, CHALLENGER)
    challenger = Challenger.open(address, refresh_s, device, home, require_model=False)
    if address != config.model and config.model not in aliases and challenger.facing(None) is None:
        log.warning(
            "%sthe alias %r is not set; verdict sets the aliases %s and %s, another one has to be set in MLflow",
            *(suggest(config.model, aliases), config.model, *aliases),
        )
    return challenger


def challenger_address(model: str) -> str:
    """Return the registry address of an alias such as `challenger`; all else is returned as it is."""
    if not model or model.isdecimal() or any(mark in model for mark in ADDRESS_MARKS):
        return model
    return f"models:/{MODEL_NAME}@{model}"


def parse_share(text: str) -> float:
    """Return the share that a text such as 5% or 0.05 names.

    Raises:
        UsageError: if it is not above 0 and at most 1.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--canary {text!r} is refused; expected a share of the sentences such as 5% or 0.05")
    return share
