"""What cannot be trained and exported is refused before any training, in one line that says why and what to do."""

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from model_hub import served
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from toy import write_tokenizer

from flows.commands import doctor
from tasks.core.errors import UsageError, VerdictError
from tasks.data.token_limit import longest_input
from tasks.export import encoder_check
from tasks.export.encoder_check import (
    EncoderReport,
    check_encoder,
    describe_report,
    examine_encoder,
    refusing,
    train_one_step,
)
from tasks.export.subprocess_call import ProcessEnded
from tasks.training.model import load_with_report, pad_token_id
from tasks.training.pretrained import CHECKED_DIGEST, PACKAGED, locate_encoder

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 90864192\n"
SIZES: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 80, "pad_token_id": 0,
}  # fmt: skip
# Families by the name of their configuration in transformers.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "GPT2Config": {
        "vocab_size": 20, "n_positions": 80, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "RobertaConfig": SIZES | {"pad_token_id": 1},
    "T5Config": {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "BartConfig": {
        "vocab_size": 20, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0,
    },
    "FunnelConfig": {
        "vocab_size": 20, "block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32,
        "num_decoder_layers": 1,
    },
    "LongformerConfig": SIZES | {"attention_window": [8]},
    "NystromformerConfig": SIZES | {"num_landmarks": 8, "segment_means_seq_len": 64},
    "CanineConfig": {key: value for key, value in SIZES.items() if key != "vocab_size"},
    "ReformerConfig": {
        "vocab_size": 20, "hidden_size": 16, "num_attention_heads": 2, "attention_head_size": 8,
        "feed_forward_size": 32, "attn_layers": ["local"], "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 8],
        "max_position_embeddings": 64, "local_attn_chunk_length": 8,
    },
}  # fmt: skip
ONE_LINE = "expected an encoder of transformers that can be trained and exported: --encoder DIR|HUB_ID"


def write_family(folder: Path, configuration: str) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, configuration)(**CONFIGURATIONS[configuration])
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def add_token(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["extra"])
    tokenizer.save(str(folder / "tokenizer.json"))


def remove_unknown(folder: Path) -> None:
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    del fields["model"]["vocab"]["[UNK]"]
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] != "[UNK]"]
    path.write_text(json.dumps(fields))


def spoil(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][3, :2] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(tiny_encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_encoder, tmp_path / "mine"))


def examine(folder: Path, max_length: int = 40) -> EncoderReport:
    return examine_encoder(locate_encoder(str(folder)), max_length)


# What is done to a BERT of 20 words and 80 positions, and what is said then.
CHANGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a token without a row": (
        add_token,
        r"tokenizer of encoder 'mine' gives token 20 \('extra'\), its embedding table has 20 rows; expected tokens up "
        "to 19: the tokenizer that belongs to the weights, or a table made larger by transformers' resize_token_embed",
    ),
    "a pad id outside of the table": (
        lambda folder: configure(folder, pad_token_id=20),
        "encoder 'mine' has pad_token_id 20 outside of its vocabulary of 20; expected 0 to 19: correct config.json",
    ),
    "a negative pad id": (lambda folder: configure(folder, pad_token_id=-1), "has pad_token_id -1 outside"),
    "quantised by bitsandbytes": (
        lambda folder: configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        r"encoder 'mine' is quantised \(bitsandbytes\), and quantised weights cannot be fine-tuned; expected the check",
    ),
    "quantised by another package": (
        lambda folder: configure(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"is quantised \(gptq\)",
    ),
    "weights that are a pointer": (
        lambda folder: (folder / "model.safetensors").write_text(POINTER),
        "mine/model.safetensors' is a pointer of Git LFS of 133 bytes; expected the file that it stands for: git -C .*"
        "mine' lfs pull",
    ),
    "a tokenizer that is a pointer": (
        lambda folder: (folder / "tokenizer.json").write_text(POINTER),
        "mine/tokenizer.json' is a pointer of Git LFS",
    ),
    "a pointer of Git LFS instead of a configuration": (
        lambda folder: (folder / "config.json").write_text(POINTER),
        "mine/config.json' is a pointer of Git LFS",
    ),
    "a vocabulary without its unknown token": (
        remove_unknown,
        r"mine/tokenizer.json' cannot be loaded \(.*\[UNK\].*\); expected a tokenizer.json",
    ),
    "a cut tokenizer.json": (
        lambda folder: (folder / "tokenizer.json").write_text('{"version": "1.0"'),
        r"mine/tokenizer.json' cannot be loaded \(EOF .*\); expected a tokenizer.json that transformers saved: fetch",
    ),
    "a tokenizer of an unknown class": (
        lambda folder: (
            (folder / "tokenizer.json").rename(folder / "vocab.txt"),
            (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "FooTokenizer"}'),
        ),
        "cannot be made by the tokenizer_class 'FooTokenizer' of tokenizer_config.json .*; expected a tokenizer.json",
    ),
    "no layers": (
        lambda folder: configure(folder, num_hidden_layers=0),
        "config.json of encoder 'mine' has num_hidden_layers = 0; expected at least 1: correct it",
    ),
    "a decoder": (
        lambda folder: configure(folder, is_decoder=True),
        "config.json of encoder 'mine' has is_decoder = true; expected false: correct it",
    ),
    "two positions": (
        lambda folder: configure(folder, max_position_embeddings=2),
        "mine' has positions for 2 tokens of a sentence .*; expected at least 8",
    ),
    "NaN": (
        lambda folder: spoil(folder, np.nan),
        "encoder 'mine' has NaN or Inf in 2 of 640 values of bert.embeddings.word_embeddings.weight; expected finite",
    ),
    "Inf": (lambda folder: spoil(folder, -np.inf), "has NaN or Inf in 2 of 640 values"),
    "another type than the weights": (
        lambda folder: configure(folder, model_type="distilbert", dim=32, n_layers=2, n_heads=2, hidden_dim=64),
        r"cannot be fine-tuned \(.*% of the encoder's .* weights are the checkpoint's; .*; expected at least 90%",
    ),
    "a type that transformers does not know": (
        lambda folder: configure(folder, model_type="distilbrt"),
        'config.json has model_type = "distilbrt", which transformers does not know; expected a name such as '
        '"distilbert": correct it',
    ),
    "a type whose configuration the file is not": (
        lambda folder: configure(folder, model_type="t5"), "config.json of encoder .* cannot be used: ",
    ),
    "a type without sentences": (
        lambda folder: configure(folder, model_type="vit"),
        "cannot be fine-tuned: config.json has model_type = .vit., for which transformers has no classifier",
    ),
    "a cut weights file": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999]),
        "cannot be fine-tuned",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGED)
def test_a_folder_with_a_fault_is_refused_in_one_line(folder: Path, kind: str) -> None:
    change, message = CHANGED[kind]
    change(folder)
    with pytest.raises(UsageError, match=message) as refused:
        examine(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("T5Config", r"\(t5\) is an encoder-decoder, which cannot be exported to ONNX"),
        ("BartConfig", r"\(bart\) is an encoder-decoder, which cannot be exported to ONNX"),
        ("LongformerConfig", r"\(longformer\) divides a sentence into windows by its length, which cannot be exported"),
        ("FunnelConfig", r"\(funnel\) cannot be exported to ONNX \(RuntimeError: index 4 is out of bounds"),
        ("NystromformerConfig", r"cannot be fine-tuned: the model failed on a sentence \(RuntimeError: shape '"),
        ("CanineConfig", r"\(canine\) has no vocabulary \(vocab_size\)"),
        ("ReformerConfig", r"cannot be fine-tuned: a training step failed \(ValueError: If training, sequence length"),
    ],
)
def test_a_family_that_cannot_be_trained_or_exported_is_refused_with_a_reason(
    tmp_path: Path, configuration: str, message: str
) -> None:
    folder = write_family(tmp_path / "mine", configuration)
    with pytest.raises(UsageError, match=message) as refused:
        examine(folder)
    assert str(refused.value).startswith("encoder 'mine' ")
    assert str(refused.value).endswith(ONE_LINE)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 440401920 bytes"),
        MemoryError(),
        VerdictError("no exporter can write bert: OSError: [Errno 28] No space left on device; set TMPDIR"),
        OSError(errno.ENOSPC, "No space left on device"),
        ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript"),
        ProcessEnded("the export to ONNX was ended by SIGKILL"),
        KeyboardInterrupt(),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_fault_of_the_machine_is_not_the_encoders(fault: BaseException) -> None:
    with pytest.raises(type(fault)) as raised, refusing("mine", "cannot be exported"):
        raise fault
    assert raised.value is fault


def test_the_encoder_of_an_encoder_decoder_alone_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(**CONFIGURATIONS["T5Config"])
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "mine")
    write_tokenizer(tmp_path / "mine")
    with pytest.raises(UsageError, match=r"\(t5\) is the encoder of an encoder-decoder alone, for which transformers"):
        examine(tmp_path / "mine")


def test_the_packaged_encoder_passes_and_is_not_checked_by_runs(tmp_path: Path) -> None:
    encoder = locate_encoder(PACKAGED)
    assert encoder["digest"] == CHECKED_DIGEST
    assert examine_encoder(encoder, 512)["exporter"] == "writer"
    assert check_encoder(encoder, 512, str(tmp_path)) is None
    assert not list(tmp_path.iterdir())


def test_an_error_without_a_message_is_named_by_its_type() -> None:
    with pytest.raises(UsageError) as refused, refusing("mine", "cannot be exported"):
        raise RuntimeError
    assert str(refused.value) == f"encoder 'mine' cannot be exported (RuntimeError); {ONE_LINE}"


@pytest.mark.parametrize(
    ("configuration", "max_length", "longest"), [("RobertaConfig", 80, 78), ("GPT2Config", 200, 80)]
)
def test_an_encoder_of_few_positions_is_checked_with_as_many_tokens_as_it_reads(
    tmp_path: Path, configuration: str, max_length: int, longest: int
) -> None:
    folder = write_family(tmp_path / "mine", configuration)
    assert longest_input(str(folder), max_length) == longest
    assert examine(folder, max_length)["exporter"]


def test_a_decoder_without_a_padding_token_is_padded_with_its_end_token(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "mine", "GPT2Config")
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] is None
    model, _ = load_with_report(str(folder))
    assert pad_token_id(str(folder)) == model.config.pad_token_id == 3
    train_one_step(model, [np.array([4, 5, 6]), np.array([4])], 3)
    model.save_pretrained(tmp_path / "trained")
    assert pad_token_id(str(tmp_path / "trained")) == 3


def test_what_was_found_is_described_and_the_random_generator_is_untouched(folder: Path) -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    report = examine(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert report | {"seconds": 1.25} == {
        "schema_version": 1,
        "architecture": "BertForSequenceClassification",
        "parameters": 21_538,
        "weights": "all of the encoder's 21,472 weights are the checkpoint's; stored as fp32, trained as fp32",
        "positions": 80,
        "vocabulary": 20,
        "pad_id": 0,
        "exporter": "writer",
        "seconds": 1.25,
    }
    assert describe_report(report | {"seconds": 1.25}) == (
        "BertForSequenceClassification, 21,538 parameters; all of the encoder's 21,472 weights are the "
        "checkpoint's; stored as fp32, trained as fp32; 80 usable positions, vocabulary of 20, padding "
        "token 0; this program's graph writer makes its graph; checked in 1.2 s"
    )


def test_an_equal_encoder_is_not_checked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoder_check, "git_commit", lambda: "c" * 40)
    home, encoder = str(tmp_path / "home"), locate_encoder(str(folder))
    with caplog.at_level(logging.INFO, logger="tasks"):
        report = check_encoder(encoder, 40, home)
        assert check_encoder(encoder, 40, home) == report
    assert [message for message in caplog.messages if message.startswith("encoder mine: Bert")] == caplog.messages[:1]
    kept = list((tmp_path / "home" / "cache" / "encoders").iterdir())
    assert len(kept) == 1
    kept[0].write_text("{}")  # damaged
    shutil.rmtree(folder)
    with pytest.raises((VerdictError, OSError)):
        check_encoder(encoder, 40, home)


def test_a_changed_program_keeps_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_check, "git_commit", lambda: f"{'c' * 40}-dirty")
    check_encoder(locate_encoder(str(folder)), 40, str(tmp_path))
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_an_entry_of_the_doctor(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    checks = {check["check"]: check for check in doctor.run_checks(str(tmp_path / "home"), str(folder))}
    assert (checks["encoder"]["works"], checks["disk"]["works"]) == (False, True)
    assert "No space left on device" in checks["encoder"]["seen"]


def test_the_doctor_checks_a_hub_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served("owner/model", folder, tmp_path / "cache", monkeypatch) as paths:
        checks = {check["check"]: check for check in doctor.run_checks(str(tmp_path / "home"), "hf:owner/model")}
        assert checks["encoder"]["works"], checks["encoder"]
        assert checks["encoder"]["seen"].startswith("owner/model: BertForSequenceClassification, 21,538 parameters")
        assert any(path.endswith("/model.safetensors") for path in paths)
        spoil(folder, np.nan)
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(UsageError, match="encoder 'owner/model' has NaN or Inf in 2 of 640 values"):
            examine_encoder(locate_encoder("owner/model"), 40)
