"""The kills of faults_kills.py with MLflow's store in PostgreSQL, each from a copy of a template database."""

import argparse
import sys
from pathlib import Path
from typing import Any

from faults_home import CommandHome
from faults_kills import measure_kills

sys.path.insert(0, str(Path(__file__).parents[1] / "services"))

from stage import Postgres


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the counts of each command."""
    return measure_kills(options, PostgresHome)


class PostgresHome(CommandHome):
    """A home with MLflow's tables in PostgreSQL; artifacts and Prefect's database stay in the home."""

    needs_tables = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._postgres = Postgres(folder)
        address = f"postgresql://postgres@/kills?host={self._postgres.folder}&port={self._postgres.port}"
        self.environment["MLFLOW_TRACKING_URI"] = address
        self._execute("create database kills")

    def keep(self, name: str) -> None:
        super().keep(name)
        self._execute(f"create database kept_{name} template kills")

    def restore(self, name: str) -> None:
        super().restore(name)
        self._execute("drop database kills with (force)", f"create database kills template kept_{name}")

    def close(self) -> None:
        self._postgres.close()

    def _execute(self, *statements: str) -> None:
        at = ["--username=postgres", f"--host={self._postgres.folder}", f"--port={self._postgres.port}"]
        self._postgres.run("psql", "--quiet", *at, *[f"--command={statement}" for statement in statements])
