"""The model that is trained: an encoder of transformers with a head for two classes, and its sentences as tokens."""

import numpy as np
import pandas as pd
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tasks.core.errors import UsageError, first_line
from tasks.inference.tokenization import encode
from tasks.training.dataset import TokenDataset
from tasks.training.losses import smooth_labels

LABELS = ["unacceptable", "acceptable"]


def load_classifier(folder: str, attention: str | None = None) -> PreTrainedModel:
    """Load a two-class classifier; an encoder without a head gets a new one.

    Args:
        folder: of a model saved by transformers.
        attention: transformers' name of an attention implementation; None for its choice.

    Raises:
        WrongUsage: if the folder is no such model.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
            ignore_mismatched_sizes=True,
            attn_implementation=attention,
            dtype=torch.float32,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise UsageError(
            f"encoder {folder!r} cannot be fine-tuned ({first_line(error)}); expected --encoder DIR|HUB_ID"
        ) from error


def encode_rows(
    rows: pd.DataFrame, tokenizer: Tokenizer, model: PreTrainedModel, device: str, label_smoothing: float = 0.0
) -> TokenDataset:
    """Tokenise sentences and bring them with their labels to the device."""
    ids = encode(tokenizer, rows["sentence"].tolist())
    targets = smooth_labels(rows["label"].to_numpy(np.int64), label_smoothing)
    return TokenDataset(ids, targets, model.config.pad_token_id or 0, device)
