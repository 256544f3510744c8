"""Small real things that tests share: a corpus a tiny model can learn, the tiny model, and a Prefect server."""

import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import environment

# Tiny models gain nothing from threads, and two processes that spin for them on two cores stand still.
os.environ["OMP_NUM_THREADS"] = "1"

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


def recipe(**changes: Any) -> dict[str, Any]:
    """Return fine_tune's settings for the tiny model, changed by name."""
    values: dict[str, Any] = {
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
    return values | changes


class Killed(Exception):
    """Stands for what ends a process."""


class Trainer:
    """Trains the tiny encoder on the toy corpus with a checkpoint after each epoch."""

    def __init__(self, split: tuple[str, str, str], encoder: Path, folder: Path) -> None:
        self.paths = [*split[:2], str(encoder)]
        self.folder, self.checkpoints = folder / "model", folder / "model-checkpoints"

    def settings(self, **changes: Any) -> dict[str, Any]:
        return recipe(**{"epochs": EPOCHS, "checkpoint_seconds": 0, **changes})

    def train(self, **changes: Any) -> tuple[Any, list[int]]:
        """Return the training and the epochs that it told of."""
        from tasks.training.finetune import fine_tune

        told: list[int] = []
        tell = changes.pop("on_epoch", lambda record: None)

        def hear(record: Any) -> None:
            told.append(record["epoch"])
            tell(record)

        training = fine_tune(*self.paths, str(self.folder), **self.settings(**changes), on_epoch=hear)
        assert not self.checkpoints.exists()
        return training, told

    def interrupt(self, number: int, attempt: int = 0, **changes: Any) -> None:
        """Kill a run when it tells of an epoch; `attempt` counts how often it told of that before."""
        left = [*[False] * attempt, True]

        def kill(record: Any) -> None:
            if record["epoch"] == number and left.pop(0):
                raise Killed

        with pytest.raises(Killed):
            self.train(**changes, on_epoch=kill)
        assert not self.folder.exists()

    def result(self) -> tuple[bytes, dict[str, Any]]:
        """Return the weights' file and the record, without what two runs cannot share."""
        record: dict[str, Any] = json.loads((self.folder / "training.json").read_text())
        del record["seconds"], record["model"]
        for epoch in record["epochs"]:
            del epoch["seconds"]
        return (self.folder / "model.safetensors").read_bytes(), record


def diverge(monkeypatch: pytest.MonkeyPatch, *seeds: int) -> None:
    """Let runs of some seeds end in losses that are no number."""
    from tasks.training import soup as members

    real = members.train_epochs

    def train_epochs(model: Any, train: Any, validation: Any, chosen: Any, **others: Any) -> Any:
        rate = DIVERGING if others["seed"] in seeds else chosen.learning_rate
        return real(model, train, validation, chosen._replace(learning_rate=rate), **others)

    monkeypatch.setattr(members, "train_epochs", train_epochs)


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the tasks say on the log; Prefect, once it is set up, keeps that from the root logger."""
    monkeypatch.setattr(logging.getLogger("tasks"), "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny") / "encoder"
    write_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=80,
        initializer_range=0.2,  # so that so small a model learns in two epochs
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_split(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Paths of training rows, validation rows and the holdout's snapshot."""
    from tasks.data.ingestion import take_snapshots
    from tasks.data.record_readers import Form
    from tasks.data.sources import Sources
    from tasks.data.splitting import split_snapshot

    folder = tmp_path_factory.mktemp("split")
    train, holdout = (str(toy_data / name) for name in ("in_domain_train.tsv", "out_of_domain_dev.tsv"))
    sources = Sources(train=[train], holdout=[holdout], reported=[])
    data = take_snapshots(sources, str(folder), Form(), 0.2)
    paths = split_snapshot(data["train"]["path"], [data["holdout"]["path"]], str(folder), 0.2, 0)
    return paths[0], paths[1], data["holdout"]["path"]


@pytest.fixture
def make_trainer(
    toy_split: tuple[str, str, str], tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Trainer]:
    return lambda: Trainer(toy_split, tiny_encoder, tmp_path_factory.mktemp("trainer"))


@pytest.fixture
def trainer(make_trainer: Callable[[], Trainer]) -> Trainer:
    return make_trainer()


@pytest.fixture(scope="session")
def trained(toy_split: tuple[str, str, str], tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The training record of a tiny model that learned the toy corpus."""
    from tasks.training.finetune import fine_tune

    folder = tmp_path_factory.mktemp("trained") / "model"
    return fine_tune(*toy_split[:2], str(tiny_encoder), str(folder), **recipe())


@pytest.fixture(scope="session")
def exported(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The export record of that model, fp32 alone."""
    from tasks.export.bundle_export import export_bundle

    return export_bundle(trained["model"], str(tmp_path_factory.mktemp("exported")), origin())


@pytest.fixture(scope="session")
def complete(trained: Any, toy_split: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The export record of that model in every variant."""
    from tasks.export.bundle_export import export_bundle

    return export_bundle(trained["model"], str(tmp_path_factory.mktemp("complete")), origin(), toy_split[1])


def origin(**changes: Any) -> Any:
    """Return what an export is told of a model's origin, changed by name."""
    values = {
        "labels": ["unacceptable", "acceptable"],
        "max_length": 16,
        "encoder": "tiny",
        "dataset": "d" * 64,
        "git_commit": "unknown",
    }
    return values | changes


SPLIT: Any = {"train": 7, "validation": 2, "in_holdout": 1, "conflicting": 4, "repeated": 3}


def policy(**changes: Any) -> Any:
    """Return the product's policy, changed by name."""
    from tasks.core.policy import load_policy, parse_policy

    return parse_policy(load_policy().model_dump() | changes, "of a test")


def circumstances(**changes: Any) -> Any:
    """Return what a first candidate's verdict depends on besides measurements, changed by name."""
    values = {"incumbency": "never", "looks": 0, "drift": [], "training": "t" * 64, "policy": policy().model_dump()}
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
        "findings": [],
        "blemishes": {},
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


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prefect server on loopback, the one that runs embed; yields its address."""
    home = str(tmp_path_factory.mktemp("prefect"))
    environment.prepare()
    os.environ.pop("PREFECT_API_URL", None)
    from flows.services.embedded_prefect import connected, prefect_api

    with prefect_api(home) as server, connected(server):
        assert server is not None
        yield server.api_url


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database; copying it saves each test five seconds."""
    environment.prepare()
    from tasks.registry import tracking as runs

    folder = tmp_path_factory.mktemp("store")
    runs.recent_runs({"uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")})
    return folder / "mlflow.db"


@pytest.fixture
def own_mlflow_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test point MLflow at a store of its own: no later test is led there."""
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    yield
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow writes its address there too
