"""The bundled corpus: format, counts, seeds, minimal pairs, and nothing for a bag of words to learn."""

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef
from sklearn.pipeline import make_pipeline

from tasks.data.cola_format import Row
from tasks.data.sample_corpus import (
    HOLDOUT_FILE,
    TRAIN_FILE,
    Split,
    generate,
    generate_pairs,
    load_grammar,
    write_sample,
)

SEED = 2018
CONTENT_WORDS = load_grammar().content_words
TEMPLATES = load_grammar().templates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample")
    write_sample(path, SEED)
    return path


def read_rows(path: Path) -> list[Row]:
    """Read a file by its bytes, with no code of the product."""
    lines = path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    fields = [line.split("\t") for line in lines]
    return [
        Row(line, source, int(label), mark, sentence) for line, (source, label, mark, sentence) in enumerate(fields, 1)
    ]


def lexicon(split: Split) -> set[str]:
    return {form for entries in CONTENT_WORDS[split].values() for forms in entries for form in forms}


def words_of(sentence: str) -> list[str]:
    return re.findall(r"[\w']+", sentence)


def holdout_mcc(ngram: int, train: list[Row], holdout: list[Row]) -> float:
    """MCC in [-1, 1] on the holdout of a logistic regression over the counts of word n-grams of one length."""
    counts = CountVectorizer(ngram_range=(ngram, ngram), token_pattern=r"[\w']+")
    model = make_pipeline(counts, LogisticRegression(max_iter=1000))
    model.fit([row.sentence for row in train], [row.label for row in train])
    predicted = model.predict([row.sentence for row in holdout])
    return float(matthews_corrcoef([row.label for row in holdout], predicted))


@pytest.mark.parametrize(("name", "count"), [(TRAIN_FILE, 4000), (HOLDOUT_FILE, 800)])
def test_half_of_the_rows_of_each_file_are_acceptable(folder: Path, name: str, count: int) -> None:
    rows = read_rows(folder / name)
    assert Counter((row.label, row.mark) for row in rows) == {(1, ""): count // 2, (0, "*"): count // 2}


@pytest.mark.parametrize("name", [TRAIN_FILE, HOLDOUT_FILE])
def test_files_are_utf8_with_lf_and_no_quoting(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    assert data.endswith(b"\n")
    assert not data.endswith(b"\n\n")
    assert b"\r" not in data
    assert b'"' not in data


@pytest.mark.parametrize(("name", "share"), [(TRAIN_FILE, 250), (HOLDOUT_FILE, 50)])
def test_every_phenomenon_has_the_same_share_of_both_labels(folder: Path, name: str, share: int) -> None:
    found = Counter((row.source, row.label) for row in read_rows(folder / name))
    assert found == {(source, label): share // 2 for source in TEMPLATES for label in (0, 1)}


def test_there_are_sixteen_phenomena() -> None:
    assert len(TEMPLATES) == 16


def test_no_sentence_occurs_twice_within_or_across_files(folder: Path) -> None:
    sentences = [row.sentence for name in (TRAIN_FILE, HOLDOUT_FILE) for row in read_rows(folder / name)]
    assert len(set(sentences)) == len(sentences) == 4800


def test_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, SEED)
    for name in (TRAIN_FILE, HOLDOUT_FILE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_default_corpus_has_the_known_digest(folder: Path) -> None:
    # All recorded metrics of sample runs depend on these bytes: change the digest only together with the grammar.
    data = b"".join((folder / name).read_bytes() for name in (TRAIN_FILE, HOLDOUT_FILE))
    assert hashlib.sha256(data).hexdigest() == "418440fd20d35d783c8fdf13c32a13432b7c1dd82feb2de01cf55e6782b8b2f8"


def test_different_seeds_give_different_sentences() -> None:
    first, second = ({row.sentence for row in generate("train", 4000, seed)} for seed in (1, 2))
    assert len(first & second) < 2000


def test_writing_replaces_old_files_and_leaves_no_temporary_one(tmp_path: Path) -> None:
    (tmp_path / TRAIN_FILE).write_text("old")
    write_sample(tmp_path, SEED)
    assert sorted(path.name for path in tmp_path.iterdir()) == [TRAIN_FILE, HOLDOUT_FILE]
    assert len(read_rows(tmp_path / TRAIN_FILE)) == 4000


def test_killed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    (tmp_path / TRAIN_FILE).write_text("old")
    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path, SEED)
    assert (tmp_path / TRAIN_FILE).read_text() == "old"


def test_content_lexicons_are_disjoint() -> None:
    assert not lexicon("train") & lexicon("holdout")


def test_files_share_only_function_words(folder: Path) -> None:
    train, holdout = (
        {word.lower() for row in read_rows(folder / name) for word in words_of(row.sentence)}
        for name in (TRAIN_FILE, HOLDOUT_FILE)
    )
    assert train & {word.lower() for word in lexicon("holdout")} == set()
    assert holdout & {word.lower() for word in lexicon("train")} == set()


def test_both_lexicons_have_the_same_classes_and_forms() -> None:
    def shape(split: Split) -> dict[str, set[int]]:
        return {name: {len(forms) for forms in entries} for name, entries in CONTENT_WORDS[split].items()}

    assert shape("train") == shape("holdout")
    assert all(len(forms) == 1 for forms in shape("train").values())


def test_every_word_belongs_to_one_class() -> None:
    for classes in CONTENT_WORDS.values():
        words = [form for entries in classes.values() for forms in entries for form in forms]
        assert [word for word, times in Counter(words).items() if times > 1] == []


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_pairs_hold_the_same_words_in_another_order(split: Split) -> None:
    for pair in generate_pairs(split, 800, SEED):
        assert pair.good != pair.bad
        assert sorted(words_of(pair.good.lower())) == sorted(words_of(pair.bad.lower()))


def test_rows_are_the_two_halves_of_the_pairs() -> None:
    pairs = generate_pairs("holdout", 400, SEED)
    good = {(pair.source, 1, "", pair.good) for pair in pairs}
    bad = {(pair.source, 0, "*", pair.bad) for pair in pairs}
    rows = generate("holdout", 800, SEED)
    assert {row[1:] for row in rows} == good | bad
    assert [row.line for row in rows] == list(range(1, 801))


def test_short_list_of_pairs_begins_the_long_one() -> None:
    assert generate_pairs("train", 2000, SEED)[:40] == generate_pairs("train", 40, SEED)


def test_sentences_are_short_capitalised_and_closed() -> None:
    for row in generate("train", 4000, SEED):
        assert 4 <= len(row.sentence.split()) <= 11
        assert re.fullmatch(r"[A-Z][A-Za-z', ]+[.?]", row.sentence), row


def test_article_a_never_meets_a_vowel() -> None:
    sentences = [row.sentence for split in CONTENT_WORDS for row in generate(split, 800, SEED)]
    assert [sentence for sentence in sentences if re.search(r"\b(a [aeiou]|an )", sentence)] == []


def test_a_bag_of_words_model_learns_nothing(folder: Path) -> None:
    train, holdout = read_rows(folder / TRAIN_FILE), read_rows(folder / HOLDOUT_FILE)
    unigram, bigram = (holdout_mcc(n, train, holdout) for n in (1, 2))
    print(f"holdout MCC: unigrams {unigram:.3f}, bigrams {bigram:.3f}")
    assert abs(unigram) < 0.05  # 0 by construction: both halves of a pair hold the same words
    assert bigram < 0.4


@pytest.mark.parametrize(
    ("split", "count", "message"),
    [
        ("dev", 2, "split is 'dev'"),
        ("train", 3, "count is 3"),
        ("train", -2, "count is -2"),
        ("holdout", 99998, "request fewer"),
    ],
)
def test_impossible_requests_name_the_value(split: Split, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(split, count, SEED)


def test_every_template_occurs_in_the_holdout() -> None:
    pairs = 400 // len(TEMPLATES)  # of one phenomenon
    assert all(1 < len(templates) <= pairs for templates in TEMPLATES.values())
