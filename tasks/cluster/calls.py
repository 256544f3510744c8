"""Calls of one function as tasks of a Ray cluster, which exchange messages with the driver while they run.

The function is the one that processes of one machine run. It writes where every machine looks (VERDICT_HOME on a shared
volume), so that a call whose worker or machine was lost is simply made again, and resumes from what it finds there.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.cluster.connection import connected
from tasks.cluster.installation import Installation, check_here, describe_installation, missing_code
from tasks.core.errors import UsageError, VerdictError, first_line

if TYPE_CHECKING:
    from ray.exceptions import RayTaskError

ATTEMPTS = 3  # of one call, if its worker or machine is lost each time

log = logging.getLogger(__name__)


class CallCluster(NamedTuple):
    """A Ray cluster, and what each call gets of it to itself."""

    address: str
    """local, auto or HOST:PORT."""
    cpus: float = 1
    gpus: float = 0
    """A share of one is possible."""


def check_gpus(gpus: float) -> None:
    """Check a number of GPUs for each of several, of which Ray divides one alone.

    Raises:
        UsageError: if it is not whole, and more than one.
    """
    if gpus > 1 and gpus % 1:
        raise UsageError(f"{gpus:g} GPUs for each are refused; expected a whole number, or a share of one below 1")


class MessageExchange:
    """An actor that passes messages of calls to the driver, and the driver's answers back."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()

    async def send(self, message: Any) -> Any:
        """Pass a message to the driver; return its answer."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._messages.put((number, message))
        return await self._answers[number]

    async def receive(self) -> tuple[int, Any]:
        """Return the next message, and the number to answer it by."""
        return await self._messages.get()

    async def answer(self, number: int, answer: Any) -> None:
        """Answer a message."""
        self._answers.pop(number).set_result(answer)


def run_calls(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    cluster: CallCluster,
    on_message: Callable[[Any], Any],
    at_once: int = 0,
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Call a function with each of the arguments; yield arguments and result of each call as it ends.

    Args:
        function: at the top level of a module; called with the arguments, and with a function that sends a message to
            the driver and returns its answer.
        calls: arguments; the next ones are taken when a call can start.
        cluster: where, and with which resources.
        on_message: called here with what a call sends, one message at a time; returns the answer.
        at_once: most calls side by side; 0 for as many as the cluster has room for.

    Yields:
        Arguments and result; a VerdictError for a result where the worker was lost at each attempt.

    Raises:
        UsageError: if no machine of the cluster has room for a call, or the number of GPUs is invalid.
        UnreachableError: if no cluster answers.
        VerdictError: if a call raised an exception, or the driver lost contact with all of them.
    """
    check_gpus(cluster.gpus)
    with connected(cluster.address):
        import ray
        from ray.exceptions import RayError, RayTaskError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        places = _count_places(cluster)
        at_once = at_once or places
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(MessageExchange)
        exchange = actor.options(num_cpus=0, scheduling_strategy=here).remote()
        # Retries of Ray's own have no limit where memory runs out.
        remote = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=0)(_call)
        shared = exchange, describe_installation(), function
        waiting, running = iter(calls), dict[Any, tuple[tuple[Any, ...], int]]()
        received = exchange.receive.remote()
        while True:
            for arguments in itertools.islice(waiting, at_once - len(running)):
                running[remote.remote(*shared, *arguments)] = arguments, 1
            if not running:
                return
            [ready], _ = ray.wait([received, *running])
            if ready == received:
                number, message = _receive(received)
                exchange.answer.remote(number, on_message(message))
                received = exchange.receive.remote()
                continue
            arguments, attempt = running.pop(ready)
            try:
                yield arguments, ray.get(ready)
            except RayTaskError as error:
                raise _to_error(error) from error
            except RayError as error:  # out of memory, killed, or its machine is gone
                if attempt == ATTEMPTS:
                    yield arguments, VerdictError(f"its worker was lost {attempt} times ({first_line(error)})")
                else:
                    log.warning("a worker of the Ray cluster was lost, its work is done again: %s", first_line(error))
                    running[remote.remote(*shared, *arguments)] = arguments, attempt + 1


def _call(exchange: Any, driver: Installation, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function on a worker.

    Raises:
        VerdictError: if this node, which may have joined later, runs other code than the driver.
    """
    import ray

    check_here(driver)
    return function(*arguments, lambda message: ray.get(exchange.send.remote(message)))


def _receive(received: Any) -> tuple[int, Any]:
    """Return the message that a call sent, and the number to answer it by.

    Raises:
        VerdictError: if the process of the exchange was lost.
    """
    import ray

    try:
        number, message = ray.get(received)
    except ray.exceptions.RayError as error:
        raise VerdictError(
            f"the process on this machine through which calls report was lost ({first_line(error, 200)}); what is done "
            "is kept: run the same command again"
        ) from error
    return number, message


def _count_places(cluster: CallCluster) -> int:
    """Return how many calls the nodes of the connected cluster have room for at once.

    Raises:
        UsageError: if there is room for none.
    """
    import ray

    needed = {name: number for name, number in (("CPU", cluster.cpus), ("GPU", cluster.gpus)) if number}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(int(min(node.get(name, 0) / number for name, number in needed.items())) for node in nodes)
    if not places:
        largest = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in needed)
        wanted = ", ".join(f"{number:g} {name}" for name, number in needed.items())
        raise UsageError(f"no node of the Ray cluster has {wanted}, as was wanted; expected at most {largest}")
    return places


def _to_error(error: "RayTaskError") -> VerdictError:
    cause = error.cause
    ours = isinstance(cause, VerdictError)
    if not ours and (missing := missing_code(error)):
        return missing
    kind = type(cause) if ours else VerdictError
    return kind(f"a call on the Ray cluster failed: {first_line(cause)}")
