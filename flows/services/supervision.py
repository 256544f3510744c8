"""Runs the services under Supervisor: writes its configuration, starts it, reads the state of each service.

What ends is started again: after 1, 2, 3 ... seconds while it ends within START_S of its start, until START_RETRIES is
used up; the others stay up. Supervisor listens on a socket in the stack's folder that its user alone may open.
"""

import configparser
import contextlib
import http.client
import os
import shlex
import subprocess
import sys
import xmlrpc.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from xml.parsers.expat import ExpatError

from flows.services.service import PROCFILE
from tasks.core.errors import UsageError, VerdictError

START_S = 60  # seconds; what ends earlier did not start
START_RETRIES = 4
STOP_TIMEOUT_S = 20  # from SIGTERM to SIGKILL
SOCKET = "supervisor.sock"
CONFIGURATION = "supervisord.conf"
CLEANUP = "cleanup"  # the process that ends flow runs; no service that people know
ServiceState = Literal["running", "restarting", "gave up", "stopped", "stopping"]
STOPPING: ServiceState = "stopping"  # of all services, while Supervisor ends
STOPPING_MESSAGE = "the services are stopping; wait until all have stopped, then: make up"
SHUTDOWN_STATE, ALREADY_STARTED = 6, 60  # codes of Supervisor's faults (supervisor/xmlrpc.py)
# By Supervisor's names (http://supervisord.org/subprocess.html#process-states).
SERVICE_STATES: dict[str, ServiceState] = {
    "STARTING": "running",
    "RUNNING": "running",
    "BACKOFF": "restarting",
    "STOPPING": "restarting",
    "FATAL": "gave up",
}


def start(folder: Path, commands: Mapping[str, list[str]], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start Supervisor in a new session, and with it the services.

    Args:
        folder: receives configuration, socket and logs.
        commands: of the services, in the order in which they start; they stop in the reverse one.
        environment: of all of them.

    Raises:
        UsageError: if Supervisor is not installed.
    """
    try:
        import supervisor  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise UsageError("supervisor is not installed; run: pip install 'verdict-mlops[services]'") from error
    with (folder / CONFIGURATION).open("w", encoding="utf-8") as stream:
        _configuration(folder, commands).write(stream)
    with (folder / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "--configuration", CONFIGURATION],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
        )


def read_states(folder: Path) -> dict[str, ServiceState] | None:
    """Return the state of each service; None if no Supervisor runs here."""
    if not (folder / SOCKET).exists():
        return None
    try:
        found = _call(folder, "getAllProcessInfo")
    except xmlrpc.client.Fault as error:
        if error.faultCode != SHUTDOWN_STATE:
            raise
        return dict.fromkeys(_configured(folder), STOPPING)  # Supervisor says nothing more of them
    except OSError:  # the socket of a killed one
        return None
    return {each["name"]: SERVICE_STATES.get(each["statename"], "stopped") for each in found if each["name"] != CLEANUP}


def start_again(folder: Path) -> list[str]:
    """Start the services that Supervisor gave up or that a person stopped; return their names.

    Raises:
        VerdictError: if one cannot be started, or Supervisor ends.
    """
    names = [name for name, state in (read_states(folder) or {}).items() if state in ("gave up", "stopped")]
    for name in names:
        try:
            _call(folder, "startProcess", name, False)
        except xmlrpc.client.Fault as error:
            if error.faultCode == SHUTDOWN_STATE:
                raise VerdictError(STOPPING_MESSAGE) from None
            if error.faultCode != ALREADY_STARTED:  # which a person may have done meanwhile
                raise VerdictError(f"{name} was not started ({error.faultString}); see: make logs") from error
        except OSError as error:
            raise VerdictError(f"{name} was not started, as Supervisor ended ({error}); run: make up") from error
    return names


def _call(folder: Path, method: str, *arguments: Any) -> Any:
    """Call a method of Supervisor.

    Raises:
        OSError: if none answers.
        xmlrpc.client.Fault: if it refuses the call.
    """
    from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

    transport = SupervisorTransport(serverurl=f"unix://{SOCKET}")
    # The path of a socket has at most 107 bytes, that of the folder may have more.
    with contextlib.chdir(folder), contextlib.closing(transport):
        proxy = xmlrpc.client.ServerProxy("http://localhost", transport=transport)
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except (http.client.HTTPException, xmlrpc.client.ProtocolError, ExpatError) as error:
            raise ConnectionError(f"Supervisor ended within an answer ({error!r})") from error


def _configured(folder: Path) -> list[str]:
    """Return the services that Supervisor's configuration names."""
    parser = configparser.RawConfigParser()
    parser.read(folder / CONFIGURATION, encoding="utf-8")
    names = [section.removeprefix("program:") for section in parser.sections() if section.startswith("program:")]
    return [name for name in names if name != CLEANUP]


def _configuration(folder: Path, commands: Mapping[str, list[str]]) -> configparser.RawConfigParser:
    """Return Supervisor's configuration; in its values % starts the name of a variable."""
    os.umask(umask := os.umask(0o077))
    parser = configparser.RawConfigParser()
    parser["supervisord"] = {
        "nodaemon": "true",
        "logfile": "/dev/null",  # beside standard output
        "logfile_maxbytes": "0",
        "pidfile": "supervisord.pid",
        "umask": f"{umask:o}",
    }
    parser["unix_http_server"] = {"file": SOCKET, "chmod": "0700"}
    parser["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    for priority, (name, command) in enumerate(commands.items()):
        values = {
            "command": shlex.join(command),
            "directory": str(PROCFILE.parents[1]),
            "priority": str(priority),
            "autorestart": "true",
            "startsecs": str(START_S),
            "startretries": str(START_RETRIES),
            "stopwaitsecs": str(STOP_TIMEOUT_S),
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": str(folder / f"{name}.log"),
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": "2",
        }
        parser[f"program:{name}"] = {key: value.replace("%", "%%") for key, value in values.items()}
    return parser
