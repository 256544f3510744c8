"""The epochs of a training run: train, validate, keep the best, go on from a checkpoint."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import nn

from tasks.core.errors import VerdictError
from tasks.core.progress import progress_bar
from tasks.evaluation.metrics import accuracy, mcc
from tasks.inference.tokenization import shuffled_batches, sorted_batches
from tasks.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from tasks.training.cuda_graph_step import CudaGraphStep, make_train_step
from tasks.training.cuda_graphs import cudnn_attention_disabled
from tasks.training.dataset import TokenDataset
from tasks.training.fused_layers import unfuse
from tasks.training.process_group import ProcessGroup
from tasks.training.train_step import EagerStep, Rows, StepConfig, shard

EVALUATION_BATCH = {"cpu": 64, "cuda": 256}  # sentences

log = logging.getLogger(__name__)


class EpochRecord(TypedDict):
    """One epoch's figures, and the seed of its run; a loss that is no finite number is None."""

    seed: int
    epoch: int
    train_loss: float | None
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float
    validation_mcc: float
    seconds: float


class TrainingHistory(NamedTuple):
    """How a run went: each epoch's figures, each step's loss, the best epoch, and whether it learned nothing."""

    epochs: list[EpochRecord]
    step_losses: list[float | None]
    best_epoch: int
    collapsed: bool


class CheckpointConfig(NamedTuple):
    """Where a run keeps its checkpoints, what names it, and the least number of seconds between two."""

    folder: str
    run: str
    seconds: float


OnEpoch = Callable[[EpochRecord], None]


@cudnn_attention_disabled()
def train_epochs(
    model: nn.Module,
    train: TokenDataset,
    validation: TokenDataset,
    recipe: StepConfig,
    *,
    epochs: int,
    seed: int,
    patience: int = 0,
    places: CheckpointConfig | None = None,
    on_epoch: OnEpoch | None = None,
    team: ProcessGroup | None = None,
) -> TrainingHistory:
    """Train; afterwards the model holds the weights of the epoch with the best validation MCC, in fp32.

    Args:
        model: on its device.
        train: sentences to train on.
        validation: sentences that choose the epoch.
        recipe: how a step is made.
        epochs: passes over the training sentences.
        seed: of the batches' order; dropout draws from torch's generator.
        patience: epochs without a better one after which training ends; 0 for never.
        places: where checkpoints lie; None: none are kept.
        on_epoch: told of each finished epoch.
        team: processes that train together; each calls this with the same arguments and the same weights come out.
            Rank 0 alone writes checkpoints, shows progress and calls `on_epoch`; its log is the one that `launch` lets
            through. Dropout draws from seed, epoch and rank: a run that goes on draws what it would have drawn, if it
            has as many processes.

    Raises:
        VerdictError: if the processes of a team do not find the same checkpoint.
    """
    lead = team is None or team.rank == 0
    if team:
        team.seed(seed, epoch=0)
    run = _TrainerState(model, make_train_step(model, train, recipe, team), seed, team)
    if places and run.resume(places):
        log.info("going on after epoch %d of %d", len(run.records), epochs)
    if isinstance(run.stepper, CudaGraphStep):
        run.validate(model, validation)  # so that the first epoch's time holds no preparations
    saved = time.monotonic()
    with _bar(recipe.steps, len(run.losses), lead) as advance:
        for number in range(len(run.records) + 1, epochs + 1):
            if patience and len(run.records) - run.best_epoch >= patience:
                log.info("no better epoch in %d; training ends after %d of %d", patience, len(run.records), epochs)
                break
            record = run.train(number, train, validation, recipe.batch_size, advance)
            _report(record, epochs, on_epoch if lead else None)
            if record["train_loss"] is None:
                break  # what is no number stays none
            if lead and places and number < epochs and time.monotonic() - saved >= places.seconds:
                save_checkpoint(places.folder, places.run, run.checkpoint())
                saved = time.monotonic()
    run.load_best_weights()
    return TrainingHistory(run.records, run.losses, run.best_epoch, _collapsed(run.records, validation))


@contextlib.contextmanager
def _bar(steps: int, done: int, lead: bool) -> Iterator[Callable[[], None]]:
    """Show the bar of the steps; in a team rank 0 does, the others move nothing."""
    if not lead:
        yield lambda: None
        return
    with progress_bar("fine-tuning", steps, done=done) as advance:
        yield advance


class _TrainerState:
    """The state of a training run between epochs."""

    def __init__(
        self, model: nn.Module, stepper: EagerStep | CudaGraphStep, seed: int, team: ProcessGroup | None
    ) -> None:
        self._model, self.stepper, self._seed, self._team = model, stepper, seed, team
        self.validate = functools.partial(validate, team=team) if team else validate
        if team:
            team.broadcast(stepper.flat.master)
            stepper.flat.sync_compute()
        self._rng = np.random.default_rng(seed)
        self.records: list[EpochRecord] = []
        self.losses: list[float | None] = []
        self.best_epoch = 0
        self._best_rank = (-math.inf, -math.inf)
        self._best = stepper.flat.master.clone()

    def train(
        self, number: int, train: TokenDataset, validation: TokenDataset, batch_size: int, advance: Callable[[], None]
    ) -> EpochRecord:
        """Train one epoch and validate; keep the weights where they are the best so far."""
        started = time.perf_counter()
        if self._team:
            self._team.seed(self._seed, number)
        batches = shuffled_batches(train.lengths, batch_size, self._rng)
        passed = self.stepper.run(batches, len(self.losses), advance)
        losses = passed.losses.tolist()  # the one wait for the device in an epoch
        record = EpochRecord(
            seed=self._seed,
            epoch=number,
            train_loss=_finite(float(np.mean(losses))),
            train_accuracy=int(passed.correct.sum()) / train.count,
            **self.validate(self._model, validation),  # type: ignore[typeddict-item]
            seconds=round(time.perf_counter() - started, 2),
        )
        if self._team:  # so that all decide alike: which epoch is the best, and whether to go on
            record, losses = self._team.broadcast_object((record, losses))
        self.records.append(record)
        self.losses += [_finite(loss) for loss in losses]
        rank = _selection_key(record)
        if not self.best_epoch or rank > self._best_rank:
            self.best_epoch, self._best_rank = number, rank
            self._best.copy_(self.stepper.flat.master)
        return record

    def checkpoint(self) -> Checkpoint:
        """Return everything that the next epochs depend on."""
        tensors = {"master": self.stepper.flat.master, "best": self._best, "random": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["cuda_random"] = torch.cuda.get_rng_state()
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.stepper.optimizer.state().items()}
        record = {
            "records": self.records,
            "losses": self.losses,
            "best_epoch": self.best_epoch,
            "best_rank": [value if math.isfinite(value) else None for value in self._best_rank],
            "order": self._rng.bit_generator.state,
            "parts": self.stepper.micro_batches,
        }
        return Checkpoint(len(self.records), tensors, record)

    def resume(self, places: CheckpointConfig) -> bool:
        """Go on from the last checkpoint, if there is one."""
        held = load_checkpoint(places.folder, places.run)
        found = held.epoch if held else 0
        if self._team and self._team.broadcast_object(found) != found:
            raise VerdictError(f"{places.folder} holds other checkpoints than for rank 0; expected one folder for all")
        if held:
            self._restore(held.tensors, held.record)
        return held is not None

    def _restore(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        flat = self.stepper.flat
        flat.master.copy_(tensors["master"])
        flat.sync_compute()
        self._best.copy_(tensors["best"])
        torch.set_rng_state(tensors["random"])
        if "cuda_random" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda_random"])
        prefix = "optimizer."
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        self.stepper.optimizer.load(state)
        self.records, self.losses = record["records"], record["losses"]
        self.best_epoch = record["best_epoch"]
        mcc_rank, loss_rank = (-math.inf if value is None else value for value in record["best_rank"])
        self._best_rank = (mcc_rank, loss_rank)
        self._rng.bit_generator.state = record["order"]
        if isinstance(self.stepper, EagerStep):  # finding out again would draw random numbers
            self.stepper.micro_batches = record["parts"]

    def load_best_weights(self) -> None:
        """Give the model the best epoch's weights."""
        unfuse(self._model)
        self.stepper.flat.master.copy_(self._best)
        self.stepper.flat.restore_fp32()


@cudnn_attention_disabled()
def validate(model: nn.Module, validation: TokenDataset, team: ProcessGroup | None = None) -> dict[str, float | None]:
    """Measure loss, accuracy and MCC on validation sentences; a team's processes share the work and find the same."""
    device = next(model.parameters()).device
    size = EVALUATION_BATCH[device.type]
    mine = shard(np.arange(validation.count), team)
    while True:
        try:
            logits = _logits(model, validation, mine, size)
            break
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size //= 2
    if team:
        logits = team.all_reduce(logits.to(device, copy=True)).cpu()
    predictions = logits.argmax(-1).numpy()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(validation.labels))
    return {
        "validation_loss": _finite(float(loss)),
        "validation_accuracy": accuracy(validation.labels, predictions),
        "validation_mcc": mcc(validation.labels, predictions),
    }


@torch.inference_mode()
def _logits(model: nn.Module, validation: TokenDataset, mine: Rows, size: int) -> torch.Tensor:
    """Return the logits [N, 2] of some of all sentences, `size` of them at a time; those of the others are zeros."""
    model.eval()
    logits = torch.zeros(validation.count, 2)
    parts = []
    for rows in (mine[part] for part in sorted_batches(validation.lengths[mine], size)):
        inputs, _ = validation.batch(rows)
        parts.append((rows, model(**inputs).logits.float()))
    for rows, part in parts:
        logits[rows] = part.cpu()
    return logits


def _selection_key(record: EpochRecord) -> tuple[float, float]:
    """Return what is larger for a better epoch; weights that gave a loss that is no number are the worst there are."""
    loss = record["validation_loss"]
    if loss is None or record["train_loss"] is None:
        return -math.inf, -math.inf
    return record["validation_mcc"], -loss


def _collapsed(records: list[EpochRecord], validation: TokenDataset) -> bool:
    """Tell whether a run learned nothing; sentences of one label only cannot tell, their MCC is always 0."""
    telling = len(np.unique(validation.labels)) == 2
    return records[-1]["train_loss"] is None or (telling and all(each["validation_mcc"] == 0 for each in records))


def _report(record: EpochRecord, epochs: int, on_epoch: OnEpoch | None) -> None:
    log.info(
        "epoch %d/%d  loss %.4f  accuracy %.3f  validation MCC %.3f  %.1f s",
        record["epoch"], epochs, record["train_loss"] if record["train_loss"] is not None else math.nan,
        record["train_accuracy"], record["validation_mcc"], record["seconds"],
    )  # fmt: skip
    if on_epoch:
        on_epoch(record)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
