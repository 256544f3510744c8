"""A run that is killed and resumed is the uninterrupted run, bit for bit; the best epoch's weights are kept."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_bert, toy_encoded, toy_recipe
from transformers import BertForSequenceClassification

from tasks.evaluation.metrics import accuracy, mcc
from tasks.training import checkpoints, train_step
from tasks.training.dataset import TokenDataset
from tasks.training.trainer import CheckpointConfig, EpochRecord, TrainingHistory, train_epochs, validate

TRAIN, VALIDATION = toy_encoded(28, seed=1), toy_encoded(30, seed=2)
EPOCHS, STEPS = 4, 4  # a run's epochs, an epoch's steps
RECIPE = toy_recipe(steps=EPOCHS * STEPS, layer_decay=0.8)
SEED = 5


class Killed(Exception):
    """Raised where a process would be killed."""


def after(number: int) -> Callable[[EpochRecord], None]:
    """Return what kills a run after an epoch."""

    def kill(record: EpochRecord) -> None:
        if record["epoch"] == number:
            raise Killed

    return kill


def small_bert(dropout: float = 0.2) -> BertForSequenceClassification:
    return tiny_bert(dropout=dropout, num_hidden_layers=1)


def config_in(folder: Path, run: str = "run", seconds: float = 0.0) -> CheckpointConfig:
    return CheckpointConfig(str(folder), run, seconds)


def train(
    checkpoints: CheckpointConfig | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    model: BertForSequenceClassification | None = None,
) -> tuple[TrainingHistory, BertForSequenceClassification]:
    """Train a new model with dropout; what torch's and NumPy's generators did before does not matter."""
    model = model or small_bert()
    torch.manual_seed(SEED)
    history = train_epochs(
        model, TRAIN, VALIDATION, RECIPE, epochs=EPOCHS, seed=SEED, checkpoints=checkpoints, on_epoch=on_epoch
    )
    return history, model


def interrupt(checkpoints: CheckpointConfig, number: int) -> None:
    with pytest.raises(Killed):
        train(checkpoints, after(number))


def timeless(history: TrainingHistory) -> TrainingHistory:
    """Leave out what two runs cannot share."""
    return history._replace(epochs=[record | {"seconds": 0.0} for record in history.epochs])  # type: ignore[misc]


def assert_same(
    found: tuple[TrainingHistory, BertForSequenceClassification],
    expected: tuple[TrainingHistory, BertForSequenceClassification],
) -> None:
    assert timeless(found[0]) == timeless(expected[0])
    for (name, one), other in zip(found[1].named_parameters(), expected[1].parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[TrainingHistory, BertForSequenceClassification]:
    """A run that nothing ever interrupted, without checkpoints."""
    return train()


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make validations give these (MCC, loss), one after the other."""

    def give(*given: tuple[float, float | None]) -> None:
        left: Iterator[tuple[float, float | None]] = iter(given)

        def measured(model: Any, validation: Any) -> dict[str, float | None]:
            value, loss = next(left)
            return {"validation_mcc": value, "validation_loss": loss, "validation_accuracy": 0.5}

        monkeypatch.setattr("tasks.training.trainer.validate", measured)

    return give


def test_the_uninterrupted_run_learns_and_has_dropout(
    uninterrupted: tuple[TrainingHistory, BertForSequenceClassification],
) -> None:
    history, _ = uninterrupted
    assert not history.collapsed
    assert history.epochs[-1]["train_loss"] < history.epochs[0]["train_loss"]
    assert len({record["validation_loss"] for record in history.epochs}) == EPOCHS
    plain, _ = train(model=small_bert(dropout=0.0))
    assert plain.step_losses != history.step_losses


def test_writing_checkpoints_changes_nothing(
    uninterrupted: tuple[TrainingHistory, BertForSequenceClassification], tmp_path: Path
) -> None:
    assert_same(train(config_in(tmp_path)), uninterrupted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0002", "epoch-0003"]


@pytest.mark.parametrize("killed", range(1, EPOCHS + 1))
def test_a_run_killed_after_any_epoch_ends_as_one_that_was_not(
    killed: int, uninterrupted: tuple[TrainingHistory, BertForSequenceClassification], tmp_path: Path
) -> None:
    interrupt(config_in(tmp_path), killed)
    records: list[EpochRecord] = []
    assert_same(train(config_in(tmp_path), records.append), uninterrupted)
    assert [record["epoch"] for record in records] == list(range(killed, EPOCHS + 1))


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(
    uninterrupted: tuple[TrainingHistory, BertForSequenceClassification], tmp_path: Path
) -> None:
    for killed in (1, 2, 2, 3, 4, 4):
        interrupt(config_in(tmp_path), killed)
    assert_same(train(config_in(tmp_path)), uninterrupted)


@pytest.mark.parametrize("killed", [1, 3])
def test_a_run_killed_between_two_steps_ends_as_one_that_was_not(
    killed: int,
    uninterrupted: tuple[TrainingHistory, BertForSequenceClassification],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = 0

    def kill_at(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == STEPS * killed + 2:
            raise Killed
        return real(*given)

    real = train_step.classification_loss
    monkeypatch.setattr(train_step, "classification_loss", kill_at)
    with pytest.raises(Killed):
        train(config_in(tmp_path))
    assert_same(train(config_in(tmp_path)), uninterrupted)


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    uninterrupted: tuple[TrainingHistory, BertForSequenceClassification],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupt(config_in(tmp_path), 4)
    (tmp_path / "epoch-0003" / checkpoints.TENSORS_FILE).write_bytes(b"")
    records: list[EpochRecord] = []
    assert_same(train(config_in(tmp_path), records.append), uninterrupted)
    assert [record["epoch"] for record in records] == [3, 4]
    assert "epoch-0003 is ignored" in caplog.text


def test_where_all_checkpoints_are_damaged_the_run_starts_over(
    uninterrupted: tuple[TrainingHistory, BertForSequenceClassification], tmp_path: Path
) -> None:
    interrupt(config_in(tmp_path), 4)
    for path in tmp_path.glob(f"*/{checkpoints.STATE_FILE}"):
        path.write_text("{}")
    records: list[EpochRecord] = []
    assert_same(train(config_in(tmp_path), records.append), uninterrupted)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]


def test_a_run_does_not_resume_from_a_checkpoint_of_another(
    uninterrupted: tuple[TrainingHistory, BertForSequenceClassification], tmp_path: Path
) -> None:
    interrupt(config_in(tmp_path, "another"), 4)
    interrupt(config_in(tmp_path), 3)
    records: list[EpochRecord] = []
    assert_same(train(config_in(tmp_path), records.append), uninterrupted)
    assert [record["epoch"] for record in records] == [3, 4]


def test_a_full_disk_does_not_stop_the_run(
    uninterrupted: tuple[TrainingHistory, BertForSequenceClassification],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(tensors: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", refuse)
    assert_same(train(config_in(tmp_path)), uninterrupted)
    assert caplog.text.count("cannot be written") == EPOCHS - 1
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_no_more_frequent_than_configured(tmp_path: Path) -> None:
    train(config_in(tmp_path, seconds=3600))
    assert list(tmp_path.iterdir()) == []


def test_the_log_says_after_which_epoch_a_run_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupt(config_in(tmp_path), 3)
    with caplog.at_level("INFO", "tasks"):
        train(config_in(tmp_path))
    assert "resuming after epoch 2 of 4" in caplog.messages


def test_a_checkpoint_holds_the_weights_of_its_epoch_and_the_best_ones(
    tmp_path: Path, scores: Callable[..., None]
) -> None:
    scores((0.5, 1.0), (0.7, 1.0), (0.6, 1.0))
    model = small_bert()
    heads: list[torch.Tensor] = []

    def watch(record: EpochRecord) -> None:
        heads.append(model.classifier.weight.detach().clone())
        after(3)(record)

    with pytest.raises(Killed):
        train(config_in(tmp_path), watch, model)
    start = model.classifier.weight.storage_offset()
    for epoch, best in ((1, 1), (2, 2)):
        tensors = load_file(tmp_path / f"epoch-{epoch:04}" / checkpoints.TENSORS_FILE)
        for name, of in (("master", epoch), ("best", best)):
            assert torch.equal(tensors[name][start : start + 32].view(2, 16), heads[of - 1])
    record = json.loads((tmp_path / "epoch-0002" / checkpoints.STATE_FILE).read_text())["record"]
    assert record["best_epoch"] == 2
    assert len(record["losses"]) == 2 * STEPS


@pytest.mark.parametrize(
    ("given", "best"),
    [
        ([(0.1, 1.0), (0.3, 1.0), (0.2, 0.1), (0.25, 0.1)], 2),
        ([(0.3, 0.9), (0.3, 0.8), (0.3, 0.8), (0.3, 0.85)], 2),
        ([(-0.3, 0.9), (-0.2, 0.9), (-0.1, 0.9), (-0.1, 1.0)], 3),
        ([(0.3, None), (-0.3, 5.0), (0.0, None), (-0.4, 6.0)], 2),
        ([(0.3, None), (0.4, None), (0.0, None), (0.5, None)], 1),
        ([(1.0, 0.5), (1.0, 0.1), (1.0, 0.0), (1.0, 0.1)], 3),
    ],
    ids=["mcc", "then loss", "below zero", "NaN is the worst", "NaN alone", "zero loss is the best"],
)
def test_the_best_epoch_is_kept(
    given: list[tuple[float, float | None]], best: int, scores: Callable[..., None]
) -> None:
    scores(*given)
    model = small_bert()
    weights: list[dict[str, torch.Tensor]] = []
    history, _ = train(on_epoch=lambda _: weights.append(copy.deepcopy(model.state_dict())), model=model)
    assert history.best_epoch == best
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[best - 1][name])
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("killed", [2, 4])
@pytest.mark.parametrize(
    ("given", "best"),
    [
        ([(0.8, 0.3), (0.9, 0.4), (0.9, 0.4), (0.2, 0.1)], 2),
        ([(0.9, None), (0.1, None), (0.1, None), (0.1, 0.7)], 4),
    ],
    ids=["early", "after NaN losses"],
)
def test_the_best_epoch_is_kept_by_a_run_that_resumes(
    given: list[tuple[float, float | None]], best: int, killed: int, tmp_path: Path, scores: Callable[..., None]
) -> None:
    scores(*given)
    expected = train()
    assert expected[0].best_epoch == best
    scores(*given[:killed])
    interrupt(config_in(tmp_path), killed)
    scores(*given[killed - 1 :])
    assert_same(train(config_in(tmp_path)), expected)


def test_a_nan_loss_ends_the_run_as_collapsed_with_the_best_weights_so_far() -> None:
    model = small_bert()
    first: dict[str, torch.Tensor] = {}

    def poison(record: EpochRecord) -> None:
        if record["epoch"] == 1:
            first.update(copy.deepcopy(model.state_dict()))
            model.classifier.bias.data.fill_(math.nan)

    history, _ = train(on_epoch=poison, model=model)
    assert history.collapsed
    assert [record["train_loss"] is None for record in history.epochs] == [False, True]
    assert history.epochs[1]["validation_loss"] is None
    assert history.step_losses[STEPS:] == [None] * STEPS
    assert history.best_epoch == 1
    assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("values", "collapsed"), [([0, 0, 0, 0], True), ([0, 0, 0.01, 0], False), ([-0.01, 0, 0, 0], False)]
)
def test_a_run_collapsed_if_every_epoch_has_an_mcc_of_zero(
    values: list[float], collapsed: bool, scores: Callable[..., None]
) -> None:
    scores(*((value, 0.7) for value in values))
    assert train()[0].collapsed == collapsed


def test_with_validation_rows_of_one_label_a_run_does_not_count_as_collapsed() -> None:
    ids = [np.array([5, 6, 7]), np.array([8, 9])]
    validation = TokenDataset(ids, np.array([1, 1]), 0, "cpu")
    torch.manual_seed(SEED)
    history = train_epochs(tiny_bert(), TRAIN, validation, toy_recipe(steps=STEPS), epochs=1, seed=SEED)
    assert history.epochs[0]["validation_mcc"] == 0
    assert not history.collapsed


def test_an_epochs_figures_are_those_of_its_steps() -> None:
    history, _ = train()
    assert len(history.step_losses) == RECIPE.steps
    for number, record in enumerate(history.epochs):
        assert record["epoch"] == number + 1
        assert record["train_loss"] == pytest.approx(
            np.mean(history.step_losses[STEPS * number : STEPS * (number + 1)])
        )
        assert 0 <= record["train_accuracy"] <= 1
        assert record["train_accuracy"] * TRAIN.count == pytest.approx(round(record["train_accuracy"] * TRAIN.count))
        assert record["seconds"] >= 0


def test_validation_gives_each_sentence_its_own_answer() -> None:
    model = tiny_bert(dropout=0.5)
    found = validate(model, VALIDATION)
    with torch.inference_mode():
        rows = [VALIDATION.batch(np.array([row]))[0] for row in range(VALIDATION.count)]
        logits = torch.cat([model.eval()(row["input_ids"], row["attention_mask"]).logits for row in rows])
    labels, predictions = VALIDATION.labels, logits.argmax(-1).numpy()
    assert found["validation_accuracy"] == accuracy(labels, predictions)
    assert found["validation_mcc"] == mcc(labels, predictions)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    assert found["validation_loss"] == pytest.approx(float(loss), abs=1e-6)


def test_validation_measures_the_labels_whatever_their_targets_are() -> None:
    """How sure the targets are changes the loss of training, not what a model is judged by."""
    ids = [np.array([5, 6, 7]), np.array([8, 19]), np.array([9, 10])]
    targets = np.array([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    certain, uncertain = (TokenDataset(ids, given, 0, "cpu") for given in (np.array([1, 0, 1]), targets))
    assert validate(tiny_bert(), uncertain) == validate(tiny_bert(), certain)


def test_validation_draws_no_random_number_and_changes_no_weight() -> None:
    model = tiny_bert(dropout=0.5)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    validate(model, VALIDATION)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Patience


def wait(
    patience: int,
    checkpoints: CheckpointConfig | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    model: BertForSequenceClassification | None = None,
) -> TrainingHistory:
    """Train as `train` does, as long as patience lasts."""
    model = model or small_bert()
    torch.manual_seed(SEED)
    return train_epochs(
        model, TRAIN, VALIDATION, RECIPE, epochs=EPOCHS, seed=SEED, patience=patience,
        checkpoints=checkpoints, on_epoch=on_epoch,
    )  # fmt: skip


def endings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if "training ends" in line]


@pytest.mark.parametrize(
    ("patience", "values", "epochs_trained", "best"),
    [
        (1, [0.5, 0.4], 2, 1),
        (2, [0.5, 0.4, 0.3], 3, 1),
        (1, [0.3, 0.5, 0.4], 3, 2),
        (2, [0.5, 0.4, 0.6, 0.3], 4, 3),
        (2, [-0.5, -0.6, -0.7], 3, 1),
        (3, [0.5, 0.4, 0.3, 0.2], 4, 1),
        (3, [0.5, 0.4, 0.3, 0.9], 4, 4),
        (1000, [0.5, 0.4, 0.3, 0.2], 4, 1),
        (0, [0.5, 0.4, 0.3, 0.2], 4, 1),
    ],
)
def test_training_ends_after_so_many_epochs_without_a_better_one_and_keeps_the_best(
    patience: int,
    values: list[float],
    epochs_trained: int,
    best: int,
    scores: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scores(*((value, 0.7) for value in values))
    model = small_bert()
    weights: list[dict[str, torch.Tensor]] = []
    with caplog.at_level("INFO", "tasks"):
        history = wait(patience, on_epoch=lambda _: weights.append(copy.deepcopy(model.state_dict())), model=model)
    assert [record["epoch"] for record in history.epochs] == list(range(1, epochs_trained + 1))
    assert len(history.step_losses) == STEPS * epochs_trained
    assert history.best_epoch == best
    assert all(torch.equal(tensor, weights[best - 1][name]) for name, tensor in model.state_dict().items())
    line = f"no better epoch in {patience}; training ends after {epochs_trained} of {EPOCHS}"
    assert endings(caplog) == ([line] if epochs_trained < EPOCHS else [])


def test_a_run_that_patience_ended_is_the_beginning_of_one_that_it_did_not(scores: Callable[..., None]) -> None:
    given = [(0.5, 0.7), (0.4, 0.7), (0.3, 0.7), (0.2, 0.7)]
    scores(*given)
    short = wait(2)
    scores(*given)
    assert timeless(train()[0]).epochs[:3] == timeless(short).epochs


def test_a_run_that_patience_ended_stays_ended_when_it_is_run_again(
    tmp_path: Path, scores: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    scores((0.5, 0.7), (0.4, 0.7), (0.3, 0.7))
    one, again = small_bert(), small_bert()
    expected = wait(2, config_in(tmp_path), model=one)
    records: list[EpochRecord] = []
    scores()
    caplog.clear()
    with caplog.at_level("INFO", "tasks"):
        history = wait(2, config_in(tmp_path), records.append, again)
    assert records == []
    assert len(endings(caplog)) == 1
    assert_same((history, again), (expected, one))


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_a_resumed_run_counts_the_epochs_of_patience_from_before(
    killed: int, tmp_path: Path, scores: Callable[..., None]
) -> None:
    given = [(0.5, 0.7), (0.4, 0.7), (0.3, 0.7)]
    scores(*given)
    expected = wait(2)
    scores(*given[:killed])
    with pytest.raises(Killed):
        wait(2, config_in(tmp_path), after(killed))
    scores(*given[killed - 1 :])
    assert timeless(wait(2, config_in(tmp_path))) == timeless(expected)
