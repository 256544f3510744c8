"""Sentences that are tokenised together have the tokens that each has alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tasks.inference.bulk_tokenizer import GROUP_CHARACTERS, GROUP_SENTENCES, BulkTokenizer
from tasks.inference.tokenization import CHARACTERS_PER_TOKEN, TokenizedText, load_tokenizer, tokenise
from tasks.training.pretrained import locate_encoder

LIMIT = 16  # tokens
CORPUS = ["the cat sat on the mat.", "Who did you say that left?", "naïve cafés, 42 of them", "I'm sure it isn't"]
HOSTILE = [
    "", " ", "  two  spaces ", "[SEP]", "a [MASK] b", "[MASK]", "[MA", "SK]", "[UNK] unknown", "<s>", "</s> end",
    "<mask>",
    "\u0301combining first", "e\u0301", "日本語の文", "🙂🙃", "tab\tand\nline", "word " * 40, "x" * 300, "[PAD]",
    "\u00a0nbsp\u00a0", "\u200bzero width", "ﬁ ligature", "ΑΣ", "İstanbul",
]  # fmt: skip


def byte_level(prepend: bool) -> Tokenizer:
    """Return a tokenizer as RoBERTa's: byte-level BPE, <s> ... </s>, a mask that takes the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prepend)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS * 9, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def metaspace() -> Tokenizer:
    """Return a tokenizer that marks the first word of a text only: a joined text has one first word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(CORPUS * 9, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"]))
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return tokenizer


def limited(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.enable_truncation(LIMIT)
    return tokenizer


def packaged() -> Tokenizer:
    return load_tokenizer(locate_encoder("packaged")["folder"], LIMIT)


@pytest.fixture(scope="module", params=["word pieces", "byte level", "byte level with a space before"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = packaged() if request.param == "word pieces" else byte_level("space" in request.param)
    made.no_padding()
    made.enable_truncation(LIMIT)
    return made


@pytest.fixture(scope="module")
def bulk(tokenizer: Tokenizer) -> BulkTokenizer:
    made = BulkTokenizer.create(tokenizer)
    assert made is not None
    return made


def assert_equal(found: TokenizedText, expected: TokenizedText) -> None:
    for name, array in expected._asdict().items():
        assert np.array_equal(getattr(found, name), array), name


def test_sentences_have_their_own_tokens_in_any_company(tokenizer: Tokenizer, bulk: BulkTokenizer) -> None:
    sentences = (CORPUS + HOSTILE) * 7 + CORPUS * GROUP_SENTENCES
    found = bulk.tokenise(sentences)
    assert_equal(found, tokenise(tokenizer, sentences))
    assert 0 < found.truncated.sum() < len(sentences)


@given(st.lists(st.text(max_size=40) | st.sampled_from(CORPUS + HOSTILE), max_size=12))
@settings(max_examples=40, deadline=None)
def test_whatever_the_sentences_are(tokenizer: Tokenizer, bulk: BulkTokenizer, sentences: list[str]) -> None:
    assert_equal(bulk.tokenise(sentences), tokenise(tokenizer, sentences))


def tokenise_whole(tokenizer: Tokenizer, sentences: list[str]) -> list[tuple[list[int], bool]]:
    encodings = [tokenizer.encode(sentence) for sentence in sentences]
    return [(encoding.ids, bool(encoding.overflowing)) for encoding in encodings]


@pytest.mark.parametrize("space", [" ", "  ", " \n ", "\u3000", "\u00a0 ", "[SEP] ", " <mask> "])
def test_the_beginning_of_a_long_text_has_the_tokens_of_the_whole_text(tokenizer: Tokenizer, space: str) -> None:
    rng = np.random.default_rng(0)
    parts = [*CORPUS, *HOSTILE, "x" * 90, ",", "\u0301"]
    long = [space.join(rng.choice(parts, 60)) for _ in range(40)]
    hardly_any = [
        " " * 2_000,
        " " * 900 + "the cat " * 99,
        "x" * 5_000,
        "x" * 300 + " y" * 500,
        "word " * 12 + " " * 400,
    ]
    for made in (tokenizer, limited(metaspace())):
        found = tokenise(made, long + hardly_any)
        rows = [row.tolist() for row in found.rows()]
        assert list(zip(rows, found.truncated, strict=True)) == tokenise_whole(made, long + hardly_any)


def test_the_end_of_a_long_text_is_not_tokenised() -> None:
    lengths: list[int] = []

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def encode_batch_fast(self, texts: list[str]) -> Any:
            lengths.extend(map(len, texts))
            return real.encode_batch_fast(texts)

    real = packaged()
    tokenise(Counted(), ["the cat " * 10_000, "the cat"])  # type: ignore[arg-type]
    assert max(lengths) <= CHARACTERS_PER_TOKEN * LIMIT


def test_groups_end_at_their_limits(bulk: BulkTokenizer, tokenizer: Tokenizer) -> None:
    for count in (1, GROUP_SENTENCES - 1, GROUP_SENTENCES, GROUP_SENTENCES + 1):
        assert len(bulk.tokenise(CORPUS[:1] * count).lengths) == count
    long = ["word " * GROUP_CHARACTERS, "short", "word " * GROUP_CHARACTERS]
    assert_equal(bulk.tokenise(long), tokenise(tokenizer, long))


def test_without_truncation_no_sentence_is_cut() -> None:
    tokenizer = packaged()
    tokenizer.no_truncation()
    bulk = BulkTokenizer.create(tokenizer)
    assert bulk is not None
    assert_equal(bulk.tokenise(HOSTILE), tokenise(tokenizer, HOSTILE))
    assert not bulk.tokenise(HOSTILE).truncated.any()


def test_a_tokenizer_whose_sentences_depend_on_the_text_before_is_not_used(tmp_path: Path) -> None:
    assert BulkTokenizer.create(metaspace()) is None


def test_a_tokenizer_without_special_tokens_is_not_used() -> None:
    tokenizer = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert BulkTokenizer.create(tokenizer) is None
