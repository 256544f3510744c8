"""Sentences have the same tokens in training, export and serving: those that the encoder's tokenizer.json gives."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from toy import SIGN, WORDS, facts, origin, recipe, write_tokenizer
from transformers import BertConfig, BertModel

from tasks.core.errors import UsageError
from tasks.export.bundle_export import export_bundle
from tasks.export.encoder_check import examine_encoder
from tasks.inference.bundle import write_manifest
from tasks.inference.classifier import Classifier
from tasks.inference.tokenization import load_tokenizer, open_tokenizer, tokenise
from tasks.training.finetune import fine_tune
from tasks.training.pretrained import locate_encoder
from tasks.training.token_check import check_tokens, lost_capitals

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIALS, *WORDS, SIGN, "Paris", "paris", "well-known", "well", "-", "known", "##s"]
SENTENCES = ["Paris is well-known", "the cat sees Paris", "the cats", " the  dog ", ""]


def cased(folder: Path) -> None:
    """Write a tokenizer.json that keeps case and hyphens, of a class that does neither."""
    tokenizer = Tokenizer(models.WordPiece({word: row for row, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=40, direction="left")
    tokenizer.enable_truncation(3, stride=1, direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 5})
    )


def vocabulary_alone(folder: Path, **config: Any) -> None:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def byte_pairs(folder: Path, dropout: float | None = None) -> Tokenizer:
    """Write vocabulary and merges of a byte-level tokenizer, as RoBERTa's; return it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t"), ("Ġ", "the"), ("Ġ", "cat")]
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, *("".join(pair) for pair in merges)]
    vocabulary = {word: row for row, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{one} {two}\n" for one, two in merges))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, dropout=dropout))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    encoder = tmp_path / "encoder"
    config = BertConfig(
        vocab_size=280, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=80,
    )  # fmt: skip
    BertModel(config).save_pretrained(encoder)
    return encoder


KINDS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "tokenizer.json against the rules of its class": (cased, ["[CLS]", "Paris", "[UNK]", "well-known", "[SEP]"]),
    "a cased vocab.txt": (
        lambda folder: vocabulary_alone(folder, do_lower_case=False),
        ["[CLS]", "Paris", "[UNK]", "well", "-", "known", "[SEP]"],
    ),
    "vocab.txt": (vocabulary_alone, ["[CLS]", "paris", "[UNK]", "well", "-", "known", "[SEP]"]),
    "vocab.json and merges.txt": (byte_pairs, ["<s>", *"ParisĠisĠwell-known", "</s>"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_export_and_serving_give_the_same_tokens(
    folder: Path, kind: str, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    write, expected = KINDS[kind]
    write(folder)
    locate_encoder(str(folder))
    training = load_tokenizer(str(folder), 32)
    assert training.encode(SENTENCES[0]).tokens == expected
    fine_tune(*toy_split[:2], recipe(folder, epochs=1, max_length=32), str(tmp_path / "model"))
    exported = export_bundle(str(tmp_path / "model"), str(tmp_path), origin(max_length=32), toy_split[1])
    classifier = Classifier.from_bundle(exported["bundle"], "cpu")
    sentences = SENTENCES * 40
    check_tokens(
        sentences,
        {
            "training": tokenise(training, sentences),
            "export": tokenise(load_tokenizer(str(tmp_path / "model"), 32), sentences),
            "serving": tokenise(classifier._tokenizer, sentences),
        },
    )
    stored = json.loads((Path(exported["bundle"]) / "tokenizer.json").read_text())
    assert (stored["truncation"], stored["padding"]) == (None, None)


def test_a_tokenizer_that_divides_a_sentence_in_several_ways_is_refused_before_training(
    folder: Path, toy_split: tuple[str, str, str], tmp_path: Path
) -> None:
    byte_pairs(folder, dropout=0.5).save(str(folder / "tokenizer.json"))
    message = r"^sentence '.*': the id of token \d+ is \d+ in training and \d+ in what is saved; expected the same: "
    with pytest.raises(UsageError, match=message) as caught:
        fine_tune(*toy_split[:2], recipe(folder, epochs=1), str(tmp_path / "model"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model-checkpoints").exists()
    with pytest.raises(UsageError, match=message):
        examine_encoder(locate_encoder(str(folder)), 32)


def test_the_first_difference_of_two_tokenizers_is_named(folder: Path) -> None:
    cased(folder)
    own = load_tokenizer(str(folder), 32)
    (folder / "tokenizer.json").unlink()
    vocabulary_alone(folder)
    other = load_tokenizer(str(folder), 32)
    texts = ["the cat", "the well-known Paris"]
    message = (
        f"sentence 'the well-known Paris': the id of token 3 is {VOCABULARY.index('well-known')} in training and "
        f"{VOCABULARY.index('well')} in serving; "
    )
    with pytest.raises(UsageError, match=message):
        check_tokens(texts, {"training": tokenise(own, texts), "serving": tokenise(other, texts)})


@pytest.mark.parametrize(("lower", "words"), [(True, 1), (False, 0)])
def test_capitals_that_a_lower_casing_tokenizer_never_gives_are_logged(
    folder: Path,
    toy_split: tuple[str, str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    lower: bool,
    words: int,
) -> None:
    vocabulary_alone(folder, do_lower_case=lower)
    assert lost_capitals(load_tokenizer(str(folder), 32)) == words
    names = [f"Name{number}" for number in range(9)]
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, *names]) + "\n")
    fine_tune(*toy_split[:2], recipe(folder, epochs=1), str(tmp_path / "model"))
    levels = [
        entry.levelno for entry in caplog.records if "10 words of its vocabulary have capitals" in entry.getMessage()
    ]
    assert levels == [logging.WARNING] * words


def test_a_bundle_whose_tokenizer_pads_and_truncates_is_served_without(exported: Any, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in Path(exported["bundle"]).iterdir():
        (bundle / path.name).write_bytes(path.read_bytes())
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.enable_padding(length=40, direction="left")
    tokenizer.enable_truncation(3, stride=1, direction="left")
    tokenizer.save(str(bundle / "tokenizer.json"))
    write_manifest(bundle, facts(), {})
    texts = ["the cat sees the dog", "dog", "the " * 40]
    expected = Classifier.from_bundle(exported["bundle"], "cpu").predict(texts)
    assert Classifier.from_bundle(bundle, "cpu").predict(texts) == expected
    assert [answer["truncated"] for answer in expected] == [False, False, True]


def test_a_tokenizer_file_is_cut_on_the_right_at_the_given_length_alone(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    expected = load_tokenizer(str(tmp_path), 6).encode("the cat sees the dog").ids
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    saved.enable_padding(length=40, direction="left")
    saved.enable_truncation(4, stride=1, strategy="only_first", direction="left")
    saved.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (load_tokenizer(str(tmp_path), 6), open_tokenizer(tmp_path / "tokenizer.json", 6)):
        assert tokenizer.encode("the cat sees the dog").ids == expected
        assert len(expected) == 6
