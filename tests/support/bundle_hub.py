"""A hub on the loopback to which models can be pushed: the endpoints that huggingface_hub uses for that, in memory."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writes"


@dataclass
class Repository:
    """The commits of a repository, oldest first: id and files."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        text = repr([len(self.commits), sorted(files.items())])
        self.commits.append((hashlib.sha1(text.encode()).hexdigest(), files))
        return self.commits[-1][0]

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        named = dict(self.commits)
        if revision == "main":
            return self.commits[-1]
        return (revision, named[revision]) if revision in named else None


class BundleHub(BaseHTTPRequestHandler):
    """Answers as the hub does; a subclass of its own holds the state of each test (`new_hub`)."""

    repositories: dict[str, Repository]
    blobs: dict[str, bytes]
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self._begin()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._describe(found[1], found[2], unquote(found[3] or "main"))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(found[1], unquote(found[2]), unquote(found[3]))
        else:
            self._refuse(404, "")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        oid = self._begin().rpartition("/")[2]
        self.blobs[oid] = self._body()
        self._send(200, b"", {})

    def do_POST(self) -> None:
        path, body = self._begin(), self._body()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.repositories[name] = Repository(wanted["visibility"] == "private")
            self.repositories[name].commit({".gitattributes": b"*.onnx filter=lfs\n"})
            return self._json({"url": f"http://{self.headers['Host']}/{name}"})
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3]).removesuffix(".git")
        if name not in self.repositories:
            return self._refuse(404, "RepoNotFound")
        if "/preupload/" in path:
            return self._json({"files": [self._mode(name, each) for each in json.loads(body)["files"]]})
        if path.endswith("/objects/batch"):
            return self._json({"objects": [self._upload(each) for each in json.loads(body)["objects"]]})
        return self._commit(name, [json.loads(line) for line in body.splitlines()])

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing on standard error."""

    def _begin(self) -> str:
        path = urlsplit(self.path).path
        self.requests.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return commit and files; None after a refusal."""
        held, signed_in = self.repositories.get(name), self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if held is None or (held.private and not signed_in):
            self._refuse(404 if signed_in else 401, "RepoNotFound")
            return None
        found = held.find(revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
        return found

    def _describe(self, name: str, verb: str | None, revision: str) -> None:
        if at := self._find(name, revision):
            commit, files = at
            if verb == "tree":
                self._json([_entry(each, content) for each, content in files.items()])
            else:
                facts = {"id": name, "sha": commit, "tags": [], "private": self.repositories[name].private}
                self._json(facts | {"siblings": [{"rfilename": each} for each in files]})

    def _send_file(self, name: str, revision: str, path: str) -> None:
        if at := self._find(name, revision):
            commit, files = at
            if path in files:
                digest = hashlib.sha256(files[path]).hexdigest()
                self._send(200, files[path], {"ETag": f'"{digest}"', "X-Repo-Commit": commit})
            else:
                self._refuse(404, "EntryNotFound", commit)

    def _mode(self, name: str, file: dict[str, Any]) -> dict[str, Any]:
        held = self.repositories[name].commits[-1][1].get(file["path"])
        large = file["path"].endswith(".onnx")
        entry = None if held is None else _entry(file["path"], held)
        oid = None if entry is None else entry["lfs"]["oid"] if large else entry["oid"]
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.blobs:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"http://{self.headers['Host']}/upload/{wanted['oid']}"}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.repositories[name].commits[-1][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.repositories[name].commit(files)
        self._json({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{commit}", "commitOid": commit})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Repo-Commit": commit})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def new_hub() -> type[BundleHub]:
    """Return a hub without repositories."""
    return type("Hub", (BundleHub,), {"repositories": {}, "blobs": {}, "requests": []})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """Return what a tree says of a file: git's name of it, and for a large one that of its content."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    return entry | ({"lfs": lfs} if path.endswith(".onnx") else {})
