"""Two models whose answers, errors and times a test decides, and what serves them."""

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from tasks.core.errors import NoAnswer
from tasks.serving.champion import ChampionAnswer


class ScriptedModel:
    """Labels a sentence 1 (acceptable) where it holds one of some words; may fail or take its time."""

    max_length = 80

    def __init__(self, version: str, *words: str) -> None:
        self.version, self.words, self.seconds, self.fails = version, words, 0.0, False
        self.classifier = SimpleNamespace(manifest={"labels": ["unacceptable", "acceptable"]})
        self.seen: list[list[str]] = []
        self.broken = ""  # a sentence that it has no answer for
        self.sleep: Callable[[float], None] = time.sleep

    def predict(
        self, sentences: Sequence[str], on_tokenised: Callable[[], None] = lambda: None
    ) -> list[ChampionAnswer]:
        on_tokenised()
        self.sleep(self.seconds)
        self.seen.append(list(sentences))
        if self.fails:
            raise RuntimeError("a fault")
        if self.broken in sentences:
            raise NoAnswer(list(sentences).index(self.broken), "fp32")
        return [
            ChampionAnswer(
                sentence=text,
                label="acceptable" if any(word in text for word in self.words) else "unacceptable",
                probability=0.9,
                truncated=False,
                version=self.version,
            )
            for text in sentences
        ]


class ScriptedAddress:
    """Stands for Champion and Challenger: an address at which a model is."""

    in_registry = False
    name = "acceptability"

    def __init__(self, model: ScriptedModel) -> None:
        self.model: ScriptedModel | None = model

    def current(self) -> Any:
        return self.model

    def status(self) -> Any:
        facts: dict[str, Any] = dict.fromkeys(("digest", "provider", "signature", "loaded", "checked", "problem"))
        version = self.model.version if self.model else None
        return facts | {"model": "scripted", "version": version, "following": False, "moves": 0, "failures": 0}

    def facing(self, champion: str) -> Any:
        return self.model if self.model and self.model.version != champion else None
