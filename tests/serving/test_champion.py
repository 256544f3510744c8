"""Following the champion on a real registry: moves, refusals, outages."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_server import BAD, DAMAGED, GOOD, RegistryHome, copy_registry_home, wait_until

from tasks.core.errors import NoChampion, UnknownModel, UnreachableError, UsageError, VerdictError
from tasks.inference.bundle import CHAMPION_URI, MODEL_NAME
from tasks.registry import lookup
from tasks.registry.mlflow_client import connect
from tasks.serving.champion import Champion, NotReady

NEVER = 3_600.0  # seconds: such a champion polls only when refresh() is called


@pytest.fixture
def home(original_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegistryHome:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return copy_registry_home(original_home, tmp_path / "home")


def follow(home: RegistryHome, refresh_s: float = NEVER, **settings: Any) -> Champion:
    return Champion.open(CHAMPION_URI, refresh_s, "cpu", str(home.folder), **settings)


@pytest.fixture
def champion(home: RegistryHome) -> Iterator[Champion]:
    home.set_champion("1")
    with follow(home) as champion:
        yield champion


def test_every_answer_carries_the_version(champion: Champion) -> None:
    answers = champion.predict([GOOD, BAD])
    assert [(answer["sentence"], answer["label"], answer["version"]) for answer in answers] == [
        (GOOD, "acceptable", "1"),
        (BAD, "unacceptable", "1"),
    ]
    assert champion.status()["provider"] == "CPUExecutionProvider"


def test_a_move_is_followed_and_models_in_use_stay(home: RegistryHome, champion: Champion) -> None:
    before = champion.current()
    assert not champion.refresh()
    home.set_champion("2")
    assert champion.refresh()
    assert champion.predict([GOOD])[0]["version"] == "2"
    assert before.predict([GOOD])[0]["version"] == "1"
    status = champion.status()
    assert (status["version"], status["moves"], status["failures"], status["problem"]) == ("2", 1, 0, None)


def test_a_thread_follows_until_close(home: RegistryHome) -> None:
    home.set_champion("1")
    with follow(home, refresh_s=0.05) as champion:
        home.set_champion("2")
        wait_until(lambda: champion.status()["version"] == "2")
        home.set_champion("1")
        wait_until(lambda: champion.status()["version"] == "1")
    assert not [thread for thread in threading.enumerate() if thread.name == "champion"]
    assert champion.predict([GOOD])[0]["version"] == "1"
    assert not champion.refresh()


def test_a_corrupt_version_is_refused_once_and_the_old_one_keeps_answering(
    home: RegistryHome, champion: Champion, caplog: pytest.LogCaptureFixture
) -> None:
    home.set_champion(DAMAGED)
    assert not champion.refresh()
    assert not champion.refresh()
    status = champion.status()
    assert (status["version"], status["failures"]) == ("1", 2)
    assert status["problem"] == (
        "version 3 is refused: its bundle: tokenizer.json does not match its SHA-256 in bundle.json; "
        "fetch it again from the registry"
    )
    logged = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert logged == [f"{CHAMPION_URI}: {status['problem']}; version 1 keeps answering"]
    assert champion.predict([GOOD])[0]["version"] == "1"
    home.set_champion("2")
    assert champion.refresh()
    assert champion.status()["problem"] is None


def test_a_refused_version_is_not_fetched_at_every_poll(
    home: RegistryHome, champion: Champion, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    real = lookup.fetch_bundle
    monkeypatch.setattr(lookup, "fetch_bundle", lambda *arguments: [fetched.append(1), real(*arguments)][1])
    home.set_champion(DAMAGED)
    for _ in range(5):
        champion.refresh()
    assert len(fetched) == 1


def test_a_valid_bundle_that_is_not_the_registered_one_is_refused(home: RegistryHome, champion: Champion) -> None:
    home.set_champion("2")
    with connect(home.store) as client:
        client.set_model_version_tag(MODEL_NAME, "2", "bundle_digest", "f" * 64)
    assert not champion.refresh()
    assert "registered was ffffffffffff" in str(champion.status()["problem"])


def test_a_version_that_cannot_be_fetched_changes_nothing(
    home: RegistryHome, champion: Champion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> str:
        raise UnreachableError("the artifacts are away")

    home.set_champion("2")
    with monkeypatch.context() as patch:
        patch.setattr(lookup, "fetch_bundle", fail)
        assert not champion.refresh()
        assert not champion.refresh()
    assert champion.status()["problem"] == "the artifacts are away"
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    assert champion.refresh()  # it is tried again as soon as it is there
    assert champion.status()["version"] == "2"


def test_an_unexpected_exception_does_not_end_following(
    home: RegistryHome, champion: Champion, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lookup, "resolve_version", lambda *arguments: 1 / 0)
        assert not champion.refresh()
    assert champion.status()["problem"] == "ZeroDivisionError: division by zero"
    home.set_champion("2")
    assert champion.refresh()


def test_a_store_that_goes_away_does_not_end_the_answers(
    home: RegistryHome, champion: Champion, caplog: pytest.LogCaptureFixture
) -> None:
    database = home.folder / "mlflow.db"
    database.rename(home.folder / "aside")
    for _ in range(3):
        assert not champion.refresh()
    assert "mlflow.db is missing, but" in str(champion.status()["problem"])
    assert champion.predict([GOOD])[0]["version"] == "1"
    assert not database.exists()  # a query would have created an empty one
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
    (home.folder / "aside").rename(database)
    assert not champion.refresh()
    assert champion.status()["problem"] is None


def test_an_alias_that_is_deleted_leaves_the_last_champion(home: RegistryHome, champion: Champion) -> None:
    with connect(home.store) as client:
        client.delete_registered_model_alias(MODEL_NAME, "champion")
    assert not champion.refresh()
    assert "there is no champion yet" in str(champion.status()["problem"])
    assert champion.predict([GOOD])[0]["version"] == "1"


def test_no_champion_no_store_and_no_model_are_different_errors(home: RegistryHome, tmp_path: Path) -> None:
    with pytest.raises(NoChampion, match=r"there is no champion yet in sqlite.*run: verdict retrain"):
        follow(home)
    with pytest.raises(NoChampion, match=r"there is no champion yet: nothing is in .*; run: verdict retrain"):
        Champion.open(CHAMPION_URI, NEVER, "cpu", str(tmp_path / "new"))
    with pytest.raises(UnknownModel, match=r"model 'grammar' is unknown in .*, which holds acceptability"):
        Champion.open("models:/grammar@champion", NEVER, "cpu", str(home.folder))
    with pytest.raises(UnknownModel, match=r"model 'acceptability' has no version '9' in"):
        Champion.open("9", NEVER, "cpu", str(home.folder))
    assert not (tmp_path / "new").exists()


def test_a_store_that_does_not_answer_names_the_next_command(
    home: RegistryHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(
        UnreachableError, match=r"MLflow store http://127\.0\.0\.1:9 failed .*; check it: verdict doctor"
    ):
        follow(home)
    with (
        follow(home, require_model=False) as champion,
        pytest.raises(NotReady, match="no model is loaded yet: MLflow"),
    ):
        champion.predict([GOOD])


@pytest.mark.parametrize("model", ["acceptability", "models:/x", "models:/x@", "models:/x/1@y", "models:/a/b/c", ""])
def test_what_is_no_address_is_a_usage_error(home: RegistryHome, model: str) -> None:
    with pytest.raises(UsageError, match="is no registry address and no folder; expected models:/acceptability"):
        Champion.open(model, NEVER, "cpu", str(home.folder), require_model=False)


def test_without_a_champion_it_can_wait_for_the_first(home: RegistryHome) -> None:
    with follow(home, refresh_s=0.05, require_model=False) as champion:
        with pytest.raises(NotReady, match="no model is loaded yet: there is no champion yet"):
            champion.current()
        home.set_champion("2")
        wait_until(lambda: champion.status()["version"] == "2")


def test_a_corrupt_first_champion_is_an_error_at_once(home: RegistryHome) -> None:
    home.set_champion(DAMAGED)
    with pytest.raises(VerdictError, match=r"version 3 is refused: .* does not match its SHA-256 in bundle.json"):
        follow(home, require_model=False)


@pytest.mark.parametrize("model", ["2", "models:/acceptability/2"])
def test_a_version_stays_what_it_is(
    home: RegistryHome, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.set_champion("1")
    (tmp_path / "2").mkdir()  # a folder of the same name is another thing
    monkeypatch.chdir(tmp_path)
    with Champion.open(model, 0.01, "cpu", str(home.folder)) as champion:
        assert champion.predict([GOOD])[0]["version"] == "2"
        assert not champion.status()["following"]
        assert not champion.refresh()


def test_a_folder_needs_no_store_and_is_named_by_its_digest(exported: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(exported["bundle"], tmp_path / "bundle")
    with Champion.open(str(bundle), NEVER, "cpu", str(tmp_path / "none")) as champion:
        shutil.rmtree(bundle)
        assert champion.predict([GOOD])[0]["version"] == f"sha256:{exported['digest'][:12]}"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_graph_is_refused_in_one_line(exported: Any, tmp_path: Path) -> None:
    from toy import facts

    from tasks.inference.bundle import write_manifest

    bundle = Path(shutil.copytree(exported["bundle"], tmp_path / "bundle"))
    for graph in bundle.glob("*.onnx"):
        graph.write_bytes(b"no graph")
    write_manifest(bundle, facts(), {})
    with pytest.raises(VerdictError) as caught:
        Champion.open(str(bundle), NEVER, "cpu")
    assert "\n" not in str(caught.value)
