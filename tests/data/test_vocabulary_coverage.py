"""The share of unknown word pieces is exact, near it for a sample, and 0 for vocabularies that know every byte."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy import SIGN, WORDS, write_tokenizer

from tasks.core.errors import UsageError, VerdictError
from tasks.data import vocabulary_coverage
from tasks.data.snapshots import iter_snapshot, write_snapshot
from tasks.data.vocabulary_coverage import unk_rate


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """A folder with the tiny word-level tokeniser."""
    write_tokenizer(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def snapshot(folder: Path, sentences: list[str]) -> str:
    path = folder / "mine.tsv"
    path.write_text("".join(f"s\t1\t\t{sentence}\n" for sentence in sentences), encoding="utf-8")
    return write_snapshot([str(path)], str(folder))["path"]


def save(folder: Path, model: object, split: object) -> str:
    """Write a tokeniser of another kind."""
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


def test_all_of_a_small_file_is_read_whatever_its_pieces(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot(tmp_path, [f"{'wolf' if row % 7 == 3 else 'cat'} sees" for row in range(70)])
    monkeypatch.setattr(vocabulary_coverage, "iter_snapshot", lambda path, columns: iter_snapshot(path, columns, 3))
    assert unk_rate(path, encoder) == 10 / 140


@pytest.mark.parametrize("piece", [1, 4, 9, 10, 11, 1000])
def test_every_kth_row_of_a_large_file_is_read_whatever_its_pieces(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    path = snapshot(tmp_path, ["wolf" if row % 10 == 0 and row < 500 else "cat" for row in range(1000)])
    monkeypatch.setattr(vocabulary_coverage, "COVERAGE_SAMPLE_ROWS", 100)
    monkeypatch.setattr(vocabulary_coverage, "iter_snapshot", lambda path, columns: iter_snapshot(path, columns, piece))
    assert unk_rate(path, encoder) == 0.5  # rows 0, 10, 20 and so on


def test_sample_is_close_to_the_whole_where_the_unknown_stands_at_the_end(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot(tmp_path, ["the cat sees"] * 1500 + ["the wolf howls"] * 500)
    whole = unk_rate(path, encoder)
    assert whole == 1000 / 6000
    for rows in (50, 73, 199, 1999):
        monkeypatch.setattr(vocabulary_coverage, "COVERAGE_SAMPLE_ROWS", rows)
        assert unk_rate(path, encoder) == pytest.approx(whole, abs=0.01)


def test_sample_is_not_smaller_than_asked_for_and_less_than_twice_as_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = snapshot(tmp_path, ["cat"] * 1000)
    for rows in (1, 9, 300, 501, 999, 1000, 5000):
        monkeypatch.setattr(vocabulary_coverage, "COVERAGE_SAMPLE_ROWS", rows)
        assert min(rows, 1000) <= len(vocabulary_coverage._sample_rows(path)) < 2 * rows + 1


def test_no_rows_have_no_unknown_pieces(tmp_path: Path, encoder: str) -> None:
    (tmp_path / "bad.tsv").write_text("no row\n")
    assert unk_rate(write_snapshot([str(tmp_path / "bad.tsv")], str(tmp_path))["path"], encoder) == 0.0


def test_byte_level_vocabulary_knows_everything(tmp_path: Path) -> None:
    letters = {letter: place for place, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    encoder = save(tmp_path / "bytes", models.BPE(letters, []), pre_tokenizers.ByteLevel())
    assert unk_rate(snapshot(tmp_path, ["Élan 寿司 🙂 wolf"]), encoder) == 0.0


def test_word_piece_vocabulary_marks_whole_words_as_unknown(tmp_path: Path) -> None:
    pieces = {piece: place for place, piece in enumerate(["[UNK]", "cat", "##s", "the"])}
    model = models.WordPiece(pieces, unk_token="[UNK]")
    encoder = save(tmp_path / "pieces", model, pre_tokenizers.Whitespace())
    assert unk_rate(snapshot(tmp_path, ["the cats catch"]), encoder) == 1 / 4


def test_unigram_vocabulary_names_its_unknown_piece_by_number(tmp_path: Path) -> None:
    model = models.Unigram([("<pad>", 0.0), ("<unk>", 0.0), ("c", -1.0), ("a", -1.0), ("t", -1.0)], 1, False)
    encoder = save(tmp_path / "unigram", model, pre_tokenizers.Whitespace())
    assert unk_rate(snapshot(tmp_path, ["cat x"]), encoder) == 1 / 4


def test_unknown_token_that_is_not_in_the_vocabulary_cannot_occur(tmp_path: Path) -> None:
    model = models.BPE({"a": 0, "b": 1}, [], unk_token="<unk>")
    encoder = save(tmp_path / "odd", model, pre_tokenizers.Whitespace())
    assert unk_rate(snapshot(tmp_path, ["a b"]), encoder) == 0.0


def test_folder_without_a_tokeniser_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match=r"cannot be loaded \(.*\); expected a tokenizer\.json$"):
        unk_rate(snapshot(tmp_path, ["cat"]), str(tmp_path / "encoder"))


def test_missing_snapshot_is_refused_in_one_line(tmp_path: Path, encoder: str) -> None:
    with pytest.raises(VerdictError, match=r"^snapshot .* cannot be read \(.*\); delete it and run again$"):
        unk_rate(str(tmp_path / "none.parquet"), encoder)
