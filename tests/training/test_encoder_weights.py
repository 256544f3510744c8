"""What of an encoder comes from its files is known before training, and too little of it is refused."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import recipe, write_tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
)

from tasks.core.errors import UsageError
from tasks.export.encoder_families import load_encoder
from tasks.training.finetune import fine_tune
from tasks.training.model import load_classifier, load_with_report
from tasks.training.pretrained import PACKAGED, locate_encoder

SIZES: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 128, "max_position_embeddings": 80,
}  # fmt: skip
MODERN = ModernBertConfig(**SIZES, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
SHARDS = {"max_shard_size": "50KB"}


def write(folder: Path, model: PreTrainedModel | None = None, **options: Any) -> Path:
    torch.manual_seed(0)
    (model or BertModel(BertConfig(**SIZES))).save_pretrained(folder, **options)
    write_tokenizer(folder)
    return folder


def rename(folder: Path, new_name: Callable[[str], str]) -> None:
    """Rename the tensors of a folder; those that get no name are left out."""
    path = folder / "model.safetensors"
    tensors = {new_name(name): tensor for name, tensor in load_file(path).items() if new_name(name)}
    save_file(tensors, path, metadata={"format": "pt"})


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def old_names(name: str) -> str:
    """Return a name as the first BERT checkpoints have it."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "encoder")


WHOLE: dict[str, Callable[[Path], object]] = {
    "plain": lambda folder: None,
    "module.": lambda folder: rename(folder, "module.{}".format),
    "model.": lambda folder: rename(folder, "model.{}".format),
    "0.auto_model.": lambda folder: rename(folder, "0.auto_model.{}".format),
    "module.model.bert.": lambda folder: rename(folder, "module.model.bert.{}".format),
    "encoder.": lambda folder: rename(folder, "encoder.{}".format),
    "student.bert.": lambda folder: rename(folder, "student.bert.{}".format),
    "net.0.": lambda folder: rename(folder, "net.0.{}".format),
    "backbone., with old names": lambda folder: rename(folder, lambda name: f"backbone.{old_names(name)}"),
    "encoder., with a head beside it": lambda folder: (
        write(folder, BertForSequenceClassification(BertConfig(**SIZES))),
        rename(folder, lambda name: name.replace("bert.", "encoder.")),
    ),
    "ModernBERT, module.": lambda folder: (
        write(folder, ModernBertForSequenceClassification(MODERN)), rename(folder, "module.{}".format)
    ),
    "ModernBERT, whose own names begin with model.": lambda folder: write(
        folder, ModernBertForSequenceClassification(MODERN)
    ),
    "gamma and beta": lambda folder: rename(folder, old_names),
    "shards": lambda folder: ((folder / "model.safetensors").unlink(), write(folder, **SHARDS)),
    "a head of three labels": lambda folder: write(
        folder, BertForSequenceClassification(BertConfig(**SIZES, num_labels=3))
    ),
    "id2label of three labels": lambda folder: configure(folder, id2label={"0": "a", "1": "b", "2": "c"}),
    "dtype": lambda folder: configure(folder, dtype="float16"),
    "torch_dtype": lambda folder: configure(folder, torch_dtype="bfloat16"),
    "outputs of every layer": lambda folder: configure(
        folder, output_attentions=True, output_hidden_states=True, return_dict=False
    ),
    "an unknown dtype": lambda folder: configure(folder, dtype="float17"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_all_weights_are_found_and_computed_with_in_fp32(folder: Path, kind: str) -> None:
    before = load_file(folder / "model.safetensors")
    WHOLE[kind](folder)
    locate_encoder(str(folder))
    model, weights = load_with_report(str(folder))
    assert (weights.loaded, weights.missing, weights.resized, weights.unused) == (weights.total, (), (), ())
    assert weights.describe().startswith(f"all of the encoder's {weights.total:,} weights are the checkpoint's; ")
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert (model.config.num_labels, model.config.id2label) == (2, {0: "unacceptable", 1: "acceptable"})
    if kind.endswith(".") and " " not in kind:
        assert weights.prefix in (kind, kind.removesuffix("bert."))
        assert f"; {weights.prefix!r} taken off their names; " in weights.describe()
    if "ModernBERT" not in kind and "head" not in kind:
        own = dict(model.base_model.named_parameters())
        assert before.keys() == own.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_reported_and_trained_as_fp32(
    precision: str, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    folder = write(tmp_path / "encoder", BertModel(BertConfig(**SIZES)).to(half))
    model, weights = load_with_report(str(folder))
    assert weights.describe().endswith(f"stored as {precision}, trained as fp32")
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, stored[name].float()) for name, tensor in model.base_model.named_parameters())
    fine_tune(*toy_split[:2], recipe(folder, epochs=1), str(tmp_path / "model"))
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"


LAYER = 33_472  # parameters
ALL = 77_760
PARTS: dict[str, tuple[Callable[[Path], object], int, int, str]] = {
    "a larger vocab_size": (
        lambda folder: configure(folder, vocab_size=24), ALL + 4 * 64 - 24 * 64, ALL + 4 * 64,
        "98.0% of the encoder's 78,016 weights are the checkpoint's; random, for another size: "
        "bert.embeddings.word_embeddings.weight [20, 64] instead of [24, 64]; stored as fp32",
    ),
    "more layers than in the file": (
        lambda folder: configure(folder, num_hidden_layers=4), ALL, ALL + 2 * LAYER,
        "random, for lack of them: bert.encoder.layer.2.attention.self.query.weight, "
        "bert.encoder.layer.2.attention.self.query.bias, bert.encoder.layer.2.attention.self.key.weight, "
        "... (32 tensors)",
    ),
    "fewer layers than in the file": (
        lambda folder: configure(folder, num_hidden_layers=1), ALL - LAYER, ALL - LAYER,
        "not used: encoder.layer.1.attention.output.LayerNorm.bias, encoder.layer.1.attention.output.LayerNorm.weight, "
        "encoder.layer.1.attention.output.dense.bias, ... (16 tensors)",
    ),
    "a layer missing": (
        lambda folder: rename(folder, lambda name: "" if ".layer.1." in name else name), ALL - LAYER, ALL,
        "56.9% of the encoder's",
    ),
    "more positions": (
        lambda folder: configure(folder, max_position_embeddings=1024), ALL - 80 * 64, ALL + 944 * 64,
        "bert.embeddings.position_embeddings.weight [80, 64] instead of [1024, 64]",
    ),
    "another architecture": (
        lambda folder: configure(
            folder, model_type="distilbert", dim=64, n_layers=2, n_heads=2, hidden_dim=128
        ), 6_528, 73_472, "not used: embeddings.token_type_embeddings.weight",
    ),
    "no pooler, and a head for masked words": (
        lambda folder: write(folder, BertForMaskedLM(BertConfig(**SIZES))), ALL - 65 * 64, ALL,
        "random, for lack of them: bert.pooler.dense.weight, bert.pooler.dense.bias; not used: cls.predictions.bias, ",
    ),
    "another intermediate_size": (
        lambda folder: configure(folder, intermediate_size=256), 44_736, 110_784,
        "bert.encoder.layer.0.intermediate.dense.weight [128, 64] instead of [256, 64]",
    ),
    "other names": (
        lambda folder: rename(folder, lambda name: f"{name}.value"), 0, ALL, "0.0% of the encoder's",
    ),
}  # fmt: skip


# What the weights are said to be where most of them are another model's.
LOOKS = {
    "another architecture": "look like BERT's, or of one like it such as RoBERTa or ELECTRA .39 tensors such as enc",
    "other names": r"look like BERT's, .* \(39 tensors such as .*\.value\)$",
}


@pytest.mark.parametrize("kind", PARTS)
def test_what_is_not_the_checkpoints_is_named_and_refused_over_a_tenth(folder: Path, kind: str) -> None:
    change, loaded, total, message = PARTS[kind]
    change(folder)
    _, weights = load_with_report(str(folder))
    assert (weights.loaded, weights.total) == (loaded, total)
    assert message in weights.describe()
    assert "\n" not in weights.describe()
    if loaded / total >= 0.9:
        load_classifier(str(folder))
        return
    remedy = LOOKS.get(kind, r"config\.json that belongs to the weights, or --set finetune\.allow_new_weights=true$")
    with pytest.raises(
        UsageError, match=f"cannot be fine-tuned .*; config.json says model_type = .*{remedy}"
    ) as caught:
        load_classifier(str(folder))
    assert weights.describe() in str(caught.value)
    load_classifier(str(folder), allow_new_weights=True)


def test_weights_that_are_integers_are_not_read_as_numbers(folder: Path) -> None:
    tensors = {name: (tensor * 100).to(torch.int8) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"are stored as I8, which is quantised.*; expected the checkpoint that they"):
        load_classifier(str(folder))


def test_a_checkpoint_of_two_encoders_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    both = {f"{side}.{name}": tensor.clone() for name, tensor in tensors.items() for side in ("student", "teacher")}
    save_file(both, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"two encoders, under the names 'student\.' and 'teacher\.'; expected one"):
        load_with_report(str(folder))


def test_the_packaged_encoder_is_all_its_own() -> None:
    _, weights = load_with_report(locate_encoder(PACKAGED)["folder"])
    assert weights.describe() == (
        "all of the encoder's 22,713,216 weights are the checkpoint's; stored as fp32, trained as fp32"
    )


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_says_it_once_and_stops_before_it_trains(
    folder: Path, toy_split: tuple[str, str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, seeds: int
) -> None:
    configure(folder, num_hidden_layers=4)
    refused = recipe(folder, epochs=1, seeds=seeds)
    with pytest.raises(UsageError, match=r"53\.7% of the encoder's"):
        fine_tune(*toy_split[:2], refused, str(tmp_path / "model"))
    assert not list((tmp_path).glob("model-checkpoints/*/epoch*"))
    fine_tune(*toy_split[:2], refused.model_copy(update={"allow_new_weights": True}), str(tmp_path / "model"))
    logged = [entry for entry in caplog.records if "53.7% of the encoder's" in entry.getMessage()]
    assert [entry.levelno for entry in logged] == [logging.WARNING]


@pytest.mark.parametrize(("kind", "corruptions"), [("0.auto_model.", 0), ("0.auto_model.", 1), ("gamma and beta", 0)])
def test_a_trained_model_is_saved_by_the_models_own_names(
    folder: Path, kind: str, corruptions: int, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    """transformers would write the checkpoint's; the graphs are written from the file."""
    WHOLE[kind](folder)
    fine_tune(*toy_split[:2], recipe(folder, epochs=1, corruptions=corruptions), str(tmp_path / "model"))
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert names == load_classifier(str(tmp_path / "model")).state_dict().keys()
    assert load_encoder(str(tmp_path / "model")).layers


@pytest.mark.parametrize("labels", [["a", "b"], {"a": 0}, "acceptable", 2])
def test_labels_that_are_not_numbered_are_refused_in_one_line(folder: Path, labels: Any) -> None:
    configure(folder, id2label=labels)
    with pytest.raises(UsageError, match=r"config\.json' has id2label = .*; expected numbers and names") as caught:
        locate_encoder(str(folder))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be fine-tuned"):
        load_classifier(str(folder))


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": "64"}, 'config.json has hidden_size = "64"; expected int: correct it'),
    ({"layer_norm_eps": "1e-12"}, 'config.json has layer_norm_eps = "1e-12"; expected float: correct it'),
    ({"model_type": ["bert"]}, "config.json has model_type = "),
    (
        {"model_type": None},
        'config.json has no model_type; expected a name such as "bert": correct it, or name another',
    ),
    ({"model_type": "brt"}, 'has model_type = "brt", which transformers does not know; expected a name such as "bert"'),
    ({"hidden_act": "foo"}, 'config.json has hidden_act = "foo"; expected one of .*gelu.*: correct it'),
    ({"num_attention_heads": 5}, "hidden_size = 64, num_attention_heads = 5; correct it"),
    ({"hidden_dropout_prob": 2.5}, "config.json has hidden_dropout_prob = 2.5; correct it"),
]


@pytest.mark.parametrize(("field", "message"), FIELDS)
def test_a_wrong_field_is_named_in_one_line_with_what_is_expected(
    folder: Path, field: dict[str, Any], message: str
) -> None:
    configure(folder, **field)
    with pytest.raises(UsageError, match=rf"^encoder '.*' cannot be fine-tuned: .*{message}") as caught:
        load_classifier(str(folder))
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "encoder", **SHARDS)
    sorted(folder.glob("*.safetensors"))[1].unlink()
    with pytest.raises(UsageError, match=r"No such file or directory: .*model-00002-of-"):
        load_classifier(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_never_loaded(folder: Path, name: str) -> None:
    shutil.copy(folder / "model.safetensors", folder / name)
    locate_encoder(str(folder))  # not needed beside safetensors
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=rf"but {name}, pickled weights, which are never loaded"):
        locate_encoder(str(folder))
    with pytest.raises(UsageError, match="cannot be fine-tuned"):
        load_classifier(str(folder))
