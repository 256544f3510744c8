"""The stage before fine-tuning: the encoder learns to tell sentences from corrupted copies of them.

With `token_loss` it learns at the same time which tokens are wrong, by a head that is dropped afterwards.

Its model is saved below the job's checkpoint folder, in corruption-stage/; every seed starts from it.
"""

import logging
from pathlib import Path

import pandas as pd
import torch

from tasks.core.files import atomic_directory
from tasks.data.snapshots import read_snapshot
from tasks.training.corruption import with_corruptions
from tasks.training.token_head import TokenHead
from tasks.training.trainer import train_epochs
from tasks.training.training_job import TokenizedData, TrainingJob, is_finished, load_start, step_config, write_record

log = logging.getLogger(__name__)


def run_corruption_stage(job: TrainingJob, data: TokenizedData) -> str:
    """Train the encoder to tell sentences from corrupted copies, if the recipe has such a stage.

    Returns:
        Folder of the model that every seed starts from: the encoder's where there is no such stage, it has nothing to
        train on, or its loss is NaN or Inf.
    """
    recipe = job.recipe
    if not any(_copies(job)):
        return recipe.encoder
    target = Path(job.folder) / "corruption-stage"
    if is_finished(target, job.fingerprint):
        return str(target)
    rows = corrupt_rows(job)
    if rows["label"].nunique() < 2:
        log.warning("no sentence could be corrupted; training starts without the corruption stage")
        return recipe.encoder
    log.info("corruption stage: %d sentences, %d of them corrupted", len(rows), (rows["label"] == 0).sum())
    torch.manual_seed(recipe.seed)
    model = load_start(job, recipe.encoder)
    trained = TokenHead(model) if recipe.token_loss else model
    config = step_config(recipe.of_corruption_stage(), len(rows), epochs=1)
    train, validation = data.encode(rows), data.validation
    data.wait_for_kernels()
    history = train_epochs(trained, train, validation, config, epochs=1, seed=recipe.seed)
    if isinstance(trained, TokenHead):
        model = trained.unwrap()
    last = history.epochs[-1]
    if last["train_loss"] is None or last["validation_loss"] is None:  # the last step may be the one that diverged
        log.warning("the corruption stage ended with a NaN or Inf loss; training starts without it")
        return recipe.encoder
    with atomic_directory(target) as scratch:
        model.save_pretrained(scratch)
        write_record(scratch, job.fingerprint)
    return str(target)


def _copies(job: TrainingJob) -> tuple[int, int]:
    """Return how many corrupted copies there shall be of each sentence of the training rows and of the text."""
    return job.recipe.corruptions, job.recipe.text_corruptions if job.text else 0


def corrupt_rows(job: TrainingJob) -> pd.DataFrame:
    """Return original (label 1) and corrupted sentences (label 0).

    None of the latter occurs in the training rows, the text, the validation rows or a holdout. There is no row where
    the recipe has no corruption stage.
    """
    parts = [read_snapshot(path) for path in (job.train, job.text) if path]
    withheld = [read_snapshot(path) for path in (job.validation, *job.holdouts)]
    known = [sentence for part in (*parts, *withheld) for sentence in part["sentence"]]
    copies = _copies(job)[: len(parts)]
    corrupted = [
        with_corruptions(part, count, job.recipe.seed, known, originals=job.recipe.token_loss > 0)
        for part, count in zip(parts, copies, strict=True)
        if count
    ]
    return pd.concat(corrupted, ignore_index=True) if corrupted else pd.DataFrame({"sentence": [], "label": []})
