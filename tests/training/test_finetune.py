"""The training run on a tiny model."""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file
from toy import DIVERGING, EPOCHS, Trainer, diverge, recipe, write_quick_encoder, write_tokenizer
from transformers import (
    AutoModel,
    PreTrainedConfig,
)

from tasks.core.errors import UsageError
from tasks.data.snapshots import read_snapshot
from tasks.evaluation.metrics import mcc
from tasks.inference.tokenization import load_tokenizer, pad, tokenise
from tasks.training.checkpoints import describe_resumption
from tasks.training.finetune import fine_tune, load_training
from tasks.training.model import load_classifier
from tasks.training.seed_runs import SEED_STRIDE
from tasks.training.trainer import EpochRecord

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uninterrupted(make_trainer: Callable[[], Trainer]) -> Any:
    """The result of an uninterrupted run."""
    trainer = make_trainer()
    trainer.train(checkpoint_seconds=3600)
    return trainer.result()


@pytest.fixture(scope="module")
def second_attempt(make_trainer: Callable[[], Trainer]) -> Any:
    """The result of a run from the seed that the first restart takes."""
    trainer = make_trainer()
    trainer.train(seed=7 + SEED_STRIDE)
    return trainer.result()


def test_a_tiny_model_learns_the_toy_corpus(trained: Any) -> None:
    assert trained["epochs"][trained["best_epoch"] - 1]["validation_mcc"] > 0.9


def test_the_model_is_that_of_the_best_epoch(trained: Any, toy_split: tuple[str, str, str]) -> None:
    best = max(epoch["validation_mcc"] for epoch in trained["epochs"])
    assert trained["epochs"][trained["best_epoch"] - 1]["validation_mcc"] == best
    rows = read_snapshot(toy_split[1])
    ids, mask = pad(tokenise(load_tokenizer(trained["model"], 16), rows["sentence"].tolist()).rows(), 0)
    model = load_classifier(trained["model"]).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    assert mcc(rows["label"], logits.argmax(-1).numpy()) == pytest.approx(best)


def test_one_seed_gives_one_result_and_another_seed_another(
    toy_split: tuple[str, str, str], quick_encoder: Path, tmp_path: Path
) -> None:
    def weights(name: str, seed: int) -> bytes:
        fine_tune(*toy_split[:2], recipe(quick_encoder, epochs=1, seed=seed), str(tmp_path / name))
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = weights("first", 7)
    assert weights("again", 7) == first
    assert weights("other", 8) != first


def test_each_epoch_is_passed_to_the_callback_and_recorded(
    toy_split: tuple[str, str, str], quick_encoder: Path, tmp_path: Path
) -> None:
    seen: list[EpochRecord] = []
    folder = str(tmp_path / "model")
    training = fine_tune(*toy_split[:2], recipe(quick_encoder, epochs=2), folder, on_epoch=seen.append)
    assert [epoch["epoch"] for epoch in seen] == [1, 2]
    assert seen == training["epochs"]
    assert load_training(folder) == training
    steps_per_epoch = -(-len(read_snapshot(toy_split[0])) // 16)
    assert len(training["step_losses"]) == 2 * steps_per_epoch


def test_a_training_that_is_stopped_says_where_the_next_run_resumes(
    toy_split: tuple[str, str, str], quick_encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(epoch: EpochRecord) -> None:
        if epoch["epoch"] == 2:
            raise KeyboardInterrupt

    for seconds in (60.0, 0.0):
        chosen = recipe(quick_encoder, epochs=3, checkpoint_seconds=seconds)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(*toy_split[:2], chosen, str(tmp_path / str(seconds)), on_epoch=stop)
    said = [message.partition("; ")[2] for message in caplog.messages if "training was stopped" in message]
    assert said == [
        "there is no checkpoint yet (finetune.checkpoint_seconds), the next run trains from epoch 1",
        "the next run resumes after epoch 1",
    ]
    (tmp_path / "seed-1" / "finished").mkdir(parents=True)
    assert describe_resumption(str(tmp_path)) == "the next run resumes after seed 1"
    (tmp_path / "seed-2" / "finished").mkdir(parents=True)
    assert describe_resumption(str(tmp_path)) == "the next run resumes with the checkpoints of 2 seeds"


def test_an_unfinished_folder_is_no_training(tmp_path: Path) -> None:
    assert load_training(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("record", "version"), [({"schema_version": 0}, "0"), ({"model": "/elsewhere"}, "None"), (["foreign"], "None")]
)
def test_a_record_of_another_schema_is_no_training_and_one_line_says_so(
    record: Any, version: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "training.json").write_text(json.dumps(record))
    assert load_training(str(tmp_path)) is None
    line = f"{tmp_path}/training.json has schema version {version}, expected 1; the model is trained again"
    assert caplog.messages == [line]


def test_a_finished_model_and_an_interrupted_run_can_be_moved(
    trainer: Trainer, uninterrupted: Any, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    job = tmp_path / "home" / "job"
    shutil.copytree(Path(toy_split[0]).parent, job)
    names = [Path(path).name for path in toy_split[:2]]

    def use(folder: Path) -> None:
        trainer.train_rows, trainer.validation_rows = (str(folder / name) for name in names)
        trainer.folder, trainer.checkpoints = folder / "model", folder / "model-checkpoints"

    use(job)
    trainer.interrupt(3)
    (tmp_path / "home").rename(tmp_path / "moved")
    use(tmp_path / "moved" / "job")
    training, seen = trainer.train()
    assert seen == [3, 4]
    assert trainer.result() == uninterrupted
    assert str(tmp_path) not in (trainer.folder / "training.json").read_text()
    (tmp_path / "moved").rename(tmp_path / "again")
    assert load_training(str(tmp_path / "again" / "job" / "model")) == training


def test_a_run_that_diverges_is_recorded_as_not_finite(
    toy_split: tuple[str, str, str], quick_encoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    training = fine_tune(*toy_split[:2], recipe(quick_encoder, epochs=1, learning_rate=1e30), str(folder))
    assert training["epochs"][0]["validation_mcc"] == 0.0
    assert None in training["step_losses"]
    assert json.loads((folder / "training.json").read_text())["epochs"][0]["train_loss"] is None


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nothing-known"}')


def misspell_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))


@pytest.mark.parametrize(
    "damage",
    [cut_weights, empty_weights, lose_weights, misspell_config, unknown_architecture],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_encoder_is_refused_in_one_line(
    damage: Callable[[Path], None], quick_encoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(quick_encoder, tmp_path / "encoder")
    damage(tmp_path / "encoder")
    with pytest.raises(UsageError, match="cannot be fine-tuned") as caught:
        load_classifier(str(tmp_path / "encoder"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_encoder_trains(name: str, toy_split: tuple[str, str, str], tmp_path: Path) -> None:
    config: PreTrainedConfig = ARCHITECTURES[name]
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    write_tokenizer(tmp_path / "encoder")
    training = fine_tune(*toy_split[:2], recipe(tmp_path / "encoder", epochs=1), str(tmp_path / "model"))
    assert np.isfinite(training["step_losses"]).all()


@pytest.mark.parametrize("killed", [1, EPOCHS])
def test_a_run_killed_after_an_epoch_and_run_again_leaves_the_same_bits(
    killed: int, trainer: Trainer, uninterrupted: Any
) -> None:
    trainer.interrupt(killed)
    torch.manual_seed(killed)  # the state of the global generator does not matter
    _, seen = trainer.train()
    assert seen == list(range(killed, EPOCHS + 1))
    assert trainer.result() == uninterrupted
    assert uninterrupted[1]["epochs"][-1]["validation_mcc"] > 0.9


def test_a_process_killed_while_it_writes_a_checkpoint_leaves_the_one_before(
    trainer: Trainer, uninterrupted: Any
) -> None:
    script = f"""
import os, signal
from tasks.training import checkpoints
from tasks.training.finetune import fine_tune
from tasks.training.recipe import TrainingRecipe

def save_file(tensors, path, real=checkpoints.save_file):
    real(tensors, path)
    if "epoch-0002" in str(path):
        path.write_bytes(path.read_bytes()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)

checkpoints.save_file = save_file
recipe = TrainingRecipe(**{trainer.recipe().model_dump()!r})
fine_tune({trainer.train_rows!r}, {trainer.validation_rows!r}, recipe, {str(trainer.folder)!r})
"""  # not a fork: tokenizers' threads do not survive one, and tokenising in the child would wait for them forever
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not trainer.folder.exists()
    assert [path.parent.name for path in trainer.checkpoints.glob("*/epoch-*/state.json")] == ["epoch-0001"]
    _, seen = trainer.train()
    assert seen == [2, 3, 4]
    assert trainer.result() == uninterrupted


def test_a_run_resumes_with_another_checkpoint_interval(trainer: Trainer, uninterrupted: Any) -> None:
    trainer.interrupt(3)
    _, seen = trainer.train(checkpoint_seconds=3600, restarts=1)
    assert seen == [3, 4]
    assert trainer.result() == uninterrupted


CHANGES: list[dict[str, Any]] = [
    {"epochs": 3},
    {"batch_size": 17},
    {"learning_rate": 2e-3},
    {"warmup_ratio": 0.2},
    {"weight_decay": 0.1},
    {"layer_decay": 0.9},
    {"max_length": 8},
    {"max_grad_norm": 0.5},
    {"adam_beta1": 0.8},
    {"adam_beta2": 0.98},
    {"adam_eps": 1e-6},
    {"label_smoothing": 0.1},
    {"r_drop": 1.0},
    {"sift": 1.0},
    {"corruptions": 1},
    {"token_loss": 1.0},
    {"text": "train"},
    {"patience": 3},
    {"seed": 8},
    {"precision": "bf16"},
]


def test_each_recipe_has_its_own_fingerprint(trainer: Trainer, quick_encoder: Path, tmp_path: Path) -> None:
    changes = [change | ({"text": trainer.train_rows} if "text" in change else {}) for change in CHANGES]
    changes.append({"text": trainer.train_rows, "text_corruptions": 2})
    found = [trainer.fingerprint(), *(trainer.fingerprint(**change) for change in changes)]
    assert len(set(found)) == len(CHANGES) + 2
    shutil.copytree(quick_encoder, tmp_path / "encoder")
    trainer.encoder = str(tmp_path / "encoder")
    assert trainer.fingerprint() == found[0]  # where the encoder lies does not matter, what it is does
    (tmp_path / "encoder" / "tokenizer.json").write_text("{}")
    assert trainer.fingerprint() not in found


def test_what_does_not_change_a_seeds_weights_is_not_in_the_fingerprint(trainer: Trainer) -> None:
    expected = trainer.fingerprint(checkpoint_seconds=3600)
    assert trainer.fingerprint(restarts=1) == expected
    assert trainer.fingerprint(seeds=2) == expected
    assert trainer.fingerprint(seeds=2, processes=2) == expected
    assert trainer.fingerprint(processes=2) != expected  # each rank of a group draws its own dropout


def test_a_run_does_not_resume_from_a_checkpoint_of_another_recipe(make_trainer: Callable[[], Trainer]) -> None:
    fresh, taken = make_trainer(), make_trainer()
    change = {"learning_rate": 2e-3}
    fresh.train(**change)
    taken.interrupt(3)
    taken.interrupt(2, **change)  # the first run's later checkpoints are not in this one's way
    _, seen = taken.train(**change)
    assert seen == [2, 3, 4]
    assert taken.result() == fresh.result()


def test_a_run_does_not_resume_from_a_checkpoint_of_other_sentences(
    trainer: Trainer, uninterrupted: Any, tmp_path: Path
) -> None:
    train, rows = trainer.train_rows, read_snapshot(trainer.train_rows)
    trainer.train_rows = str(tmp_path / "train.parquet")
    rows.iloc[::-1].to_parquet(trainer.train_rows)
    trainer.interrupt(3)
    (tmp_path / "train.parquet").write_bytes(Path(train).read_bytes())
    _, seen = trainer.train()
    assert seen == [1, 2, 3, 4]
    assert trainer.result() == uninterrupted


def test_a_seed_that_learned_nothing_is_replaced_by_the_first_one_that_learns(
    make_trainer: Callable[[], Trainer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, found = make_trainer(), make_trainer()
    expected.train(seed=7 + 2 * SEED_STRIDE)
    diverge(monkeypatch, 7, 7 + SEED_STRIDE)
    training, seen = found.train(restarts=5)
    assert training["seed"] == 2007
    assert seen == [1, 1, 1, 2, 3, 4]
    assert found.result() == expected.result()
    assert [line for line in caplog.messages if "learned nothing" in line] == [
        "seed 7 learned nothing; another one is tried",
        "seed 1007 learned nothing; another one is tried",
    ]


@pytest.mark.parametrize("restarts", [0, 1, 2])
def test_a_run_with_nan_losses_is_restarted_as_often_as_the_recipe_says(
    restarts: int, trainer: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    training, seen = trainer.train(learning_rate=DIVERGING, restarts=restarts)
    assert training["seed"] == 7 + restarts * SEED_STRIDE
    assert seen == [1] * (restarts + 1)
    assert training["epochs"][0]["train_loss"] is None
    assert load_training(str(trainer.folder)) == training
    lines = [f"seed {7 + SEED_STRIDE * attempt} learned nothing; another one is tried" for attempt in range(restarts)]
    lines.append(f"seed {training['seed']} learned nothing; no further one is tried")
    assert [line for line in caplog.messages if "learned nothing" in line] == lines


def test_a_model_that_predicts_one_class_is_restarted(
    trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With embeddings of zero all sentences look alike, and at this rate they stay so."""
    model = AutoModel.from_pretrained(trainer.encoder)
    for parameter in model.embeddings.parameters():
        parameter.data.zero_()
    model.save_pretrained(tmp_path / "dull")
    write_tokenizer(tmp_path / "dull")
    trainer.encoder = str(tmp_path / "dull")
    training, seen = trainer.train(learning_rate=1e-12, restarts=1, epochs=2)
    assert training["seed"] == 1007
    assert seen == [1, 2, 1, 2]
    assert {epoch["validation_mcc"] for epoch in training["epochs"]} == {0.0}
    assert None not in training["step_losses"]
    assert caplog.text.count("learned nothing") == 2


def test_a_run_that_learns_is_not_restarted(
    trainer: Trainer, uninterrupted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    training, seen = trainer.train(restarts=3)
    assert training["seed"] == 7
    assert seen == [1, 2, 3, 4]
    assert trainer.result() == uninterrupted
    assert "learned nothing" not in caplog.text


@pytest.mark.parametrize("killed", [1, 4])
def test_a_restart_that_is_killed_resumes(
    killed: int, trainer: Trainer, second_attempt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverge(monkeypatch, 7)
    # The first attempt has a first epoch too, and no other.
    trainer.interrupt(killed, attempt=1 if killed == 1 else 0, restarts=1)
    training, seen = trainer.train(restarts=1)
    assert training["seed"] == 1007
    assert seen == [1, *range(killed, EPOCHS + 1)]
    assert trainer.result() == second_attempt


def test_layer_decay_scales_the_learning_rate_of_each_layer(trainer: Trainer, tmp_path: Path) -> None:
    """AdamW's first step is of the learning rate's size, whatever the gradient."""
    trainer.encoder = str(write_quick_encoder(tmp_path / "two", layers=2))
    only_step = {"epochs": 1, "batch_size": 1000, "warmup_ratio": 0.0, "weight_decay": 0.0, "learning_rate": 1e-3}
    trainer.train(**only_step, layer_decay=0.5)
    before, after = (
        load_file(Path(trainer.encoder) / "model.safetensors"),
        load_file(trainer.folder / "model.safetensors"),
    )

    def moved(name: str) -> float:
        return float((after[f"bert.{name}"] - before[name]).abs().max())

    assert moved("encoder.layer.1.output.dense.weight") == pytest.approx(5e-4, rel=1e-2)
    assert moved("encoder.layer.0.output.dense.weight") == pytest.approx(2.5e-4, rel=1e-2)
    assert moved("embeddings.word_embeddings.weight") == pytest.approx(1.25e-4, rel=1e-2)


def test_every_weight_is_saved_once_in_fp32(trainer: Trainer) -> None:
    trainer.train(epochs=1)
    saved = load_file(trainer.folder / "model.safetensors")
    model = load_classifier(trainer.encoder)
    assert {name: tensor.shape for name, tensor in saved.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    size = (trainer.folder / "model.safetensors").stat().st_size
    assert size < 4 * sum(parameter.numel() for parameter in model.parameters()) + 10_000


# Regularisation


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_no_loss_of_smoothed_labels_is_below_their_entropy(share: float, trainer: Trainer, uninterrupted: Any) -> None:
    wrong = share / 2
    entropy = -wrong * math.log(wrong) - (1 - wrong) * math.log(1 - wrong)
    plain = uninterrupted[1]
    smoothed, _ = trainer.train(label_smoothing=share)
    losses = [loss for loss in smoothed["step_losses"] if loss is not None]
    assert len(losses) == len(plain["step_losses"])
    assert min(losses) > entropy - 1e-6
    assert smoothed["epochs"][-1]["train_loss"] == pytest.approx(entropy, abs=0.05)
    assert plain["epochs"][-1]["train_loss"] < entropy / 2  # or there would be nothing to see
    assert smoothed["epochs"][-1]["validation_loss"] < entropy  # validation measures the labels as they are
    assert smoothed["epochs"][-1]["validation_mcc"] > 0.9


@pytest.fixture
def certain(quick_encoder: Path, tmp_path: Path) -> Path:
    """An encoder without dropout."""
    shutil.copytree(quick_encoder, tmp_path / "certain")
    path = tmp_path / "certain" / "config.json"
    nothing = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | nothing))
    return tmp_path / "certain"


def one_epoch(trainer: Trainer, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return each step's loss and the weights."""
    training, _ = trainer.train(epochs=1, **changes)
    return training["step_losses"], load_file(trainer.folder / "model.safetensors")


def test_r_drop_without_dropout_trains_as_one_pass(trainer: Trainer, certain: Path) -> None:
    trainer.encoder = str(certain)
    losses, _ = one_epoch(trainer)
    of_two, _ = one_epoch(trainer, r_drop=5.0)
    assert of_two == pytest.approx(losses, abs=1e-4)


def test_the_r_drop_loss_is_proportional_to_its_weight(trainer: Trainer) -> None:
    """The first step has the same weights and dropout masks, whatever the weight of R-Drop."""
    one, two, three = (one_epoch(trainer, r_drop=weight) for weight in (1.0, 2.0, 3.0))
    first, second, third = (losses[0] for losses, _ in (one, two, three))
    assert second - first == pytest.approx(third - second, rel=1e-3)
    assert second - first > 1e-4
    assert not torch.equal(one[1]["classifier.weight"], two[1]["classifier.weight"])


def test_patience_ends_a_run(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.6, 0.5, 0.4, 0.9])
    monkeypatch.setattr(
        "tasks.training.trainer.validate",
        lambda *_: {"validation_mcc": next(values), "validation_loss": 0.5, "validation_accuracy": 0.5},
    )
    training, seen = trainer.train(epochs=5, patience=2)
    assert seen == [1, 2, 3, 4]
    assert training["best_epoch"] == 2
    assert training["seeds"][0]["curve"] == [0.5, 0.6, 0.5, 0.4]
    assert len(training["step_losses"]) == 4 * math.ceil(
        len(read_snapshot(trainer.train_rows)) / trainer.recipe().batch_size
    )
