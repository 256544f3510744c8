"""Several processes train the model that one would, end together, and listen on the loopback interface alone.

The functions that run in other processes stand at the top. Those that train import what they need themselves: the
others start in half the time without transformers.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.core.errors import UsageError, VerdictError
from tasks.training.launcher import launch
from tasks.training.process_group import ProcessGroup
from tasks.training.train_step import EagerStep
from tasks.training.trainer import CheckpointConfig, TrainingHistory, train_epochs

ROOT = Path(__file__).parents[2]
EPOCHS, BATCH, ROWS = 3, 8, 57  # so that the last batch of an epoch has one row
STEPS = EPOCHS * 8
SEED = 5
LOOPBACK = "0100007F"  # as the kernel writes 127.0.0.1
Weights = dict[str, torch.Tensor]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def train(
    group: ProcessGroup | None, dropout: float = 0.0, checkpoints: CheckpointConfig | None = None, epochs: int = EPOCHS
) -> tuple[TrainingHistory, Weights]:
    """Train a tiny model; ranks start from other weights, those of rank 0 must win."""
    from tiny import tiny_bert, toy_encoded, toy_recipe

    model = tiny_bert(seed=group.rank if group else 0, dropout=dropout)
    history = train_epochs(
        model, toy_encoded(ROWS, seed=1), toy_encoded(31, seed=2), toy_recipe(steps=STEPS, max_grad_norm=0.5),
        epochs=epochs, seed=SEED, checkpoints=checkpoints, on_epoch=group.notify_parent if group else None, group=group,
    )  # fmt: skip
    return timeless(history), {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def train_with_little_memory(group: ProcessGroup | None, little: int) -> tuple[list[float], int]:
    """Train steps where rank `little` has memory for two rows at a time; return the losses and the parts."""
    import numpy as np
    from tiny import tiny_bert, toy_encoded, toy_recipe

    def refuse(module: torch.nn.Module, inputs: Any, named: dict[str, torch.Tensor]) -> None:
        if group and group.rank == little and len(named["input_ids"]) > 2:
            raise torch.OutOfMemoryError("too much")

    model = tiny_bert()
    model.register_forward_pre_hook(refuse, with_kwargs=True)
    stepper = EagerStep(model, toy_encoded(16), toy_recipe(steps=3), group)
    return stepper.run([np.arange(16)] * 3, 0, lambda: None).losses.tolist(), stepper.micro_batches


def train_everything(group: ProcessGroup, folder: str) -> dict[str, Any]:
    """Return what several trainings gave; starting processes takes longer than they do."""
    held = CheckpointConfig(folder, "run", 0.0)
    train(group, 0.2, held, epochs=EPOCHS - 1)
    draws = []
    for epoch in (1, 1, 2):
        group.seed(SEED, epoch)
        draws.append(float(torch.rand(())))
    return {
        "plain": train(group),
        "dropout": train(group, 0.2),
        "resumed": train(group, 0.2, held),
        "little memory": train_with_little_memory(group, little=1),
        "draws": draws,
    }


def say(group: ProcessGroup, words: str) -> str:
    """Log something and notify the parent."""
    logging.getLogger("tasks.training.launcher").info("rank %d logs %s", group.rank, words)
    group.notify_parent(f"{words} {group.rank}")
    return words


def sum_and_listen(group: ProcessGroup) -> tuple[list[float], list[str]]:
    """Return what was exchanged, and the addresses that this process listens on, after notifying the parent."""
    total = group.all_reduce(torch.tensor([1.0, group.rank])).tolist()
    group.notify_parent("now")
    return [*total, group.broadcast_object(group.rank + 5), group.all_reduce_max(group.rank + 7)], listening()


def fail(group: ProcessGroup, folder: str, rank: int, how: str) -> None:
    """Let one rank end while the others wait for it."""
    (Path(folder) / str(group.rank)).write_text(str(os.getpid()))
    group.all_reduce(torch.zeros(1))
    if group.rank == rank and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if group.rank == rank and how == "exit":
        os._exit(3)
    if group.rank == rank:
        raise {"raise": ValueError("too tall\nfar too tall"), "usage": UsageError("x 3 is odd; expected 2")}[how]
    group.all_reduce(torch.zeros(1))


def hang(group: ProcessGroup, folder: str) -> None:
    """Wait for a rank that never comes."""
    (Path(folder) / str(group.rank)).write_text(str(os.getpid()))
    if group.rank == 0:
        time.sleep(600)
    group.all_reduce(torch.zeros(1))


def timeless(history: TrainingHistory) -> TrainingHistory:
    """Leave out what two runs cannot share."""
    return history._replace(epochs=[record | {"seconds": 0.0} for record in history.epochs])  # type: ignore[misc]


def listening() -> list[str]:
    """Return the addresses, in the kernel's hexadecimal, that this process listens on."""
    sockets = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in sockets:
                found.append(parts[1].partition(":")[0])
    return found


def running(folder: Path) -> list[int]:
    """Return the processes that have written their number to a folder and still run."""
    states = {}
    for number in filter(None, (path.read_text() for path in folder.iterdir())):
        stat = Path(f"/proc/{number}/stat")
        states[int(number)] = stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else "X"
    return [number for number, state in states.items() if state not in "ZX"]


def wait_until(true: Callable[[], bool]) -> None:
    """Wait, but not for ever."""
    for _ in range(3600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("waited for three minutes")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, by rank."""
    return launch(train_everything, 2, str(tmp_path_factory.mktemp("checkpoints")), device="cpu")


def test_two_processes_have_the_losses_and_weights_of_one(results: list[dict[str, Any]]) -> None:
    """The last batch of each epoch has fewer rows than there are processes."""
    (expected, weights), (found, twins) = train(None), results[0]["plain"]
    assert found.step_losses == pytest.approx(expected.step_losses, abs=1e-5)
    assert expected.epochs[-1]["train_loss"] < expected.epochs[0]["train_loss"] - 0.05  # type: ignore[operator]
    assert found.best_epoch == expected.best_epoch
    for one, other in zip(found.epochs, expected.epochs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    for name, tensor in weights.items():
        if not name.endswith("key.bias"):  # softmax cancels it: its gradient is rounding alone
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
    synchronised: bool, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[str] = []
    words = "some words"
    with caplog.at_level("INFO", "tasks"):
        results = launch(say, 2, words, device="cpu", on_message=messages.append, synchronised=synchronised)
    assert results == [words] * 2
    assert sorted(messages) == [f"{words} 0", f"{words} 1"]
    logged = sorted(message for message in caplog.messages if "logs" in message)
    assert logged == [f"rank {rank} logs {words}" for rank in ((0,) if synchronised else (0, 1))]


def test_an_error_of_the_message_handler_ends_all_processes_and_is_raised() -> None:
    class Enough(BaseException):
        pass

    def stop(message: str) -> None:
        raise Enough(message)

    with pytest.raises(Enough, match=r"^words [01]$"):
        launch(say, 2, "words", device="cpu", on_message=stop)


@on_linux
def test_it_works_in_a_thread_and_listens_on_the_loopback_interface_alone() -> None:
    found: list[Any] = []
    launcher: list[str] = []  # what the launching process listens on

    def work() -> None:
        found.extend(launch(sum_and_listen, 2, device="cpu", on_message=lambda _: launcher.extend(listening())))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [exchanged for exchanged, _ in found] == [[2.0, 1.0, 5, 8]] * 2
    assert launcher == []
    for _, addresses in found:
        assert set(addresses) == {LOOPBACK}


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
    rank: int, how: str, kind: type[VerdictError], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
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
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_who_launched_it(number: signal.Signals, tmp_path: Path) -> None:
    started = tmp_path / "started"
    started.mkdir()
    folders = os.pathsep.join([str(Path(__file__).parent), str(ROOT), str(ROOT / "tests" / "support")])
    script = f"import test_launcher as t; t.launch(t.hang, 2, {str(started)!r}, device='cpu')"
    environment = os.environ | {"PYTHONPATH": folders, "TMPDIR": str(tmp_path)}
    launcher = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(running(started)) == 2)
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == -number
    wait_until(lambda: not running(started))
    if number == signal.SIGINT:
        assert said.rstrip().endswith("KeyboardInterrupt")
        assert [path.name for path in tmp_path.iterdir()] == ["started"]


def test_more_processes_than_gpus_are_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UsageError, match=rf"^{count + 1} processes .* torch sees {count} GPUs; expected at most one"):
        launch(sum_and_listen, count + 1, device="cuda")


def test_no_process_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^processes 0 cannot be started; expected at least 1"):
        launch(sum_and_listen, 0, device="cpu")
