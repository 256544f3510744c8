"""A registry with versions of a real model, and a champion of it, made once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_server import make_registry_home

from tasks.serving.champion import Champion

NEVER = 3_600.0  # seconds: such a champion polls only when refresh() is called


@pytest.fixture(scope="session")
def original_home(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registry with three versions; tests work on copies, see `copy_registry_home`."""
    return make_registry_home(tmp_path_factory.mktemp("registry") / "original", empty_store, exported)


@pytest.fixture(scope="module")
def champion(exported: Any) -> Iterator[Champion]:
    """A bundle as the champion, which nothing replaces."""
    with Champion.open(exported["bundle"], NEVER, "cpu") as champion:
        yield champion
