"""The readers-writer lock: readers share, a writer is exclusive, and neither starves the other."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tasks.inference.runner import ReadWriteLock


def start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_readers_hold_the_lock_together() -> None:
    lock, barrier = ReadWriteLock(), threading.Barrier(3, timeout=20)

    def read() -> None:
        with lock.read():
            barrier.wait()

    for thread in [start(read) for _ in range(3)]:
        thread.join(20)
    assert not barrier.broken


def test_a_writer_holds_the_lock_exclusively() -> None:
    lock, holders, seen = ReadWriteLock(), [0, 0], list[tuple[int, int]]()
    rng = np.random.default_rng(0)

    def hold(writes: bool) -> None:
        with lock.write() if writes else lock.read():
            holders[writes] += 1
            seen.append((holders[0], holders[1]))
            time.sleep(0.001)
            holders[writes] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, (rng.random(400) < 0.3).tolist()))
    assert all(writers == 0 or (readers, writers) == (0, 1) for readers, writers in seen)
    assert any(readers > 1 for readers, _ in seen)


def test_a_waiting_writer_goes_before_later_readers() -> None:
    lock, order, release = ReadWriteLock(), list[str](), threading.Event()
    entered = threading.Event()

    def read_first() -> None:
        with lock.read():
            entered.set()
            release.wait(20)

    def write() -> None:
        with lock.write():
            order.append("writer")

    def read_later() -> None:
        with lock.read():
            order.append("reader")

    threads = [start(read_first)]
    assert entered.wait(20)
    threads.append(start(write))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        threads.append(start(read_later))
        threads[-1].join(0.2)
        if threads[-1].is_alive():  # it waits, so the writer is in the queue
            break
        order.clear()  # it came before the writer
    assert order == []
    release.set()
    for thread in threads:
        thread.join(20)
    assert order == ["writer", "reader"]


@pytest.mark.parametrize("mode", ["read", "write"])
def test_an_exception_releases_the_lock(mode: str) -> None:
    lock = ReadWriteLock()
    with pytest.raises(ZeroDivisionError), getattr(lock, mode)():
        raise ZeroDivisionError
    with lock.write():
        pass
    with lock.read():
        pass


def test_writers_do_not_starve_readers() -> None:
    lock, over = ReadWriteLock(), threading.Event()

    def write_repeatedly() -> None:
        while not over.is_set():
            with lock.write():
                time.sleep(0.0005)

    def read() -> None:
        with lock.read():
            pass

    threads = [start(write_repeatedly) for _ in range(3)]
    for _ in range(5):
        reader = start(read)
        reader.join(20)
        assert not reader.is_alive()
    over.set()
    for thread in threads:
        thread.join(20)
