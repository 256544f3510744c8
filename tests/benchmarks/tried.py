"""What was tried to raise MCC and is not in the product: each changes a training run from outside while a block runs.

`ablate_finetune.py` measures them beside the recipes, so that what was left out was left out for a reason.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tried_corruptions import KINDS

from tasks.evaluation.metrics import mcc
from tasks.training import corruption, cuda_graph_step, dataset, finetune, seed_runs, soup, train_step
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
def greedy_soup() -> Iterator[None]:
    """End with the mean of those seeds' weights that each do not lower the validation MCC, from the best on.

    Source: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, recipe 1.
    """

    def greedy(job: TrainingJob, data: TokenizedData, start: str, saved: Sequence[SavedSeedRun]) -> SelectedModel:
        model = load_start(job, start)

        def score(files: list[str]) -> float:
            soup._load_mean(model, files)
            return float(epochs.validate(model, data.validation)["validation_mcc"] or 0)

        ranked = sorted(saved, key=lambda each: -validation_mcc(each.run))
        kept, best = [ranked[0].weights], score([ranked[0].weights])
        for each in ranked[1:]:
            if (found := score([*kept, each.weights])) >= best:
                kept, best = [*kept, each.weights], found
        best = score(kept)
        return SelectedModel(model, averaged=len(kept) > 1, best=ranked[0].run, soup_mcc=best)

    with patch.object(finetune, "average_or_best", greedy):
        yield


@contextlib.contextmanager
def distilled(share: float) -> Iterator[None]:
    """End with a student of all seeds: it learns a share of their mean probabilities and the rest of the label.

    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531.
    """

    def teach(job: TrainingJob, data: TokenizedData, start: str, saved: Sequence[SavedSeedRun]) -> SelectedModel:
        model, train = load_start(job, start), data.train
        size = epochs.EVALUATION_BATCH[job.recipe.device]
        answers = []
        for each in saved:
            soup._load_mean(model, [each.weights])
            answers.append(epochs.compute_logits(model, train, np.arange(train.count), size).softmax(-1))
        soft = torch.stack(answers).mean(0).to(train._targets)
        train._targets[: train.count] = share * soft + (1 - share) * train._targets[: train.count]
        student, run = seed_runs.train_seed_run(job, data, start, job.recipe.seed + 500)
        return SelectedModel(student, averaged=False, best=run)

    with patch.object(finetune, "average_or_best", teach):
        yield


class _Sift(nn.Module):
    """A model whose output in training has a further loss [B]: how far noise on the embeddings moves the answer."""

    def __init__(self, model: Any, reach: float, start: float) -> None:
        super().__init__()
        self.model, self._reach, self._start = model, reach, start
        self._delta: torch.Tensor | None = None
        self._embedded: torch.Tensor | None = None
        model.base_model.embeddings.LayerNorm.register_forward_pre_hook(self._perturb)

    @property
    def config(self) -> Any:
        return self.model.config

    def _perturb(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Normalise the embeddings, keep them, and add the noise, if there is any."""
        self._embedded = nn.functional.layer_norm(inputs[0], inputs[0].shape[-1:])
        return self._embedded if self._delta is None else self._embedded + self._delta.to(self._embedded)

    def forward(self, **inputs: torch.Tensor) -> Any:
        logits = self.model(**inputs).logits
        if not self.training:
            return SimpleNamespace(logits=logits)
        assert self._embedded is not None
        limit = 2 * self._start
        delta = (torch.randn_like(self._embedded, dtype=torch.float32) * self._start).clamp(-limit, limit)
        self._delta = delta.requires_grad_()
        far = _symmetric_kl(self.model(**inputs).logits, logits.detach()).sum()
        (slope,) = torch.autograd.grad(far, self._delta)
        self._delta = (delta + self._reach * slope / (1e-6 + slope.abs().amax(-1, keepdim=True))).detach()
        further = _symmetric_kl(self.model(**inputs).logits, logits)
        self._delta = None
        return SimpleNamespace(logits=logits, further=further)


def _symmetric_kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    log_p, log_q = one.float().log_softmax(-1), other.float().log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


@contextlib.contextmanager
def sift(weight: float, reach: float = 1e-4, start: float = 1e-2) -> Iterator[None]:
    """Add the divergence of the answer under adversarial noise on the normalised embeddings to the loss.

    Source: He et al. 2021, https://arxiv.org/abs/2006.03654, section 4 (scale-invariant fine-tuning), with the numbers
    of its authors' program. Three passes a step; layers are not fused: fused ones write the weights' gradients at once.
    """
    train, loss_of = seed_runs.train_epochs, train_step.step_loss

    def training(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        return train(_Sift(model, reach, start), *arguments, **options)

    def adding(output: Any, targets: torch.Tensor, marks: Any, total: Any, config: Any) -> Any:
        loss, correct = loss_of(output, targets, marks, total, config)
        if hasattr(output, "further"):
            loss = loss + weight * (output.further * targets.sum(-1)).sum() / total
        return loss, correct

    with (
        patch.object(seed_runs, "train_epochs", training),
        patch.object(train_step, "step_loss", adding),
        patch.object(cuda_graph_step, "step_loss", adding),
        patch.object(cuda_graph_step, "fuse", lambda *_: None),
    ):
        yield


TRIED: dict[str, Callable[..., contextlib.AbstractContextManager[None]]] = {
    "averaged_epochs": averaged_epochs,
    "class_weights": class_weights,
    "corruption_kinds": corruption_kinds,
    "distilled": distilled,
    "greedy_soup": greedy_soup,
    "new_top_layers": new_top_layers,
    "sift": sift,
}


def best_threshold(labels: NDArray[Any], margins: NDArray[Any]) -> float:
    """Return the margin [N] of acceptable over unacceptable above which answering acceptable has the highest MCC."""
    values = np.unique(margins)
    between = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
    return float(max(between, key=lambda limit: mcc(labels, (margins > limit).astype(np.int64))))
