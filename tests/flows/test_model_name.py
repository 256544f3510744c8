"""Several models on one server: VERDICT_MODEL_NAME names the registered model, and what is kept about it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call
from registry_store import add_version, aliases, new_store, set_alias

from flows import environment
from tasks.core.errors import UsageError
from tasks.inference import bundle
from tasks.registry import lookup, promotion

ROOT = Path(__file__).parents[2]
OTHER = """
import sys
from pathlib import Path
from registry_store import add_version, aliases, store_in
from tasks.registry import lookup, promotion, tracking
folder = Path(sys.argv[1])
store = store_in(folder)
before = lookup.find_alias(store, "champion", fetch=False), aliases(store), tracking.recent_runs(store)
tracking.open_run(store, "b" * 16, {}, {})
version = add_version(store, folder, "of questions")
promotion.promote(store, version, kind="promote", expected=None, reason="it is the first")
print(before, version, aliases(store), len(promotion.history(store)[0]), len(tracking.recent_runs(store)))
"""


def test_two_names_in_one_store_do_not_see_each_other(empty_store: Path, tmp_path: Path) -> None:
    store = new_store(empty_store, tmp_path)
    add_version(store, tmp_path, "first")
    set_alias(store, add_version(store, tmp_path, "second"))
    environ = os.environ | {"VERDICT_MODEL_NAME": "questions", "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"}
    done = subprocess.run([sys.executable, "-c", OTHER, tmp_path], env=environ, capture_output=True, text=True)
    assert done.stdout == "(None, {}, []) 1 {'champion': '1'} 1 1\n", done.stderr
    assert aliases(store) == {"champion": "2"}
    champion = lookup.find_alias(store, "champion", fetch=False)
    assert champion is not None
    assert champion["version"] == "2"
    assert [entry["to"] for entry in promotion.history(store)[0] if entry["reason"] == "it is the first"] == []


def test_a_folder_of_stores_is_one_model_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(environment, "MODEL_NAME", "questions")
    assert environment.usable_home() == environment.usable_home() == str(tmp_path / "home")
    monkeypatch.undo()
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="holds the model 'questions', and VERDICT_MODEL_NAME names 'acceptability'"):
        environment.usable_home()


@pytest.mark.parametrize("name", ["mlflow.db", "runs", "snapshots"])
def test_stores_without_a_name_are_the_default_models_wherever_the_database_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setenv("VERDICT_HOME", str(tmp_path))
    assert environment.own_home() == environment.usable_home() == str(tmp_path)
    monkeypatch.setattr(environment, "MODEL_NAME", "questions")
    for refuse in (environment.own_home, environment.usable_home):
        with pytest.raises(UsageError, match="holds the model 'acceptability', and VERDICT_MODEL_NAME names "):
            refuse()


@pytest.mark.parametrize(
    "command", ["prune --days 0 --keep 1", "backup ../copy", "restore ../copy", "restore ../copy --replace"]
)
def test_stores_of_another_model_are_neither_pruned_nor_backed_up_nor_replaced(
    command: str, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    files = home / "artifacts" / "models" / "m-1"  # no model of this name has it: rubbish, if the stores were its own
    files.mkdir(parents=True)
    (files / "model.onnx").write_text("the champion")
    os.utime(files / "model.onnx", (0, 0))
    os.utime(files, (0, 0))
    shutil.copy(empty_store, home / "mlflow.db")
    (home / environment.MODEL_FILE).write_text("questions\n")
    monkeypatch.setenv("VERDICT_HOME", str(home))
    monkeypatch.chdir(home)
    code, _, err = call(capsys, *command.split())
    assert code == 2
    assert "holds the model 'questions', and VERDICT_MODEL_NAME names 'acceptability'" in err
    assert (files / "model.onnx").is_file()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["", "a.b", "-a", "a b", "a/b", "a" * 65])
def test_a_name_that_cannot_be_one_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MODEL_NAME", name)
    with pytest.raises(UsageError, match=r"VERDICT_MODEL_NAME .* is refused; expected 1 to 64 letters"):
        bundle.check_model_name()
