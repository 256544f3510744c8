"""What was tried to raise MCC and is not in the product: each changes a training run from outside while a block runs.

`ablate_finetune.py` measures them beside the recipes, so that what was left out was left out for a reason.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from tried_corruptions import KINDS

from tasks.data.snapshots import read_snapshot
from tasks.evaluation.metrics import mcc
from tasks.training import adversarial_noise, corruption, corruption_stage, dataset, finetune, seed_runs, soup
from tasks.training import trainer as epochs
from tasks.training.seed_runs import SavedSeedRun, validation_mcc
from tasks.training.soup import SelectedModel
from tasks.training.training_job import TokenizedData, TrainingJob, load_start


@contextlib.contextmanager
def averaged_epochs(last: int) -> Iterator[None]:
    """End with the mean of the last epochs' weights instead of the best epoch's.

    Source: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, once an epoch and on the usual schedule.
    """
    train, release = epochs._TrainerState.train, epochs._TrainerState.load_best_weights
    kept: dict[epochs._TrainerState, list[torch.Tensor]] = {}

    def keeping(self: epochs._TrainerState, *arguments: Any) -> epochs.EpochRecord:
        record = train(self, *arguments)
        kept.setdefault(self, []).append(self.stepper.flat.master.clone())
        return record

    def averaging(self: epochs._TrainerState) -> None:
        self._best.copy_(torch.stack(kept.pop(self)[-last:]).mean(0))
        release(self)

    with (
        patch.object(epochs._TrainerState, "train", keeping),
        patch.object(epochs._TrainerState, "load_best_weights", averaging),
    ):
        yield


@contextlib.contextmanager
def class_weights() -> Iterator[None]:
    """Let both labels weigh alike in the loss, however many sentences have them."""
    smoothed = dataset.smooth_labels

    def weighted(labels: NDArray[Any], share: float) -> NDArray[np.float64]:
        weights = len(labels) / (2 * np.bincount(labels, minlength=2))
        return smoothed(labels, share) * weights[labels, None]

    with patch.object(dataset, "smooth_labels", weighted):
        yield


@contextlib.contextmanager
def new_top_layers(count: int) -> Iterator[None]:
    """Start with fresh weights in the encoder's top layers.

    Source: Zhang et al. 2020, https://arxiv.org/abs/2006.05987, section 5.
    """
    load: Callable[..., Any] = seed_runs.load_start

    def loading(*arguments: Any, **options: Any) -> Any:
        model = load(*arguments, **options)
        for module in nn.ModuleList(model.base_model.encoder.layer[-count:]).modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=model.config.initializer_range)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        return model

    with patch.object(seed_runs, "load_start", loading):
        yield


@contextlib.contextmanager
def corruption_kinds(*kinds: str) -> Iterator[None]:
    """Let the corruption stage draw from further kinds too, each as often as two of the others; see KINDS."""
    further = tuple(KINDS[kind] for kind in kinds for _ in range(2))
    with patch.object(corruption, "CORRUPTIONS", corruption.CORRUPTIONS + further):
        yield


@contextlib.contextmanager
def no_corruption_stage() -> Iterator[None]:
    """Start from the encoder as it is; corrupted copies are made for a teacher alone."""
    with patch.object(finetune, "run_corruption_stage", lambda job, _: job.recipe.encoder):
        yield


@contextlib.contextmanager
def greedy_soup() -> Iterator[None]:
    """End with the mean of those seeds' weights that each do not lower the validation MCC, from the best on.

    Source: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1.
    """

    def greedy(job: TrainingJob, data: TokenizedData, start: str, saved: Sequence[SavedSeedRun]) -> SelectedModel:
        model = load_start(job, start)
        kept = _choose_greedily(model, data, saved)
        soup._load_mean(model, [each.weights for each in kept])
        best = float(epochs.validate(model, data.validation)["validation_mcc"] or 0)
        return SelectedModel(model, averaged=len(kept) > 1, best=kept[0].run, soup_mcc=best)

    with patch.object(finetune, "average_or_best", greedy):
        yield


def _choose_greedily(model: Any, data: TokenizedData, saved: Sequence[SavedSeedRun]) -> list[SavedSeedRun]:
    """Return the seeds that a greedy soup is made of, the best first; the model's weights are overwritten."""
    ranked = sorted(saved, key=lambda each: -validation_mcc(each.run))
    kept, best = ranked[:1], validation_mcc(ranked[0].run)
    for each in ranked[1:]:
        soup._load_mean(model, [one.weights for one in [*kept, each]])
        found = float(epochs.validate(model, data.validation)["validation_mcc"] or 0)
        if found >= best:
            kept, best = [*kept, each], found
    return kept


@contextlib.contextmanager
def distilled(share: float, more: bool = False) -> Iterator[None]:
    """End with a student of all seeds: it learns a share of their mean probabilities and the rest of the label.

    With `more`, it also learns their mean probabilities of all sentences of the corruption stage.
    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531.
    """

    def teach(job: TrainingJob, data: TokenizedData, start: str, saved: Sequence[SavedSeedRun]) -> SelectedModel:
        return _teach(job, data, start, saved, share, more=more)

    with patch.object(finetune, "average_or_best", teach):
        yield


def _teach(
    job: TrainingJob,
    data: TokenizedData,
    start: str,
    saved: Sequence[SavedSeedRun],
    share: float,
    *,
    more: bool,
) -> SelectedModel:
    """Train a student; it reads as many batches as one seed, with more sentences twice as many.

    Args:
        job: of the training.
        data: its sentences.
        start: weights that the student starts from.
        saved: the seeds that teach.
        share: of their mean probabilities in what the student learns of a sentence with a label.
        more: whether it also learns sentences of the corruption stage.
    """
    rows = read_snapshot(job.train)
    labelled = len(rows)
    if more:
        unlabelled = corruption_stage.corrupt_rows(job).drop(columns="original", errors="ignore")
        rows = pd.concat([rows, unlabelled], ignore_index=True)
    train = data.encode(rows, job.recipe.label_smoothing)
    soft = _mean_probabilities(job, start, saved, train)
    train._targets[: train.count] = soft
    train._targets[:labelled] = share * soft[:labelled] + (1 - share) * data.train._targets[:labelled]
    number = max(1, round(2 * job.recipe.epochs * labelled / len(rows))) if more else job.recipe.epochs
    changed = replace(job, recipe=job.recipe.model_copy(update={"epochs": number}), folder=f"{job.folder}/{more}")
    own = TokenizedData(changed)
    own.__dict__ |= {"train": train, "validation": data.validation}  # the cached properties
    student, run = seed_runs.train_seed_run(changed, own, start, job.recipe.seed + 500)
    return SelectedModel(student, averaged=False, best=run)


def _mean_probabilities(
    job: TrainingJob, start: str, saved: Sequence[SavedSeedRun], data: dataset.TokenDataset
) -> torch.Tensor:
    """Return the mean of the seeds' probabilities [N, 2], on the data's device."""
    model, size = load_start(job, start), epochs.EVALUATION_BATCH[job.recipe.device]
    answers = []
    for each in saved:
        soup._load_mean(model, [each.weights])
        answers.append(epochs.compute_logits(model, data, np.arange(data.count), size).softmax(-1))
    return torch.stack(answers).mean(0).to(data._targets)


@contextlib.contextmanager
def selections() -> Iterator[dict[str, dict[str, torch.Tensor]]]:
    """Make several models of the seeds of one training; yield the weights of each by name.

    The first seed alone, means of 3 and 5 and all, a greedy soup, and students of all: of the training sentences, and
    of those and all that the corruption stage reads, whose labels are the seeds' mean probabilities alone.
    """
    models: dict[str, dict[str, torch.Tensor]] = {}
    finish = finetune.average_or_best

    def select(job: TrainingJob, data: TokenizedData, start: str, saved: Sequence[SavedSeedRun]) -> SelectedModel:
        model = load_start(job, start)
        parts = {"one seed": saved[:1], "mean of 3": saved[:3], "mean of 5": saved[:5], "mean of all": saved}
        parts["greedy soup of all"] = _choose_greedily(model, data, saved)
        for name, part in parts.items():
            soup._load_mean(model, [each.weights for each in part])
            models[name] = _copy(model)
        for name, copies in {"student": 0, "student of more sentences": 1}.items():
            models[name] = _copy(_teach(job, data, start, saved, 0.7, more=bool(copies)).model)
        return finish(job, data, start, saved)

    with patch.object(finetune, "average_or_best", select):
        yield models


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def sift_step(reach: float) -> Iterator[None]:
    """Let SiFT's noise move by another step than the product's."""
    with patch.object(adversarial_noise, "STEP", reach):
        yield


TRIED: dict[str, Callable[..., contextlib.AbstractContextManager[Any]]] = {
    "averaged_epochs": averaged_epochs,
    "class_weights": class_weights,
    "corruption_kinds": corruption_kinds,
    "distilled": distilled,
    "greedy_soup": greedy_soup,
    "new_top_layers": new_top_layers,
    "no_corruption_stage": no_corruption_stage,
    "selections": selections,
    "sift_step": sift_step,
}


def best_threshold(labels: NDArray[Any], margins: NDArray[Any]) -> float:
    """Return the margin [N] of acceptable over unacceptable above which answering acceptable has the highest MCC."""
    values = np.unique(margins)
    between = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
    return float(max(between, key=lambda limit: mcc(labels, (margins > limit).astype(np.int64))))
