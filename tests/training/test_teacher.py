"""A training learns the answers of a teacher: of which sentences, in which share, and once for all its processes."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from toy import Trainer, facts

from tasks.core.errors import UsageError, VerdictError
from tasks.data.snapshots import read_snapshot
from tasks.inference import bundle as bundles
from tasks.inference.classifier import Classifier
from tasks.training import teacher as teaching
from tasks.training.teacher import mix_answers, read_teacher, write_answers
from tasks.training.training_job import ANSWERS_FILE, TEACHER_FOLDER, Teacher, TokenizedData

MakeTrainer = Callable[[], Trainer]


def answers_of(trainer: Trainer, text: str = "", **changes: Any) -> Any:
    """Return what a training would learn: sentences, and their probability of being acceptable."""
    job = trainer.job(text, **changes)
    assert job.teacher
    write_answers(job, job.teacher)
    return read_snapshot(str(trainer.checkpoints / TEACHER_FOLDER / ANSWERS_FILE))


def weights(trainer: Trainer, **changes: Any) -> bytes:
    trainer.train(**changes)
    return bytes(trainer.result()[0])


def flip_labels(trainer: Trainer, folder: Path) -> None:
    rows = read_snapshot(trainer.train_rows)
    trainer.train_rows = str(folder / "flipped.parquet")
    rows.assign(label=1 - rows["label"]).to_parquet(trainer.train_rows)


def test_answer_and_label_are_mixed_where_there_is_a_label() -> None:
    answers, labels = np.array([0.5, 0.5, 0.25]), np.array([1.0, 0.0, np.nan])
    assert mix_answers(answers, labels, 0.5, 0.0).tolist() == [0.75, 0.25, 0.25]
    assert mix_answers(answers, labels, 0.5, 0.5).tolist() == [0.625, 0.375, 0.25]  # a label of 0.75 or 0.25
    assert mix_answers(answers, labels, 1.0, 0.5).tolist() == answers.tolist()


def test_the_teacher_answers_training_rows_text_and_corrupted_copies_each_once(
    trainer: Trainer, exported: Any, tmp_path: Path
) -> None:
    rows = read_snapshot(trainer.train_rows)
    text = rows.head(5).assign(sentence=["the old cat", "the old dog", "the old dog", rows["sentence"][0], "a b c"])
    text.assign(label=1).to_parquet(tmp_path / "text.parquet")
    given = {"text": str(tmp_path / "text.parquet"), "teacher": exported["bundle"], "teacher_share": 1.0}
    alone = answers_of(trainer, **given, text_corruptions=0)
    assert alone["sentence"].tolist() == [*rows["sentence"], "the old cat", "the old dog", "a b c"]
    expected = Classifier.from_bundle(exported["bundle"]).probabilities(alone["sentence"].tolist())[:, 1]
    assert alone["acceptable"].to_numpy() == pytest.approx(expected, abs=1e-6)
    corrupted = answers_of(trainer, **given, text_corruptions=2, corruptions=1)
    assert corrupted["sentence"][: len(alone)].tolist() == alone["sentence"].tolist()
    assert len(corrupted) > len(alone) + rows["label"].sum() // 2
    assert corrupted["sentence"][len(rows) :].is_unique


def test_with_all_of_the_teachers_share_labels_do_not_matter(
    make_trainer: MakeTrainer, exported: Any, tmp_path: Path
) -> None:
    right, flipped = make_trainer(), make_trainer()
    flip_labels(flipped, tmp_path)
    given = {"teacher": exported["bundle"], "teacher_share": 1.0}
    assert weights(right, **given) == weights(flipped, **given)
    training, _ = make_trainer().train(**given)
    assert training["epochs"][-1]["validation_mcc"] > 0.9
    assert weights(right, teacher=exported["bundle"]) != weights(flipped, teacher=exported["bundle"])


def test_without_any_share_of_the_teacher_a_training_is_that_of_the_labels(
    make_trainer: MakeTrainer, exported: Any
) -> None:
    taught = weights(make_trainer(), teacher=exported["bundle"], teacher_share=0.0, label_smoothing=0.25)
    assert taught == weights(make_trainer(), label_smoothing=0.25)


def test_a_killed_training_resumes_with_the_answers_that_are_there(
    make_trainer: MakeTrainer, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"teacher": exported["bundle"], "corruptions": 1}
    whole, killed = make_trainer(), make_trainer()
    whole.train(**given)
    killed.interrupt(2, **given)
    monkeypatch.setattr(Classifier, "probabilities", None)
    _, seen = killed.train(**given)
    assert seen == [2, 3, 4]
    assert killed.result() == whole.result()


def test_answers_are_asked_for_part_by_part_and_only_damaged_parts_again(
    trainer: Trainer, exported: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(teaching, "PART", 100)
    asked: list[int] = []
    real = Classifier.probabilities

    def probabilities(self: Classifier, sentences: list[str]) -> Any:
        asked.append(len(sentences))
        return real(self, sentences)

    monkeypatch.setattr(Classifier, "probabilities", probabilities)
    before = answers_of(trainer, teacher=exported["bundle"])
    assert asked == [100, 100, 100, 12]
    assert answers_of(trainer, teacher=exported["bundle"]).equals(before)
    assert len(asked) == 4
    for damaged in (
        trainer.checkpoints / TEACHER_FOLDER / ANSWERS_FILE,
        trainer.checkpoints / "teacher-parts/300.json",
    ):
        damaged.write_bytes(damaged.read_bytes()[:-2])
    with caplog.at_level(logging.WARNING, "tasks.training.training_job"):
        assert answers_of(trainer, teacher=exported["bundle"]).equals(before)
    assert "answers.parquet is not what was written" in caplog.text
    assert asked[4:] == [12]
    answers_of(trainer, teacher=exported["bundle"], seed=8)  # another training
    assert asked[5:] == [100, 100, 100, 12]


def test_a_teacher_that_answers_nan_is_refused(trainer: Trainer, exported: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    graph = onnx.load(folder / "model.onnx")
    weight = next(tensor for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    broken = np.full_like(onnx.numpy_helper.to_array(weight), np.nan)
    weight.CopyFrom(onnx.numpy_helper.from_array(broken, weight.name))
    onnx.save(graph, folder / "model.onnx")
    bundles.write_manifest(folder, facts(max_length=16), {})
    with pytest.raises(
        VerdictError, match="the teacher answers NaN with its variant fp32; expected a model that answers"
    ):
        trainer.train(teacher=str(folder))


def test_another_bundle_than_the_one_that_was_found_does_not_teach(trainer: Trainer, exported: Any) -> None:
    job = trainer.job(teacher=exported["bundle"])
    other = Teacher(exported["bundle"], "0" * 64)
    with pytest.raises(VerdictError, match=r"its manifest is [0-9a-f]{12}, expected was 000000000000; fetch it again"):
        write_answers(job, other)
    with pytest.raises(VerdictError, match="expected was 000000000000"):
        read_teacher(other)


@pytest.mark.parametrize(("device", "gpu"), [("cuda", 3), ("cpu", 0)])
def test_the_teacher_answers_on_the_gpu_that_the_process_trains_on(
    trainer: Trainer, exported: Any, monkeypatch: pytest.MonkeyPatch, device: str, gpu: int
) -> None:
    def from_bundle(*_: Any, gpu: int, **__: Any) -> NoReturn:
        raise VerdictError(f"opened on GPU {gpu}")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    monkeypatch.setattr(teaching.Classifier, "from_bundle", from_bundle)
    job = trainer.job(teacher=exported["bundle"], device=device)
    with pytest.raises(VerdictError, match=f"opened on GPU {gpu}"):
        write_answers(job, Teacher(exported["bundle"]))


def test_every_process_of_a_training_learns_the_answers_that_one_wrote(trainer: Trainer, exported: Any) -> None:
    answers = answers_of(trainer, teacher=exported["bundle"], corruptions=1)
    job = pickle.loads(pickle.dumps(trainer.job(teacher=exported["bundle"], corruptions=1)))  # as processes get it
    train = TokenizedData(job).train
    assert train.count == len(answers)
    assert train._targets[: train.count, 1].tolist() == answers["acceptable"].astype(np.float32).tolist()
    assert train._targets[: train.count].sum(1).tolist() == pytest.approx([1.0] * train.count)


def test_which_model_teaches_is_in_the_fingerprint_and_where_it_lies_is_not(
    trainer: Trainer, exported: Any, complete: Any, tmp_path: Path
) -> None:
    found = trainer.fingerprint(teacher=exported["bundle"])
    moved = shutil.copytree(exported["bundle"], tmp_path / "moved")
    assert trainer.fingerprint(teacher=str(moved)) == found
    others = [
        trainer.fingerprint(),
        trainer.fingerprint(teacher=complete["bundle"]),
        trainer.fingerprint(teacher=exported["bundle"], teacher_share=0.5),
    ]
    assert len({found, *others}) == 4


def test_a_model_of_other_labels_is_refused(exported: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported["bundle"], tmp_path / "other"))
    manifest = json.loads((folder / "bundle.json").read_text())
    info = {name: value for name, value in manifest.items() if name in bundles.ModelInfo.__annotations__}
    bundles.write_manifest(folder, info | {"labels": ["bad", "good"]}, manifest["metrics"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has labels \['bad', 'good'\]; expected a model with \['unacceptable', 'acc"):
        read_teacher(Teacher(str(folder)))
