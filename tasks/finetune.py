"""The training run: a pretrained encoder and labelled sentences in, the best epoch's classifier out.

Source of the recipe: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, appendix A.3. Unlike the book's notebook:
weight decay reaches the optimiser, batches are padded to their own longest sentence, the epoch with the best
validation MCC is kept, and one seed gives one result on one device.
"""

import logging
import math
import time
from pathlib import Path
from typing import TypedDict

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tasks.batching import encode, load_tokenizer
from tasks.checkpoints import delete_checkpoints
from tasks.device import resolve_device
from tasks.encoded import Encoded
from tasks.epochs import Course, Epoch, OnEpoch, Places, train_epochs
from tasks.errors import WrongUsage
from tasks.files import digest_of, new_folder, read_json, sha256_of, write_json
from tasks.reading import load_rows
from tasks.stepper import IGNORED, Recipe

LABELS = ["unacceptable", "acceptable"]
SEED_STRIDE = 1_000  # between the seeds of restarts, so that they meet no seed that somebody chose next

log = logging.getLogger(__name__)


class Training(TypedDict):
    """What a training run leaves: the model's folder, and how it went; `seed` is the one that learned."""

    model: str
    device: str
    seed: int
    best_epoch: int
    epochs: list[Epoch]
    step_losses: list[float | None]
    seconds: float


def fine_tune(
    train: str,
    validation: str,
    encoder: str,
    folder: str,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    warmup_ratio: float,
    weight_decay: float,
    layer_decay: float,
    max_length: int,
    max_grad_norm: float,
    seed: int,
    restarts: int,
    checkpoint_seconds: float,
    device: str,
    on_epoch: OnEpoch | None = None,
) -> Training:
    """Fine-tune an encoder and write the best epoch's model to `folder`, whole or not at all.

    A run that was killed goes on from its last checkpoint, in `folder`-checkpoints; on a CPU it ends with the same bits
    as one that was not. A run that learned nothing (one class only, or a loss that is no number) starts again with
    another seed.

    Args:
        train: snapshot of the training rows.
        validation: snapshot of the rows that choose the epoch.
        encoder: folder of the pretrained encoder.
        folder: receives config.json, model.safetensors, tokenizer.json and training.json.
        epochs: passes over the training rows.
        batch_size: sentences a step.
        learning_rate: AdamW's peak.
        warmup_ratio: share of the steps before the peak.
        weight_decay: AdamW's, for matrices.
        layer_decay: share of the learning rate that a layer gets of the one above it; 1 for all alike.
        max_length: tokens a sentence is cut off at.
        max_grad_norm: L2 norm that gradients are clipped to.
        seed: of the head, dropout and batch order.
        restarts: further seeds that are tried where a run learned nothing.
        checkpoint_seconds: least time between two checkpoints; they are written between epochs.
        device: auto, cuda or cpu.
        on_epoch: told of each finished epoch.

    Raises:
        WrongUsage: if the encoder's folder is no model that can classify sentences.
        VerdictError: if cuda is wanted and not there.
    """
    started = time.perf_counter()
    device = resolve_device(device)
    tokenizer = load_tokenizer(encoder, max_length)
    rows = [load_rows(path) for path in (train, validation)]
    recipe = Recipe(
        steps=epochs * math.ceil(len(rows[0]) / batch_size), batch_size=batch_size, learning_rate=learning_rate,
        warmup_ratio=warmup_ratio, weight_decay=weight_decay, max_grad_norm=max_grad_norm, layer_decay=layer_decay,
    )  # fmt: skip
    digests = [sha256_of(Path(path)) for path in (train, validation)]
    run = digest_of([*digests, encoder, list(recipe), max_length, device])
    places = Places(f"{folder}-checkpoints", run, checkpoint_seconds)
    seeds = [seed + attempt * SEED_STRIDE for attempt in range(restarts + 1)]
    model, used, course = _train_until_it_learns(
        encoder, tokenizer, rows, recipe, epochs=epochs, seeds=seeds, device=device, places=places, on_epoch=on_epoch
    )
    training = Training(
        model=folder,
        device=device_name(device),
        seed=used,
        best_epoch=course.best_epoch,
        epochs=course.epochs,
        step_losses=course.step_losses,
        seconds=round(time.perf_counter() - started, 2),
    )
    _save(model, tokenizer, training)
    delete_checkpoints(places.folder)
    return training


def _train_until_it_learns(
    encoder: str,
    tokenizer: Tokenizer,
    rows: list[pd.DataFrame],
    recipe: Recipe,
    *,
    epochs: int,
    seeds: list[int],
    device: str,
    places: Places,
    on_epoch: OnEpoch | None,
) -> tuple[PreTrainedModel, int, Course]:
    """Train with one seed after the other until a run learns; return its model, seed and course."""
    for left, seed in zip(reversed(range(len(seeds))), seeds, strict=True):
        torch.manual_seed(seed)
        model = load_classifier(encoder).to(device)
        train, validation = (encode_rows(part, tokenizer, model, device) for part in rows)
        # Each seed has its own checkpoints, so that a run that is killed in its second try goes on with that.
        own = places._replace(folder=f"{places.folder}/seed-{seed}")
        course = train_epochs(model, train, validation, recipe, epochs=epochs, seed=seed, places=own, on_epoch=on_epoch)
        if not course.collapsed:
            break
        log.warning("seed %d learned nothing; %s", seed, "another one is tried" if left else "no further one is tried")
    return model, seed, course


def _save(model: PreTrainedModel, tokenizer: Tokenizer, training: Training) -> None:
    with new_folder(Path(training["model"])) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save(str(scratch / "tokenizer.json"))
        write_json(scratch / "training.json", training)


def encode_rows(rows: pd.DataFrame, tokenizer: Tokenizer, model: PreTrainedModel, device: str) -> Encoded:
    """Tokenise sentences and bring them with their labels to the device."""
    ids = encode(tokenizer, rows["sentence"].tolist())
    return Encoded(ids, rows["label"].to_numpy(np.int64), model.config.pad_token_id or 0, device, IGNORED)


def load_training(folder: str) -> Training | None:
    """Return the training that a finished folder records, or None; an unfinished one does not exist."""
    path = Path(folder) / "training.json"
    return read_json(path) if path.is_file() else None


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
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise WrongUsage(f"encoder {folder!r} cannot be fine-tuned ({first}); expected --encoder DIR|HUB_ID") from error


def device_name(device: str) -> str:
    """Return cpu, or the GPU's name."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
