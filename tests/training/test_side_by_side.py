"""Seeds that are trained at the same time end as they do alone, and all of them end with the first error.

On a CPU: threads, locks and random generators are those of a GPU; streams and the generator of CUDA are not there.
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_tape import TapeRecorder
from tiny import Words, toy_encoded, toy_recipe
from toy import Killed, Trainer

from tasks.training import seed_runs
from tasks.training import trainer as trainer_module
from tasks.training.cuda_graph_step import capture_or_eager
from tasks.training.side_by_side import Lane, LaneStopped, train_side_by_side
from tasks.training.trainer import EpochRecord, TrainingHistory, train_epochs

EPOCHS = 2
FAST: dict[str, Any] = {"epochs": EPOCHS, "seeds": 3}


def draw(lane: Lane, count: int) -> list[float]:
    with lane.exclusive():
        return [float(torch.rand(())) for _ in range(count)]


def test_a_lane_draws_its_own_numbers_however_lanes_alternate() -> None:
    lock, drawn, expected = threading.RLock(), dict[int, list[float]](), dict[int, list[float]]()
    for seed in (3, 4):
        torch.manual_seed(seed)
        expected[seed] = [float(torch.rand(())) for _ in range(6)]
    torch.manual_seed(5)
    lanes = {seed: Lane("cpu", lock) for seed in (3, 4)}
    for seed, lane in lanes.items():
        with lane.exclusive():
            torch.manual_seed(seed)
    for _ in range(3):
        for seed, lane in lanes.items():
            drawn.setdefault(seed, []).extend(draw(lane, 2))
            with lane.exclusive(), lane.exclusive():
                assert torch.initial_seed() == seed  # fused dropout starts from it
    assert drawn == expected
    assert torch.initial_seed() == 5


def test_lanes_run_at_the_same_time_and_reports_are_handled_one_by_one_by_the_caller() -> None:
    together, main, seen = threading.Barrier(3, timeout=30), threading.current_thread(), list[int]()

    def train(seed: int, lane: Lane) -> None:
        lane.ready()
        together.wait()
        lane.report(seed)

    def note(seed: int) -> None:
        assert threading.current_thread() is main
        seen.append(seed)

    train_side_by_side(train, [1, 2, 3], "cpu", on_report=note)
    assert sorted(seen) == [1, 2, 3]


def test_others_start_when_the_first_lane_is_prepared() -> None:
    started: list[int] = []

    def train(seed: int, lane: Lane) -> None:
        started.append(seed)
        assert lane.shares_memory == (seed != 1)
        if seed == 1:
            assert started == [1]
            lane.ready()

    train_side_by_side(train, [1, 2, 3], "cpu")
    assert sorted(started) == [1, 2, 3]


def test_no_more_lanes_than_wanted_run_at_once() -> None:
    lock, running, most = threading.Lock(), list[int](), list[int]()

    def train(seed: int, lane: Lane) -> None:
        with lock:
            running.append(seed)
            most.append(len(running))
        lane.ready()
        lane.report(seed)
        with lock:
            running.remove(seed)

    train_side_by_side(train, list(range(6)), "cpu", at_once=2)
    assert len(most) == 6
    assert max(most) <= 2


def endless(seed: int, lane: Lane, ended: list[int], fail: Callable[[], None]) -> None:
    """Train until another lane fails; seed 2 is that lane."""
    lane.ready()
    if seed == 2:
        fail()
    try:
        while True:
            lane.advance()
            lane.report(seed)
    except LaneStopped:
        ended.append(seed)
        raise


def raise_error() -> None:
    raise ValueError("no model")


def test_an_error_in_one_lane_ends_all_and_is_raised() -> None:
    ended: list[int] = []
    with pytest.raises(ValueError, match="no model"):
        train_side_by_side(lambda seed, lane: endless(seed, lane, ended, raise_error), [1, 2, 3], "cpu")
    assert 1 in ended
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("seed ")]


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_an_interruption_of_the_caller_ends_all_lanes(error: type[BaseException]) -> None:
    ended, seen = list[int](), list[int]()

    def note(seed: int) -> None:
        seen.append(seed)
        if len(seen) == 5:
            raise error

    with pytest.raises(error):
        train_side_by_side(lambda seed, lane: endless(seed, lane, ended, lambda: None), [1, 3], "cpu", on_report=note)
    assert sorted(ended) == [1, 3]


def test_a_seed_that_does_not_fit_beside_others_is_trained_alone_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    attempts: list[tuple[int, bool]] = []

    def train(seed: int, lane: Lane) -> None:
        attempts.append((seed, lane.shares_memory))
        lane.ready()
        if lane.shares_memory:
            raise torch.OutOfMemoryError

    train_side_by_side(train, [1, 2, 3], "cpu")
    assert attempts[0] == (1, False)
    assert {(2, False), (3, False)} <= set(attempts)
    refused = sum(shared for _, shared in attempts)
    warnings = [line for line in caplog.messages if "does not fit beside others; seeds are trained one after" in line]
    assert len(warnings) == refused


def test_a_seed_that_does_not_fit_alone_is_an_error() -> None:
    def train(seed: int, lane: Lane) -> None:
        raise torch.OutOfMemoryError(f"seed {seed}")

    with pytest.raises(torch.OutOfMemoryError, match="seed 1"):
        train_side_by_side(train, [1, 2], "cpu")


# Trainings


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every training replay captured steps, as on a GPU."""
    pytest.importorskip("triton")  # for Linux on x86-64

    def make_train_step(model: Any, data: Any, config: Any, group: Any, *, shares_memory: bool) -> Any:
        return capture_or_eager(model, data, config, TapeRecorder(), group, shares_memory=shares_memory)

    monkeypatch.setattr(trainer_module, "make_train_step", make_train_step)


def train_words(seed: int, folder: Path, lane: Lane | None = None) -> tuple[list[torch.Tensor], TrainingHistory]:
    with lane.exclusive() if lane else contextlib.nullcontext():
        model = Words(seed=seed)
    config = toy_recipe(steps=6, learning_rate=0.05)
    checkpoints = trainer_module.CheckpointConfig(str(folder / str(seed)), "run", 0)
    history = train_epochs(
        model, toy_encoded(24), toy_encoded(16, seed=1), config, epochs=EPOCHS, seed=seed, lane=lane,
        checkpoints=checkpoints, on_epoch=lane.report if lane else None,
    )  # fmt: skip
    return [parameter.detach().clone() for parameter in model.parameters()], history


@pytest.mark.usefixtures("captured")
def test_captured_steps_of_several_seeds_compute_what_each_computes_alone(tmp_path: Path) -> None:
    alone = {seed: train_words(seed, tmp_path / "alone") for seed in (1, 2, 3)}
    found, order = dict[int, Any](), list[tuple[int, int]]()

    def train(seed: int, lane: Lane) -> None:
        found[seed] = train_words(seed, tmp_path / "lanes", lane)

    def note(record: EpochRecord) -> None:
        order.append((record["seed"], record["epoch"]))

    train_side_by_side(train, [1, 2, 3], "cpu", on_report=note)
    assert sorted(order) == [(seed, epoch) for seed in (1, 2, 3) for epoch in (1, 2)]
    for seed, (weights, history) in alone.items():
        assert all(torch.equal(one, other) for one, other in zip(weights, found[seed][0], strict=True))
        assert history.step_losses == found[seed][1].step_losses
        assert [each.name for each in sorted((tmp_path / "lanes" / str(seed)).iterdir())] == ["epoch-0001"]


@pytest.fixture(scope="module")
def one_by_one(make_trainer: Callable[[], Trainer]) -> Any:
    trainer = make_trainer()
    trainer.train(**FAST)
    return trainer.result()


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed_runs, "trains_side_by_side", lambda recipe: True)


@pytest.mark.usefixtures("side_by_side")
def test_a_run_with_seeds_side_by_side_is_the_run_with_seeds_one_by_one(trainer: Trainer, one_by_one: Any) -> None:
    """Eager steps, with dropout from torch's generator: each training has it for itself."""
    trainer.train(**FAST)
    assert trainer.result() == one_by_one


@pytest.mark.usefixtures("side_by_side")
def test_a_run_that_is_killed_with_seeds_side_by_side_resumes_with_all_of_them(
    trainer: Trainer, one_by_one: Any
) -> None:
    trainer.interrupt(1, attempt=1, **FAST)
    _, epochs = trainer.train(**FAST)
    assert len(epochs) <= 3 * EPOCHS - 1
    assert trainer.result() == one_by_one
