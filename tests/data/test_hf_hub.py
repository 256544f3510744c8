"""Downloading a data set from a hub: a small server on the loopback implements the endpoints that are used."""

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
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.core.errors import UnreachableError, UsageError, VerdictError
from tasks.data.hf_hub import fetch_dataset

ROOT = Path(__file__).parents[2]
CONVERTED, NEW, OLD = "d" * 40, "b" * 40, "a" * 40
COLA = "hf:nyu-mll/glue/cola"
NOBODY = "http://127.0.0.1:1"  # an address at which nothing answers
SHORT = "data set 'hf:nyu-mll/glue/cola' "
ROWS = {
    "train": [("The cat sees the dog.", 1, 0), ("Cat the sees dog.", 0, 1), ('A "quoted"\ttab, then ünïcode.', 1, 2)],
    "validation": [("The bird hears the child.", 1, 0)],
    "test": [("Who knows?", -1, 0), ("Nobody does.", -1, 1)],
}
# Fetches each address in turn; prints the splits or the error, and the log.
SCRIPT = """
import json, logging, sys, time
from tasks.data.hf_hub import fetch_dataset
time.sleep = lambda seconds: None  # the library waits 23 s in all before it gives up on a file
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
print(json.dumps({"answers": answers, "log": lines}))
"""


def parquet(rows: list[tuple[str, int, int]]) -> bytes:
    """Return the bytes of a Parquet file with GLUE's columns."""
    sentences, labels, numbers = zip(*rows, strict=True)
    table = pa.table({"sentence": sentences, "label": labels, "idx": pa.array(numbers, pa.int32())})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def glue(rows: dict[str, list[tuple[str, int, int]]]) -> dict[str, bytes]:
    """Return the files of a tiny GLUE as its authors keep it."""
    return {f"cola/{split}-00000-of-00001.parquet": parquet(of_split) for split, of_split in rows.items()}


def converted(rows: dict[str, list[tuple[str, int, int]]]) -> dict[str, bytes]:
    """Return the files of a tiny GLUE as the hub converts it, with a training split of two shards."""
    shards = {f"cola/{split}/0000.parquet": parquet(of_split) for split, of_split in rows.items()}
    shards |= {f"cola/train/{shard:04}.parquet": parquet(rows["train"][shard::2]) for shard in (0, 1)}
    return {"README.md": b"# GLUE", **shards, "sst2/train/0000.parquet": parquet(rows["test"])}


# Data set -> commit -> files. Those with an odd name misbehave, see FakeHub.
PLAIN = parquet(ROWS["train"])
REPOSITORIES: dict[str, dict[str, dict[str, bytes]]] = {
    "nyu-mll/glue": {CONVERTED: converted(ROWS), NEW: glue(ROWS), OLD: glue({**ROWS, "train": ROWS["train"][:1]})},
    "some/plain": {NEW: {"README.md": b"# Not converted", "data/train-00000-of-00001.parquet": PLAIN}},
    "some/script": {NEW: {"script.py": b"raise SystemExit('this code was run')", "README.md": b"# A script"}},
    "some/broken": {NEW: {"train.parquet": b"PAR1 and no more"}},
    "some/flaky": {NEW: {"train.parquet": PLAIN}},
    "some/gated": {NEW: {"train.parquet": PLAIN}},
    "some/closed": {NEW: {"train.parquet": PLAIN}},
    "some/private": {NEW: {}},
}
RENAMED = {"glue": "nyu-mll/glue", "plain": "some/plain"}
REVISIONS = {"refs/convert/parquet": CONVERTED, "main": NEW, "v1": OLD} | {
    commit: commit for commit in (CONVERTED, NEW, OLD)
}


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does: data set, tree and files, with the headers that its library reads."""

    requests: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing on standard error."""

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        type(self).requests.append(f"{self.command} {unquote(path)}")
        for old, new in RENAMED.items():
            if f"{path}/".partition("datasets/")[2].startswith(f"{old}/"):
                return self._send(307, b"", {"Location": self.path.replace(f"datasets/{old}", f"datasets/{new}")})
        found = re.fullmatch(
            r"(?:/api)?/datasets/(?P<name>[^/]+/[^/]+)/(?P<verb>revision|tree|resolve)/(?P<revision>[^/]+)(?:/(?P<path>.*))?",
            path,
        )
        if not found or found["name"] not in REPOSITORIES:
            return self._refuse(404, "RepoNotFound")
        if found["name"] == "some/private":
            return self._refuse(403, "")
        commit = REVISIONS.get(unquote(found["revision"]), "")
        files = REPOSITORIES[found["name"]].get(commit)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        if found["verb"] == "resolve":
            return self._send_file(found["name"], commit, unquote(found["path"]), files)
        if found["verb"] == "tree":
            return self._send_json(
                [
                    {"type": "file", "oid": digest(content), "size": len(content), "path": path}
                    for path, content in files.items()
                ]
            )
        siblings = [{"rfilename": name} for name in files]
        return self._send_json({"id": found["name"], "sha": commit, "siblings": siblings, "gated": False, "tags": []})

    def _send_file(self, name: str, commit: str, path: str, files: dict[str, bytes]) -> None:
        refusals = {"some/flaky": (503, ""), "some/gated": (401, "GatedRepo"), "some/closed": (403, "")}
        if path not in files:
            return self._refuse(404, "EntryNotFound", commit)
        if name in refusals:
            return self._refuse(*refusals[name])
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


class Fetched(NamedTuple):
    """Result or error of each address, the log, the hub's requests, and the cache."""

    answers: dict[str, Any]
    log: list[str]
    requests: list[str]
    cache: Path


def run_fetch(cache: Path, endpoint: str, addresses: list[str], **environment: str) -> dict[str, Any]:
    """Fetch in a subprocess: the library reads the hub's address when it is imported."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache.parent / "hf-home"), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(cache), json.dumps(addresses)],
        env={**theirs, **settings, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    result: dict[str, Any] = json.loads(done.stdout)
    return result


ADDRESSES = {
    "cola": COLA,
    "again": COLA,
    "tagged": f"{COLA}@v1",
    "commit": f"{COLA}@{OLD}",
    "main": f"{COLA}@main",
    "not converted": "hf:some/plain",
    "renamed": "hf:plain",
    "no such data set": "hf:nyu-mll/glu/cola",
    "no such config": "hf:nyu-mll/glue/colla",
    "no config": f"hf:nyu-mll/glue@{CONVERTED}",
    "old name": "hf:glue",
    "no such revision": f"{COLA}@v9",
    "gated": "hf:some/gated",
    "closed": "hf:some/closed",
    "private": "hf:some/private",
    "script": "hf:some/script",
    "broken": "hf:some/broken",
    "flaky": "hf:some/flaky",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Run a hub."""
    FakeHub.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def fetched(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    """Fetch every address in one process."""
    cache = tmp_path_factory.mktemp("hub") / "cache"
    result = run_fetch(cache, endpoint, list(ADDRESSES.values()))
    answers = dict(zip(ADDRESSES, result["answers"], strict=True))
    return Fetched(answers, result["log"], list(FakeHub.requests), cache)


def rows_of(path: str) -> list[tuple[Any, ...]]:
    table = pq.read_table(path)
    assert table.column_names == ["sentence", "label", "idx"]
    return list(zip(*table.to_pydict().values(), strict=True))


def test_every_split_arrives_with_its_rows(fetched: Fetched) -> None:
    splits = {split: rows_of(path) for split, path in fetched.answers["cola"].items()}
    first, second, third = ROWS["train"]
    assert splits == {**ROWS, "train": [first, third, second]}  # one shard after the other
    folder = fetched.cache / "nyu-mll--glue--cola" / CONVERTED
    assert fetched.answers["cola"] == {
        split: str(folder / f"{split}.parquet") for split in ("test", "train", "validation")
    }


def test_a_commit_is_downloaded_once_and_logged(fetched: Fetched) -> None:
    assert fetched.answers["again"] == fetched.answers["cola"]
    assert fetched.requests.count(f"GET /datasets/nyu-mll/glue/resolve/{CONVERTED}/cola/train/0000.parquet") == 1
    assert fetched.log[:3] == [
        f"downloading data set {COLA}, commit {commit}, from the hub" for commit in (CONVERTED, OLD, NEW)
    ]


def test_only_the_config_is_downloaded(fetched: Fetched) -> None:
    got = [request for request in fetched.requests if request.startswith("GET /datasets/nyu-mll/glue/resolve/")]
    assert got
    assert all("/cola/" in request for request in got)


def test_a_revision_is_that_of_the_authors_files(fetched: Fetched) -> None:
    assert rows_of(fetched.answers["tagged"]["train"]) == ROWS["train"][:1]
    assert fetched.answers["commit"] == fetched.answers["tagged"]
    assert {split: rows_of(path) for split, path in fetched.answers["main"].items()} == ROWS


def test_without_a_conversion_the_authors_parquet_files_are_read(fetched: Fetched) -> None:
    assert {split: rows_of(path) for split, path in fetched.answers["not converted"].items()} == {
        "train": ROWS["train"]
    }
    assert rows_of(fetched.answers["renamed"]["train"]) == ROWS["train"]


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
        f"data set 'nyu-mll/glue' has several configs; expected one of cola, sst2: hf:nyu-mll/glue/cola@{CONVERTED}",
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
        "data set 'some/gated' is gated; expected permission to read it: request it on its page, then set HF_TOKEN",
    ),
    "closed": (
        UsageError,
        "data set 'some/closed' is refused by the hub (HTTP 403); expected a valid token: set HF_TOKEN",
    ),
    "private": (
        UsageError,
        "data set 'some/private' is refused by the hub (HTTP 403); expected a valid token: set HF_TOKEN",
    ),
    "script": (VerdictError, "data set 'hf:some/script' has no Parquet files that can be read; expected CONFIG/SPLIT/"),
    "broken": (VerdictError, "data set 'hf:some/broken' cannot be read (ArrowInvalid: "),
    "flaky": (
        UnreachableError,
        "data set 'hf:some/flaky' cannot be fetched, the hub gave no usable answer (HTTP 503); "
        "check the network and try again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fetched_is_reported_in_one_line(fetched: Fetched, case: str) -> None:
    kind, message = REFUSED[case]
    name, text = fetched.answers[case]
    assert text.startswith(message)
    assert name == kind.__name__
    assert "\n" not in text


def test_offline_the_cached_copy_is_used_without_network(fetched: Fetched) -> None:
    addresses = [COLA, f"{COLA}@v1", f"{COLA}@{NEW}", "hf:plain", f"{COLA}@{'c' * 40}", "hf:nyu-mll/glue/sst2"]
    result = run_fetch(fetched.cache, NOBODY, addresses, HF_HUB_OFFLINE="1")
    newest, tagged, commit, renamed, other, sst2 = result["answers"]
    assert newest == fetched.answers["cola"]
    assert tagged == fetched.answers["tagged"]
    assert commit == fetched.answers["main"]
    assert renamed == fetched.answers["renamed"]
    for address, answer in (("cola@" + "c" * 40, other), ("sst2", sst2)):
        assert answer[0] == "UnreachableError"
        assert answer[1].startswith(
            f"data set 'hf:nyu-mll/glue/{address}' is not cached in {fetched.cache} and the hub"
        )


def test_a_hub_that_is_down_is_unreachable(fetched: Fetched) -> None:
    result = run_fetch(fetched.cache, NOBODY, ["hf:nyu-mll/other", COLA, f"{COLA}@{NEW}"])
    nothing, cached, commit = result["answers"]
    expected = "cannot be fetched, the hub gave no usable answer (ConnectError); check the network and try again"
    assert nothing == ["UnreachableError", f"data set 'hf:nyu-mll/other' {expected}"]
    # Data that may be old is used only on request.
    assert cached == ["UnreachableError", f"{SHORT}{expected}, or use the cached copy: HF_HUB_OFFLINE=1"]
    # The files of a commit cannot change, so no request is needed.
    assert commit == fetched.answers["main"]


def test_offline_a_branch_is_the_commit_of_its_last_download(
    fetched: Fetched, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shutil.copytree(fetched.cache, tmp_path / "cache", symlinks=True)
    assert Path(fetch_dataset(f"{COLA}@v1", str(cache), offline=True)["train"]).parent.name == OLD
    monkeypatch.setitem(REVISIONS, "v1", NEW)
    newest = run_fetch(cache, endpoint, [f"{COLA}@v1"])["answers"][0]
    assert Path(newest["train"]).parent.name == NEW
    assert fetch_dataset(f"{COLA}@v1", str(cache), offline=True) == newest


def test_offline_an_incomplete_snapshot_is_not_used(fetched: Fetched, tmp_path: Path) -> None:
    cache = shutil.copytree(fetched.cache, tmp_path / "cache", symlinks=True)
    (cache / "datasets--nyu-mll--glue" / "snapshots" / CONVERTED / "cola" / "train" / "0001.parquet").unlink()
    with pytest.raises(UnreachableError, match=f"^{SHORT}is not cached in"):
        fetch_dataset(COLA, str(cache), offline=True)


def test_offline_with_nothing_cached_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=f"^{SHORT}is not cached in {tmp_path} and the hub is not queried while"):
        fetch_dataset(COLA, str(tmp_path), offline=True)


def test_a_cache_that_cannot_be_written_is_named(fetched: Fetched, tmp_path: Path) -> None:
    cache = shutil.copytree(fetched.cache, tmp_path / "cache", symlinks=True)
    folder = cache / "nyu-mll--glue--cola"
    shutil.rmtree(folder)
    folder.write_text("no folder")
    with pytest.raises(VerdictError) as raised:
        fetch_dataset(COLA, str(cache), offline=True)
    assert str(raised.value) == (
        f"data set cannot be cached in {folder} (Not a directory); expected a folder with space to write to: "
        "check it and run again"
    )


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
