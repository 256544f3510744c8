"""A student: what it learns of each sentence, when it is kept, and that nothing of it is lost or done twice."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from conftest import Killed, Trainer, diverge
from numpy.typing import NDArray
from safetensors.torch import load_file

from tasks import finetune, students
from tasks.batching import load_tokenizer
from tasks.classifier import encode_rows, load_classifier
from tasks.epochs import probabilities
from tasks.members import Choice, Job, Kept, Member
from tasks.reading import load_rows
from tasks.students import targets, teach

TAUGHT: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "seeds": 2, "distilled": 0.5}


class Lesson(NamedTuple):
    """What members say of each training sentence, and what a student learns of it by their share."""

    said: list[NDArray[Any]]
    learned: dict[float, NDArray[Any]]


@pytest.fixture
def lesson(monkeypatch: pytest.MonkeyPatch) -> Lesson:
    """Looks on while `teach` runs, as the members' files are deleted afterwards."""
    seen = Lesson([], {})

    def watched(job: Job, start: str, kept: list[Kept], choice: Choice, share: float, on_epoch: Any) -> Choice:
        for wanted in (0.0, 0.25, 1.0):
            seen.learned[wanted] = targets(job, start, kept, wanted)
        for each in kept:
            model = load_classifier(start)
            model.load_state_dict(load_file(each.weights))
            rows = encode_rows(load_rows(job.train), load_tokenizer(job.encoder, 16), model, "cpu")
            seen.said.append(probabilities(model, rows))
        return teach(job, start, kept, choice, share, on_epoch)

    monkeypatch.setattr(finetune, "teach", watched)
    return seen


def test_a_student_learns_the_members_mean_and_the_labels_by_their_shares(trainer: Trainer, lesson: Lesson) -> None:
    training, told = trainer.train(**TAUGHT)
    assert told == [1, 2] * 3  # two members and the student
    labels = np.eye(2)[load_rows(trainer.paths[0])["label"].to_numpy()]
    np.testing.assert_array_equal(lesson.learned[0.0], labels)
    np.testing.assert_allclose(lesson.learned[1.0], (lesson.said[0] + lesson.said[1]) / 2, atol=1e-12)
    np.testing.assert_allclose(lesson.learned[0.25], 0.25 * lesson.learned[1.0] + 0.75 * labels, atol=1e-12)
    assert training["kept"] == "student"
    assert (training["seed"], len(training["seeds"])) == (9, 2)


@pytest.mark.parametrize(
    ("mcc", "collapsed", "kept"), [(0.5, False, "student"), (0.4, False, "soup"), (0.9, True, "soup")]
)
def test_a_student_is_kept_from_what_the_weakest_member_has(
    mcc: float, collapsed: bool, kept: str, make_kept: Callable[[float], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [make_kept(0.5), make_kept(0.8)]
    model = torch.nn.Linear(1, 1)
    student = make_kept(mcc).member | {"collapsed": collapsed}
    monkeypatch.setattr(students, "targets", lambda *_: None)
    monkeypatch.setattr(students, "_train", lambda *_: (model, student))
    before = Choice(cast(Any, model), "soup", members[1].member, 0.7)
    job = SimpleNamespace(seed=7)  # of which the stand-ins read nothing else
    choice = teach(cast(Job, job), "", members, before, 0.5)
    assert (choice.kept, choice.soup_mcc) == (kept, 0.7)
    assert choice.best is (student if kept == "student" else members[1].member)


def test_one_member_that_learned_teaches_nobody(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    diverge(monkeypatch, 8)
    training, told = trainer.train(**TAUGHT)
    assert told == [1, 2, 1]
    assert training["kept"] == "seed 7"
    assert "a student needs two members that learned, there are 1; none is trained" in caplog.messages


def test_a_run_killed_in_the_student_goes_on_with_it_and_ends_with_the_same_bits(
    make_trainer: Callable[[], Trainer],
) -> None:
    whole, killed = make_trainer(), make_trainer()
    whole.train(**TAUGHT, checkpoint_seconds=0)

    def kill(record: Any) -> None:
        if (record["seed"], record["epoch"]) == (9, 2):
            raise Killed

    with pytest.raises(Killed):
        killed.train(**TAUGHT, checkpoint_seconds=0, on_epoch=kill)
    _, told = killed.train(**TAUGHT, checkpoint_seconds=0)
    assert told == [2]  # no member is trained again, nor the student's first epoch
    expected = load_file(whole.folder / "model.safetensors")
    for name, tensor in load_file(killed.folder / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture
def make_kept(tmp_path: Path) -> Callable[[float], Kept]:
    """A member's record with a validation MCC; its weights are not read."""

    def make(mcc: float) -> Kept:
        epoch: Any = {"validation_mcc": mcc}
        return Kept(
            Member(seed=7, best_epoch=1, collapsed=False, epochs=[epoch], step_losses=[]), str(tmp_path / "none")
        )

    return make
