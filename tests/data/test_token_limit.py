"""An encoder reads as many tokens as `usable_positions` says, and not one more where it has a table of positions."""

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from transformers import AutoModel, RobertaConfig

from tasks.core.errors import UsageError
from tasks.core.files import write_json
from tasks.core.finetune_settings import FinetuneSettings
from tasks.data.token_limit import longest_input, usable_positions
from tasks.training.recipe import resolve_recipe

USABLE = dict.fromkeys(ARCHITECTURES, 80) | {"roberta": 79, "mpnet": 78}
WITHOUT_A_TABLE = ("deberta-v2", "modernbert")  # relative positions: longer inputs are read too


@pytest.mark.parametrize("name", USABLE)
def test_the_limit_is_the_last_length_that_the_model_reads(name: str, tmp_path: Path) -> None:
    ARCHITECTURES[name].save_pretrained(tmp_path)
    assert usable_positions(str(tmp_path)) == USABLE[name]
    model = AutoModel.from_config(ARCHITECTURES[name]).eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, USABLE[name]), 5))
        if name not in WITHOUT_A_TABLE:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, USABLE[name] + 1), 5))


def test_a_padding_token_that_is_not_the_first_costs_positions(tmp_path: Path) -> None:
    RobertaConfig(max_position_embeddings=66, pad_token_id=1).save_pretrained(tmp_path)
    assert usable_positions(str(tmp_path)) == 64


@pytest.mark.parametrize(
    ("config", "usable"),
    [
        ({}, None),
        ({"model_type": "xlnet"}, None),
        ({"model_type": "t5", "max_position_embeddings": -1}, None),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "camembert", "max_position_embeddings": 514}, 512),  # without the padding's id, which is 1
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": None}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 2}, 0),
    ],
)
def test_positions_are_those_of_the_configuration(
    config: dict[str, object], usable: int | None, tmp_path: Path
) -> None:
    write_json(tmp_path / "config.json", config)
    assert usable_positions(str(tmp_path)) == usable


def test_the_smaller_of_setting_and_positions_limits_training(tmp_path: Path) -> None:
    assert longest_input(str(tmp_path), 128) == 128  # no config.json
    write_json(tmp_path / "config.json", {"model_type": "bert", "max_position_embeddings": 64})
    assert [longest_input(str(tmp_path), setting) for setting in (16, 64, 128)] == [16, 64, 64]
    assert resolve_recipe(FinetuneSettings(device="cpu"), str(tmp_path)).max_length == 64
    assert resolve_recipe(FinetuneSettings(device="cpu", max_length=16), str(tmp_path)).max_length == 16


@pytest.mark.parametrize(("model_type", "positions", "usable"), [("bert", 7, 7), ("roberta", 9, 7), ("roberta", 2, 0)])
def test_an_encoder_that_reads_next_to_nothing_is_refused(
    model_type: str, positions: int, usable: int, tmp_path: Path
) -> None:
    write_json(tmp_path / "config.json", {"model_type": model_type, "max_position_embeddings": positions})
    with pytest.raises(UsageError, match=f"has positions for {usable} tokens of a sentence .*; expected at least 8"):
        longest_input(str(tmp_path), 128)
