"""uv finds packages where pip is configured to find them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "uv_like_pip.py"
SHOW = "import os; print(*[f'{name}={value}' for name, value in sorted(os.environ.items()) if name.startswith('UV_')])"


def test_environment_overrides_install_and_global_and_every_address_is_passed_on() -> None:
    spec = importlib.util.spec_from_file_location("uv_like_pip", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listed = [
        ":env:.index-url='https://c.example/simple'",
        "global.index-url='https://a.example/simple'",
        "install.index-url='https://b.example/simple'",
        "global.extra-index-url='\\nhttps://d.example/simple\\nhttps://e.example/simple'",
        "global.find-links='/wheels /more'",
        "global.progress-bar='off'",
    ]
    assert module.uv_variables("\n".join(listed)) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://c.example/simple",
        "UV_INDEX": "https://d.example/simple https://e.example/simple",
        "UV_FIND_LINKS": "/wheels,/more",
    }


def test_the_program_gets_pips_settings_and_keeps_its_own(tmp_path: Path) -> None:
    environment = {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "https://a.example/simple", "HOME": str(tmp_path)}
    environment |= {"PIP_FIND_LINKS": "/wheels", "UV_FIND_LINKS": "/mine", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, SCRIPT, sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    expected = "UV_DEFAULT_INDEX=https://a.example/simple UV_FIND_LINKS=/mine UV_INDEX_STRATEGY=unsafe-best-match\n"
    assert done.stdout == expected


@pytest.mark.parametrize(("setting", "build"), [({}, "UV_TORCH_BACKEND=cpu"), ({"PIP_FIND_LINKS": "/wheels"}, "")])
def test_pytorchs_own_index_is_chosen_where_pip_has_no_other(
    setting: dict[str, str], build: str, tmp_path: Path
) -> None:
    environment = {"PIP_CONFIG_FILE": "/dev/null", "TORCH_BACKEND": "cpu", "HOME": str(tmp_path)} | setting
    command = [sys.executable, SCRIPT, sys.executable, "-c", SHOW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.split() if "TORCH" in line] == build.split()


def test_a_program_that_cannot_be_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "uv").touch()
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "uv"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"{tmp_path}/uv cannot be run: Permission denied\n")
