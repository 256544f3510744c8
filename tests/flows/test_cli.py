"""The command as a user meets it: exit codes, one clear line, one JSON document."""

import errno
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from command_line import call
from registered import make_champion_store

from flows import environment
from flows.cli.app import _explain
from tasks.core.errors import OUT_OF_MEMORY
from tasks.inference.sessions import has_gpu

ROOT = Path(__file__).parents[2]
VERDICT = [sys.executable, "-m", "flows.cli.app"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "stores"))
    return tmp_path / "stores"


def test_help_answers_in_half_a_second() -> None:
    def seconds() -> float:
        """Processor time: it does not depend on what else this machine does."""
        before = os.times()
        subprocess.run([*VERDICT, "--help"], capture_output=True, check=True, cwd=ROOT)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


def imported_by(code: str, environment: dict[str, str] | None = None) -> set[str]:
    """Return the top-level modules that a new process has imported after running `code`."""
    program = f"{code}\nimport sys; print('imported', *sorted(n for n in sys.modules if '.' not in n))"
    run = [sys.executable, "-c", program]
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | (environment or {})
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_one_sentence_needs_neither_prefect_nor_mlflow_nor_torch(
    empty_store: Path, exported: Any, tmp_path: Path
) -> None:
    make_champion_store(tmp_path, empty_store, exported)
    code = (
        "from flows.cli.app import main\n"
        "try:\n    main(['predict', 'The cat sat.'])\n"
        "except SystemExit as ended:\n    assert ended.code == 0"
    )
    imported = imported_by(code, {"VERDICT_HOME": str(tmp_path)})
    assert "onnxruntime" in imported
    heavy = {"prefect", "mlflow", "torch", "transformers", "pandas", "pyarrow", "sqlalchemy", "pydantic_settings"}
    assert not imported & heavy


@pytest.mark.parametrize(
    ("busy", "expected"), [(True, {"OMP_WAIT_POLICY": "passive"}), (False, {"GOMP_SPINCOUNT": "10000"})]
)
def test_threads_of_torch_wait_asleep_beside_busy_processes(
    busy: bool, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "is_machine_busy", lambda: busy)
    for name in environment.OPENMP_VARIABLES:
        monkeypatch.setenv(name, "")  # undone afterwards
        monkeypatch.delenv(name)
    environment.set_process_defaults()
    chosen = {name: os.environ[name] for name in environment.OPENMP_VARIABLES if name in os.environ}
    assert chosen == expected
    for name in environment.OPENMP_VARIABLES:
        os.environ.pop(name, None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    environment.set_process_defaults()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    assert "GOMP_SPINCOUNT" not in os.environ


def test_prefect_keeps_its_files_in_the_stores_folder_unless_it_has_its_own(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_HOME", "")  # undone afterwards
    monkeypatch.delenv("PREFECT_HOME")
    (tmp_path / ".prefect").mkdir()
    environment.set_process_defaults()
    assert "PREFECT_HOME" not in os.environ
    (tmp_path / ".prefect").rmdir()
    environment.set_process_defaults()
    assert os.environ["PREFECT_HOME"] == f"{home}/cache/prefect"


def test_a_home_that_does_not_exist_yet_is_no_warning_of_prefect(tmp_path: Path) -> None:
    code = "from flows import environment\nenvironment.set_process_defaults()\nimport prefect"
    variables = os.environ | {"HOME": str(tmp_path), "VERDICT_HOME": str(tmp_path / "none" / "stores")}
    variables.pop("PREFECT_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="Linux counts the tasks that ask for a CPU")
def test_a_machine_is_busy_while_others_ask_for_all_its_cpus() -> None:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        time.sleep(0.5)
        assert environment.is_machine_busy()
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_openmp_reads_how_threads_wait_after_it_is_set() -> None:
    # OpenMP reads it when it is loaded, with torch or scikit-learn.
    code = "from flows import environment\nimport flows.cli.run\nenvironment.set_process_defaults()"
    assert not imported_by(code) & {"torch", "sklearn"}


def test_without_arguments_the_help_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["verdict"])
    code, out, _ = call(capsys)
    assert code == 0
    assert "retrain" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["retrain", "--set", "finetune.epoch=3"],
            "setting 'finetune.epoch' (flag) is unknown; did you mean 'finetune.epochs'",
        ),
        (["retrain", "--set", "finetune.epochs=0"], "finetune.epochs = '0' (flag) is refused: expected at least"),
        (["retrain", "--set", "finetune.epochs"], "has no value; expected KEY=VALUE"),
        (["retrain", "--profile", "nobody"], "profile 'nobody' is unknown; expected one of cola, cola-small, sample"),
        (["retrain", "--device", "tpu"], "'tpu' is not one of 'auto', 'cuda', 'cpu'"),
        (["retrain", "--no-such-option"], "No such option"),
        (
            ["check", "--columns", "sentence=text"],
            "'sentence' is no role of a column; expected text, label, source, mark",
        ),
        (["check", "--labels", "good=2"], "every label stands for 0 or 1"),
        (
            ["check", "--data", "https://example.org/a.tsv"],
            "has no digest; expected https://example.org/a.tsv#sha256=HEX",
        ),
        (["check", "--data", "hf:a/b/c/d/e"], "data set address 'hf:a/b/c/d/e' is malformed"),
        (["watch", "--set", "watch.retrain_on=always"], "watch.retrain_on = 'always' (flag) is refused"),
        (["predict"], "Missing argument"),
        (["conquer"], "No such command 'conquer'"),
        (["predict", "x", "--model", "acceptability"], "is no registry address"),
    ],
)
def test_wrong_usage_is_exit_2_and_at_most_two_lines(
    capsys: pytest.CaptureFixture[str], home: Path, arguments: list[str], expected: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert expected in err
    assert err.startswith("error: ")
    assert err.count("\n") <= 2
    assert not home.exists() or not list(home.iterdir())


@pytest.mark.parametrize(
    ("data", "code", "expected"),
    [
        ("missing", 2, "does not exist; expected a folder, a file, https://"),
        ("without-files", 2, "holds no file 'in_domain_train.tsv' (it holds no file)"),
        ("empty", 3, "is empty; expected a row for each sentence"),
        ("unreadable", 1, "cannot be read"),
        ("text-labels", 3, "data refused: whole data: share of quarantined training rows: 0."),
    ],
)
def test_bad_data_is_refused_without_a_trace(
    capsys: pytest.CaptureFixture[str],
    home: Path,
    toy_data: Path,
    tmp_path: Path,
    prefect_server: str,
    empty_store: Path,
    data: str,
    code: int,
    expected: str,
) -> None:
    folder = tmp_path / data
    if data in ("empty", "unreadable", "text-labels"):
        shutil.copytree(toy_data, folder)
    elif data == "without-files":
        folder.mkdir()
    train = folder / "in_domain_train.tsv"
    if data == "empty":
        train.write_text("")
    elif data == "unreadable":
        train.unlink()
        train.symlink_to("/proc/self/mem")  # opens, and fails when it is read, for root too
    elif data == "text-labels":
        train.write_text(train.read_text().replace("\t1\t", "\tyes\t"))
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    named = ["--train", train.name] if data == "unreadable" else []  # a link is followed where it is named
    found, out, err = call(capsys, "retrain", "--data", str(folder), *named, "--json")
    assert (found, out) == (code, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in err
    found, out, err = call(capsys, "status", "--json")
    assert (found, json.loads(out)["champion"]) == (0, None)


def test_check_reads_and_gates_alone_and_needs_no_server(
    capsys: pytest.CaptureFixture[str], home: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody answers there
    code, out, _ = call(capsys, "check", "--data", str(toy_data), "--json")
    answer = json.loads(out)
    assert (code, answer["passed"], answer["failures"]) == (0, True, [])
    assert (answer["rows_in"], answer["kept"], answer["quarantined"]) == (480, 480, 0)
    assert Path(answer["report"]).is_file()
    assert not (home / "mlflow.db").exists()
    shown = call(capsys, "check", "--data", str(toy_data))[1]
    assert "rows in      480" in shown
    assert shown.endswith("ACCEPTED\n")


def test_check_ends_with_3_and_names_each_fault_where_the_gate_refuses(
    capsys: pytest.CaptureFixture[str], home: Path, toy_data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(toy_data, tmp_path / "bad"))
    with (folder / "in_domain_train.tsv").open("ab") as file:
        file.write(b"toy\t1\n" * 20 + b"toy\t1\t\t\xff\n" + b"toy\t1\t\tThe same.\n" * 50)
    code, out, _ = call(capsys, "check", "--data", str(folder), "--json")
    answer = json.loads(out)
    assert (code, answer["passed"]) == (3, False)
    assert (answer["rows_in"], answer["kept"], answer["quarantined"]) == (551, 530, 21)
    assert answer["reasons"] == {"field count": 20, "encoding": 1}
    assert [failure.split(": ")[1] for failure in answer["failures"]] == [
        "share of quarantined training rows",
        "share of rows that repeat an earlier sentence",
    ]
    code, out, _ = call(capsys, "check", "--data", str(folder))
    assert code == 3
    assert "quarantined  21 (20 field count, 1 encoding)" in out
    assert "in_domain_train.tsv line 401: 2 fields instead of 4" in out
    assert out.endswith("REFUSED: correct the data, or change the limit: --set data.max_quarantined=VALUE\n")


def test_check_takes_other_peoples_tables(capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path) -> None:
    rows = [{"words": f"Sentence {n}, of its own.", "fine": "yes" if n % 3 else "no"} for n in range(600)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["--data", str(tmp_path / "own.jsonl"), "--columns", "text=words,label=fine", "--labels", "yes=1,no=0"]
    code, out, err = call(capsys, "check", *own, "--json")
    answer = json.loads(out)
    assert (code, answer["rows_in"], answer["kept"], answer["failures"]) == (0, 600, 600, [])
    assert "no holdout file: " in err
    code, out, err = call(capsys, "check", "--data", str(tmp_path / "own.jsonl"))
    assert (code, out) == (2, "")
    assert "has no column 'sentence' for the text; it has 'words', 'fine': --columns text=NAME,label=NAME" in err


@pytest.mark.parametrize("command", [["retrain"], ["retrain", "--dry-run"], ["watch"], ["sweep"]], ids=" ".join)
def test_tables_of_other_columns_are_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "own.csv").write_text("words,fine\nA cat sat.,1\n")
    space = ["--set", "finetune.epochs=1,2"] if command == ["sweep"] else []
    code, out, err = call(capsys, *command, "--data", str(tmp_path / "own.csv"), *space)
    assert (code, out) == (2, "")
    assert "has no column 'sentence' for the text; it has 'words', 'fine': --columns text=NAME,label=NAME" in err
    assert not home.exists()


def test_watch_looks_once_and_prints_what_followed(
    capsys: pytest.CaptureFixture[str], home: Path, toy_data: Path, prefect_server: str
) -> None:
    arguments = ["watch", "--data", str(toy_data), "--set", "watch.retrain_on=never"]
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert "the data changed; there is no champion's data to compare it with; watch.retrain_on = never" in out
    assert out.endswith("no retraining run was started\n")
    code, out, _ = call(capsys, *arguments, "--json")
    assert (code, json.loads(out)["changed"]) == (0, False)


@pytest.mark.parametrize("encoder", ["./no-such-folder", "folder-without-model"])
def test_a_wrong_model_folder_is_one_line_before_anything_starts(
    capsys: pytest.CaptureFixture[str], home: Path, toy_data: Path, tmp_path: Path, encoder: str
) -> None:
    (tmp_path / "folder-without-model").mkdir()
    name = encoder if encoder.startswith(".") else str(tmp_path / encoder)
    code, out, err = call(capsys, "retrain", "--data", str(toy_data), "--encoder", name)
    assert (code, out) == (2, "")
    assert err.startswith("error: encoder folder")
    assert err.count("\n") == 1
    assert not home.exists()


def test_an_option_without_its_value_names_the_help_of_its_command(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert call(capsys, "score", "in.txt", "out.parquet", "--workers") == (
        2, "", "error: Option '--workers' requires an argument.\nsee: verdict score --help\n"
    )  # fmt: skip


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU: nothing to refuse")
def test_cuda_without_a_gpu_is_an_error_and_no_cpu_run(
    capsys: pytest.CaptureFixture[str], home: Path, toy_data: Path, tiny_encoder: Path
) -> None:
    arguments = ["--data", str(toy_data), "--encoder", str(tiny_encoder), "--device", "cuda"]
    for command in ("retrain", "watch"):
        assert call(capsys, command, *arguments) == (
            1, "", "error: device cuda is wanted, but NVIDIA's driver reports no GPU; see: verdict doctor\n"
        )  # fmt: skip
    assert not home.exists()


def test_a_cluster_that_does_not_answer_is_refused_before_data_is_read(
    capsys: pytest.CaptureFixture[str], home: Path, toy_data: Path, tiny_encoder: Path
) -> None:
    arguments = ["--data", str(toy_data), "--encoder", str(tiny_encoder), "--set", "finetune.ray=127.0.0.1:1"]
    for command in ("retrain", "watch"):
        code, out, err = call(capsys, command, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("error: no Ray cluster answers at 127.0.0.1:1 (Connection refused); expected local, auto")
    assert not home.exists()


def test_predict_marks_a_sentence_longer_than_the_model_reads(
    capsys: pytest.CaptureFixture[str], exported: Any
) -> None:
    arguments = ["predict", "cat " * 14, "cat " * 15, "--model", exported["bundle"], "--device", "cpu"]
    assert call(capsys, *arguments)[1].count("(truncated)") == 1
    answers = json.loads(call(capsys, *arguments, "--json")[1])
    assert [answer["truncated"] for answer in answers] == [False, True]


def test_predict_before_any_training_says_what_to_run(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    code, out, err = call(capsys, "predict", "A sentence.")
    assert (code, out) == (1, "")
    assert f"there is no champion yet: nothing is in {home} (no mlflow.db); run: verdict retrain, or name the" in err
    assert not home.exists()


def test_status_before_any_training_says_so_fails_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):  # other tests may have a server up
        code, out, err = call(capsys, "status", "--json")
        printed = call(capsys, "status")[1]
    assert code == 1
    assert err == (
        f"error: there is no version yet: nothing is in {home} (no mlflow.db); run: verdict retrain, or name the "
        "folder that is meant: VERDICT_HOME=DIR\n"
    )
    answer = json.loads(out)
    assert (answer.pop("home"), answer.pop("initialised")) == (str(home), False)
    assert answer.pop("store").endswith("mlflow.db")
    assert answer.pop("disk")["stores_gb"] == 0
    assert answer == {
        "champion": None,
        "challenger": None,
        "runs": [],
        "champion_state": "none",
        "drift": None,
        "schedule": None,
        "notices": [],
        "services": None,
        "requests": None,
        "unreachable": [],
    }
    assert not home.exists()
    assert "mlflow.db, not there\n" in printed
    assert "champion" not in printed


def test_settings_are_shown_with_their_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERDICT_FINETUNE__SEED", "5")
    arguments = ("retrain", "--profile", "cola", "--set", "finetune.epochs=3", "--show-settings")
    code, out, _ = call(capsys, *arguments, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["finetune.epochs"] == [3, "flag"]
    assert shown["finetune.seed"] == [5, "environment"]
    assert shown["finetune.encoder"] == ["bert-base-uncased", "profile cola"]
    assert shown["finetune.weight_decay"] == [0.01, "default"]
    assert "profile cola" in call(capsys, *arguments)[1]


def test_doctor_tells_what_works(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    code, out, _ = call(capsys, "doctor", "--json")
    checks = {check["check"]: check for check in json.loads(out)}
    assert set(checks) == {
        "versions",
        "GPU",
        "ONNX Runtime",
        "encoder",
        "MLflow store",
        "signatures",
        "Prefect",
        "disk",
    }
    assert checks["ONNX Runtime"]["seen"].startswith("a session runs on ")
    assert code == (0 if all(check["works"] for check in checks.values()) else 1)


def test_doctor_fails_where_a_store_does_not_answer(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    home.mkdir()
    (home / "mlflow.db").write_text("no database " * 500)
    code, out, _ = call(capsys, "doctor")
    assert code == 1
    assert "fails  MLflow store" in out


def test_debug_is_an_option_of_every_command(
    capsys: pytest.CaptureFixture[str], home: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERDICT_DEBUG", "1")  # what the option sets; here so that it is undone
    assert call(capsys, "--debug", "check", "--data", str(toy_data), "--json")[0] == 0


def test_a_home_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy_data: Path
) -> None:
    monkeypatch.setenv("VERDICT_HOME", "/proc/verdict")
    code, out, err = call(capsys, "check", "--data", str(toy_data))
    assert (code, out) == (2, "")
    assert err.startswith("error: the folder of the stores /proc/verdict cannot be created (its file system")
    assert err.endswith("name another: VERDICT_HOME=DIR\n")


def test_a_home_with_brackets_in_its_name_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, toy_data: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "[" / "x]"))
    code, out, _ = call(capsys, "check", "--data", str(toy_data))
    assert code == 0
    assert str(tmp_path / "[" / "x]") in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.txt", "out.parquet"], "error: input 'missing.txt' does not exist; expected a file of sentences"),
        (["-", "out.csv"], "error: output 'out.csv' does not end in .parquet; expected a Parquet file, or -"),
        (["-", "-", "--json"], "error: --json and output '-' both write to standard output; name a Parquet file"),
        (["-", "out.parquet", "--format", "xml"], "'xml' is not one of 'txt', 'tsv', 'csv', 'jsonl'"),
        (["-"], "Missing argument 'OUT'"),
    ],
)
def test_score_tells_wrong_usage_before_anything_starts(
    capsys: pytest.CaptureFixture[str], home: Path, arguments: list[str], expected: str
) -> None:
    code, out, err = call(capsys, "score", *arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") <= 2
    assert not home.exists()


def test_commands_that_need_a_champion_say_so_before_anything_starts(home: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("A sentence.\n")
    nothing = (
        f"yet: nothing is in {home} (no mlflow.db); run: verdict retrain, or name the folder that is meant: "
        "VERDICT_HOME=DIR"
    )
    program = (
        "import sys\nfrom flows.cli.app import main\n"
        "for line in sys.stdin:\n    try:\n        main(line.split())\n    except SystemExit as ended:\n"
        "        assert ended.code == 1\n"
        "print(*sorted({'prefect', 'mlflow', 'torch', 'fastapi', 'transformers'} & sys.modules.keys()))\n"
    )
    commands = ("predict x", f"score {tmp_path}/in.txt {tmp_path}/out.parquet", "export-triton t")
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="\n".join((*commands, "rollback --reason x", "compare 1")), env=os.environ | {"VERDICT_HOME": str(home)},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == (
        f"error: there is no champion {nothing}\n" * len(commands)
        + f"error: there is no version {nothing}\n"
        + f"error: there is no champion {nothing}; or name a second version: verdict compare 1 B\n"
    )
    assert done.stdout.split() == []  # none of the slow libraries
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "stores"]


def test_score_prints_one_document(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path, exported: Any, prefect_server: str
) -> None:
    (tmp_path / "in.csv").write_text("said,n\nthe cat sees,1\nthe dog,2\none field\n")
    arguments = ["score", str(tmp_path / "in.csv"), str(tmp_path / "out.parquet"), "--model", exported["bundle"]]
    arguments += ["--columns", "text=said", "--device", "cpu"]
    code, out, _ = call(capsys, *arguments, "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["rows_in"], answer["scored"], answer["quarantined"]) == (3, 2, 1)
    assert (answer["version"], answer["digest"]) == (f"sha256:{exported['digest'][:12]}", exported["digest"])
    assert (answer["out"], answer["provider"]) == (str(tmp_path / "out.parquet"), "CPUExecutionProvider")
    assert answer["sentences_per_second"] > 0
    assert set(answer["seconds"]) == {"start", "find model", "score", "total"}
    shown = call(capsys, *arguments)[1]
    assert "scored       2 (" in shown
    assert "quarantined  1 (1 field count)\n  in.csv line 4: 1 field instead of 2\n" in shown
    assert f"quarantine   {tmp_path}/out.parquet.quarantine.parquet\n" in shown
    assert shown.endswith(f"scores       {tmp_path}/out.parquet\n")


def test_score_answers_on_standard_output_and_reports_on_standard_error(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path, exported: Any, prefect_server: str
) -> None:
    (tmp_path / "in.txt").write_text(f"the cat sees\n\n{'cat ' * 15}\n")
    arguments = ["score", str(tmp_path / "in.txt"), "-", "--model", exported["bundle"], "--refuse-truncated"]
    code, out, err = call(capsys, *arguments)
    assert code == 0
    assert [json.loads(line)["sentence"] for line in out.splitlines()] == ["the cat sees", None, None]
    assert "1 truncated" in err
    assert "scored       1 (" in err


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/stores/runs/x"), "/stores/runs/x"),
        (PermissionError(errno.EACCES, "Permission denied", "/stores/runs"), "/stores/runs"),
        (OSError(errno.EROFS, "Read-only file system"), "a file in "),
    ],
)
def test_storage_that_cannot_be_used_is_one_line_and_no_bug(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, named: str
) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(environment, "usable_home", fail)
    code, out, err = call(capsys, "check")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {named}")
    assert f"cannot be read or written ({error.strerror}); expected access and free space: verdict doctor" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("megabytes", [50, 100, 150])
def test_too_little_memory_is_one_line(home: Path, megabytes: int) -> None:
    limit = megabytes * 1_000_000
    done = subprocess.run(
        [*VERDICT, "predict", "The cat sat."],
        capture_output=True, text=True, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (1, "", [f"error: {OUT_OF_MEMORY}"])


@pytest.mark.parametrize("command", [["score", "-", "out.parquet"], ["retrain"]], ids=["score", "retrain"])
@pytest.mark.parametrize(
    ("limited", "most", "said"),
    [
        (
            resource.RLIMIT_AS,
            800_000_000,
            "address space is limited to 800,000,000 bytes; expected at least 1,000,000,000",
        ),
        (resource.RLIMIT_FSIZE, 102_400, "files are limited to 102,400 bytes; expected at least 100,000,000"),
        (resource.RLIMIT_NOFILE, 32, "open files are limited to 32; expected at least 64"),
    ],
    ids=["address space", "size of a file", "open files"],
)
def test_a_flow_without_what_it_needs_is_one_line_before_anything_starts(
    home: Path, limited: int, most: int, said: str, command: list[str]
) -> None:
    done = subprocess.run(
        [*VERDICT, *command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(limited, (most, most)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {said}: ulimit -")
    assert done.stderr.endswith(", then run the same command again\n")
    assert not home.exists()


def run_in_shell(words: str, folder: Path = ROOT) -> tuple[int, str, str]:
    """Run `verdict` with redirections, which a shell makes."""
    command = f"exec {shlex.join(VERDICT)} {words}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout, done.stderr


def test_a_closed_standard_error_keeps_no_command_from_its_work(home: Path) -> None:
    code, printed, _ = run_in_shell("settings finetune.epochs 2>&- <&-")
    assert (code, printed.splitlines()[0]) == (0, "finetune.epochs = 4  (whole number, ≥ 1 and ≤ 1000)")
    assert run_in_shell("predict 'A cat.' 2>&-")[0] == 1


def test_a_full_standard_output_is_named(home: Path) -> None:
    line = "error: standard output cannot be written to (No space left on device); expected a place with free space\n"
    for words in ("settings finetune.epochs", "--version"):
        assert run_in_shell(f"{words} > /dev/full") == (1, "", line)


@pytest.mark.parametrize(("option", "printed"), [("-u", "now"), ("-B", "")])
def test_standard_output_is_as_buffered_as_before(option: str, printed: str) -> None:
    script = "import os; from flows.cli import standard_streams as s; s.prepare(); print('now', end=''); os._exit(0)"
    environ = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, option, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_a_key_is_made_only_where_it_can_be_seen(home: Path, tmp_path: Path) -> None:
    code, _, said = run_in_shell(f"api-key bob {tmp_path}/keys >&-")
    assert (code, "standard output is closed" in said) == (2, True)
    assert run_in_shell(f"api-key bob {tmp_path}/keys > /dev/full")[0] == 1
    assert list(tmp_path.glob("keys*")) == []


def test_characters_that_an_encoding_lacks_are_escapes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    code, printed, _ = run_in_shell("settings finetune.epochs")
    assert (code, printed.splitlines()[0]) == (0, r"finetune.epochs = 4  (whole number, \u2265 1 and \u2264 1000)")


def test_a_current_folder_that_was_deleted_is_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && PYTHONPATH={ROOT} exec {shlex.join(VERDICT)} status"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    said = "error: the current folder was deleted; go to one that is there: cd DIR\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_a_folder_of_the_stores_that_is_a_file_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    (home / "sample").write_text("")
    code, _, err = call(capsys, "check")
    assert code == 1
    assert str(home / "sample") in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (click.UsageError, "no such colour"),
        (click.BadParameter, "Invalid value: no such colour"),
        (typer.BadParameter, "Invalid value: no such colour"),
    ],
)
def test_a_usage_error_of_typer_or_of_click_itself_is_one_line_and_exit_code_2(
    kind: type[Exception], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _explain(kind("no such colour"), "status") == 2
    assert capsys.readouterr().err == f"error: {line}\nsee: verdict status --help\n"
