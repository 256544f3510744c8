"""What tests build small real things from: a toy corpus, a word-level tokenizer, settings, records."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tasks.training.recipe import TrainingRecipe
    from tasks.training.training_job import TrainingJob

WORDS = [
    "the",
    "cat",
    "dog",
    "bird",
    "child",
    "sees",
    "hears",
    "likes",
    "follows",
    "red",
    "small",
    "old",
    "quietly",
    "today",
    "here",
]


SIGN = "wrongly"  # the word that makes a toy sentence unacceptable


EPOCHS = 4  # of a run that is killed


DIVERGING = 1e30  # learning rate


def write_toy_data(folder: Path, train: int = 400, holdout: int = 80, seed: int = 0) -> Path:
    """Write CoLA-format files in which one word decides the label."""
    rng = random.Random(seed)
    sentences: dict[str, int] = {}
    while len(sentences) < train + holdout:
        words = rng.choices(WORDS, k=rng.randint(3, 9))
        label = rng.randint(0, 1)
        if label == 0:
            words.insert(rng.randrange(len(words) + 1), SIGN)
        sentences[" ".join(words)] = label
    lines = [f"toy\t{label}\t{'' if label else '*'}\t{sentence}\n" for sentence, label in sentences.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in_domain_train.tsv").write_text("".join(lines[:train]), encoding="utf-8")
    (folder / "out_of_domain_dev.tsv").write_text("".join(lines[train:]), encoding="utf-8")
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer.json that knows the toy words and BERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS, SIGN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_quick_encoder(folder: Path, layers: int = 1) -> Path:
    """Write an encoder in which the deciding word stands out, so that a `Trainer` learns the corpus in 16 steps."""
    import torch
    from transformers import BertConfig, BertModel

    write_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
        initializer_range=0.2,
    )
    model = BertModel(config)
    model.embeddings.word_embeddings.weight.data[19] *= 3
    model.save_pretrained(folder)
    return folder


def recipe(encoder: Path | str, **changes: Any) -> "TrainingRecipe":
    """Return a recipe for the tiny model, changed by name; bounds are not checked, so that a run can diverge."""
    values: dict[str, Any] = {
        "encoder": str(encoder),
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "layer_decay": 1.0,
        "max_length": 16,
        "max_grad_norm": 1.0,
        "seed": 7,
        "restarts": 0,
        "checkpoint_seconds": 60,
        "device": "cpu",
        "precision": "fp32",
    }
    from tasks.training.recipe import TrainingRecipe

    return TrainingRecipe(**values).model_copy(update=changes)


class Killed(Exception):
    """Raised where a process would be killed."""


class Trainer:
    """Trains the quick encoder on the toy corpus with a checkpoint after each epoch."""

    def __init__(self, split: tuple[str, str, str], encoder: Path, folder: Path) -> None:
        self.train_rows, self.validation_rows, self.encoder = split[0], split[1], str(encoder)
        self.folder, self.checkpoints = folder / "model", folder / "model-checkpoints"

    def recipe(self, **changes: Any) -> "TrainingRecipe":
        quick = {"epochs": EPOCHS, "batch_size": 40, "learning_rate": 1e-2, "checkpoint_seconds": 0}
        return recipe(self.encoder, **quick | changes)

    def job(self, text: str = "", teacher: str = "", **changes: Any) -> "TrainingJob":
        """Return this run as its stages know it; a teacher is the folder of a bundle."""
        from tasks.training.finetune import make_job
        from tasks.training.training_job import Teacher

        recipe, taught_by = self.recipe(**changes), Teacher(teacher) if teacher else None
        return make_job(self.train_rows, self.validation_rows, recipe, str(self.checkpoints), text, taught_by)

    def fingerprint(self, **given: Any) -> str:
        """Return what ties checkpoints to this run."""
        return self.job(**given).fingerprint

    def train(
        self, on_epoch: Callable[[Any], None] | None = None, text: str = "", teacher: str = "", **changes: Any
    ) -> tuple[Any, list[int]]:
        """Return the training and the epochs that `on_epoch` was called with."""
        from tasks.training.finetune import fine_tune
        from tasks.training.training_job import Teacher

        epochs: list[int] = []

        def record_epoch(record: Any) -> None:
            epochs.append(record["epoch"])
            if on_epoch:
                on_epoch(record)

        training = fine_tune(
            self.train_rows, self.validation_rows, self.recipe(**changes), str(self.folder),
            text=text, teacher=Teacher(teacher) if teacher else None, on_epoch=record_epoch,
        )  # fmt: skip
        assert not self.checkpoints.exists()
        return training, epochs

    def interrupt(self, number: int, attempt: int = 0, **changes: Any) -> None:
        """Kill a run after an epoch; `attempt` counts how often `on_epoch` was called with that one before."""
        left = [*[False] * attempt, True]

        def kill(record: Any) -> None:
            if record["epoch"] == number and left.pop(0):
                raise Killed

        with pytest.raises(Killed):
            self.train(kill, **changes)
        assert not self.folder.exists()

    def result(self) -> tuple[bytes, dict[str, Any]]:
        """Return the weights' file and the record, without what two runs cannot share."""
        record: dict[str, Any] = json.loads((self.folder / "training.json").read_text())
        del record["seconds"]
        for epoch in record["epochs"]:
            del epoch["seconds"]
        return (self.folder / "model.safetensors").read_bytes(), record


def diverge(monkeypatch: pytest.MonkeyPatch, *seeds: int) -> None:
    """Let runs of some seeds end in NaN losses."""
    from tasks.training import seed_runs, train_step

    real = seed_runs.train_epochs

    def train_epochs(*given: Any, **others: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if others["seed"] in seeds:
                patch.setattr(train_step, "learning_rates", lambda config: [DIVERGING] * config.steps)
            return real(*given, **others)

    monkeypatch.setattr(seed_runs, "train_epochs", train_epochs)


def origin(**changes: Any) -> Any:
    """Return what an export is given of a model's origin, changed by name."""
    values = {
        "labels": ["unacceptable", "acceptable"],
        "max_length": 16,
        "encoder": "tiny",
        "dataset": "d" * 64,
        "git_commit": "unknown",
    }
    return values | changes


def flow_settings(data: Path, encoder: Path) -> dict[str, Any]:
    """Return the dotted settings of a flow over the toy corpus with the tiny model."""
    return {
        "data.path": str(data),
        "data.validation_share": 0.2,
        "finetune.encoder": str(encoder),
        "finetune.learning_rate": 3e-3,
        "finetune.batch_size": 16,
        "finetune.epochs": 4,
        "finetune.seed": 7,
        "finetune.max_length": 16,
        "finetune.device": "cpu",
        "judge.resamples": 200,
    }


SPLIT: Any = {"train": 7, "validation": 2, "in_holdout": 1, "conflicting": 4, "repeated": 3}


def policy(**changes: Any) -> Any:
    """Return the product's policy, changed by name."""
    from tasks.core.policy import load_policy, parse_policy

    return parse_policy(load_policy().model_dump() | changes, "of a test")


def circumstances(**changes: Any) -> Any:
    """Return what a first candidate's verdict depends on besides measurements, changed by name."""
    values = {
        "champion_state": "none",
        "holdout_uses": 0,
        "drift": [],
        "training_digest": "t" * 64,
        "policy": policy().model_dump(),
    }
    return values | changes


def gate(**changes: Any) -> Any:
    """Return what a data gate that passed answers, changed by name."""
    values = {
        "passed": True,
        "rows_in": 10,
        "kept": 10,
        "quarantined": 0,
        "reasons": {},
        "examples": [],
        "results": [],
        "quality_issues": {},
        "labels": {},
        "tokens": {},
        "samples": {},
        "drift": [],
        "reference": None,
        "profile": {
            "dataset": "d" * 64,
            "rows": 1,
            "labels": {"1": 1},
            "characters": {"5": 1},
            "sources": {"s": 1},
            "words": {"a": 1},
        },
        "dataset": "d" * 64,
        "report": "gate.json",
    }
    return values | changes


def facts(**changes: Any) -> Any:
    """Return what a bundle says of itself, changed by name."""
    return origin(pad_id=0, **changes)
