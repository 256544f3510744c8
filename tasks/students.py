"""A student: one more model, which learns what several members say together.

Their probabilities are averaged for each training sentence; the student learns a mix of those and the labels. Where the
members disagree a sentence is hard or its label doubtful, and the student is not pressed to be sure of it.
Source: Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531, with temperature 1.

folder/student/epoch-0003/  its checkpoints
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tasks.batching import encode, load_tokenizer
from tasks.classifier import encode_rows, load_classifier
from tasks.encoded import Encoded
from tasks.epochs import OnEpoch, Places, probabilities, train_epochs
from tasks.files import digest_of, sha256_of
from tasks.losses import smoothed
from tasks.members import Choice, Job, Kept, Member, validation_mcc
from tasks.reading import load_rows

log = logging.getLogger(__name__)


def teach(
    job: Job, start: str, members: Sequence[Kept], choice: Choice, share: float, on_epoch: OnEpoch | None = None
) -> Choice:
    """Train a student and return it; return `choice` where it learned nothing or is worse than every member.

    Args:
        job: what the members shared.
        start: folder of the model that members and student start from.
        members: the teachers; those that learned nothing are not asked.
        choice: what was made of the members without a student.
        share: of the members' probabilities in what it learns, in (0, 1]; the rest is the label.
        on_epoch: told of each finished epoch.
    """
    teachers = [each for each in members if not each.member["collapsed"]]
    if len(teachers) < 2:
        log.warning("a student needs two members that learned, there are %d; none is trained", len(teachers))
        return choice
    seed = job.seed + len(members)
    model, student = _train(job, start, seed, targets(job, start, teachers, share), teachers, share, on_epoch)
    alone = [validation_mcc(each.member) for each in teachers]
    mcc = validation_mcc(student)
    log.info(
        "student of %d members: validation MCC %.3f; alone %.3f to %.3f", len(teachers), mcc, min(alone), max(alone)
    )
    if student["collapsed"] or mcc < min(alone):
        return choice
    return Choice(model, "student", student, choice.soup_mcc)


def targets(job: Job, start: str, teachers: Sequence[Kept], share: float) -> NDArray[np.float64]:
    """Return what a student learns of each training sentence, [N, 2]: `share` of it is the teachers' mean."""
    rows = load_rows(job.train)
    model = load_classifier(start).to(job.device)
    sentences = encode_rows(rows, load_tokenizer(job.encoder, job.max_length), model, job.device)
    said = np.zeros((len(rows), 2))
    for teacher in teachers:
        model.load_state_dict(load_file(teacher.weights))
        said += probabilities(model, sentences) / len(teachers)
    return share * said + (1 - share) * smoothed(rows["label"].to_numpy(np.int64), job.label_smoothing)


def _train(
    job: Job,
    start: str,
    seed: int,
    learned: NDArray[np.float64],
    teachers: Sequence[Kept],
    share: float,
    on_epoch: OnEpoch | None,
) -> tuple[PreTrainedModel, Member]:
    """Train a student as a member is trained, on other targets."""
    tokenizer = load_tokenizer(job.encoder, job.max_length)
    torch.manual_seed(job.seed)  # the members' head
    model = load_classifier(start).to(job.device)
    torch.manual_seed(seed)
    ids = encode(tokenizer, load_rows(job.train)["sentence"].tolist())
    run = digest_of([job.run, share, [sha256_of(Path(each.weights)) for each in teachers]])
    course = train_epochs(
        model,
        Encoded(ids, learned, model.config.pad_token_id or 0, job.device),
        encode_rows(load_rows(job.validation), tokenizer, model, job.device),
        job.recipe,
        epochs=job.epochs,
        seed=seed,
        patience=job.patience,
        places=Places(f"{job.folder}/student", run, job.checkpoint_seconds),
        on_epoch=on_epoch,
    )
    return model, Member(
        seed=seed,
        best_epoch=course.best_epoch,
        collapsed=course.collapsed,
        epochs=course.epochs,
        step_losses=course.step_losses,
    )
