"""The share of unknown word pieces is exact, close to that for a sample, and 0 for byte-level vocabularies."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy import SIGN, WORDS, write_tokenizer

from tasks.core.errors import UsageError, VerdictError
from tasks.data import encoder_view
from tasks.data.encoder_view import EncoderView
from tasks.data.snapshots import iter_snapshot, write_snapshot


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """A folder with the tiny word-level tokenizer."""
    write_tokenizer(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def snapshot(folder: Path, sentences: list[str]) -> str:
    path = folder / "mine.tsv"
    path.write_text("".join(f"s\t1\t\t{sentence}\n" for sentence in sentences), encoding="utf-8")
    return write_snapshot([str(path)], str(folder))["path"]


def unk_rate(path: str, encoder: str) -> float:
    return EncoderView(encoder, 512).read(path).unknown


def save(folder: Path, model: object, split: object) -> str:
    """Write a tokenizer of another model."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.mark.parametrize(
    ("sentences", "share"),
    [
        (["the cat sees the dog"], 0.0),
        (["the cat sees the wolf"], 1 / 5),
        (["the cat sees", "a wolf", "the red bird"], 2 / 8),
        (["Lupus est"], 1.0),
        (["the cat.", "the Cat"], 2 / 5),  # a full stop is a piece, and case counts
        ([" ".join([*WORDS, SIGN])], 0.0),
    ],
)
def test_share_of_unknown_pieces_is_exact(tmp_path: Path, encoder: str, sentences: list[str], share: float) -> None:
    assert unk_rate(snapshot(tmp_path, sentences), encoder) == share


def test_special_tokens_are_no_pieces(tmp_path: Path, encoder: str) -> None:
    assert unk_rate(snapshot(tmp_path, ["wolf"] * 9 + ["cat"]), encoder) == 0.9


def test_share_is_of_all_pieces_and_not_of_sentences(tmp_path: Path, encoder: str) -> None:
    assert unk_rate(snapshot(tmp_path, ["wolf", "the cat sees the dog"]), encoder) == 1 / 6


def test_all_rows_of_a_small_file_are_read_in_batches_of_any_size(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot(tmp_path, [f"{'wolf' if row % 7 == 3 else 'cat'} sees" for row in range(70)])
    monkeypatch.setattr(encoder_view, "iter_snapshot", lambda path, columns: iter_snapshot(path, columns, 3))
    assert unk_rate(path, encoder) == 10 / 140


def test_every_kth_row_of_a_large_file_is_read_in_batches_of_any_size(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot(tmp_path, ["wolf" if row % 10 == 0 and row < 500 else "cat" for row in range(1000)])
    monkeypatch.setattr(encoder_view, "TOKENISED_ROWS", 100)
    for size in (1, 4, 9, 10, 11, 1000):
        monkeypatch.setattr(
            encoder_view, "iter_snapshot", lambda path, columns, size=size: iter_snapshot(path, columns, size)
        )
        assert unk_rate(path, encoder) == 0.5, size  # rows 0, 10, 20 and so on


def test_a_sample_covers_the_end_of_the_file(tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = snapshot(tmp_path, ["the cat sees"] * 1500 + ["the wolf howls"] * 500)
    whole = unk_rate(path, encoder)
    assert whole == 1000 / 6000
    for rows in (50, 73, 199, 1999):
        monkeypatch.setattr(encoder_view, "TOKENISED_ROWS", rows)
        assert unk_rate(path, encoder) == pytest.approx(whole, abs=0.01)


def test_a_sample_is_at_least_as_large_as_requested_and_less_than_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot(tmp_path, ["cat"] * 1000)
    for rows in (1, 9, 300, 501, 999, 1000, 5000):
        monkeypatch.setattr(encoder_view, "TOKENISED_ROWS", rows)
        assert min(rows, 1000) <= len(encoder_view._sample_rows(path)[1]) < 2 * rows + 1


def test_the_rate_of_no_rows_is_0(tmp_path: Path, encoder: str) -> None:
    (tmp_path / "bad.tsv").write_text("no row\n")
    assert unk_rate(write_snapshot([str(tmp_path / "bad.tsv")], str(tmp_path))["path"], encoder) == 0.0


def test_a_byte_level_vocabulary_has_no_unknown_pieces(tmp_path: Path) -> None:
    letters = {letter: index for index, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    encoder = save(tmp_path / "bytes", models.BPE(letters, []), pre_tokenizers.ByteLevel())
    assert unk_rate(snapshot(tmp_path, ["Élan 寿司 🙂 wolf"]), encoder) == 0.0


def test_a_wordpiece_vocabulary_marks_complete_words_as_unknown(tmp_path: Path) -> None:
    pieces = {piece: index for index, piece in enumerate(["[UNK]", "cat", "##s", "the"])}
    model = models.WordPiece(pieces, unk_token="[UNK]")
    encoder = save(tmp_path / "pieces", model, pre_tokenizers.Whitespace())
    assert unk_rate(snapshot(tmp_path, ["the cats catch"]), encoder) == 1 / 4


def test_a_unigram_vocabulary_has_an_unknown_id(tmp_path: Path) -> None:
    model = models.Unigram([("<pad>", 0.0), ("<unk>", 0.0), ("c", -1.0), ("a", -1.0), ("t", -1.0)], 1, False)
    encoder = save(tmp_path / "unigram", model, pre_tokenizers.Whitespace())
    assert unk_rate(snapshot(tmp_path, ["cat x"]), encoder) == 1 / 4


def test_a_tokenizer_whose_unknown_token_is_not_in_its_vocabulary_is_a_usage_error(tmp_path: Path) -> None:
    model = models.BPE({"a": 0, "b": 1}, [], unk_token="<unk>")
    encoder = save(tmp_path / "odd", model, pre_tokenizers.Whitespace())
    with pytest.raises(UsageError, match=r"cannot be loaded \(.*<unk>.*\); expected a tokenizer\.json"):
        unk_rate(snapshot(tmp_path, ["a b"]), encoder)


def test_a_folder_without_a_tokenizer_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=r"cannot be loaded \(.*\); expected a tokenizer\.json"):
        unk_rate(snapshot(tmp_path, ["cat"]), str(tmp_path / "encoder"))


def test_a_missing_snapshot_is_an_error_of_one_line(tmp_path: Path, encoder: str) -> None:
    with pytest.raises(VerdictError, match=r"^snapshot .* cannot be read \(.*\); delete it and run again$"):
        unk_rate(str(tmp_path / "none.parquet"), encoder)
