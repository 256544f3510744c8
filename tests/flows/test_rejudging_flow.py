"""The champion changes under a run, or its files are gone: the run goes on, and promotes nothing unseen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_cache import JobCache
from registry_store import aliases, changes_of, new_store
from toy import facts, flow_settings

from flows.steps import Timer
from tasks.core.files import json_digest
from tasks.core.settings_loader import load_settings
from tasks.inference.bundle import write_manifest
from tasks.registry import lookup, promotion, register, tracking
from tasks.registry.store import MlflowStore
from tasks.registry.verification import read_recorded


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, prefect_server: str) -> MlflowStore:
    return new_store(empty_store, tmp_path)


def add(store: MlflowStore, bundle: Path, exported: Any, length: int) -> str:
    """Register a real model that reads so many tokens."""
    digest = write_manifest(Path(shutil.copytree(exported["bundle"], bundle)), facts(max_length=length), {})["digest"]
    run = tracking.open_run(store, f"{length:016d}", {}, {})
    version = register.register_bundle(store, run, str(bundle), digest, {"verdict": "HOLD"}, "a bundle")
    tracking.close_run(store, run, "FINISHED")
    return version


@pytest.fixture
def retrain(
    store: MlflowStore, tmp_path: Path, toy_data: Path, tiny_encoder: Path, job_cache: JobCache, copied_pictures: None
) -> Callable[[], dict[str, Any]]:
    from flows.jobs.retrain import retrain as flow

    def run() -> dict[str, Any]:
        policy = {"judge.threshold": 0.0, "judge.variant_difference": 1.0}
        resolved = load_settings("sample", flow_settings(toy_data, tiny_encoder) | policy, {})
        with job_cache.resumed(tmp_path, resolved):
            return flow(resolved.settings.model_dump(), resolved.origins, str(tmp_path)).to_json()

    return run


def test_a_candidate_is_judged_again_where_another_became_champion_meanwhile(
    store: MlflowStore,
    tmp_path: Path,
    retrain: Callable[[], dict[str, Any]],
    exported: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rival = add(store, tmp_path / "rival", exported, 17)
    real, looks = promotion.promote, []

    def promote(_timer: Timer, store: MlflowStore, version: str, **said: Any) -> Any:
        looks.append(said["expected"])
        if len(looks) == 1:  # between verdict and alias somebody else is faster
            real(store, rival, kind="promote", expected=None, reason="faster")
        return real(store, version, **said)

    monkeypatch.setattr("flows.jobs.retrain.promote_version", promote)
    outcome = retrain()
    assert looks == [None]  # as good as the rival, it is not promoted a second time
    assert (outcome["decision"], outcome["champion_before"]) == ("HOLD", rival)
    assert aliases(store) == {"champion": rival, "challenger": outcome["version"]}
    assert changes_of(promotion.history(store)[0]) == [("promote", None, rival)]
    tags = lookup.read_tags(store, outcome["version"])
    assert (tags["verdict"], tags["compared_with"]) == ("HOLD", rival)  # the version shows the last verdict
    (recorded,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/verdict.json"))
    assert recorded["champion"] == rival
    run = tags.get(register.JUDGED_IN_TAG) or tags["run"]
    assert json_digest(read_recorded(store, run, "verdict.json")) == tags["verdict_digest"]


def test_a_champion_whose_files_are_gone_is_held_against_nobody(
    store: MlflowStore, tmp_path: Path, retrain: Callable[[], dict[str, Any]], exported: Any
) -> None:
    champion = add(store, tmp_path / "first", exported, 15)
    promotion.promote(store, champion, kind="approve", expected=None, reason="first")
    shutil.rmtree(Path(lookup.resolve_version(store, fetch=True)["bundle"]).parents[1])
    outcome = retrain()
    assert outcome["decision"] == "HOLD"
    assert any(f"champion {champion} cannot be measured: " in reason for reason in outcome["reasons"])
    assert aliases(store) == {"champion": champion, "challenger": outcome["version"]}
