"""The process of the embedded Prefect server, which embedded_prefect.py starts: prefect_process.py PARENT PORT LOCK

It runs what `prefect server start` runs (prefect/cli/_server_utils.py), without the imports of Prefect's command line.
Of several servers that start on one new database one makes the tables, and the others wait.
"""

import asyncio
import sys

from filelock import FileLock

from tasks.core.child_process import die_with
from tasks.core.quick_imports import collection_paused


def migrate() -> None:
    """Create or update the tables of the database that Prefect is configured with."""
    from prefect.server.database import provide_database_interface

    async def create() -> None:
        interface = provide_database_interface()
        await interface.create_db()
        await (await interface.engine()).dispose()

    asyncio.run(create())


def main(parent: int, port: int, lock: str) -> None:
    """Serve on loopback until SIGTERM, or until the parent ends.

    Args:
        parent: process id of the parent.
        port: to listen on.
        lock: file of the lock under which the database is migrated.
    """
    die_with(parent)
    with collection_paused():
        import prefect.server.api.server  # noqa: F401
        import uvicorn
    with FileLock(lock):
        migrate()
    app = "prefect.server.api.server:create_app"
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
