"""Selects the model that a run ends with: the mean of the seeds' weights ("model soup"), or the best seed."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tasks.training.seed_runs import SavedSeedRun, SeedRun, validation_mcc
from tasks.training.trainer import validate
from tasks.training.training_job import TokenizedData, TrainingJob, load_start

log = logging.getLogger(__name__)


class SelectedModel(NamedTuple):
    """The model that a run ends with.

    `averaged`: the mean of all seeds' weights, otherwise the weights of `best`, the best seed. `soup_mcc` is the
    validation MCC of the mean, None with one seed.
    """

    model: PreTrainedModel
    averaged: bool
    best: SeedRun
    soup_mcc: float | None = None


def average_or_best(job: TrainingJob, data: TokenizedData, start: str, saved: Sequence[SavedSeedRun]) -> SelectedModel:
    """Return the mean of the seeds' weights, or the best seed where there is only one or the mean is worse than all.

    If the mean's validation MCC is below that of every seed, the weights lie in different basins of the loss. The mean
    is not compared with the best seed: a seed's MCC is the maximum over its epochs, which is biased upwards. Seeds
    that learned nothing are left out; one remaining seed is not averaged.
    Source: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482 ("uniform soup").
    """
    learned = [each for each in saved if not each.run["collapsed"]] or saved
    best = max(learned, key=lambda each: validation_mcc(each.run))
    model = load_start(job, start)
    _load_mean(model, [each.weights for each in learned])
    if len(saved) == 1:
        return SelectedModel(model, averaged=False, best=best.run)
    collapsed = sum(each.run["collapsed"] for each in saved)
    if collapsed:
        log.warning("%d of %d seeds learned nothing", collapsed, len(saved))
    soup_mcc = float(validate(model, data.validation)["validation_mcc"] or 0)
    single = [validation_mcc(each.run) for each in learned]
    log.info(
        "mean of %d seeds: validation MCC %.3f; of single seeds %.3f to %.3f",
        len(learned), soup_mcc, min(single), max(single),
    )  # fmt: skip
    if len(learned) > 1 and not best.run["collapsed"] and soup_mcc >= min(single):
        return SelectedModel(model, averaged=True, best=best.run, soup_mcc=soup_mcc)
    _load_mean(model, [best.weights])
    return SelectedModel(model, averaged=False, best=best.run, soup_mcc=soup_mcc)


def _load_mean(model: PreTrainedModel, files: Sequence[str]) -> None:
    """Load the mean of the weights in files into a model; integer tensors are taken from the first file."""
    mean: dict[str, torch.Tensor] = {}
    for number, file in enumerate(files, start=1):
        for name, tensor in load_file(file).items():
            if name in mean and tensor.is_floating_point():
                mean[name] += (tensor - mean[name]) / number
            else:
                mean.setdefault(name, tensor)
    model.load_state_dict(mean)
