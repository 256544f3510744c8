"""What the tests of whole flows share: a home with a champion, finished parts of jobs, and pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
from job_cache import Choose, FirstRun, FlowHome, JobCache, PictureCache, find_job
from toy import flow_settings

from tasks.core.settings_loader import ResolvedSettings, load_settings


@pytest.fixture(scope="session")
def job_cache(tmp_path_factory: pytest.TempPathFactory) -> JobCache:
    return JobCache(tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="session")
def picture_cache(tmp_path_factory: pytest.TempPathFactory) -> PictureCache:
    return PictureCache(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def copied_pictures(picture_cache: PictureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy pictures instead of drawing them: seven as PNG and SVG take longer than training the tiny model.

    tests/reporting/test_charts.py holds what they show.
    """
    from flows.jobs import publish

    monkeypatch.setattr(publish, "draw", picture_cache.copying(publish.draw))


@pytest.fixture(scope="session")
def choose(toy_data: Path, tiny_encoder: Path) -> Choose:
    """Resolve the sample profile for the toy corpus and the tiny model, with changes."""

    def resolve(**changes: Any) -> ResolvedSettings:
        toy = flow_settings(toy_data, tiny_encoder)
        return load_settings("sample", toy | {key.replace("__", "."): value for key, value in changes.items()}, {})

    return resolve


@pytest.fixture(scope="session")
def flow_home(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> FlowHome:
    return FlowHome(tmp_path_factory.mktemp("home"), empty_store)


@pytest.fixture(scope="session")
def first_run(
    prefect_server: str,
    flow_home: FlowHome,
    choose: Choose,
    job_cache: JobCache,
    picture_cache: PictureCache,
    tmp_path_factory: pytest.TempPathFactory,
) -> FirstRun:
    """The first run in an empty home, nothing of it cached; the pictures that it draws are copied by later ones."""
    from flows.jobs import publish
    from flows.jobs.retrain import retrain

    flow_home.clear()
    resolved = choose()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "draw", picture_cache.copying(publish.draw))
        outcome = retrain(resolved.settings.model_dump(), resolved.origins, str(flow_home.folder)).to_json()
    job_cache.keep(*find_job(flow_home.folder, resolved))
    kept = tmp_path_factory.mktemp("first") / "home"
    flow_home.keep(kept)
    return FirstRun(json.loads(json.dumps(outcome)), kept)


@pytest.fixture
def home(flow_home: FlowHome) -> Path:
    """A home with an empty store."""
    flow_home.clear()
    return flow_home.folder


@pytest.fixture
def champion(first_run: FirstRun, home: Path, flow_home: FlowHome) -> dict[str, Any]:
    """Put what the first run left into the home; returns its outcome."""
    flow_home.put_back(first_run.kept)
    return first_run.outcome
