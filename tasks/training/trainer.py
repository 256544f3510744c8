"""The epochs of a training run: train, validate, keep the best weights, resume from a checkpoint."""

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
from tasks.training.side_by_side import Lane
from tasks.training.train_step import EagerStep, Rows, StepConfig, shard

EVALUATION_BATCH = {"cpu": 64, "cuda": 256}  # sentences

log = logging.getLogger(__name__)


class EpochRecord(TypedDict):
    """One epoch's figures, and the seed of its run; a loss that is NaN or Inf is None."""

    seed: int
    epoch: int
    train_loss: float | None
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float
    validation_mcc: float
    seconds: float


class TrainingHistory(NamedTuple):
    """How a run went: each epoch's figures, each step's loss, the best epoch, and whether it learned nothing.

    Epochs count from 1.
    """

    epochs: list[EpochRecord]
    step_losses: list[float | None]
    best_epoch: int
    collapsed: bool


class CheckpointConfig(NamedTuple):
    """Folder of a run's checkpoints, digest of what decides its weights, and minimal seconds between two of them."""

    folder: str
    fingerprint: str
    seconds: float


OnEpoch = Callable[[EpochRecord], None]


@cudnn_attention_disabled()
def train_epochs(
    model: nn.Module,
    train: TokenDataset,
    validation: TokenDataset,
    config: StepConfig,
    *,
    epochs: int,
    seed: int,
    patience: int = 0,
    checkpoints: CheckpointConfig | None = None,
    on_epoch: OnEpoch | None = None,
    group: ProcessGroup | None = None,
    lane: Lane | None = None,
) -> TrainingHistory:
    """Train; afterwards the model holds the weights of the epoch with the best validation MCC, in fp32.

    Args:
        model: on its device.
        train: sentences to train on.
        validation: sentences that select the epoch.
        config: of the training step and its schedule.
        epochs: passes over the training sentences.
        seed: of the batches' order; dropout draws from torch's global generator.
        patience: epochs without a better one after which training ends; 0 for never.
        checkpoints: where they are written and found; None for no checkpoints.
        on_epoch: called after each epoch.
        group: processes that train together; each calls this with the same arguments and ends with the same weights.
            Rank 0 alone writes checkpoints, shows progress and calls `on_epoch`; `launch` passes on its log only.
            Dropout is seeded by seed, epoch and rank: a run that resumes with as many processes draws the same.
        lane: of this training where others run in this process at the same time; it shows the progress then.

    Raises:
        VerdictError: if the ranks of a group find different checkpoints.
    """
    is_main = group is None or group.rank == 0
    if group:
        group.seed(seed, epoch=0)
    turn = lane.exclusive if lane else contextlib.nullcontext
    with turn():
        step = make_train_step(model, train, config, group, shares_memory=bool(lane and lane.shares_memory))
        run = _TrainerState(model, step, seed, group)
        if checkpoints and run.resume(checkpoints):
            log.info("resuming after epoch %d of %d", len(run.records), epochs)
        captured = isinstance(run.stepper, CudaGraphStep)
        if captured:
            run.validate(model, validation)  # warm-up: the seconds of the first epoch do not include it
    saved = time.monotonic()
    # An eager step draws from torch's own generators all the time.
    with contextlib.nullcontext() if captured else turn(), _step_bar(config.steps, run, is_main, lane) as advance:
        for number in range(len(run.records) + 1, epochs + 1):
            if patience and len(run.records) - run.best_epoch >= patience:
                log.info("no better epoch in %d; training ends after %d of %d", patience, len(run.records), epochs)
                break
            record = run.train(number, train, validation, config.batch_size, advance)
            _report(record, epochs, on_epoch if is_main else None, named=lane is not None)
            if record["train_loss"] is None:
                break  # weights that became NaN or Inf stay so
            if is_main and checkpoints and number < epochs and time.monotonic() - saved >= checkpoints.seconds:
                with turn():
                    checkpoint = run.checkpoint()
                save_checkpoint(checkpoints.folder, checkpoints.fingerprint, checkpoint)
                saved = time.monotonic()
    run.load_best_weights()
    return TrainingHistory(run.records, run.losses, run.best_epoch, _collapsed(run.records, validation))


@contextlib.contextmanager
def _step_bar(steps: int, run: "_TrainerState", is_main: bool, lane: Lane | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar of the training steps, on rank 0 alone; lanes have one in common."""
    if lane:
        lane.ready()
        for _ in run.losses:
            lane.advance()
        yield lane.advance
    elif not is_main:
        yield lambda: None
    else:
        with progress_bar("fine-tuning", steps, done=len(run.losses)) as advance:
            yield advance


class _TrainerState:
    """The state of a training run between epochs."""

    def __init__(
        self, model: nn.Module, stepper: EagerStep | CudaGraphStep, seed: int, group: ProcessGroup | None
    ) -> None:
        self._model, self.stepper, self._seed, self._group = model, stepper, seed, group
        self.validate = functools.partial(validate, group=group) if group else validate
        if group:
            group.broadcast(stepper.flat.master)
            stepper.flat.sync_compute()
        self._rng = np.random.default_rng(seed)
        self.records: list[EpochRecord] = []
        self.losses: list[float | None] = []
        self.best_epoch = 0
        self._best_key = (-math.inf, -math.inf)
        self._best = stepper.flat.master.clone()

    def train(
        self, number: int, train: TokenDataset, validation: TokenDataset, batch_size: int, advance: Callable[[], None]
    ) -> EpochRecord:
        """Train one epoch and validate; keep a copy of the weights if they are the best so far."""
        started = time.perf_counter()
        if self._group:
            self._group.seed(self._seed, number)
        batches = shuffled_batches(train.lengths, batch_size, self._rng)
        passed = self.stepper.run(batches, len(self.losses), advance)
        losses = passed.losses.tolist()  # the only synchronisation with the device in an epoch
        record = EpochRecord(
            seed=self._seed,
            epoch=number,
            train_loss=_finite(float(np.mean(losses))),
            train_accuracy=int(passed.correct.sum()) / train.count,
            **self.validate(self._model, validation),  # type: ignore[typeddict-item]
            seconds=round(time.perf_counter() - started, 2),
        )
        if self._group:  # all ranks must decide alike which epoch is the best and whether to stop
            record, losses = self._group.broadcast_object((record, losses))
        self.records.append(record)
        self.losses += [_finite(loss) for loss in losses]
        key = _selection_key(record)
        if not self.best_epoch or key > self._best_key:
            self.best_epoch, self._best_key = number, key
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
            "best_key": [value if math.isfinite(value) else None for value in self._best_key],
            "order": self._rng.bit_generator.state,
            "parts": self.stepper.micro_batches,
        }
        return Checkpoint(len(self.records), tensors, record)

    def resume(self, checkpoints: CheckpointConfig) -> bool:
        """Load the last checkpoint; return whether there was one."""
        checkpoint = load_checkpoint(checkpoints.folder, checkpoints.fingerprint)
        epoch = checkpoint.epoch if checkpoint else 0
        if self._group and self._group.broadcast_object(epoch) != epoch:
            raise VerdictError(
                f"{checkpoints.folder} holds other checkpoints than rank 0 found; expected one folder for all ranks"
            )
        if checkpoint:
            self._restore(checkpoint.tensors, checkpoint.record)
        return checkpoint is not None

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
        best_mcc, best_loss = (-math.inf if value is None else value for value in record["best_key"])
        self._best_key = (best_mcc, best_loss)
        self._rng.bit_generator.state = record["order"]
        if isinstance(self.stepper, EagerStep):  # a second out-of-memory retry would draw further random numbers
            self.stepper.micro_batches = record["parts"]

    def load_best_weights(self) -> None:
        """Load the best epoch's weights into the model, in fp32 and with its own layers."""
        unfuse(self._model)
        self.stepper.flat.master.copy_(self._best)
        self.stepper.flat.restore_fp32()


@cudnn_attention_disabled()
def validate(model: nn.Module, validation: TokenDataset, group: ProcessGroup | None = None) -> dict[str, float | None]:
    """Measure loss, accuracy and MCC on validation sentences; ranks share the work and return the same figures."""
    device = next(model.parameters()).device
    size = EVALUATION_BATCH[device.type]
    local_rows = shard(np.arange(validation.count), group)
    while True:
        try:
            logits = compute_logits(model, validation, local_rows, size)
            break
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size //= 2
    if group:
        logits = group.all_reduce(logits.to(device, copy=True)).cpu()
    predictions = logits.argmax(-1).numpy()
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(validation.labels))
    return {
        "validation_loss": _finite(float(loss)),
        "validation_accuracy": accuracy(validation.labels, predictions),
        "validation_mcc": mcc(validation.labels, predictions),
    }


@torch.inference_mode()
def compute_logits(model: nn.Module, validation: TokenDataset, selected: Rows, size: int) -> torch.Tensor:
    """Return logits [N, 2] on the CPU: of the selected rows, computed in batches of `size`; zeros elsewhere."""
    model.eval()
    logits = torch.zeros(validation.count, 2)
    parts = []
    for rows in (selected[part] for part in sorted_batches(validation.lengths[selected], size)):
        inputs, _ = validation.batch(rows)
        parts.append((rows, model(**inputs).logits.float()))
    for rows, part in parts:
        logits[rows] = part.cpu()
    return logits


def _selection_key(record: EpochRecord) -> tuple[float, float]:
    """Return a key that is larger for a better epoch: MCC, then lower loss; an epoch with a NaN or Inf loss is last."""
    loss = record["validation_loss"]
    if loss is None or record["train_loss"] is None:
        return -math.inf, -math.inf
    return record["validation_mcc"], -loss


def _collapsed(records: list[EpochRecord], validation: TokenDataset) -> bool:
    """Return whether a run learned nothing: NaN or Inf loss, or one class predicted in every epoch (MCC 0).

    With validation rows of one label the MCC is always 0 and says nothing.
    """
    has_both_labels = len(np.unique(validation.labels)) == 2
    predicts_one_class = has_both_labels and all(record["validation_mcc"] == 0 for record in records)
    return records[-1]["train_loss"] is None or predicts_one_class


def _report(record: EpochRecord, epochs: int, on_epoch: OnEpoch | None, *, named: bool) -> None:
    name = f"seed {record['seed']}  " if named else ""
    log.info(
        "%sepoch %d/%d  loss %.4f  accuracy %.3f  validation MCC %.3f  %.1f s",
        name, record["epoch"], epochs, record["train_loss"] if record["train_loss"] is not None else math.nan,
        record["train_accuracy"], record["validation_mcc"], record["seconds"],
    )  # fmt: skip
    if on_epoch:
        on_epoch(record)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
