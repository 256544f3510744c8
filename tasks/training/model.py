"""The model that is trained: an encoder of transformers with a classification head for two classes."""

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tasks.core.errors import UsageError, first_line

LABELS = ["unacceptable", "acceptable"]


def load_classifier(folder: str, attention: str | None = None) -> PreTrainedModel:
    """Load a two-class classifier in fp32; an encoder without a head gets a new, randomly initialised one.

    Args:
        folder: of a model saved by transformers.
        attention: transformers' name of an attention implementation; None for its choice.

    Raises:
        UsageError: if the folder holds no such model.
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
            trust_remote_code=False,  # None would ask on the terminal
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise UsageError(
            f"encoder {folder!r} cannot be fine-tuned ({first_line(error)}); expected --encoder DIR|HUB_ID"
        ) from error


def pad_token_id(folder: str) -> int:
    """Return the padding token of a model's configuration; 0 where it names none."""
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).pad_token_id or 0
