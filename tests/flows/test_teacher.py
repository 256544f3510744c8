"""The teacher of a training is found before it starts and names the job; that it may have read the holdout is said."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from job_cache import Choose
from toy import facts

from flows.commands.predict import FoundModel
from flows.jobs.job import JobInputs, name_job, recordable_rows
from flows.jobs.teacher import locate_teacher, pinned_teacher
from tasks.core.errors import UsageError, VerdictError
from tasks.core.settings import Settings
from tasks.data.ingestion import Dataset
from tasks.inference.bundle import write_manifest

DATA = cast(Dataset, {"digest": "d" * 64, "holdout": {"digest": "1" * 64}, "secondary": {"digest": "2" * 64}})
MakeTeacher = Callable[[Any, str], Path]


@pytest.fixture
def make_teacher(exported: Any, tmp_path: Path) -> MakeTeacher:
    """Write a bundle with a data.json, or without one, of a data set."""

    def make(profile: Any, dataset: str = "e" * 64) -> Path:
        bundle = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
        if profile is not None:
            (bundle / "data.json").write_text(json.dumps(profile))
        write_manifest(bundle, facts(max_length=16, dataset=dataset), {})
        return bundle

    return make


@pytest.fixture
def locate(choose: Choose, tmp_path: Path) -> Callable[..., FoundModel]:
    def find(address: str, **changes: Any) -> FoundModel:
        return locate_teacher(choose(finetune__teacher=address, **changes).settings, DATA, str(tmp_path))

    return find


@pytest.mark.parametrize(
    ("profile", "dataset", "warned"),
    [
        ({"dataset": "e", "holdouts": ["3" * 64, "2" * 64, "1" * 64]}, "e" * 64, False),  # other text, say
        ({"dataset": "e", "holdouts": ["1" * 64]}, "e" * 64, True),
        ({"dataset": "e"}, "e" * 64, True),  # of an earlier release
        ([], "e" * 64, True),
        (None, "e" * 64, True),
        (None, "d" * 64, False),  # the same data set
    ],
)
def test_a_teacher_that_may_have_read_a_holdout_is_used_with_a_warning(
    profile: Any,
    dataset: str,
    warned: bool,
    make_teacher: Callable[..., Path],
    locate: Callable[..., FoundModel],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = make_teacher(profile, dataset)
    monkeypatch.chdir(bundle.parent)
    with caplog.at_level(logging.WARNING, "tasks.retrain"):
        assert locate("bundle").bundle == str(bundle)
    said = "finetune.teacher bundle: nothing says that the teacher has not read sentences of this holdout"
    assert [message.partition(";")[0] for message in caplog.messages] == ([said] if warned else [])


@pytest.mark.parametrize(
    ("address", "changes", "kind", "message"),
    [
        (
            "hf:org/model",
            {"data__offline": True},
            UsageError,
            "finetune.teacher: hf:org/model is asked of the hub, and",
        ),
        ("nowhere", {}, UsageError, "finetune.teacher: model 'nowhere' is no registry address and no folder; expected"),
        ("3", {}, VerdictError, "finetune.teacher: there is no version yet"),
    ],
)
def test_what_is_no_teacher_is_one_line_that_names_the_setting(
    address: str, changes: dict[str, Any], kind: type[VerdictError], message: str, locate: Callable[..., FoundModel]
) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        locate(address, **changes)


def test_a_damaged_profile_of_a_teacher_is_fetched_again(
    make_teacher: Callable[..., Path], locate: Callable[..., FoundModel]
) -> None:
    bundle = make_teacher({"dataset": "e"})
    (bundle / "data.json").write_text("{")
    with pytest.raises(
        VerdictError, match=r"finetune.teacher: .*data.json cannot be read as JSON .*; fetch the bundle ag"
    ):
        locate(str(bundle))


def test_a_job_is_named_and_recorded_by_which_model_teaches(choose: Choose) -> None:
    settings, origins = choose(finetune__teacher="models:/acceptability@champion")
    teachers = [None, *(FoundModel("1", "bundle", digit * 64) for digit in "ab")]
    names = {name_job(settings, JobInputs(DATA, cast(Any, {"digest": "c"}), each, "cpu")) for each in teachers}
    assert len(names) == 3
    (row,) = (row for row in recordable_rows(settings, origins, teachers[1]) if row.key == "finetune.teacher")
    assert row.value == "models:/acceptability@champion (manifest aaaaaaaaaaaa)"


def test_where_a_teacher_lies_does_not_name_the_job(choose: Choose) -> None:
    def name(address: str) -> str:
        settings: Settings = choose(finetune__teacher=address).settings
        return name_job(settings, JobInputs(DATA, cast(Any, {"digest": "c"}), FoundModel("1", address, "a"), "cpu"))

    assert name("models:/acceptability@champion") == name("somewhere")


@pytest.mark.parametrize(
    ("address", "pinned"),
    [
        ("models:/acceptability@champion", "models:/acceptability/4"),
        ("models:/other/4", "models:/other/4"),
        ("4", "4"),
        ("folder/of/a/bundle", "folder/of/a/bundle"),
    ],
)
def test_the_address_of_a_teacher_stays_that_model_when_an_alias_moves(
    address: str, pinned: str, choose: Choose
) -> None:
    settings = choose(finetune__teacher=address).settings
    assert pinned_teacher(settings, FoundModel("4", "bundle", "a")) == {"teacher": pinned}
    assert pinned_teacher(settings, None) == {}
