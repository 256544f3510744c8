"""Distillation: a training learns the answers of another model, the teacher, to more sentences than have labels.

The teacher answers the training rows, the further text, and the corrupted copies of both that the corruption stage
has. What is learned of a sentence is its probability of being acceptable: the teacher's, and of a sentence with a label
the mean of both, weighted by `teacher_share`. Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531.

Below the job's checkpoint folder: teacher/answers.parquet, and the parts that it is made of in teacher-parts/.
"""

import contextlib
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from tasks.core.errors import UsageError, VerdictError
from tasks.core.files import atomic_directory, read_checksummed, write_checksummed
from tasks.core.progress import progress_bar
from tasks.data.snapshots import read_snapshot
from tasks.inference.bundle import Manifest, read_manifest
from tasks.inference.classifier import Classifier
from tasks.training.corruption_stage import corrupt_rows
from tasks.training.losses import smooth_labels
from tasks.training.model import LABELS
from tasks.training.training_job import ANSWERS_FILE, TEACHER_FOLDER, Teacher, TrainingJob, is_finished, write_record

PARTS_FOLDER = "teacher-parts"
PART = 16_384  # sentences that are answered together, and not asked again after a kill

log = logging.getLogger(__name__)


def read_teacher(teacher: Teacher) -> Manifest:
    """Return the manifest of a bundle that shall teach.

    Raises:
        UsageError: if it has other labels than a training has.
        VerdictError: if it is no bundle, or another one than its digest says.
    """
    manifest = read_manifest(Path(teacher.bundle), teacher.digest)
    if manifest["labels"] != LABELS:
        raise UsageError(f"{teacher.bundle} has labels {manifest['labels']}; expected a model with {LABELS}")
    return manifest


def write_answers(job: TrainingJob, teacher: Teacher) -> None:
    """Let the teacher answer all sentences of a job, unless it has; every process of the training reads its answers.

    Raises:
        VerdictError: if the teacher is damaged or not the one that was found, does not run on the job's device, or
            answers NaN.
    """
    target = Path(job.folder) / TEACHER_FOLDER
    if is_finished(target, job.fingerprint, ANSWERS_FILE):
        return
    rows, recipe = _sentences_to_learn(job), job.recipe
    labelled = rows["label"].notna().sum()
    log.info("the teacher answers %d sentences, %d of them without a label", len(rows), len(rows) - labelled)
    answers = _answer(job, teacher, rows["sentence"].tolist())
    rows["acceptable"] = mix_answers(answers, rows["label"].to_numpy(), recipe.teacher_share, recipe.label_smoothing)
    with atomic_directory(target) as scratch:
        rows[["sentence", "acceptable"]].to_parquet(scratch / ANSWERS_FILE)
        write_record(scratch, job.fingerprint, ANSWERS_FILE)


def mix_answers(
    answers: NDArray[np.float64], labels: NDArray[np.float64], share: float, label_smoothing: float
) -> NDArray[np.float64]:
    """Return the probabilities [N] of being acceptable that training learns.

    Args:
        answers: [N], those of the teacher.
        labels: [N], 0 or 1; NaN for none.
        share: of the teacher's probability, where there is a label.
        label_smoothing: share of each label that is spread over both classes.
    """
    labelled = ~np.isnan(labels)
    mixed = answers.copy()
    smoothed = smooth_labels(labels[labelled].astype(np.int64), label_smoothing)[:, 1]
    mixed[labelled] = share * answers[labelled] + (1 - share) * smoothed
    return mixed


def _sentences_to_learn(job: TrainingJob) -> pd.DataFrame:
    """Return columns sentence and label: the training rows, then others once each, whose label is NaN."""
    labelled = read_snapshot(job.train)[["sentence", "label"]]
    others = [read_snapshot(job.text)["sentence"]] if job.text else []
    others.append(corrupt_rows(job)["sentence"])
    unlabelled = pd.concat(others).drop_duplicates()
    unlabelled = unlabelled[~unlabelled.isin(labelled["sentence"])]
    return pd.concat([labelled.astype({"label": float}), unlabelled.to_frame()], ignore_index=True)


def _answer(job: TrainingJob, teacher: Teacher, sentences: list[str]) -> NDArray[np.float64]:
    """Return the teacher's probabilities [N] of being acceptable; a part that is there already is not asked again."""
    folder, device = Path(job.folder) / PARTS_FOLDER, job.recipe.device
    starts = range(0, len(sentences), PART)
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar("teacher", len(starts)) as advance:
        threads = torch.get_num_threads()  # as many as training would take: other trainings may run beside this one
        gpu = torch.cuda.current_device() if device == "cuda" else 0  # that of this process, and torch's afterwards
        classifier = Classifier.from_bundle(
            teacher.bundle, device, spin=False, expected=teacher.digest, threads=threads, gpu=gpu
        )
        answers = []
        for start in starts:
            part = sentences[start : start + PART]
            answers += _answer_part(classifier, part, folder / f"{start}.json", job.fingerprint)
            advance()
    return np.array(answers)


def _answer_part(classifier: Classifier, sentences: list[str], path: Path, fingerprint: str) -> list[float]:
    with contextlib.suppress(VerdictError):  # it is not there, or damaged
        part = read_checksummed(path)
        if part["fingerprint"] == fingerprint:
            return list(part["answers"])
    answers = classifier.probabilities(sentences)[:, 1]
    if not np.isfinite(answers).all():
        raise VerdictError(
            f"the teacher answers NaN with its variant {classifier.variant}; expected a model that answers: "
            "verdict predict --model MODEL"
        )
    write_checksummed(path, {"fingerprint": fingerprint, "answers": answers.tolist()})
    return list(answers)
