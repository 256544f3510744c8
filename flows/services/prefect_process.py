"""The process of the embedded Prefect server, which embedded_prefect.py starts: prefect_process.py PARENT SOCKET LOCK

It runs what `prefect server start` runs (prefect/cli/_server_utils.py), without the imports of Prefect's command line.
Of several servers that start on one new database one makes the tables, and the others wait.
"""

import asyncio
import contextlib
import socket
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


def main(parent: int, descriptor: int, lock: str) -> None:
    """Serve on a socket of the parent until SIGTERM, or until the parent ends.

    Args:
        parent: process id of the parent.
        descriptor: of the socket, which is bound to a port.
        lock: file of the lock under which the database is migrated.
    """
    die_with(parent)
    with collection_paused():
        import prefect.server.api.server  # noqa: F401
        import uvicorn
    with FileLock(lock):
        migrate()
    server = uvicorn.Server(uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="warning"))
    with contextlib.suppress(KeyboardInterrupt), socket.socket(fileno=descriptor) as bound:
        server.run([bound])
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
