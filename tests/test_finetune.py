"""The training run on a tiny model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import origin, recipe, write_tokenizer
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from tasks.batching import encode, load_tokenizer, pad
from tasks.errors import VerdictError, WrongUsage
from tasks.export import export_bundle
from tasks.finetune import Epoch, fine_tune, load_classifier, load_training
from tasks.metrics import mcc
from tasks.reading import load_rows

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ARCHITECTURES = {
    "bert": BertConfig(**SIZES, max_position_embeddings=80),
    "electra": ElectraConfig(**SIZES, embedding_size=16, max_position_embeddings=80),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=80, pad_token_id=0),
    "mpnet": MPNetConfig(**SIZES, max_position_embeddings=80, pad_token_id=0),
    "distilbert": DistilBertConfig(
        vocab_size=20, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=80
    ),
}


def test_a_tiny_model_learns_the_toy_corpus(trained: Any) -> None:
    assert trained["epochs"][trained["best_epoch"] - 1]["validation_mcc"] > 0.9


def test_the_best_epoch_is_the_one_that_is_kept(trained: Any, toy_split: tuple[str, str, str]) -> None:
    best = max(epoch["validation_mcc"] for epoch in trained["epochs"])
    assert trained["epochs"][trained["best_epoch"] - 1]["validation_mcc"] == best
    rows = load_rows(toy_split[1])
    ids, mask = pad(encode(load_tokenizer(trained["model"], 16), rows["sentence"].tolist()), 0)
    model = load_classifier(trained["model"]).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    assert mcc(rows["label"], logits.argmax(-1).numpy()) == pytest.approx(best)


def test_one_seed_gives_one_result_and_another_seed_another(
    toy_split: tuple[str, str, str], tiny_encoder: Path, tmp_path: Path
) -> None:
    def weights(name: str, seed: int) -> bytes:
        fine_tune(*toy_split[:2], str(tiny_encoder), str(tmp_path / name), **recipe(epochs=1, seed=seed))
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = weights("first", 7)
    assert weights("again", 7) == first
    assert weights("other", 8) != first


def test_each_epoch_is_told_and_recorded(toy_split: tuple[str, str, str], tiny_encoder: Path, tmp_path: Path) -> None:
    told: list[Epoch] = []
    folder = str(tmp_path / "model")
    training = fine_tune(*toy_split[:2], str(tiny_encoder), folder, **recipe(epochs=2), on_epoch=told.append)
    assert [epoch["epoch"] for epoch in told] == [1, 2]
    assert told == training["epochs"]
    assert load_training(folder) == training
    steps_per_epoch = -(-len(load_rows(toy_split[0])) // 16)
    assert len(training["step_losses"]) == 2 * steps_per_epoch


def test_an_unfinished_folder_is_no_training(tmp_path: Path) -> None:
    assert load_training(str(tmp_path)) is None


def test_a_run_that_diverges_is_recorded_as_not_finite(
    toy_split: tuple[str, str, str], tiny_encoder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    training = fine_tune(*toy_split[:2], str(tiny_encoder), str(folder), **recipe(epochs=1, learning_rate=1e30))
    assert training["epochs"][0]["validation_mcc"] == 0.0
    assert None in training["step_losses"]
    assert json.loads((folder / "training.json").read_text())["epochs"][0]["train_loss"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: nothing to refuse")
def test_cuda_without_a_gpu_is_refused_before_anything_is_written(
    toy_split: tuple[str, str, str], tiny_encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(VerdictError, match="torch sees no CUDA GPU"):
        fine_tune(*toy_split[:2], str(tiny_encoder), str(tmp_path / "model"), **recipe(device="cuda"))
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_no_model_is_refused_in_one_line(toy_split: tuple[str, str, str], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "encoder")
    (tmp_path / "encoder" / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(WrongUsage, match="cannot be fine-tuned") as caught:
        fine_tune(*toy_split[:2], str(tmp_path / "encoder"), str(tmp_path / "model"), **recipe())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_encoder_trains_and_exports(name: str, toy_split: tuple[str, str, str], tmp_path: Path) -> None:
    config: PreTrainedConfig = ARCHITECTURES[name]
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    write_tokenizer(tmp_path / "encoder")
    training = fine_tune(*toy_split[:2], str(tmp_path / "encoder"), str(tmp_path / "model"), **recipe(epochs=1))
    assert np.isfinite(training["step_losses"]).all()
    exported = export_bundle(training["model"], str(tmp_path), origin())
    assert max(exported["parity"].values()) <= 1e-4
