"""A gate: many together or one alone, never both, and nobody waits for ever."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tasks.inference.gates import ReadWriteLock


def begin(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_many_are_inside_together() -> None:
    gate, meeting = ReadWriteLock(), threading.Barrier(3, timeout=20)

    def enter() -> None:
        with gate.read():
            meeting.wait()

    for thread in [begin(enter) for _ in range(3)]:
        thread.join(20)
    assert not meeting.broken


def test_one_alone_meets_nobody() -> None:
    gate, inside, met = ReadWriteLock(), [0, 0], list[tuple[int, int]]()
    rng = np.random.default_rng(0)

    def visit(alone: bool) -> None:
        with gate.write() if alone else gate.read():
            inside[alone] += 1
            met.append((inside[0], inside[1]))
            time.sleep(0.001)
            inside[alone] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, (rng.random(400) < 0.3).tolist()))
    assert all(alone == 0 or (shared, alone) == (0, 1) for shared, alone in met)
    assert any(shared > 1 for shared, _ in met)


def test_who_wants_to_be_alone_goes_before_those_who_come_later() -> None:
    gate, order = ReadWriteLock(), list[str]()
    first_may_go = threading.Event()

    def first() -> None:
        with gate.read():
            first_may_go.wait(20)

    def alone() -> None:
        with gate.write():
            order.append("alone")

    def later() -> None:
        with gate.read():
            order.append("later")

    threads = [begin(first)]
    for work, waiting in ((alone, gate._door.locked), (later, lambda: True)):
        threads.append(begin(work))
        deadline = time.monotonic() + 20
        while not waiting() and time.monotonic() < deadline:
            time.sleep(0.001)
    time.sleep(0.05)
    assert order == []
    first_may_go.set()
    for thread in threads:
        thread.join(20)
    assert order == ["alone", "later"]


@pytest.mark.parametrize("way", ["shared", "alone"])
def test_an_error_inside_opens_the_gate_again(way: str) -> None:
    gate = ReadWriteLock()
    with pytest.raises(ZeroDivisionError), getattr(gate, way)():
        raise ZeroDivisionError
    with gate.write():
        pass
    with gate.read():
        pass


def test_those_who_want_to_be_alone_do_not_keep_others_out_for_ever() -> None:
    gate, over = ReadWriteLock(), threading.Event()

    def visit_again_and_again() -> None:
        while not over.is_set():
            with gate.write():
                time.sleep(0.0005)

    def enter() -> None:
        with gate.read():
            pass

    threads = [begin(visit_again_and_again) for _ in range(3)]
    for _ in range(5):
        sharing = begin(enter)
        sharing.join(20)
        assert not sharing.is_alive()
    over.set()
    for thread in threads:
        thread.join(20)
