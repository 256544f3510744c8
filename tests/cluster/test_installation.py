"""Errors of a node without this code are distinguished from others that a task raises."""

import pytest

from tasks.cluster.installation import missing_code


@pytest.mark.parametrize(
    "line",
    [
        "ModuleNotFoundError: No module named 'tasks'",
        "ModuleNotFoundError: No module named 'tasks.serving'",
        "ModuleNotFoundError: No module named 'flows.jobs'",
    ],
)
def test_a_node_without_this_code_is_one_line(line: str) -> None:
    error = missing_code(RuntimeError(f"System error: No module named it\ntraceback: Traceback\n  {line}\nand more"))
    assert str(error) == (
        f"a node that joined the Ray cluster cannot import verdict-mlops ({line}); expected it on every node: "
        "pip install 'verdict-mlops[ray]' there, or use one image"
    )


@pytest.mark.parametrize(
    "line",
    [
        "ModuleNotFoundError: No module named 'celery.tasks'",
        "ImportError: libcudnn.so.9: cannot open shared object file (/srv/flows/.venv/lib/torch.so)",
        "ImportError: cannot import name 'Trainer' from 'transformers' (/home/me/tasks/transformers.py)",
        "ValueError: No module named tasks",
    ],
)
def test_another_error_is_none_of_a_missing_code(line: str) -> None:
    assert missing_code(RuntimeError(line)) is None
