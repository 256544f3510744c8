"""Fetching a data set from a hub: a small server on the loopback that speaks as much of its API as is asked for."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.data import hf_hub as hub
from tasks.data.hf_hub import fetch_dataset

ROOT = Path(__file__).parents[2]
NEW, OLD = "b" * 40, "a" * 40
COLA = "hf:nyu-mll/glue/cola"
NOBODY = "http://127.0.0.1:1"  # an address at which nothing answers
SHORT = "data set 'hf:nyu-mll/glue/cola' "
ROWS = {
    "train": [("The cat sees the dog.", 1, 0), ("Cat the sees dog.", 0, 1), ('A "quoted"\ttab, then ünïcode.', 1, 2)],
    "validation": [("The bird hears the child.", 1, 0)],
    "test": [("Who knows?", -1, 0), ("Nobody does.", -1, 1)],
}
# Runs each address in turn: what came or the error, the log, and whether the library was needed.
SCRIPT = """
import json, logging, sys, time
from tasks.data.hf_hub import fetch_dataset
time.sleep = lambda seconds: None  # the library pauses for 23 s before it gives up on a file
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("tasks").addHandler(handler)
logging.getLogger("tasks").setLevel(logging.INFO)
answers = []
for address in json.loads(sys.argv[2]):
    try:
        answers.append(fetch_dataset(address, sys.argv[1]))
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps({"answers": answers, "log": lines, "imported": "datasets" in sys.modules}))
"""


def parquet(rows: list[tuple[str, int, int]]) -> bytes:
    """Return the bytes of a Parquet file with GLUE's columns."""
    sentences, labels, numbers = zip(*rows, strict=True)
    table = pa.table({"sentence": sentences, "label": labels, "idx": pa.array(numbers, pa.int32())})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def card(rows: dict[str, list[tuple[str, int, int]]]) -> bytes:
    """Return a README as GLUE has one: its YAML tells configs, columns, and how many rows each split has."""
    label = {"class_label": {"names": {"0": "unacceptable", "1": "acceptable"}}}
    dtypes: dict[str, Any] = {"sentence": "string", "label": label, "idx": "int32"}
    features = [{"name": name, "dtype": dtype} for name, dtype in dtypes.items()]
    splits = [{"name": split, "num_examples": len(of_split), "num_bytes": 99} for split, of_split in rows.items()]
    files = [{"split": split, "path": f"cola/{split}-*"} for split in rows]
    infos = [{"config_name": name, "features": features, "splits": splits} for name in ("cola", "sst2")]
    configs = [{"config_name": name, "data_files": files} for name in ("cola", "sst2")]
    # JSON is YAML, too.
    return f"---\n{json.dumps({'dataset_info': infos, 'configs': configs})}\n---\n# A tiny GLUE\n".encode()


def glue(rows: dict[str, list[tuple[str, int, int]]]) -> dict[str, bytes]:
    """Return the files of a tiny GLUE."""
    files = {f"cola/{split}-00000-of-00001.parquet": parquet(of_split) for split, of_split in rows.items()}
    return {"README.md": card(rows), **files}


# Data set -> commit -> files. Those with an odd name misbehave, see FakeHub.
REPOSITORIES: dict[str, dict[str, dict[str, bytes]]] = {
    "nyu-mll/glue": {NEW: glue(ROWS), OLD: glue({**ROWS, "train": ROWS["train"][:1]})},
    "some/script": {NEW: {"script.py": b"raise SystemExit('this code was run')", "README.md": b"# A script"}},
    "some/broken": {NEW: {"README.md": b"# A broken file", "train.parquet": b"PAR1 and no more"}},
    "some/flaky": {NEW: {"README.md": b"# Its files do not come", "train.parquet": parquet(ROWS["train"])}},
    "some/lost": {NEW: {"README.md": b"# It does not come"}},
    "some/gated": {NEW: {"README.md": b"# Ask first", "train.parquet": parquet(ROWS["train"])}},
    "some/closed": {NEW: {}},
}
REVISIONS = {"main": NEW, NEW: NEW, "v1": OLD, OLD: OLD}


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does: data set, tree, paths-info and files, with the headers that its library reads."""

    asked: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on standard error."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        type(self).asked.append(f"{self.command} {path}")
        if path == "/api/datasets/glue":
            return self._send(307, b"", {"Location": "/api/datasets/nyu-mll/glue"})
        found = re.fullmatch(
            r"(?:/api)?/datasets/(?P<name>[^/]+/[^/]+)"
            r"(?:/(?P<verb>revision|tree|paths-info|resolve|auth-check)(?:/(?P<revision>[^/]+)(?:/(?P<path>.*))?)?)?",
            path,
        )
        if not found or found["name"] not in REPOSITORIES:
            return self._refuse(404, "RepoNotFound")
        if found["name"] == "some/closed":
            return self._refuse(403, "")
        commit = REVISIONS.get(found["revision"] or "main", "")
        files = REPOSITORIES[found["name"]].get(commit)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        inside = found["path"] or ""
        if found["verb"] == "resolve":
            return self._send_file(found["name"], commit, inside, files)
        if found["verb"] == "auth-check":
            return self._refuse(401, "GatedRepo")
        if found["verb"] == "tree":
            return self._send_json(list(entries(files, inside, "recursive=True" in self.path)))
        if found["verb"] == "paths-info":
            paths = json.loads(body)["paths"] if body.startswith("{") else re.findall(r"paths=([^&]*)", unquote(body))
            return self._send_json([entry for entry in entries(files, "", True) if entry["path"] in paths])
        siblings = [{"rfilename": name} for name in files]
        gated = "manual" if found["name"] == "some/gated" else False
        return self._send_json({"id": found["name"], "sha": commit, "siblings": siblings, "gated": gated, "tags": []})

    def _send_file(self, name: str, commit: str, path: str, files: dict[str, bytes]) -> None:
        if path not in files:
            return self._refuse(404, "EntryNotFound", commit)
        if (name, path) in (("some/flaky", "train.parquet"), ("some/lost", "README.md")):
            return self._refuse(503, "")
        return self._send(200, files[path], {"ETag": f'"{digest(files[path])}"', "X-Repo-Commit": commit})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, commit: str = NEW) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Repo-Commit": commit})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def digest(content: bytes) -> str:
    """Return a name for a file's content, as git has one."""
    return hashlib.sha1(content).hexdigest()


def entries(files: dict[str, bytes], folder: str, recursive: bool) -> Iterator[dict[str, Any]]:
    """Yield the files and folders below a folder as the hub lists them."""
    start = f"{folder}/" if folder else ""
    below = {path: content for path, content in files.items() if path.startswith(start)}
    folders = {path.rpartition("/")[0] for path in below if "/" in path[len(start) :]}
    for path in sorted(folders):
        yield {"type": "directory", "oid": digest(path.encode()), "size": 0, "path": path}
    for path, content in below.items():
        if recursive or "/" not in path[len(start) :]:
            yield {"type": "file", "oid": digest(content), "size": len(content), "path": path}


class Fetched(NamedTuple):
    """What a process that fetched said, by address, and what the hub was asked."""

    answers: dict[str, Any]
    log: list[str]
    imported: bool
    asked: list[str]
    cache: Path


def run_fetch(cache: Path, endpoint: str, addresses: list[str], **environment: str) -> dict[str, Any]:
    """Fetch in a process of its own: the library reads the hub's address when it is imported."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache.parent / "hf-home"), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        # The library also counts its downloads at an address of its own, which no test should ask.
        [sys.executable, "-c", SCRIPT, str(cache), json.dumps(addresses)],
        env={**theirs, **settings, "HF_UPDATE_DOWNLOAD_COUNTS": "0", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    said: dict[str, Any] = json.loads(done.stdout)
    return said


ADDRESSES = {
    "cola": COLA,
    "again": COLA,
    "tagged": f"{COLA}@v1",
    "commit": f"{COLA}@{OLD}",
    "no such data set": "hf:nyu-mll/glu/cola",
    "no such config": "hf:nyu-mll/glue/colla",
    "no config": "hf:nyu-mll/glue@v1",
    "old name": "hf:glue",
    "no such revision": f"{COLA}@v9",
    "gated": "hf:some/gated",
    "closed": "hf:some/closed",
    "script": "hf:some/script",
    "broken": "hf:some/broken",
    "flaky": "hf:some/flaky",
    "lost": "hf:some/lost",
}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    """Fetch every address in one process from a hub that answers, which stops afterwards."""
    if find_spec("datasets") is None:
        pytest.skip("the extra [hub] is not installed")
    cache = tmp_path_factory.mktemp("hub") / "cache"
    # What a killed download would have left.
    (cache / "nyu-mll--glue--cola" / ".load-killed").mkdir(parents=True)
    FakeHub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = run_fetch(cache, f"http://127.0.0.1:{server.server_port}", list(ADDRESSES.values()))
        server.shutdown()
    return Fetched(
        dict(zip(ADDRESSES, said["answers"], strict=True)), said["log"], said["imported"], FakeHub.asked, cache
    )


def rows_of(path: str) -> list[tuple[Any, ...]]:
    table = pq.read_table(path)
    assert table.column_names == ["sentence", "label", "idx"]
    return list(zip(*table.to_pydict().values(), strict=True))


def test_every_split_arrives_with_its_rows(fetched: Fetched) -> None:
    assert {split: rows_of(path) for split, path in fetched.answers["cola"].items()} == ROWS
    folder = fetched.cache / "nyu-mll--glue--cola"
    assert {Path(path).parent for path in fetched.answers["cola"].values()} == {folder / NEW}
    assert fetched.imported


def test_a_commit_is_downloaded_once_and_said_so(fetched: Fetched) -> None:
    assert fetched.answers["again"] == fetched.answers["cola"]
    train = f"GET /datasets/nyu-mll/glue/resolve/{NEW}/cola/train-00000-of-00001.parquet"
    assert fetched.asked.count(train) == 1
    assert fetched.log[:2] == [
        f"downloading data set {COLA}, commit {NEW[:12]}, from the hub",
        f"downloading data set {COLA}, commit {OLD[:12]}, from the hub",
    ]


def test_a_revision_is_kept_by_its_commit(fetched: Fetched) -> None:
    assert rows_of(fetched.answers["tagged"]["train"]) == ROWS["train"][:1]
    assert fetched.answers["commit"] == fetched.answers["tagged"]


def test_nothing_half_done_is_left(fetched: Fetched) -> None:
    for folder in fetched.cache.iterdir():
        assert {path.name for path in folder.iterdir()} <= {NEW, OLD, "lock", "revisions.json"}


REFUSED: dict[str, tuple[type[VerdictError], str]] = {
    "no such data set": (
        UsageError,
        "data set 'nyu-mll/glu' is not on the hub, or is private; expected a name as the hub spells it, "
        "for example hf:nyu-mll/glue: check it, or set HF_TOKEN",
    ),
    "no such config": (
        UsageError,
        "data set 'nyu-mll/glue' has no config 'colla'; expected one of cola, sst2: hf:nyu-mll/glue/cola",
    ),
    "no config": (
        UsageError,
        "data set 'nyu-mll/glue' has several configs; expected one of cola, sst2: hf:nyu-mll/glue/cola@v1",
    ),
    "old name": (
        UsageError,
        "data set 'nyu-mll/glue' has several configs; expected one of cola, sst2: hf:nyu-mll/glue/cola",
    ),
    "no such revision": (
        UsageError,
        "data set 'nyu-mll/glue' has no revision 'v9'; expected a branch, tag or commit of it after the @, "
        "or none for the newest",
    ),
    "gated": (
        UsageError,
        "data set 'some/gated' is gated; expected leave to read it: ask for it on its page, then set HF_TOKEN",
    ),
    "closed": (
        UsageError,
        "data set 'some/closed' is refused by the hub (HTTP 403); expected a valid token: set HF_TOKEN",
    ),
    "script": (VerdictError, "data set 'hf:some/script' cannot be read (RuntimeError: Dataset scripts are no longer"),
    "broken": (VerdictError, "data set 'hf:some/broken' cannot be read (ArrowInvalid: "),
    "flaky": (
        UnreachableError,
        "data set 'hf:some/flaky' cannot be fetched, the hub gave no usable answer (HTTP 503); "
        "check the network and try again",
    ),
    "lost": (UnreachableError, "data set 'hf:some/lost' cannot be fetched, the hub gave no usable answer (LocalEntry"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fetched_is_told_in_one_line(fetched: Fetched, case: str) -> None:
    kind, message = REFUSED[case]
    name, text = fetched.answers[case]
    assert text.startswith(message)
    assert name == kind.__name__
    assert "\n" not in text


def test_offline_the_kept_copy_is_used_without_network_or_library(fetched: Fetched) -> None:
    addresses = [COLA, f"{COLA}@v1", f"{COLA}@{NEW}", f"{COLA}@{'c' * 40}"]
    said = run_fetch(fetched.cache, NOBODY, addresses, HF_HUB_OFFLINE="1")
    newest, tagged, commit, other = said["answers"]
    assert newest == commit == fetched.answers["cola"]
    assert tagged == fetched.answers["tagged"]
    assert other[0] == "Unreachable"
    assert not said["imported"]


def test_a_hub_that_is_down_is_unreachable(fetched: Fetched) -> None:
    said = run_fetch(fetched.cache, NOBODY, ["hf:nyu-mll/other", COLA, f"{COLA}@{NEW}"])
    nothing, kept, commit = said["answers"]
    expected = "cannot be fetched, the hub gave no usable answer (ConnectError); check the network and try again"
    assert nothing == ["Unreachable", f"data set 'hf:nyu-mll/other' {expected}"]
    # Data that may be old is never used unasked, but told of.
    assert kept == ["Unreachable", f"{SHORT}{expected}, or use the copy that is kept: HF_HUB_OFFLINE=1"]
    # What a commit holds cannot change: nobody needs to be asked.
    assert commit == fetched.answers["cola"]


def test_offline_with_nothing_kept_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UnreachableError, match=f"^{SHORT}is not kept in {tmp_path} and the hub is not asked while offline;"
    ):
        fetch_dataset(COLA, str(tmp_path), offline=True)


def test_offline_takes_the_commit_last_seen_and_else_the_last_one_kept(tmp_path: Path) -> None:
    folder = tmp_path / "nyu-mll--glue--cola"
    for number, commit in enumerate((NEW, OLD)):
        (folder / commit).mkdir(parents=True)
        (folder / commit / "train.parquet").write_bytes(b"")
        os.utime(folder / commit, (number, number))
    assert fetch_dataset(COLA, str(tmp_path), offline=True) == {"train": str(folder / OLD / "train.parquet")}
    (folder / "revisions.json").write_text(json.dumps({"": NEW}))
    assert fetch_dataset(COLA, str(tmp_path), offline=True) == {"train": str(folder / NEW / "train.parquet")}
    shutil.rmtree(folder / NEW)
    assert fetch_dataset(COLA, str(tmp_path), offline=True) == {"train": str(folder / OLD / "train.parquet")}
    with pytest.raises(UnreachableError):
        fetch_dataset(f"{COLA}@main", str(tmp_path), offline=True)


def test_the_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UsageError) as raised:
        fetch_dataset(COLA, str(tmp_path))
    assert str(raised.value) == (
        f"{SHORT}needs the library datasets, which is not installed; run: pip install 'verdict-mlops[hub]'"
    )


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path / "file" / "cache"
    with pytest.raises(VerdictError, match=f"^data set cannot be kept in {folder} "), hub._locked(folder):
        pass


def test_a_version_that_could_run_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", old)
    with pytest.raises(UsageError, match="is not installed"):
        hub._library(hub._parse(COLA))  # a folder named datasets imports like this
    old.__version__ = "3.6.0"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"from version 4 on, which runs no code of a data set; 3\.6\.0 is installed"):
        hub._library(hub._parse(COLA))


@pytest.mark.parametrize(
    "address",
    [
        "",
        "hf:",
        "nyu-mll/glue",
        "hf:/glue",
        "hf:nyu-mll//cola",
        "hf:nyu-mll/glue/",
        "hf:nyu-mll/glue/cola/train",
        "hf:nyu-mll/glue@",
        "hf:nyu-mll/glue@a@b",
        "hf:../glue",
        "hf:nyu--mll/glue",
        "hf:nyu mll/glue",
        "hf:nyu-mll/glue/co\nla",
        "hf:nyu-mll/glue\n",
    ],
)
def test_a_malformed_address_is_refused_with_an_example(tmp_path: Path, address: str) -> None:
    with pytest.raises(
        UsageError, match=r"is malformed; expected hf:NAME, .* for example hf:nyu-mll/glue/cola$"
    ) as seen:
        fetch_dataset(address, str(tmp_path))
    assert "\n" not in str(seen.value)
