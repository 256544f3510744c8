"""Empty databases of libraries, made once for an installation and copied into each new folder of stores.

Prefect and MLflow make a new database by all the migrations of their history, which takes seconds each time. What is
copied is the result of the same migrations by the same version; where there is no template, the library makes its own.
"""

import contextlib
import importlib.metadata
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

DATABASE_TEMPLATES = Path(sys.prefix, "share", "verdict", "databases")


def template_path(library: str, folder: Path = DATABASE_TEMPLATES) -> Path:
    """Return where the template of the installed version of a library is, if there is one."""
    return folder / f"{library}-{importlib.metadata.version(library)}.db"


def make_template(library: str, migrate: Callable[[Path], None], folder: Path = DATABASE_TEMPLATES) -> Path:
    """Make the template of a library, unless it is there, and delete those of other versions; return its path.

    Args:
        library: name of its distribution.
        migrate: creates a migrated, empty SQLite database at a path and closes it.
        folder: of the templates.
    """
    path = template_path(library, folder)
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made, packed = Path(scratch, "made.db"), Path(scratch, "packed.db")
        migrate(made)
        with contextlib.closing(sqlite3.connect(made)) as database:
            database.execute("VACUUM INTO ?", (str(packed),))  # one file, whatever the journal mode
        for other in folder.glob(f"{library}-*.db"):
            other.unlink(missing_ok=True)  # another installation may prepare at the same time
        packed.replace(path)
    return path


def copy_template(library: str, database: Path, folder: Path = DATABASE_TEMPLATES) -> bool:
    """Put a library's template where a new database is expected; return whether that was done.

    The file appears complete or not at all, and never replaces one that another process made meanwhile.
    """
    if database.exists():
        return False
    with contextlib.suppress(OSError, importlib.metadata.PackageNotFoundError):
        template = template_path(library, folder)
        if not template.is_file():
            return False
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=database.parent, prefix=f".{database.name}-") as scratch:
            shutil.copyfile(template, scratch.name)
            os.link(scratch.name, database)
        return True
    return False
