"""A registry with versions of a real model, made once."""

from pathlib import Path
from typing import Any

import pytest
from http_server import make_registry_home


@pytest.fixture(scope="session")
def original_home(empty_store: Path, exported: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registry with three versions; tests work on copies, see `copy_registry_home`."""
    return make_registry_home(tmp_path_factory.mktemp("registry") / "original", empty_store, exported)
