"""Ends what would outlive Supervisor: a process that waits beside the services of `make up`.

When Supervisor stops it, it ends the flow runs that the worker started, each in a session of its own, while Prefect's
server still listens. When Supervisor was killed, it ends everything.
"""

import os
import signal
import sys

from flows.services.stack_processes import end_processes, find_processes, in_session

RUN_STOP_TIMEOUT_S = 15  # from SIGTERM to SIGKILL; a run resumes from its last checkpoint


def main() -> None:
    """Wait for SIGTERM or the end of Supervisor, and end what is left."""
    home = os.environ["VERDICT_HOME"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        sys.stdin.buffer.read()  # Supervisor holds the other end of this pipe
        end_processes(find_processes(home), RUN_STOP_TIMEOUT_S)
    except SystemExit:
        found = find_processes(home)
        services = in_session(found, os.getsid(0))
        end_processes([each for each in found if each not in services], RUN_STOP_TIMEOUT_S)


if __name__ == "__main__":
    main()
