"""Bundles on a hub: a small server on the loopback implements the endpoints that are used."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle_hub import TOKEN, BundleHub, Repository, new_hub
from model_hub import leading_to
from registry_store import small_bundle

from flows.commands.export_hub import export_hub
from flows.commands.predict import find_model
from flows.commands.verify import verify
from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.inference.bundle import read_manifest

NAME = "team/acceptability"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BundleHub]]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # With hf_xet the library uploads large files by that protocol alone, which this hub has not.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub = new_hub()
    with leading_to(hub, tmp_path / "unused", monkeypatch):
        yield hub


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    small_bundle(tmp_path / "model", "a")
    return tmp_path / "model" / "data" / "bundle"


def push(bundle: Path, home: Path, public: bool = False) -> dict[str, Any]:
    return export_hub(NAME, str(bundle), public, str(home))


def test_a_bundle_that_is_pushed_comes_back_whole_by_branch_and_by_commit(
    hub: type[BundleHub], bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tasks")
    pushed = push(bundle, tmp_path)
    commit = hub.repositories[NAME].commits[-1][0]
    assert (pushed["address"], pushed["private"], pushed["created"]) == (f"hf:{NAME}@{commit}", True, True)
    assert len(hub.repositories[NAME].commits) == 2  # that of the hub, and one of ours
    found = find_model(f"hf:{NAME}", str(tmp_path / "home"))
    assert found.version == pushed["version"]
    assert Path(found.bundle).is_relative_to(tmp_path / "home" / "cache" / "hub")
    assert {path.name: path.read_bytes() for path in Path(found.bundle).iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }
    assert f"hf:{NAME} is commit {commit}; to pin it: hf:{NAME}@{commit}" in caplog.messages
    asked = len(hub.requests)
    assert find_model(pushed["address"], str(tmp_path / "home")) == found  # cached: no request
    assert len(hub.requests) == asked
    assert verify(pushed["address"], "", str(tmp_path / "home"))["digest"] == read_manifest(bundle)["digest"]


def test_what_is_there_already_is_not_pushed_again_and_old_files_go(
    hub: type[BundleHub], bundle: Path, tmp_path: Path
) -> None:
    first = push(bundle, tmp_path, public=True)
    assert (first["private"], first["unchanged"]) == (False, False)
    again = push(bundle, tmp_path)
    assert (again["unchanged"], again["commit"], again["private"]) == (True, first["commit"], False)
    repository = hub.repositories[NAME]
    repository.commit(repository.commits[-1][1] | {"signature.json": b"{}", "notes.md": b"ours"})
    push(bundle, tmp_path)
    assert set(repository.commits[-1][1]) == {path.name for path in bundle.iterdir()} | {".gitattributes", "notes.md"}


def test_a_damaged_bundle_is_not_pushed_and_one_that_was_exchanged_is_not_used(
    hub: type[BundleHub], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "model.onnx").write_text("other")
    with pytest.raises(VerdictError, match=r"model\.onnx does not match its SHA-256"):
        push(damaged, tmp_path)
    assert hub.repositories == {}
    push(bundle, tmp_path)
    repository = hub.repositories[NAME]
    exchanged = repository.commit(repository.commits[-1][1] | {"model.onnx": b"exchanged"})
    with pytest.raises(VerdictError, match=r"model\.onnx does not match its SHA-256"):
        verify(f"hf:{NAME}@{exchanged}", "", str(tmp_path))
    monkeypatch.setenv("VERDICT_REQUIRE_SIGNATURE", "1")
    with pytest.raises(VerdictError, match="is not signed"):
        find_model(f"hf:{NAME}", str(tmp_path))


def test_offline_a_branch_is_the_commit_of_its_last_download(
    hub: type[BundleHub], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = push(bundle, tmp_path)
    found = find_model(f"hf:{NAME}", str(tmp_path))
    asked = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_model(f"hf:{NAME}", str(tmp_path)) == find_model(pushed["address"], str(tmp_path)) == found
    assert len(hub.requests) == asked
    with pytest.raises(UnreachableError, match=f"model 'hf:{NAME}@v1' is not cached in .* run once with a network"):
        find_model(f"hf:{NAME}@v1", str(tmp_path))


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("hf:", UsageError, "model address 'hf:' is malformed; expected hf:ORG/NAME, optionally with @REVISION"),
        ("hf:a b", UsageError, "model address 'hf:a b' is malformed"),
        ("hf:team/nothing", UsageError, "model 'team/nothing' is not on the hub, or is private; expected a name"),
        ("hf:team/other@v9", UsageError, "model 'team/other' has no revision 'v9'; expected a branch, tag or commit"),
        ("hf:team/other", VerdictError, "model 'hf:team/other' is no bundle: it holds no bundle.json; expected a"),
        ("hf:team/wrong", VerdictError, "has schema version 99, this program reads"),
        ("hf:team/private", UsageError, "model 'team/private' is not on the hub, or is private; .* set HF_TOKEN"),
    ],
)
def test_what_cannot_be_pulled_is_one_line(
    hub: type[BundleHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, kind: Any, message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    for name, files in {
        "other": {"README.md": b"# Not ours"},
        "wrong": {"bundle.json": json.dumps({"schema_version": 99}).encode()},
        "private": {"bundle.json": b"{}"},
    }.items():
        hub.repositories[f"team/{name}"] = Repository(name == "private")
        hub.repositories[f"team/{name}"].commit(files)
    with pytest.raises(kind, match=message) as caught:
        find_model(address, str(tmp_path))
    assert "\n" not in str(caught.value)
    assert type(caught.value) is kind


def test_a_push_without_the_right_to_it_is_one_line(
    hub: type[BundleHub], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="repository 'team/a/b' is malformed; expected ORG/NAME"):
        export_hub("team/a/b", str(bundle), False, str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    with pytest.raises(UsageError, match=r"is refused by the hub \(HTTP 401\); expected a valid token: set HF_TOKEN"):
        push(bundle, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match=f"there is no token to push to {NAME} with; expected .*: set HF_TOKEN"):
        push(bundle, tmp_path)
    assert hub.repositories == {}


def test_a_hub_that_is_down_is_unreachable(
    hub: type[BundleHub], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(bundle, tmp_path)
    find_model(f"hf:{NAME}", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UnreachableError, match=r"cannot be fetched, .* or use the cached copy: HF_HUB_OFFLINE=1$"):
        find_model(f"hf:{NAME}", str(tmp_path))
    with pytest.raises(UnreachableError, match=f"the bundle was not pushed to '{NAME}', the hub gave no usable answer"):
        push(bundle, tmp_path)
