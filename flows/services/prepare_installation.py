"""Makes once for an installation what every new folder of stores would make again: empty, migrated databases.

python -m flows.services.prepare_installation
"""

import os
import sys
from pathlib import Path

from flows import environment
from tasks.core.database_templates import DATABASE_TEMPLATES, make_template


def prepare(folder: Path = DATABASE_TEMPLATES) -> list[Path]:
    """Make the templates that are missing; return their paths."""
    environment.set_process_defaults()
    from tasks.registry.mlflow_client import create_tables

    return [
        make_template("prefect", _migrate_prefect, folder),
        make_template("mlflow", create_tables, folder),
    ]


def _migrate_prefect(path: Path) -> None:
    """Create Prefect's tables in a new database, as its server does when it starts."""
    from flows.services.prefect_process import migrate

    os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{path}"
    migrate()


def main() -> None:
    """Make the templates; an installation that cannot be written to works without them."""
    try:
        prepare()
    except OSError as error:
        print(f"no templates of databases, every new folder of stores makes its own: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
