"""What the ablation tries beside the recipes still reaches the training code that it changes from outside."""

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import Trainer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_each_tried_change_changes_the_weights(
    make_trainer: Callable[[], Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    tried = importlib.import_module("tried").TRIED
    changes: dict[str, list[Any]] = {"averaged_epochs": [2], "class_weights": [], "new_top_layers": [1]}
    assert changes.keys() == tried.keys()

    def weights(change: contextlib.AbstractContextManager[None]) -> bytes:
        trainer = make_trainer()
        with change:
            trainer.train(epochs=2)
        return bytes(trainer.result()[0])

    found = [weights(tried[name](*arguments)) for name, arguments in changes.items()]
    plain = weights(contextlib.nullcontext())
    assert len({plain, *found}) == len(found) + 1
