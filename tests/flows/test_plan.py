"""What verdict retrain --dry-run says, and that it leaves nothing behind."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from job_cache import Choose, find_job
from toy import flow_settings

from flows.cli import show_plan
from flows.jobs.plan import RetrainPlan, plan_retraining
from tasks.registry import tracking
from tasks.registry.store import locate_store


def contents(home: Path) -> dict[str, bytes]:
    """Return every file of the stores but the files that SQLite keeps beside a database."""
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


def plan(choose: Choose, home: Path, force: bool = False, **changes: Any) -> RetrainPlan:
    """Plan with the toy settings, changed; nothing may be written."""
    tracking.recent_runs(locate_store(str(home)))  # writes an experiment to an empty database
    before = contents(home)
    planned = plan_retraining(choose(**changes), str(home), force)
    assert contents(home) == before
    return planned


def test_without_a_champion_a_candidate_would_be_trained(choose: Choose, home: Path) -> None:
    planned = plan(choose, home)
    assert (planned["action"], planned["why"]) == ("train", "there is no champion")
    assert (planned["champion"], planned["changes"], planned["rows"]) == (None, None, {})
    assert (planned["gate"]["passed"], planned["gate"]["kept"]) == (True, 480)


def test_of_equal_inputs_nothing_would_be_done(champion: dict[str, Any], choose: Choose, home: Path) -> None:
    planned = plan(choose, home)
    assert (planned["action"], planned["changes"], planned["rows"]) == ("nothing", [], {})
    assert planned["why"] == "version 1 was made of the same data, settings, encoder and code: PROMOTE"
    forced = plan(choose, home, force=True)
    assert (forced["action"], forced["why"]) == ("train", "nothing changed since champion 1, and --force starts over")
    assert planned["job"] == forced["job"] == find_job(home, choose())[0].name


def test_changes_of_data_settings_and_encoder_are_named(
    champion: dict[str, Any], choose: Choose, home: Path, toy_data: Path, quick_encoder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(toy_data, tmp_path / "data")
    first, second, third, *rest = (data / "in_domain_train.tsv").read_text().splitlines(keepends=True)
    source, label, _, sentence = second.split("\t")
    other = f"{source}\t{1 - int(label)}\t\t{sentence}"
    (data / "in_domain_train.tsv").write_text("".join([first, other, *rest, "toy\t1\t\tthe new cat sees\n"]))
    planned = plan(choose, home, data__path=[str(data)], finetune__seed=9, finetune__encoder=str(quick_encoder))
    changes = {change["what"]: (change["before"], change["now"]) for change in planned["changes"] or []}
    assert {"data set", "data.path", "finetune.seed", "finetune.encoder", "encoder_digest"} == set(changes)
    assert changes["finetune.seed"] == ("7", "9")
    assert planned["rows"] == {
        "train": {
            "added": 1,
            "removed": 1,
            "relabelled": 1,
            "examples": {
                "added": ["the new cat sees"],
                "removed": [third.rstrip("\n").split("\t")[3]],
                "relabelled": [sentence.rstrip("\n")],
            },
        }
    }
    assert (planned["action"], planned["why"]) == ("train", "5 things changed since champion 1")


def test_the_teacher_is_named_with_its_digest(champion: dict[str, Any], choose: Choose, home: Path) -> None:
    planned = plan(choose, home, finetune__teacher="models:/acceptability@champion")
    (change,) = planned["changes"] or []
    assert (change["what"], change["before"]) == ("finetune.teacher", "")
    assert re.fullmatch(r"models:/acceptability@champion \(manifest [0-9a-f]{12}\)", change["now"])


def test_an_interrupted_job_would_resume(champion: dict[str, Any], choose: Choose, home: Path) -> None:
    folder, _ = find_job(home, choose())
    (folder / "result.json").unlink()
    planned = plan(choose, home)
    assert (planned["action"], planned["finished"]) == ("resume", ["training", "export", "measurement"])


def test_changes_are_lines_and_what_an_old_champion_did_not_record_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "80")
    old = [{"what": f"judge.rule_{number}", "before": "not recorded", "now": "1"} for number in range(19)]
    path = "corpora/of/the/publishing/house/reviews.csv"
    changes = [{"what": "judge.min_decision_threshold", "before": "0.25", "now": "0.5"}, *old]
    show_plan._show_changes([*changes, {"what": "data.path", "before": path, "now": f"other/{path}"}])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "changed   judge.min_decision_threshold: 0.25 -> 0.5",
        f"changed   data.path: {path} ->",
        f"other/{path}",
        "19 values more that the champion's run did not record: --json has all",
    ]


def test_the_command_prints_the_plan_and_ends_with_3_where_the_gate_refuses(
    champion: dict[str, Any],
    home: Path,
    toy_data: Path,
    tiny_encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    options = [f"--set={key}={value}" for key, value in flow_settings(toy_data, tiny_encoder).items()]
    code, out, err = call(capsys, "retrain", "--dry-run", *options)
    assert (code, "great_expectations" in err) == (0, False)
    assert out.startswith("would do nothing: version 1 was made of the same data")
    assert "gate      accepted: 480 of 480 rows kept" in out
    assert out.endswith("nothing was started; without --dry-run this command does it\n")
    code, out, _ = call(capsys, "retrain", "--dry-run", "--json", *options, "--set", "gate.min_rows=1000")
    answer = json.loads(out)
    assert (code, answer["action"]) == (3, "refused")
    assert len(answer["gate"]["failures"]) == 1
    show_plan.show_plan(answer)
    assert capsys.readouterr().out.endswith("nothing was started\n")
