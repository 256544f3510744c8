"""A BERT and sentences that are small enough to train in a blink."""

from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from tasks.training.dataset import TokenDataset
from tasks.training.train_step import StepConfig

VOCABULARY = 20
SIGN = 19  # the token that makes a toy sentence unacceptable


def tiny_bert(seed: int = 0, dropout: float = 0.0, **changes: Any) -> BertForSequenceClassification:
    """Return a classifier of two layers, changed by name of its configuration."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 80,
        "initializer_range": 0.2,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return BertForSequenceClassification(BertConfig(**values | changes))


def toy_encoded(count: int, seed: int = 0) -> TokenDataset:
    """Return sentences of 3 to 9 tokens; one token decides the label."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(4, SIGN, rng.integers(3, 10)) for _ in range(count)]
    labels = rng.integers(0, 2, count)
    for row, label in zip(ids, labels, strict=True):
        if label == 0:
            row[rng.integers(len(row))] = SIGN
    return TokenDataset(ids, labels, 0, "cpu")


def toy_recipe(**changes: Any) -> StepConfig:
    """Return a recipe for these, changed by name."""
    values: dict[str, Any] = {
        "steps": 20,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "layer_decay": 1.0,
    }
    return StepConfig(**values | changes)
