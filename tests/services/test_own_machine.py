"""Under strace: no command asks for a foreign host or leaves a file outside of VERDICT_HOME and the temporary folder.

The environment has nothing of a CI system, where several libraries keep quiet by themselves.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from stage import ROOT
from toy import flow_settings

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

STRACE = shutil.which("strace")
CALLS = "connect,sendto,sendmsg,sendmmsg,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink"
ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.|0\.0\.0\.0$|::$")
WRITING = re.compile(r"O_CREAT|O_WRONLY|O_RDWR")
QUOTED = re.compile(r'"([^"]*)"')
SYSTEM = ("/dev/", "/proc/")  # no files
LOADED = (
    "import os, mlflow.pyfunc\n"
    "model = mlflow.pyfunc.load_model('models:/acceptability@champion')\n"
    "print(model.predict(['the cat sees the dog'])['label'][0])"
)

SERVED = """
import os, signal, socket, threading, time, urllib.request
from flows.cli.app import main

with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]

def ask(path, body=None, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    with urllib.request.urlopen(request) as answer:
        return answer.read().decode()

def use():
    try:
        while True:
            try:
                ask("/readyz")
                break
            except OSError:
                time.sleep(0.2)
        print("gradio" in ask("/", Accept="text/html"), ask("/v1/judge", b'{"sentences": ["the cat sees the dog"]}'))
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=use).start()
main(["serve", "--port", str(port)])
"""


class Trace(NamedTuple):
    """What a process and its children asked for: addresses with ports, and paths that they opened for writing."""

    hosts: set[str]
    paths: set[str]


def read_trace(text: str, cwd: Path) -> Trace:
    """Read the output of strace; a path relative to an open folder counts as one of `cwd`."""
    hosts, paths = set(), set()
    for line in text.splitlines():
        hosts |= {f"{host}:{port}" for port, host in ADDRESS.findall(line) if port == "53" or not LOOPBACK.match(host)}
        call = re.search(r"\b(\w+)\(", line)
        changes = call and call[1] not in ("connect", "sendto", "sendmsg", "sendmmsg")
        if changes and " = -1 " not in line and ("open" not in call[1] or WRITING.search(line)):  # type: ignore[index]
            paths |= {os.path.normpath(cwd / name) for name in QUOTED.findall(line)[-1:]}
    return Trace(hosts, {path for path in paths if not path.startswith(SYSTEM)})


def test_a_trace_shows_foreign_hosts_and_files() -> None:
    text = """\
7 connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.7")}, 16) = -1 EINPROGRESS
7 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16) = 0
7 connect(3, {sa_family=AF_INET, sin_port=htons(4200), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
7 connect(3, {sa_family=AF_INET6, sin6_port=htons(80), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "2001:db8::1", &x
7 openat(AT_FDCWD, "/home/me/.cache/id", O_WRONLY|O_CREAT, 0666) = 5
7 openat(AT_FDCWD, "/etc/passwd", O_RDONLY|O_CLOEXEC) = 5
7 openat(AT_FDCWD, "/root/denied", O_WRONLY|O_CREAT, 0666) = -1 EACCES (Permission denied)
7 openat(AT_FDCWD, "/dev/null", O_WRONLY) = 5
7 mkdir("sub", 0777) = 0
7 rename("/tmp/a", "/var/b") = 0
"""
    found = read_trace(text, Path("/work"))
    assert found.hosts == {"192.0.2.7:443", "127.0.0.53:53", "2001:db8::1:80"}
    assert found.paths == {"/home/me/.cache/id", "/work/sub", "/var/b"}


class Machine(NamedTuple):
    """Folders of one run: stores, temporary files, the user's home and where commands run."""

    stores: Path
    scratch: Path
    home: Path
    cwd: Path

    def trace(self, *arguments: str, **variables: str) -> str:
        """Run Python under strace, check what it asked for and left; return its standard output."""
        log = self.cwd.parent / "trace"
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": str(self.scratch)}
        environment |= {"VERDICT_HOME": str(self.stores), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [str(STRACE), "-f", "-qq", "--seccomp-bpf", "-s", "400", "-o", str(log), "-e", f"trace={CALLS}"]
        done = subprocess.run(
            [*command, sys.executable, *arguments],
            cwd=self.cwd,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = read_trace(log.read_text(errors="replace"), self.cwd)
        assert found.hosts == set()
        allowed = (str(self.stores), str(self.scratch), str(self.home / ".prefect"))
        assert {path for path in found.paths if not path.startswith(allowed)} == set()
        # Prefect makes its folder, where a user's profiles would lie.
        assert [path for path in (*self.home.rglob("*"), *self.cwd.rglob("*")) if path.name != ".prefect"] == []
        return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    if not STRACE:
        pytest.skip("strace is not installed: apt-get install strace")
    probe = subprocess.run([STRACE, "--seccomp-bpf", "-f", "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace cannot trace here: {probe.stderr.strip()[:200]}")
    # Gradio writes a seed into its own package where it is imported for the first time.
    subprocess.run([sys.executable, "-c", "import gradio"], capture_output=True, check=True)
    folder = tmp_path_factory.mktemp("machine")
    machine = Machine(*(folder / name for name in ("stores", "scratch", "home", "cwd")))
    for path in machine:
        path.mkdir()
    return machine


def test_commands_and_models_ask_for_no_foreign_host_and_leave_no_file(
    machine: Machine, toy_data: Path, tiny_encoder: Path
) -> None:
    chosen = flow_settings(toy_data, tiny_encoder) | {"data.offline": True}
    options = [f"--set={key}={value}" for key, value in chosen.items()]
    machine.trace("-m", "flows.cli.app", "retrain", *options)
    assert "acceptable" in machine.trace("-m", "flows.cli.app", "predict", "the cat sees the dog")
    served = machine.trace("-c", SERVED).splitlines()[-1]
    assert served.startswith(
        'True {"version":"1","predictions":[{"sentence":"the cat sees the dog","label":"acceptable"'
    )
    # MLflow's own telemetry is the user's to switch off; a version switches off that of ONNX Runtime.
    store = f"sqlite:///{machine.stores / 'mlflow.db'}"
    answer = machine.trace("-c", LOADED, MLFLOW_TRACKING_URI=store, MLFLOW_DISABLE_TELEMETRY="true", PYTHONPATH="")
    assert answer.splitlines()[-1] == "acceptable"
