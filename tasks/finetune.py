"""The training run: a pretrained encoder and labelled sentences in, the best epoch's classifier out.

Source of the recipe: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, appendix A.3. Unlike the book's notebook:
weight decay reaches the optimiser, batches are padded to their own longest sentence, the epoch with the best
validation MCC is kept, and one seed gives one result on one device.
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tasks.batching import Ids, encode, load_tokenizer, pad, shuffled_batches, sorted_batches
from tasks.device import resolve_device
from tasks.errors import WrongUsage
from tasks.files import new_folder, read_json, write_json
from tasks.metrics import accuracy, mcc
from tasks.progress import progress_bar
from tasks.reading import load_rows
from tasks.stepper import Batch, Stepper

LABELS = ["unacceptable", "acceptable"]
EVALUATION_BATCH = 64  # sentences

log = logging.getLogger(__name__)


class Epoch(TypedDict):
    """One epoch's figures; a loss that is no finite number is None."""

    epoch: int
    train_loss: float | None
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float
    validation_mcc: float
    seconds: float


class Training(TypedDict):
    """What a training run leaves: the model's folder, and how it went."""

    model: str
    device: str
    best_epoch: int
    epochs: list[Epoch]
    step_losses: list[float | None]
    seconds: float


class Encoded:
    """Tokenised sentences with their labels, ready to be batched on a device."""

    def __init__(self, ids: list[Ids], labels: NDArray[np.int64], pad_id: int, device: str) -> None:
        self.lengths = np.array([len(row) for row in ids])
        self.labels = labels
        self._ids, self._pad_id, self._device = ids, pad_id, device

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the rows as input_ids [B, S], attention_mask [B, S] and labels [B]."""
        ids, mask = pad([self._ids[row] for row in rows], self._pad_id)
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": self.labels[rows]}
        return {name: torch.from_numpy(array).to(self._device, non_blocking=True) for name, array in arrays.items()}


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
    max_length: int,
    max_grad_norm: float,
    seed: int,
    device: str,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """Fine-tune an encoder and write the best epoch's model to `folder`, whole or not at all.

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
        max_length: tokens a sentence is cut off at.
        max_grad_norm: L2 norm that gradients are clipped to.
        seed: of the head, dropout and batch order.
        device: auto, cuda or cpu.
        on_epoch: told of each finished epoch.

    Raises:
        WrongUsage: if the encoder's folder is no model that can classify sentences.
        VerdictError: if cuda is wanted and not there.
    """
    started = time.perf_counter()
    device = resolve_device(device)
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(encoder, max_length)
    model = load_classifier(encoder).to(device)
    sets = []
    for path in (train, validation):
        rows = load_rows(path)
        ids = encode(tokenizer, rows["sentence"].tolist())
        sets.append(Encoded(ids, rows["label"].to_numpy(np.int64), model.config.pad_token_id or 0, device))
    records, losses, best_epoch, best = _train_epochs(
        model, *sets, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, warmup_ratio=warmup_ratio,
        weight_decay=weight_decay, max_grad_norm=max_grad_norm, seed=seed, on_epoch=on_epoch,
    )  # fmt: skip
    model.load_state_dict(best)
    training = Training(
        model=folder,
        device=device_name(device),
        best_epoch=best_epoch,
        epochs=records,
        step_losses=losses,
        seconds=round(time.perf_counter() - started, 2),
    )
    with new_folder(Path(folder)) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save(str(scratch / "tokenizer.json"))
        write_json(scratch / "training.json", training)
    return training


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


def _train_epochs(
    model: nn.Module,
    train: Encoded,
    validation: Encoded,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None,
    **recipe: float,
) -> tuple[list[Epoch], list[float | None], int, Batch]:
    """Train; return the epochs' figures, each step's loss, the best epoch's number and its weights."""
    steps_per_epoch = math.ceil(len(train.labels) / batch_size)
    stepper = Stepper(model, steps=epochs * steps_per_epoch, **recipe)
    rng = np.random.default_rng(seed)
    records: list[Epoch] = []
    losses: list[float | None] = []
    best_epoch, best_rank = 0, (-math.inf, -math.inf)
    best: Batch = {}
    with progress_bar("fine-tuning", epochs * steps_per_epoch) as advance:
        for number in range(1, epochs + 1):
            started = time.perf_counter()
            model.train()
            results = []
            for rows in shuffled_batches(train.lengths, batch_size, rng):
                results.append(stepper.step(train.batch(rows)))
                advance()
            # One wait for the device an epoch: losses and counts stay there until now.
            epoch_losses = torch.stack([loss for loss, _ in results]).tolist()
            correct = int(torch.stack([count for _, count in results]).sum())
            record = Epoch(
                epoch=number,
                train_loss=_finite(float(np.mean(epoch_losses))),
                train_accuracy=correct / len(train.labels),
                **_validate(model, validation),  # type: ignore[typeddict-item]
                seconds=round(time.perf_counter() - started, 2),
            )
            records.append(record)
            losses += [_finite(loss) for loss in epoch_losses]
            rank = (record["validation_mcc"], -(record["validation_loss"] or math.inf))
            if not best or rank > best_rank:
                best_epoch, best_rank = number, rank
                best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            _report(record, epochs, on_epoch)
    return records, losses, best_epoch, best


@torch.inference_mode()
def _validate(model: nn.Module, validation: Encoded) -> dict[str, float | None]:
    """Measure loss, accuracy and MCC on the validation rows."""
    model.eval()
    logits = torch.zeros(len(validation.labels), len(LABELS))
    for rows in sorted_batches(validation.lengths, EVALUATION_BATCH):
        batch = validation.batch(rows)
        del batch["labels"]
        logits[rows] = model(**batch).logits.float().cpu()
    predictions = logits.argmax(-1).numpy()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(validation.labels))
    return {
        "validation_loss": _finite(float(loss)),
        "validation_accuracy": accuracy(validation.labels, predictions),
        "validation_mcc": mcc(validation.labels, predictions),
    }


def _report(record: Epoch, epochs: int, on_epoch: Callable[[Epoch], None] | None) -> None:
    log.info(
        "epoch %d/%d  loss %.4f  accuracy %.3f  validation MCC %.3f  %.1f s",
        record["epoch"], epochs, record["train_loss"] if record["train_loss"] is not None else math.nan,
        record["train_accuracy"], record["validation_mcc"], record["seconds"],
    )  # fmt: skip
    if on_epoch:
        on_epoch(record)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
