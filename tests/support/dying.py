"""A process that is killed on purpose: imports everything once, then forks one child for each order it reads.

An order is one line of JSON: what to do, and where to die. The child stops itself with SIGKILL before or after a call,
which is named (module.function, before or after) or counted (the n-th call of an MLflow client, before or after). The
product knows nothing of this. The answer is one line: the signal that ended the child, 0 for none.
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


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(place: Any, name: str, when: str) -> None:
    """Die before or after a function is called."""
    real = getattr(place, name)

    @functools.wraps(real)
    def dying(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            die()
        result = real(*args, **kwargs)
        die()
        return result

    setattr(place, name, dying)


def kill_at_call(number: int, when: str) -> None:
    """Die before or after the n-th call, from 1 on, of any method of an MLflow client."""
    import mlflow

    count = [0]

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def counted(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            here = count[0] == number
            if here and when == "before":
                die()
            result = real(*args, **kwargs)
            if here:
                die()
            return result

        return counted

    for name, method in vars(mlflow.MlflowClient).items():
        if callable(method) and not name.startswith("_"):
            setattr(mlflow.MlflowClient, name, counting(method))


def carry_out(order: dict[str, Any]) -> None:
    point = order["point"]
    if isinstance(point, int):
        kill_at_call(point, order["when"])
    elif point:
        module, name = point.rsplit(".", 1)
        kill_at(importlib.import_module(module), name, order["when"])
    module, name = order["call"].rsplit(".", 1)
    getattr(importlib.import_module(module), name)(*order["args"], **order["kwargs"])


def main(modules: list[str]) -> None:
    from flows import environment

    environment.set_process_defaults()
    for module in modules:
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        if json.loads(line)["point"] == "nowhere":  # so that what it loads is there for every child
            carry_out({**json.loads(line), "point": None})
            print(0, flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            try:
                carry_out(json.loads(line))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)


class Dying:
    """The process as a test sees it."""

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

    def order(self, call: str, *args: Any, point: str | int | None, when: str = "before", **kwargs: Any) -> int:
        """Let a child do something and die at a point; return -9, or its exit code where it lived on.

        At the point "nowhere" the process itself does it.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"call": call, "args": args, "kwargs": kwargs, "point": point, "when": when}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


if __name__ == "__main__":
    main(sys.argv[1:])
