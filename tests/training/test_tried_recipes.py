"""What the ablation tries beside the recipes still reaches the training code that it changes from outside."""

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import Trainer

from tasks.training.corruption import corrupt

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_each_tried_change_changes_the_weights(
    make_trainer: Callable[[], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    tried = importlib.import_module("tried").TRIED
    alone: dict[str, Any] = {"epochs": 2}
    of_seeds: dict[str, Any] = {"epochs": 1, "seeds": 2}
    changes: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "averaged_epochs": ([2], alone),
        "class_weights": ([], alone),
        "corruption_kinds": (["ngram", "agreement"], {"epochs": 1, "corruptions": 1}),
        "distilled": ([0.7], of_seeds),
        "greedy_soup": ([], of_seeds),
        "new_top_layers": ([1], alone),
        "no_corruption_stage": ([], {"epochs": 1, "corruptions": 1}),
        "selections": ([], of_seeds | {"corruptions": 1}),
        "sift_step": ([0.5], alone | {"sift": 1.0}),
    }
    assert changes.keys() == tried.keys()

    def weights(change: contextlib.AbstractContextManager[None], settings: dict[str, Any]) -> bytes:
        trainer = make_trainer()
        with change:
            trainer.train(**settings)
        return bytes(trainer.result()[0])

    same = {"greedy_soup", "selections"}  # the first may be the plain mean, the second makes models beside the run's
    found = {name: weights(tried[name](*arguments), settings) for name, (arguments, settings) in changes.items()}
    plain = {name: weights(contextlib.nullcontext(), changes[name][1]) for name in changes.keys() - same}
    assert [name for name in plain if found[name] == plain[name]] == []


def test_each_new_kind_of_corruption_breaks_the_rule_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    kinds = importlib.import_module("tried_corruptions").KINDS
    cases = {
        "agreement": ("the cat is here .", {"the cat are here ."}),
        "polarity": ("she has not seen any cats .", {"she has seen any cats ."}),
        "binding": ("they left early today .", {"themselves left early today ."}),
        "islands": ("I wonder whether they saw him .", {"him , I wonder whether they saw ."}),
        "there": ("there is a cat here .", {f"there is {word} cat here ." for word in ("every", "each", "the")}),
        "ngram": ("the cat is here .", {"the dog is here ."}),
    }
    assert cases.keys() == kinds.keys()
    for name, (sentence, some) in cases.items():
        known = [sentence, "the dog sees a bird ."] if name == "ngram" else [sentence]
        found = set(corrupt(known, known, 30, 0, corruptions=[kinds[name]]))
        assert found >= some or found & some, (name, found)
