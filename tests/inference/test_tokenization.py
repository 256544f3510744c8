"""Every sentence comes once, with little padding, in an order that the generator alone decides."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tasks.core.errors import UsageError
from tasks.inference.tokenization import (
    WINDOW,
    load_tokenizer,
    pad,
    shuffled_batches,
    sorted_batches,
    tokenise,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat"]

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # slow is not wrong
lengths_of_sentences = st.lists(st.integers(1, 40), max_size=300).map(lambda values: np.array(values, np.int64))
batch_sizes = st.integers(1, 40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def cola_like(count: int = 4000) -> NDArray[np.int64]:
    """Return sentence lengths spread like CoLA's: mean 11, a few above 30."""
    return 4 + np.random.default_rng(0).gamma(2.5, 2.8, count).astype(np.int64)


def padding_share(batches: list[NDArray[np.int64]], lengths: NDArray[np.int64]) -> float:
    cells = sum(len(batch) * lengths[batch].max() for batch in batches)
    return float(1 - lengths.sum() / cells)


def test_sentences_are_encoded_with_special_tokens_each_at_its_own_length(folder: Path) -> None:
    ids = tokenise(load_tokenizer(str(folder), 16), ["the cat sat", "cat", "", "the dog"]).rows()
    assert [row.tolist() for row in ids] == [[2, 4, 5, 6, 3], [2, 5, 3], [2, 3], [2, 4, 1, 3]]
    assert {row.dtype for row in ids} == {np.dtype(np.int64)}


@pytest.mark.parametrize("name", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_the_rules_of_tokenizer_json_hold_whatever_class_the_folder_names(folder: Path, name: str) -> None:
    """transformers 5 would split at the hyphen and lower the case (findings/transformers_tokenizer_json.sh)."""
    words = {word: i for i, word in enumerate([*WORDS, "Cat-sat"])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "do_lower_case": True}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(words)}))
    assert load_tokenizer(str(folder), 16).encode("Cat-sat cat").ids == [7, 5]


def test_no_sentences_encode_to_nothing(folder: Path) -> None:
    assert tokenise(load_tokenizer(str(folder), 16), []).rows() == []


@pytest.mark.parametrize(("max_length", "expected"), [(4, [2, 4, 5, 3]), (5, [2, 4, 5, 6, 3]), (6, [2, 4, 5, 6, 3])])
def test_longer_sentences_are_cut_off_before_the_last_special_token(
    folder: Path, max_length: int, expected: list[int]
) -> None:
    assert tokenise(load_tokenizer(str(folder), max_length), ["the cat sat"]).ids.tolist() == expected


def test_sentences_of_one_call_do_not_change_each_other(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder), 16)
    sentences = ["the cat sat", "cat", "sat the cat the"]
    alone = [tokenise(tokenizer, [sentence]).ids.tolist() for sentence in sentences]
    assert [row.tolist() for row in tokenise(tokenizer, sentences).rows()] == alone


@pytest.mark.parametrize("content", ["{", "", "{}", "[]"])
def test_broken_tokenizer_is_refused_with_what_was_expected(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match=r"cannot be loaded \(.*\); expected a tokenizer\.json") as caught:
        load_tokenizer(str(tmp_path), 16)
    assert repr(str(tmp_path / "tokenizer.json")) in str(caught.value)


@pytest.mark.parametrize("name", ["", "none"])
def test_folder_without_a_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"expected a tokenizer\.json") as caught:
        load_tokenizer(str(tmp_path / name), 16)
    assert repr(str(tmp_path / name)) in str(caught.value)


def test_padding_fills_the_right_and_the_mask_tells_it_from_tokens() -> None:
    ids, mask = pad([np.array([2, 9, 3]), np.array([2, 0, 7, 8, 3]), np.array([5])], pad_id=0)
    assert ids.tolist() == [[2, 9, 3, 0, 0], [2, 0, 7, 8, 3], [5, 0, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)


def test_padding_uses_the_given_token_and_equal_lengths_need_none() -> None:
    assert pad([np.array([1]), np.array([1, 1])], pad_id=9)[0].tolist() == [[1, 9], [1, 1]]
    ids, mask = pad([np.array([1, 2]), np.array([3, 4])], pad_id=9)
    assert ids.tolist() == [[1, 2], [3, 4]]
    assert mask.all()


@unhurried
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9))
def test_masked_tokens_are_the_sentences(sentences: list[list[int]]) -> None:
    ids, mask = pad([np.array(sentence, np.int64) for sentence in sentences], pad_id=0)
    assert [row[keep == 1].tolist() for row, keep in zip(ids, mask, strict=True)] == sentences


@unhurried
@given(lengths_of_sentences, batch_sizes, st.integers(0, 99))
def test_every_sentence_comes_once_in_shuffled_batches(lengths: NDArray[np.int64], size: int, seed: int) -> None:
    batches = shuffled_batches(lengths, size, np.random.default_rng(seed))
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
    assert all(len(batch) <= size for batch in batches)


@unhurried
@given(lengths_of_sentences, batch_sizes)
def test_sorted_batches_hold_every_sentence_once_from_short_to_long(lengths: NDArray[np.int64], size: int) -> None:
    batches = sorted_batches(lengths, size)
    order = [int(i) for batch in batches for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert lengths[order].tolist() == sorted(lengths.tolist())


def test_sentences_of_one_length_stay_in_order_when_sorted() -> None:
    assert [batch.tolist() for batch in sorted_batches(np.array([5, 3, 5, 3, 5]), 2)] == [[1, 3], [0, 2], [4]]


def test_shuffled_batches_pad_far_less_than_random_ones() -> None:
    lengths = cola_like()
    order = np.random.default_rng(1).permutation(len(lengths))
    random = [order[i : i + 32] for i in range(0, len(order), 32)]
    grouped = shuffled_batches(lengths, 32, np.random.default_rng(1))
    assert padding_share(random, lengths) > 0.4
    assert padding_share(grouped, lengths) < 0.1
    assert padding_share(sorted_batches(lengths, 32), lengths) < padding_share(grouped, lengths)


def test_one_generator_one_order() -> None:
    lengths = cola_like(500)
    one, same, other = ([b.tolist() for b in shuffled_batches(lengths, 8, np.random.default_rng(s))] for s in (1, 1, 2))
    assert one == same
    assert one != other


def test_each_epoch_of_one_generator_has_another_order_and_other_batches() -> None:
    rng = np.random.default_rng(0)
    first, second = ([b.tolist() for b in shuffled_batches(cola_like(5000), 16, rng)] for _ in range(2))
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


def test_batches_are_not_left_in_the_order_of_length() -> None:
    lengths = np.arange(WINDOW * 4)
    means = [float(lengths[batch].mean()) for batch in shuffled_batches(lengths, 4, np.random.default_rng(0))]
    assert means != sorted(means)


# Tokens in one array


def test_tokens_in_one_array_are_those_of_each_sentence(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder), 6)
    sentences = ["the cat sees", "", "dog", "the dog and the cat"]
    tokens = tokenise(tokenizer, sentences)
    apart = [tokenise(tokenizer, [sentence]).ids for sentence in sentences]
    assert tokens.lengths.tolist() == [len(row) for row in apart]
    for row, start, length in zip(apart, tokens.starts, tokens.lengths, strict=True):
        assert tokens.ids[start : start + length].tolist() == row.tolist()
    rows = np.array([3, 0, 3, 2])
    for found, expected in zip(tokens.batch(rows, 0), pad([apart[row] for row in rows], 0), strict=True):
        np.testing.assert_array_equal(found, expected)
