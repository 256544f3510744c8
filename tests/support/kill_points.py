"""A process that is killed at a chosen point: imports everything once, then forks one child for each command.

A command is one line of JSON: what to call, and where to die. The child kills itself with SIGKILL before or after a
call, which is named (module.function) or counted (the n-th call of an MLflow client that may write). The product has
no code for this.
The response is one line: the exit code of the child, -9 where it was killed.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
KILLED = -signal.SIGKILL
READING = ("_", "get_", "search_", "list_")  # how such methods of an MLflow client begin
IN_PARENT = "in the parent"  # a point at which the command runs in the process itself, and nothing is killed


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(module: Any, name: str, when: str) -> None:
    """Die before or after a function of a module is called."""
    real = getattr(module, name)

    @functools.wraps(real)
    def fatal(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            die()
        result = real(*args, **kwargs)
        die()
        return result

    setattr(module, name, fatal)


def kill_at_call(number: int, when: str) -> None:
    """Die before or after the n-th call, from 1 on, of a method of an MLflow client that may write.

    Calls that only read leave what the call before them left.
    """
    import mlflow

    calls = [0]

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            last = calls[0] == number
            if last and when == "before":
                die()
            result = real(*args, **kwargs)
            if last:
                die()
            return result

        return counted

    for name, method in vars(mlflow.MlflowClient).items():
        if callable(method) and not name.startswith(READING):
            setattr(mlflow.MlflowClient, name, counting(method))


def drop_connections() -> None:
    """Leave the databases' connections to the parent, which opened them: SQLAlchemy's recipe for a forked process."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

    for engine in [*Registry._engine_map.values(), *Tracking._engine_map.values()]:
        engine.dispose(close=False)


def execute(command: dict[str, Any]) -> None:
    point = command["point"]
    if isinstance(point, int):
        kill_at_call(point, command["when"])
    elif point:
        module, name = point.rsplit(".", 1)
        kill_at(importlib.import_module(module), name, command["when"])
    module, name = command["call"].rsplit(".", 1)
    getattr(importlib.import_module(module), name)(*command["args"], **command["kwargs"])


def main(modules: list[str]) -> None:
    from flows import environment

    environment.set_process_defaults()
    for module in modules:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if command["point"] == IN_PARENT:
            execute({**command, "point": None})
            print(0, flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            try:
                drop_connections()
                execute(command)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)


class KillableProcess:
    """The process as a test uses it."""

    def __init__(self, *modules: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, call: str, *args: Any, point: str | int | None, when: str = "after", **kwargs: Any) -> int:
        """Call a function in a child that dies at a point; return KILLED, or the exit code where it was not reached."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        command = {"call": call, "args": args, "kwargs": kwargs, "point": point, "when": when}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def preload(self, call: str, *args: Any) -> None:
        """Call a function in the process itself: children have what it imports, and the stores that it opened."""
        assert self.run(call, *args, point=IN_PARENT) == 0


if __name__ == "__main__":
    main(sys.argv[1:])
