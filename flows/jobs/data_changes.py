"""Compares the rows of a run with those of the champion's run, where the snapshots of both are here."""

from collections.abc import Iterator
from pathlib import Path

from tasks.data.ingestion import Dataset
from tasks.data.row_changes import RowChanges, compare_snapshots
from tasks.registry import tracking
from tasks.registry.store import MlflowStore


def compare_rows(store: MlflowStore, run_id: str, data: Dataset, home: str) -> dict[str, RowChanges | None]:
    """Return what changed in each snapshot that is another than the champion's, by role.

    Args:
        store: where the champion's run is.
        run_id: of the champion.
        data: of this run.
        home: folder of the stores.

    Returns:
        None for a role where the champion's snapshot is gone from `home`.
    """
    return dict(_compare(tracking.read_datasets(store, run_id), data, Path(home) / "snapshots"))


def _compare(champions: dict[str, str], data: Dataset, folder: Path) -> Iterator[tuple[str, RowChanges | None]]:
    for role, digest in champions.items():
        snapshot = data.get(role)
        if isinstance(snapshot, dict) and not snapshot["digest"].startswith(digest):
            before = next(folder.glob(f"{digest}*.parquet"), None)
            yield role, compare_snapshots(str(before), snapshot["path"]) if before else None
