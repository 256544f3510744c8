"""A BERT and sentences that are small enough to train in a blink."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tasks.training.dataset import TokenDataset
from tasks.training.train_step import StepConfig

if TYPE_CHECKING:
    from transformers import BertForSequenceClassification

VOCABULARY = 20
SIGN = 19  # the token that makes a toy sentence unacceptable


def tiny_bert(seed: int = 0, dropout: float = 0.0, **changes: Any) -> "BertForSequenceClassification":
    """Return a classifier of two layers, changed by name of its configuration."""
    from transformers import BertConfig, BertForSequenceClassification  # seconds that `Words` does without

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


class Words(nn.Module):
    """A classifier that runs and captures quickly: the mean of the words' embeddings, one layer, dropout, a head.

    `on_forward` is called with this model and its inputs before each pass.
    """

    def __init__(
        self,
        on_forward: Callable[[Any, torch.Tensor, torch.Tensor], None] = lambda *_: None,
        seed: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embeddings = nn.Embedding(VOCABULARY, 12)
        self.layer = nn.ModuleList([nn.Linear(12, 12)])
        self.head = nn.Linear(12, 2)
        self.dropout = dropout
        self.on_forward = on_forward
        self.rows: list[int] = []  # of each pass

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.rows.append(len(input_ids))
        self.on_forward(self, input_ids, attention_mask)
        shown = attention_mask if attention_mask.ndim == 2 else (attention_mask[:, 0, 0] == 0)  # or as added to scores
        weights = shown.to(self.head.weight.dtype)[..., None]
        mean = (self.embeddings(input_ids) * weights).sum(1) / weights.sum(1)
        hidden = torch.tanh(self.layer[0](mean))
        if self.dropout:
            hidden = nn.functional.dropout(hidden, self.dropout, self.training)
        return SimpleNamespace(logits=self.head(hidden))


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
