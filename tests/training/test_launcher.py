"""Several processes train the model that one would, end together, and listen on the loopback interface alone.

The product starts them by spawn, as here `results` and the test that kills the launcher do; where it does not matter
how they started, they are forked, which saves each the import of torch.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import do_everything, fail, hang, listening, say, train, train_with_little_memory

from tasks.core.errors import UsageError, VerdictError
from tasks.training import launcher
from tasks.training.launcher import launch

ROOT = Path(__file__).parents[2]
LOOPBACK = "0100007F"  # as the kernel writes 127.0.0.1
# A program that is interrupted while the process that it starts imports it.
INTERRUPTED = """
import pathlib, time
from tasks.training import launcher
def work(group):
    pass
if __name__ == "__mp_main__":
    pathlib.Path("importing").touch()
    time.sleep(60)
if __name__ == "__main__":
    collect = launcher._collect_results
    def wait(*given):
        try:
            return collect(*given)
        finally:
            time.sleep(1)  # for what the process prints, which is killed next
    launcher._collect_results = wait
    try:
        launcher.launch(work, 1, device="cpu")
    except KeyboardInterrupt:
        print("stopped")
"""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def running(folder: Path) -> list[int]:
    """Return the processes that have written their number to a folder and still run."""
    states = {}
    for number in filter(None, (path.read_text() for path in folder.iterdir())):
        try:
            states[int(number)] = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it ended, perhaps while it was read
            continue
    return [number for number, state in states.items() if state not in "ZX"]


def end_slowly(files: str) -> None:
    """Be killed, perhaps after what the kernel does first with a process that was."""
    if files == "closed":
        os.closerange(3, 4096)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def end_well(_: str) -> None:
    os._exit(0)


def hang_on(_: str) -> None:
    time.sleep(60)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait, but not for ever."""
    for _ in range(3600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("waited for three minutes")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes by fork, without what other tests' Prefect does at exit, which ends forked ones with code 1."""
    monkeypatch.setattr(threading, "_threading_atexits", [])
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(launcher.multiprocessing, "get_context", lambda method: context)


@pytest.fixture(scope="module")
def listened() -> dict[str, list[str]]:
    """The addresses that the launching process listens on, before and during the launch of `results`."""
    return {"before": listening() if sys.platform == "linux" else []}


@pytest.fixture(scope="module")
def results(listened: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, by rank; they are launched in a thread."""
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    found: list[Any] = []

    def listen(message: str) -> None:
        if message == "now" and sys.platform == "linux":
            listened["during"] = listening()

    thread = threading.Thread(
        target=lambda: found.extend(launch(do_everything, 2, folder, device="cpu", on_message=listen))
    )
    thread.start()
    thread.join()
    return found


def test_two_processes_have_the_losses_and_weights_of_one(results: list[dict[str, Any]]) -> None:
    """The last batch of each epoch has fewer rows than there are processes."""
    (expected, weights), (found, twins) = train(None), results[0]["plain"]
    assert found.step_losses == pytest.approx(expected.step_losses, abs=1e-5)
    assert expected.epochs[-1]["train_loss"] < expected.epochs[0]["train_loss"] - 0.05  # type: ignore[operator]
    assert found.best_epoch == expected.best_epoch
    for one, other in zip(found.epochs, expected.epochs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(twins[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "dropout", "resumed"])
def test_all_processes_end_with_the_same_weights_and_figures(kind: str, results: list[dict[str, Any]]) -> None:
    (history, weights), (other, twins) = (each[kind] for each in results)
    assert history == other
    assert all(torch.equal(tensor, twins[name]) for name, tensor in weights.items())


def test_each_process_and_epoch_drops_out_others(results: list[dict[str, Any]]) -> None:
    (first, again, second), others = (each["draws"] for each in results)
    assert first == again
    assert len({first, second, others[0], others[2]}) == 4


def test_where_one_has_too_little_memory_all_take_more_parts_and_find_the_same(
    results: list[dict[str, Any]],
) -> None:
    expected, _ = train_with_little_memory(None, little=1)
    for each in results:
        losses, parts = each["little memory"]
        assert losses == pytest.approx(expected, abs=1e-5)
        assert parts == 4


def test_a_run_that_resumes_from_a_checkpoint_ends_as_an_uninterrupted_one(
    results: list[dict[str, Any]],
) -> None:
    """With dropout: each epoch draws from its own seed."""
    for each in results:
        (history, weights), (uninterrupted, twins) = each["resumed"], each["dropout"]
        assert history == uninterrupted
        assert history.step_losses != each["plain"][0].step_losses
        assert all(torch.equal(tensor, twins[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("synchronised", [True, False])
def test_messages_of_all_ranks_are_handled_but_a_group_logs_on_rank_0_alone(
    synchronised: bool, forked: None, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[str] = []
    words = "some words"
    with caplog.at_level("INFO", "tasks"):
        results = launch(say, 2, words, device="cpu", on_message=messages.append, synchronised=synchronised)
    assert results == [words] * 2
    assert sorted(messages) == [f"{words} 0", f"{words} 1"]
    logged = sorted(message for message in caplog.messages if "logs" in message)
    assert logged == [f"rank {rank} logs {words}" for rank in ((0,) if synchronised else (0, 1))]


def test_an_error_of_the_message_handler_ends_all_processes_and_is_raised(forked: None) -> None:
    class Enough(BaseException):
        pass

    def stop(message: str) -> None:
        raise Enough(message)

    with pytest.raises(Enough, match=r"^words [01]$"):
        launch(say, 2, "words", device="cpu", on_message=stop)


def test_a_process_killed_while_it_waits_for_an_answer_is_named(forked: None) -> None:
    def kill(message: str) -> None:
        for process in multiprocessing.active_children():
            process.kill()
            process.join()

    with pytest.raises(VerdictError, match=r"^rank 0 of 1 was ended by SIGKILL"):
        launch(say, 1, "words", device="cpu", on_message=kill)


@pytest.mark.parametrize("files", ["kept", "closed"])
def test_a_killed_process_is_named_rather_than_the_failure_of_a_peer_also_while_it_ends(
    files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "DEATH_NOTICE_S", 60.0)
    context = multiprocessing.get_context("fork")
    targets = {0: end_slowly, 1: hang_on, 2: end_well}
    processes: list[Any] = [context.Process(target=targets[rank], args=(files,), daemon=True) for rank in targets]
    try:
        for process in processes:
            process.start()
        wait([processes[0 if files == "closed" else 2].sentinel])
        assert processes[0].exitcode is None
        error = launcher._to_error(1, launcher._Failure("RuntimeError", "peer closed the connection", ""), processes)
        assert str(error).startswith("rank 0 of 3 was ended by SIGKILL")
    finally:
        for process in processes:
            process.kill()
            process.join()


def test_tensors_and_values_are_exchanged(results: list[dict[str, Any]]) -> None:
    assert [each["exchanged"] for each in results] == [[2.0, 1.0, 5, 8]] * 2


@on_linux
def test_processes_listen_on_the_loopback_interface_alone_and_who_launches_them_does_not(
    results: list[dict[str, Any]], listened: dict[str, list[str]]
) -> None:
    for each in results:
        assert set(each["listening"]) == {LOOPBACK}
    assert listened["during"] == listened["before"]


@on_linux
@pytest.mark.parametrize(
    ("rank", "how", "kind", "line"),
    [
        (1, "raise", VerdictError, "rank 1 of 2 failed: ValueError: too tall"),
        (0, "usage", UsageError, "rank 0 of 2 failed: x 3 is odd; expected 2"),
        (
            0, "kill", VerdictError,
            "rank 0 of 2 was ended by SIGKILL; where memory ran out, fewer processes or a smaller batch take less",
        ),
        (1, "exit", VerdictError, "rank 1 of 2 ended with exit code 3 before it could say why"),
    ],
    ids=["raises", "is misused", "is killed", "exits"],
)  # fmt: skip
def test_a_process_that_ends_ends_all_in_one_line(
    rank: int,
    how: str,
    kind: type[VerdictError],
    line: str,
    forked: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(VerdictError) as caught:
        launch(fail, 2, str(tmp_path), rank, how, device="cpu")
    assert (type(caught.value), str(caught.value)) == (kind, line)
    assert len(list(tmp_path.iterdir())) == 2
    assert running(tmp_path) == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert "Traceback" not in capfd.readouterr().err
    if how in ("raise", "usage"):
        assert "in fail\n" in caught.value.__notes__[0]


@on_linux
def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    script = f"""
from launched import hang
from tasks.training.launcher import launch
launch(hang, 2, {str(tmp_path)!r}, device="cpu")
"""
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": folders})
    wait_until(lambda: len(running(tmp_path)) == 2)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    wait_until(lambda: not running(tmp_path))


@on_linux
def test_no_process_outlives_a_launch_that_is_interrupted(
    forked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    started.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def interrupt() -> None:
        wait_until(lambda: len(running(started)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        launch(hang, 2, str(started), device="cpu")
    thread.join()
    assert running(started) == []
    assert [path.name for path in tmp_path.iterdir()] == ["started"]


@on_linux
def test_ctrl_c_while_processes_import_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(INTERRUPTED)
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env=environ, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        wait_until((tmp_path / "importing").exists)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.communicate(timeout=60) == ("stopped\n", "")


def test_more_processes_than_gpus_are_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UsageError, match=rf"^{count + 1} processes .* torch sees {count} GPUs; expected at most one"):
        launch(say, count + 1, "words", device="cuda")


def test_no_process_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^processes 0 cannot be started; expected at least 1"):
        launch(say, 0, "words", device="cpu")
