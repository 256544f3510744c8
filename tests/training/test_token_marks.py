"""Which tokens of a corrupted sentence are wrong, and the head and loss that learn it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_tape import TapeRecorder
from safetensors.torch import load_file
from tiny import VOCABULARY, tiny_bert, toy_recipe
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy import Trainer
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from tasks.training.corruption import CORRUPTIONS, corrupt
from tasks.training.corruption_stage import run_corruption_stage
from tasks.training.cuda_graph_step import CaptureVariant, CudaGraphStep
from tasks.training.dataset import TokenDataset
from tasks.training.finetune import make_job
from tasks.training.losses import NO_MARK, token_loss
from tasks.training.token_head import TokenHead
from tasks.training.token_marks import mark_tokens, wrong_spans
from tasks.training.train_step import EagerStep
from tasks.training.training_job import WEIGHTS_FILE, TokenizedData

FIVE = "The cat sees a dog."


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        (FIVE, []),
        ("The cat a sees dog.", ["a", "dog"]),  # "a" was put in, and something lacks before "dog"
        ("The cat sees a cat.", ["cat"]),
        ("The cat sees dog.", ["dog"]),
        ("The cat sees a.", ["."]),
        ("The the cat sees a dog.", ["the"]),
        ("The cat sees a dog", ["dog"]),
        ("sees a dog The cat.", ["sees", "The", "cat"]),
    ],
)
def test_moved_changed_and_following_words_are_wrong(sentence: str, wrong: list[str]) -> None:
    assert [sentence[start:end] for start, end in wrong_spans(FIVE, sentence)] == wrong


def test_every_corrupted_sentence_has_a_wrong_word() -> None:
    sentences = [FIVE, "our friends wo n't buy this analysis .", "A child hears the small dogs, today!"]
    for way in dict.fromkeys(CORRUPTIONS):
        for sentence in sentences:
            for corrupted in corrupt([sentence], sentences, 5, 0, corruptions=[way]):
                spans = list(wrong_spans(sentence, corrupted))
                assert spans, (sentence, corrupted)
                assert all(corrupted[start:end].strip() == corrupted[start:end] != "" for start, end in spans)


def test_tokens_of_wrong_words_are_marked_and_special_ones_are_not() -> None:
    vocabulary = {
        word: number for number, word in enumerate(["[CLS]", "[SEP]", "[UNK]", "the", "cat", "##s", "see", "."])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    marks = mark_tokens(tokenizer, ["the cats see .", "the cats see ."], ["the cats see .", "the sees cat ."])
    assert [mark.tolist() for mark in marks] == [[-1, 0, 0, 0, 0, 0, -1], [-1, 0, 1, 1, 1, 0, -1]]
    tokenizer.enable_truncation(4)
    assert mark_tokens(tokenizer, ["the see ."], ["the cats see ."])[0].tolist() == [-1, 0, 1, -1]


def test_marks_are_gathered_with_the_tokens_and_padded() -> None:
    ids = [np.array([3, 4, 5]), np.array([6, 7])]
    data = TokenDataset(ids, np.array([0, 1]), 0, "cpu", [np.array([1.0, 0.0]), np.array([NO_MARK, 1.0])])
    marks = data.gather_marks(torch.tensor([1, 0, 2]), 4)
    assert marks is not None
    assert marks.tolist() == [[-1, 1, -1, -1], [1, 0, -1, -1], [-1, -1, -1, -1]]
    assert TokenDataset(ids, np.array([0, 1]), 0, "cpu").gather_marks(torch.tensor([0]), 4) is None


def test_the_loss_of_tokens_is_averaged_in_each_sentence() -> None:
    logits = torch.tensor([[0.0, math.log(3), 5.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    marks = torch.tensor([[1.0, 0.0, NO_MARK], [1.0, NO_MARK, NO_MARK], [NO_MARK] * 3])
    expected = ((math.log(2) + math.log(4)) / 2 + math.log(2)) / 4
    assert float(token_loss(logits, marks, 4)) == pytest.approx(expected, rel=1e-6)


def marked(count: int = 4) -> TokenDataset:
    rng = np.random.default_rng(0)
    ids = [rng.integers(4, VOCABULARY, rng.integers(3, 8)) for _ in range(count)]
    marks = [np.array([NO_MARK, *rng.integers(0, 2, len(row) - 1)], np.float32) for row in ids]
    return TokenDataset(ids, rng.integers(0, 2, count), 0, "cpu", marks)


@pytest.mark.parametrize("fused", [False, True], ids=["plain layers", "fused layers"])
def test_a_captured_step_with_marks_is_the_eager_one(fused: bool) -> None:
    sizes = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 1, "n_heads": 1, "hidden_dim": 16}
    sizes |= {"max_position_embeddings": 8}
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    steps: list[EagerStep | CudaGraphStep] = []
    for kind in ("eager", "captured"):
        torch.manual_seed(0)
        model = TokenHead(DistilBertForSequenceClassification(DistilBertConfig(**sizes, **rates)))
        chosen = toy_recipe(steps=2, batch_size=2, learning_rate=1e-2, token_loss=5.0)
        if kind == "eager":
            steps.append(EagerStep(model, marked(), chosen))
        else:
            variant = CaptureVariant(fused, full_mask=not fused)
            steps.append(CudaGraphStep(model, marked(), chosen, variant, TapeRecorder(), dtype=torch.float32))
    batches = [np.arange(0, 2), np.arange(2, 4)]
    losses = [step.run(batches, 0, lambda: None).losses for step in steps]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-4)
    assert losses[0][0] > 3  # five times log 2, and the sentences' own


def test_an_unwrapped_model_is_as_it_was() -> None:
    model = tiny_bert()
    names, hooks = list(model.state_dict()), len(model.base_model._forward_hooks)
    head = TokenHead(model)
    inputs = {"input_ids": torch.tensor([[4, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    output = head(**inputs)
    assert (output.logits.shape, output.token_logits.shape) == ((1, 2), (1, 3))
    assert head.unwrap() is model
    assert (list(model.state_dict()), len(model.base_model._forward_hooks)) == (names, hooks)


def test_a_stage_with_marks_gives_another_start_without_the_head(
    make_trainer: Callable[[], Trainer],
) -> None:
    found: dict[float, Any] = {}
    for weight in (0.0, 5.0):
        trainer = make_trainer()
        job = make_job(
            trainer.train_rows, trainer.validation_rows, trainer.recipe(corruptions=1, token_loss=weight),
            str(trainer.checkpoints),
        )  # fmt: skip
        found[weight] = load_file(Path(run_corruption_stage(job, TokenizedData(job))) / WEIGHTS_FILE)
    assert found[0.0].keys() == found[5.0].keys()
    assert not torch.equal(*(weights["classifier.weight"] for weights in found.values()))
