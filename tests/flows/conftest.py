"""What the tests of whole flows share: finished parts of jobs, and pictures, made once a session and copied."""

import pytest
from job_cache import JobCache, PictureCache


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
