"""A sentence that is longer than the model reads is reported, and none is answered differently because of its batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import SIGN, WORDS, write_tokenizer

from tasks.inference import classifier as classifier_module
from tasks.inference.classifier import Classifier
from tasks.inference.pyfunc import _load_pyfunc
from tasks.inference.tokenization import load_tokenizer, tokenise

GOOD, BAD = "the cat sees the dog", f"the cat {SIGN} sees the dog"
MAX_LENGTH = 16  # of the bundle; two tokens are special
FITS, TOO_LONG = " ".join(["cat"] * 14), " ".join(["cat"] * 15)
TEXTS = [GOOD, TOO_LONG, "", FITS, TOO_LONG * 50, BAD]
TRUNCATED = [False, True, False, False, True, False]


@pytest.fixture(scope="module")
def classifier(exported: Any) -> Classifier:
    return Classifier.from_bundle(exported["bundle"], "cpu")


@pytest.mark.parametrize("length", [4, 5, 7])
def test_sentences_cut_at_the_limit_are_marked_and_those_that_just_fit_are_not(tmp_path: Path, length: int) -> None:
    write_tokenizer(tmp_path)
    texts = [" ".join(["cat"] * words) for words in range(9)]
    tokens = tokenise(load_tokenizer(str(tmp_path), length), texts)
    assert tokens.truncated.tolist() == [words + 2 > length for words in range(9)]
    assert tokens.lengths.tolist() == [min(words + 2, length) for words in range(9)]


def test_without_a_limit_nothing_is_truncated(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), 8)
    tokenizer.no_truncation()
    tokens = tokenise(tokenizer, ["cat " * 6, "cat " * 90])
    assert (tokens.truncated.tolist(), tokens.lengths.tolist()) == ([False, False], [8, 92])


def test_every_prediction_says_whether_its_sentence_was_truncated(classifier: Classifier) -> None:
    answers = classifier.predict(TEXTS)
    assert [answer["truncated"] for answer in answers] == TRUNCATED
    assert {type(answer["truncated"]) for answer in answers} == {bool}


def test_marks_keep_their_sentences_over_chunks_and_parallel_batches(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier_module, "CHUNK_SENTENCES", 50)
    monkeypatch.setattr(classifier_module, "POOL_MIN_SENTENCES", 100)
    answers = classifier.predict(TEXTS * 40)
    assert [answer["truncated"] for answer in answers] == TRUNCATED * 40
    assert [answer["sentence"] for answer in answers] == TEXTS * 40


def test_the_pyfunc_model_has_a_boolean_column(exported: Any) -> None:
    answers = _load_pyfunc(exported["bundle"], {"device": "cpu"}).predict(TEXTS)
    assert list(answers.columns) == ["label", "probability", "truncated", "version"]
    assert answers["truncated"].tolist() == TRUNCATED
    assert answers["truncated"].dtype == np.bool_


@pytest.mark.parametrize(("variant", "tolerance"), [("fp32", 1e-5), ("fp16", 1e-3), ("int8", 1e-3)])
@pytest.mark.parametrize("batch", [3, 32])
def test_an_answer_does_not_depend_on_the_batch(
    complete: Any, variant: str, tolerance: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of mixed lengths, so that short sentences are padded to the longest."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([*WORDS, SIGN], rng.integers(0, 15))) for _ in range(90)] + [TOO_LONG] * 6
    classifier = Classifier.from_bundle(complete["bundle"], "cpu", variant)
    alone = np.concatenate([classifier.probabilities([text]) for text in texts])
    order = rng.permutation(len(texts))
    mixed = [order[start : start + batch] for start in range(0, len(order), batch)]
    monkeypatch.setattr(classifier_module, "sorted_batches", lambda lengths, size: mixed)
    together = classifier.probabilities(texts)
    assert np.abs(together - alone).max() <= tolerance
