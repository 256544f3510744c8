"""Several seeds of a run: one start, the mean of their weights where it is good, and no work done twice or lost."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import DIVERGING, Killed, Trainer, diverge

from tasks.data.normalization import normalise_all
from tasks.data.snapshots import read_snapshot
from tasks.inference.tokenization import load_tokenizer
from tasks.training import corruption_stage, finetune, seed_runs, soup, train_step
from tasks.training.corruption import with_corruptions
from tasks.training.corruption_stage import run_corruption_stage
from tasks.training.dataset import encode_rows
from tasks.training.finetune import load_training
from tasks.training.model import load_classifier
from tasks.training.seed_runs import SavedSeedRun, SeedRun, load_seed_run, train_seed
from tasks.training.soup import SelectedModel, average_or_best
from tasks.training.trainer import EpochRecord, validate
from tasks.training.training_job import RECORD_FILE, WEIGHTS_FILE, TokenizedData, TrainingJob

Weights = dict[str, torch.Tensor]
EPOCHS = 2
FAST: dict[str, Any] = {"epochs": EPOCHS}  # enough for all seeds to learn all there is
THREE = FAST | {"seeds": 3}
CORRUPTED = FAST | {"corruptions": 1}


def trained_epochs(trainer: Trainer, **changes: Any) -> list[tuple[int, int]]:
    """Train, and return the seed and number of each epoch that was trained."""
    seen: list[tuple[int, int]] = []
    trainer.train(on_epoch=lambda record: seen.append((record["seed"], record["epoch"])), **changes)
    return seen


def all_epochs(*seeds: int, first: int = 1) -> list[tuple[int, int]]:
    """Return seeds and their epochs, those of the first seed from `first` on."""
    return [(seed, epoch) for seed in seeds for epoch in range(first if seed == seeds[0] else 1, EPOCHS + 1)]


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def assert_mean(found: Weights, *parts: Weights) -> None:
    assert found.keys() == parts[0].keys()
    for name, tensor in found.items():
        mean = torch.stack([part[name].double() for part in parts]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7)


def mcc_of(folder: Path, validation: str) -> float:
    """Measure a model that a run has left."""
    model = load_classifier(str(folder))
    rows = encode_rows(read_snapshot(validation), load_tokenizer(str(folder), 16), 0, "cpu")
    return float(validate(model, rows)["validation_mcc"] or 0)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """Weights of the seeds that were passed to `average_or_best`, read before they are deleted."""
    return collect_pieces(monkeypatch)


def collect_pieces(patch: pytest.MonkeyPatch) -> list[Weights]:
    found: list[Weights] = []

    def watched(job: TrainingJob, data: TokenizedData, start: str, saved: list[SavedSeedRun]) -> SelectedModel:
        found.extend(load_file(each.weights) for each in saved)
        return average_or_best(job, data, start, saved)

    patch.setattr(finetune, "average_or_best", watched)
    return found


@dataclasses.dataclass
class Uninterrupted:
    """A run that was not interrupted."""

    training: Any
    trainer: Trainer
    pieces: list[Weights]

    @property
    def weights(self) -> Weights:
        return load_file(self.trainer.folder / "model.safetensors")


def run_uninterrupted(trainer: Trainer, **changes: Any) -> Uninterrupted:
    with pytest.MonkeyPatch.context() as patch:
        pieces = collect_pieces(patch)
        training, _ = trainer.train(**changes, checkpoint_seconds=3600)
    return Uninterrupted(training, trainer, pieces)


@pytest.fixture(scope="module")
def run_of_three(make_trainer: Callable[[], Trainer]) -> Uninterrupted:
    return run_uninterrupted(make_trainer(), **THREE)


@pytest.fixture(scope="module")
def three(run_of_three: Uninterrupted) -> Any:
    """The result of an uninterrupted run of three seeds."""
    return run_of_three.trainer.result()


@pytest.fixture(scope="module")
def alone(make_trainer: Callable[[], Trainer]) -> Uninterrupted:
    """A run of the first seed."""
    return run_uninterrupted(make_trainer(), **FAST)


@pytest.fixture
def make_job(trainer: Trainer) -> Callable[..., TrainingJob]:
    """Makes a job, changed by name."""

    def make(text: str = "", **changes: Any) -> TrainingJob:
        recipe = trainer.recipe(**{"epochs": EPOCHS, **changes})
        fingerprint = str(recipe.seed)
        return TrainingJob(
            recipe, trainer.train_rows, trainer.validation_rows, text, str(trainer.checkpoints), fingerprint
        )

    return make


@pytest.fixture(scope="module")
def learned(alone: Uninterrupted) -> Weights:
    """Weights of a model that has learned the toy corpus."""
    assert alone.training["epochs"][-1]["validation_mcc"] > 0.9
    return alone.weights


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., SavedSeedRun]:
    """Writes a seed run of given weights, for `average_or_best`."""
    seeds = iter(range(7, 100))

    def write(weights: Weights, mcc: float, collapsed: bool = False) -> SavedSeedRun:
        seed = next(seeds)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / f"{seed}.safetensors")
        epoch = EpochRecord(
            seed=seed,
            epoch=1,
            train_loss=0.5,
            train_accuracy=0.5,
            validation_loss=0.5,
            validation_accuracy=0.5,
            validation_mcc=mcc,
            seconds=0.0,
        )
        member = SeedRun(seed=seed, best_epoch=1, collapsed=collapsed, epochs=[epoch], step_losses=[0.5])
        return SavedSeedRun(member, str(tmp_path / f"{seed}.safetensors"))

    return write


def mirrored(weights: Weights) -> Weights:
    """Return other weights of the same function: tanh(-x) = -tanh(x)."""
    names = ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight")
    return weights | {name: -weights[name] for name in names}


# The mean


def test_the_model_is_the_mean_of_the_seeds_weights(run_of_three: Uninterrupted) -> None:
    training, trainer, pieces = run_of_three.training, run_of_three.trainer, run_of_three.pieces
    assert len(pieces) == 3
    assert_mean(run_of_three.weights, *pieces)
    assert training["averaged"]
    assert training["soup_mcc"] == mcc_of(trainer.folder, trainer.validation_rows)
    assert [seed["seed"] for seed in training["seeds"]] == [7, 8, 9]
    for seed in training["seeds"]:
        assert len(seed["curve"]) == EPOCHS
        assert seed["curve"][seed["best_epoch"] - 1] == seed["validation_mcc"] == max(seed["curve"])
    assert len({piece["classifier.weight"].numpy().tobytes() for piece in pieces}) == 3
    assert load_training(str(trainer.folder)) == training


def test_the_figures_are_those_of_the_best_seed(run_of_three: Uninterrupted) -> None:
    training = run_of_three.training
    best = max(training["seeds"], key=lambda seed: seed["validation_mcc"])
    assert (training["seed"], training["best_epoch"]) == (best["seed"], best["best_epoch"])
    assert [epoch["validation_mcc"] for epoch in training["epochs"]] == best["curve"]
    assert {epoch["seed"] for epoch in training["epochs"]} == {best["seed"]}


def test_the_first_seed_is_trained_as_it_would_be_alone(run_of_three: Uninterrupted, alone: Uninterrupted) -> None:
    assert_equal(alone.weights, run_of_three.pieces[0])
    assert alone.training["seeds"] == run_of_three.training["seeds"][:1]


def test_one_seed_is_not_averaged(trainer: Trainer, alone: Uninterrupted) -> None:
    training, _ = trainer.train(seeds=1, **FAST)
    assert (training["averaged"], training["soup_mcc"], training["seed"]) == (False, None, 7)
    assert [seed["curve"] for seed in training["seeds"]] == [[epoch["validation_mcc"] for epoch in training["epochs"]]]
    assert trainer.result() == alone.trainer.result()


def test_seeds_start_from_one_head_and_differ_in_batch_order_and_dropout(
    make_trainer: Callable[[], Trainer], pieces: list[Weights]
) -> None:
    """At this rate weights hardly change; losses show the order of batches and dropout."""
    still, other = make_trainer(), make_trainer()
    losses: list[float] = []
    still.train(seeds=3, learning_rate=1e-30, epochs=1, on_epoch=lambda record: losses.append(record["train_loss"]))
    assert len(set(losses)) == 3
    for piece in pieces[1:]:
        torch.testing.assert_close(piece, pieces[0], rtol=0, atol=1e-20)
    other.train(seed=8, learning_rate=1e-30, epochs=1)
    head = load_file(other.folder / "model.safetensors")["classifier.weight"]
    assert not torch.allclose(head, pieces[0]["classifier.weight"])


def test_the_best_seed_is_selected_where_the_mean_is_worse_than_all(
    learned: Weights, keep: Callable[..., SavedSeedRun], make_job: Callable[..., TrainingJob]
) -> None:
    """These two are the same function with other weights; their mean predicts one class."""
    job = make_job()
    kept = [keep(learned, 0.90), keep(mirrored(learned), 0.95), keep(learned, 0.1)]
    selected = average_or_best(job, TokenizedData(job), job.recipe.encoder, kept[:2])
    assert (selected.averaged, selected.soup_mcc) == (False, 0.0)
    assert selected.best == kept[1].run
    assert_equal(dict(selected.model.state_dict()), mirrored(learned))


@pytest.mark.parametrize(("measured", "averaged"), [(0.1875, False), (0.25, True), (0.75, True)])
def test_the_mean_is_selected_from_the_mcc_of_the_weakest_seed_on(
    measured: float,
    averaged: bool,
    learned: Weights,
    keep: Callable[..., SavedSeedRun],
    make_job: Callable[..., TrainingJob],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not from that of the best seed on."""
    monkeypatch.setattr(soup, "validate", lambda model, rows: {"validation_mcc": measured})
    job = make_job()
    selected = average_or_best(job, TokenizedData(job), job.recipe.encoder, [keep(learned, 0.25), keep(learned, 0.75)])
    assert (selected.averaged, selected.soup_mcc, selected.best["seed"]) == (averaged, measured, 8)


# Seeds that learned nothing


def test_a_seed_that_learned_nothing_is_left_out_of_the_mean(
    learned: Weights,
    keep: Callable[..., SavedSeedRun],
    make_job: Callable[..., TrainingJob],
    caplog: pytest.LogCaptureFixture,
) -> None:
    nothing = {name: torch.full_like(tensor, torch.nan) for name, tensor in learned.items()}
    other = {name: tensor + 1e-4 for name, tensor in learned.items()}
    job = make_job()
    selected = average_or_best(
        job,
        TokenizedData(job),
        job.recipe.encoder,
        [keep(learned, 0.5), keep(nothing, 0.9, collapsed=True), keep(other, 0.6)],
    )
    assert selected.averaged
    assert selected.best["seed"] == 9
    assert_mean(dict(selected.model.state_dict()), learned, other)
    assert "1 of 3 seeds learned nothing" in caplog.messages


def test_a_seed_that_diverges_does_not_affect_the_others(
    trainer: Trainer, pieces: list[Weights], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    diverge(monkeypatch, 8)
    training, seen = trainer.train(**THREE)
    assert seen == [1, 2, 1, 1, 2]
    assert_mean(load_file(trainer.folder / "model.safetensors"), pieces[0], pieces[2])
    assert training["averaged"]
    assert [(seed["seed"], len(seed["curve"])) for seed in training["seeds"]] == [(7, 2), (8, 1), (9, 2)]
    assert "seed 8 learned nothing; no further one is tried" in caplog.messages


def test_one_seed_that_learned_is_not_averaged(
    trainer: Trainer, alone: Uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, 8)
    training, _ = trainer.train(seeds=2, **FAST)
    assert (training["averaged"], training["seed"]) == (False, 7)
    assert training["soup_mcc"] == training["seeds"][0]["validation_mcc"]
    assert_equal(load_file(trainer.folder / "model.safetensors"), alone.weights)


def test_where_no_seed_learned_one_of_them_is_the_model_and_a_warning_says_so(
    trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    training, seen = trainer.train(seeds=2, learning_rate=DIVERGING)
    assert seen == [1, 1]
    assert (training["averaged"], training["seed"]) == (False, 7)
    assert [seed["curve"] for seed in training["seeds"]] == [[0.0], [0.0]]
    assert load_training(str(trainer.folder)) == training
    assert "2 of 2 seeds learned nothing" in caplog.messages


def test_a_seed_that_learned_nothing_is_replaced_by_another(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    diverge(monkeypatch, 8)
    real, heads = seed_runs.train_epochs, []

    def note(model: Any, *given: Any, **others: Any) -> Any:
        heads.append(model.classifier.weight.detach().clone())
        return real(model, *given, **others)

    monkeypatch.setattr(seed_runs, "train_epochs", note)
    training, seen = trainer.train(seeds=2, restarts=1, **FAST)
    assert [seed["seed"] for seed in training["seeds"]] == [7, 1008]
    assert seen == [1, 2, 1, 1, 2]
    assert len(heads) == 3
    assert all(torch.equal(head, heads[0]) for head in heads)  # else their mean would be of different models


@pytest.mark.parametrize("piece", ["validation_rows", "train_rows"])
@pytest.mark.parametrize("label", [0, 1])
def test_seeds_are_averaged_with_rows_of_one_label(piece: str, label: int, trainer: Trainer, tmp_path: Path) -> None:
    rows = read_snapshot(getattr(trainer, piece))
    rows[rows["label"] == label].to_parquet(tmp_path / "one.parquet")
    setattr(trainer, piece, str(tmp_path / "one.parquet"))
    training, _ = trainer.train(seeds=2, epochs=1)
    assert training["soup_mcc"] == 0.0
    assert load_training(str(trainer.folder)) == training


# Runs that are killed


@pytest.mark.parametrize(
    ("epoch", "attempt", "expected"),
    [(1, 2, all_epochs(9)), (2, 1, all_epochs(8, 9, first=2)), (2, 2, [(9, 2)]), (1, 0, all_epochs(7, 8, 9))],
    ids=["after the second", "amid the second", "at the end of the third", "at the start"],
)
def test_a_killed_run_trains_no_finished_seed_again_and_ends_with_the_same_bits(
    epoch: int, attempt: int, expected: list[tuple[int, int]], trainer: Trainer, three: Any
) -> None:
    trainer.interrupt(epoch, attempt=attempt, **THREE)
    torch.manual_seed(epoch)  # the state of the global generator does not matter
    assert trained_epochs(trainer, **THREE) == expected
    assert trainer.result() == three
    assert three[1]["averaged"]


def test_a_run_that_is_killed_when_all_seeds_are_finished_trains_nothing_again(
    trainer: Trainer, three: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "average_or_best", kill)
        with pytest.raises(Killed):
            trainer.train(**THREE)
    assert trained_epochs(trainer, **THREE) == []
    assert trainer.result() == three


def test_a_run_of_more_seeds_reuses_finished_ones(trainer: Trainer, three: Any) -> None:
    trainer.interrupt(1, attempt=1, seeds=2, **FAST)
    assert trained_epochs(trainer, **THREE) == all_epochs(8, 9)
    assert trainer.result() == three


def test_neither_finished_seeds_nor_checkpoints_of_another_run_are_used(trainer: Trainer, three: Any) -> None:
    """The run's first seed decides the head that all start from; test_finetune has what else makes another run."""
    trainer.interrupt(2, attempt=2, **THREE | {"seed": 6})
    assert [path.parent.name for path in sorted(trainer.checkpoints.glob("seed-*/finished"))] == ["seed-6", "seed-7"]
    assert list(trainer.checkpoints.glob("seed-8/epoch-*"))
    assert trained_epochs(trainer, **THREE) == all_epochs(7, 8, 9)
    assert trainer.result() == three


def cut_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:1000])


def flip_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)


def lose_weights(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()


def cut_record(folder: Path) -> None:
    (folder / RECORD_FILE).write_bytes((folder / RECORD_FILE).read_bytes()[:100])


def change_record(folder: Path) -> None:
    record = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps(record | {"seed_run": None}))


def empty_record(folder: Path) -> None:
    (folder / RECORD_FILE).write_text("[]")


DAMAGES = [cut_weights, flip_bit, lose_weights, cut_record, change_record, empty_record]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_seed_run_is_logged_and_trained_again(
    damage: Callable[[Path], None], make_job: Callable[..., TrainingJob], caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(epochs=1)
    seen: list[EpochRecord] = []
    train_seed(job, TokenizedData(job), job.recipe.encoder, 7, seen.append)
    before = load_seed_run(job, 7)
    weights = Path(before.weights).read_bytes()
    train_seed(job, TokenizedData(job), job.recipe.encoder, 7, seen.append)
    assert len(seen) == 1
    damage(Path(before.weights).parent)
    train_seed(job, TokenizedData(job), job.recipe.encoder, 7, seen.append)
    assert len(seen) == 2
    after = load_seed_run(job, 7)
    assert after.run["step_losses"] == before.run["step_losses"]
    assert Path(after.weights).read_bytes() == weights
    assert len([line for line in caplog.messages if line.startswith(f"{job.folder}/seed-7/finished is ignored")]) == 1


def test_a_run_with_a_damaged_seed_resumes_from_its_last_checkpoint(trainer: Trainer, three: Any) -> None:
    trainer.interrupt(2, attempt=2, **THREE)
    cut_weights(trainer.checkpoints / "seed-7" / "finished")
    assert trained_epochs(trainer, **THREE) == [(7, 2), (9, 2)]
    assert trainer.result() == three


# The corruption stage


@pytest.fixture(scope="module")
def with_stage(make_trainer: Callable[[], Trainer]) -> Any:
    """The result of an uninterrupted run with a corruption stage."""
    trainer = make_trainer()
    trainer.train(**CORRUPTED, checkpoint_seconds=3600)
    return trainer.result()


@pytest.fixture
def stages(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], int]]:
    """Counts the corruption stages that were logged."""
    with caplog.at_level("INFO", "tasks"):
        yield lambda: sum(line.startswith("corruption stage: ") for line in caplog.messages)


def test_a_corruption_stage_gives_another_model_reproducibly(
    trainer: Trainer, with_stage: Any, alone: Uninterrupted, stages: Callable[[], int]
) -> None:
    trainer.train(**CORRUPTED)
    assert stages() == 1
    assert trainer.result() == with_stage
    assert alone.trainer.result()[0] != with_stage[0]


def test_seeds_start_from_the_result_of_the_corruption_stage(
    make_job: Callable[..., TrainingJob], quick_encoder: Path
) -> None:
    job = make_job(corruptions=2)
    start = run_corruption_stage(job, TokenizedData(job))
    assert start == f"{job.folder}/corruption-stage"
    before, after = load_file(quick_encoder / WEIGHTS_FILE), load_file(Path(start) / WEIGHTS_FILE)
    moved = {name for name, tensor in before.items() if not torch.equal(after[f"bert.{name}"], tensor)}
    assert len(moved) > len(before) / 2
    assert_equal(dict(load_classifier(start).state_dict()), after)  # the head too
    assert run_corruption_stage(job, TokenizedData(job)) == start


def test_without_a_corruption_stage_seeds_start_from_the_encoder(make_job: Callable[..., TrainingJob]) -> None:
    job = make_job()
    assert run_corruption_stage(job, TokenizedData(job)) == job.recipe.encoder
    assert not Path(job.folder).exists()


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Sentences without labels."""
    path = tmp_path / "text.parquet"
    pd.DataFrame({"sentence": [f"the cat sees dog {n} now" for n in range(50)], "label": 1}).to_parquet(path)
    return str(path)


@pytest.mark.parametrize(("corruptions", "copies", "sentences"), [(0, 1, 100), (0, 2, 200), (1, 1, None)])
def test_text_makes_a_corruption_stage_or_adds_to_it(
    corruptions: int,
    copies: int,
    sentences: int | None,
    make_job: Callable[..., TrainingJob],
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    job = make_job(corruptions=corruptions, text=text, text_corruptions=copies)
    own = len(with_corruptions(read_snapshot(job.train), corruptions, job.recipe.seed))
    assert run_corruption_stage(job, TokenizedData(job)) == f"{job.folder}/corruption-stage"
    assert (
        f"corruption stage: {sentences or own + 100} sentences, {(sentences or own + 100) // 2} of them" in caplog.text
    )


def test_no_corrupted_copy_is_a_sentence_of_validation_or_of_a_holdout(
    make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    job = make_job(corruptions=2)
    before = corruption_stage.corrupt_rows(job)
    corrupted = before.loc[before["label"] == 0, "sentence"].tolist()
    withheld = {name: [f"{text.upper()} !" for text in corrupted[place::9]] for place, name in enumerate("ab")}
    for name, sentences in withheld.items():
        pd.DataFrame({"sentence": sentences, "label": 1}).to_parquet(tmp_path / name)
    guarded = dataclasses.replace(job, validation=str(tmp_path / "a"), holdouts=(str(tmp_path / "b"),))
    after = corruption_stage.corrupt_rows(guarded)
    keys = set(normalise_all(pa.array(after.loc[after["label"] == 0, "sentence"])))
    assert len(keys) == len(corrupted)
    assert not keys & set(normalise_all(pa.array([*withheld["a"], *withheld["b"]])))


def test_text_without_copies_makes_no_corruption_stage(make_job: Callable[..., TrainingJob], text: str) -> None:
    job = make_job(text=text, text_corruptions=0)
    assert run_corruption_stage(job, TokenizedData(job)) == job.recipe.encoder


def test_another_seed_makes_another_corruption_stage(make_job: Callable[..., TrainingJob]) -> None:
    jobs = [make_job(corruptions=1, seed=seed) for seed in (7, 8)]
    one, other = (load_file(Path(run_corruption_stage(job, TokenizedData(job))) / WEIGHTS_FILE) for job in jobs)
    name = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(one[name], other[name])


def test_a_run_killed_in_its_corruption_stage_ends_with_the_same_bits(
    trainer: Trainer, with_stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = corruption_stage.train_epochs

    def kill(*given: Any, **others: Any) -> None:
        real(*given, **others)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(corruption_stage, "train_epochs", kill)
        with pytest.raises(Killed):
            trainer.train(**CORRUPTED)
    assert trained_epochs(trainer, **CORRUPTED) == all_epochs(7)
    assert trainer.result() == with_stage


def test_a_run_killed_after_its_corruption_stage_does_not_repeat_it(
    trainer: Trainer, with_stage: Any, stages: Callable[[], int]
) -> None:
    trainer.interrupt(2, **CORRUPTED)
    assert trained_epochs(trainer, **CORRUPTED) == all_epochs(7, first=2)
    assert stages() == 1
    assert trainer.result() == with_stage


def test_the_corruption_stage_of_another_run_is_not_used(
    trainer: Trainer, with_stage: Any, stages: Callable[[], int]
) -> None:
    trainer.interrupt(1, **CORRUPTED | {"seed": 8})
    trainer.train(**CORRUPTED)
    assert stages() == 2
    assert trainer.result() == with_stage


@pytest.mark.parametrize("damage", [cut_weights, flip_bit, cut_record], ids=lambda one: one.__name__)
def test_a_damaged_corruption_stage_is_logged_and_repeated(
    damage: Callable[[Path], None],
    make_job: Callable[..., TrainingJob],
    stages: Callable[[], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = make_job(corruptions=1)
    start = Path(run_corruption_stage(job, TokenizedData(job)))
    weights = (start / WEIGHTS_FILE).read_bytes()
    damage(start)
    assert run_corruption_stage(job, TokenizedData(job)) == str(start)
    assert stages() == 2
    assert caplog.text.count("is ignored: ") == 1
    assert (start / WEIGHTS_FILE).read_bytes() == weights
    run_corruption_stage(job, TokenizedData(job))
    assert stages() == 2


DIVERGED = "the corruption stage ended with a NaN or Inf loss; training starts without it"
NOTHING = "no sentence could be corrupted; training starts without the corruption stage"


@pytest.mark.parametrize("batch_size", [16, 100_000], ids=["in a step", "in the last step"])
def test_a_corruption_stage_that_diverges_is_logged_once_and_left_out(
    batch_size: int, make_job: Callable[..., TrainingJob], caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(corruptions=1, learning_rate=DIVERGING, batch_size=batch_size, warmup_ratio=0.0)
    assert run_corruption_stage(job, TokenizedData(job)) == job.recipe.encoder
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [DIVERGED]


def test_after_a_corruption_stage_that_diverges_training_is_as_without_it(
    trainer: Trainer, alone: Uninterrupted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = corruption_stage.train_epochs

    def train_epochs(*given: Any, **others: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if "checkpoints" not in others:
                patch.setattr(train_step, "learning_rates", lambda config: [DIVERGING] * config.steps)
            return real(*given, **others)

    monkeypatch.setattr(corruption_stage, "train_epochs", train_epochs)
    trainer.train(**CORRUPTED)
    assert caplog.messages.count(DIVERGED) == 1
    assert trainer.result() == alone.trainer.result()


def test_without_acceptable_sentences_there_is_no_corruption_stage(
    make_trainer: Callable[[], Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = read_snapshot(make_trainer().train_rows)
    rows[rows["label"] == 0].to_parquet(tmp_path / "none.parquet")
    results = []
    for corruptions in (0, 2):
        trainer = make_trainer()
        trainer.train_rows = str(tmp_path / "none.parquet")
        trainer.train(epochs=1, corruptions=corruptions)
        results.append(trainer.result())
    assert results[0] == results[1]
    assert caplog.messages.count(NOTHING) == 1


def test_sentences_that_cannot_be_corrupted_make_no_corruption_stage(
    make_job: Callable[..., TrainingJob], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A head trained on one class only would be a bad start."""
    job = make_job(corruptions=2)
    rows = read_snapshot(job.train)
    rows.assign(sentence=rows["sentence"].str.replace(" ", "")).to_parquet(tmp_path / "words.parquet")
    job = dataclasses.replace(job, train=str(tmp_path / "words.parquet"))
    assert run_corruption_stage(job, TokenizedData(job)) == job.recipe.encoder
    assert caplog.messages.count(NOTHING) == 1


def test_several_seeds_share_one_corruption_stage(trainer: Trainer, stages: Callable[[], int]) -> None:
    training, seen = trainer.train(seeds=2, **CORRUPTED)
    assert seen == [1, 2, 1, 2]
    assert stages() == 1
    assert len(training["seeds"]) == 2
