"""A Hugging Face hub of one user on this machine: its HTTP API as far as models need it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_writes"
USER = "user"


@dataclass
class Repository:
    """Commits, oldest first: their number and all files at that point."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1] if self.commits else None
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Hub:
    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: bool = False


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Stays quiet."""

    def answer(self, status: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parts(self) -> list[str]:
        self.hub.requests.append(f"{self.command} {self.path}")
        return self.path.partition("?")[0].strip("/").split("/")

    @property
    def may_write(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_POST(self) -> None:
        match self.parts(), self.body():
            case _ if self.hub.broken:
                self.answer(500, {"error": "out of order"})
            case _ if not self.may_write:
                self.answer(401, {"error": "Invalid username or password."})
            case ["api", "repos", "create"], body:
                self.create(json.loads(body))
            case ["api", "validate-yaml"], body:
                _, front, _ = json.loads(body)["content"].split("---\n", 2)
                fine = isinstance(yaml.safe_load(front), dict)
                self.answer(200 if fine else 400, {"warnings": [], "errors": []})
            case ["api", "models", user, name, "preupload", "main"], body:
                commit = self.hub.repositories[f"{user}/{name}"].at("main")
                self.answer(200, {"files": [mode(f, commit) for f in json.loads(body)["files"]]})
            case [_, _, "info", "lfs", "objects", "batch"], body:
                objects = [
                    {**thing, "actions": {"upload": {"href": f"{self.hub.endpoint}/store"}}}
                    for thing in json.loads(body)["objects"]
                ]
                self.answer(200, {"transfer": "basic", "objects": objects})
            case ["api", "models", user, name, "commit", "main"], body:
                self.commit(f"{user}/{name}", [json.loads(line) for line in body.splitlines()])
            case _:
                self.answer(404, {"error": f"not played here: {self.path}"})

    def create(self, wanted: dict[str, Any]) -> None:
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.hub.endpoint}/{repo_id}"}
        if wanted["organization"] != USER:
            self.answer(403, {"error": "You don't have the rights to create a model here"})
        elif repo_id in self.hub.repositories:
            self.answer(409, {"error": "You already created this model repo", **url})
        else:
            self.hub.repositories[repo_id] = Repository(
                wanted.get("private", False) or wanted.get("visibility") == "private"
            )
            self.answer(200, url)

    def commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        repository = self.hub.repositories[repo_id]
        _, files = repository.at("main") or ("", {})
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        number = hashlib.sha1(f"{repo_id} {len(repository.commits)}".encode()).hexdigest()
        repository.commits.append((number, files))
        url = f"{self.hub.endpoint}/{repo_id}/commit/{number}"
        self.answer(200, {"success": True, "commitOid": number, "commitUrl": url})

    def do_PUT(self) -> None:
        assert self.parts() == ["store"]
        content = self.body()
        self.hub.blobs[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.parts():
            case ["store", oid]:
                self.answer(200, self.hub.blobs[oid], ETag=f'"{oid}"')
            case [user, name, "resolve", revision, path]:
                self.resolve(f"{user}/{name}", revision, path)
            case ["api", "models", user, name, "revision", revision]:
                found = self.hub.repositories[f"{user}/{name}"].at(revision)
                assert found is not None
                self.answer(200, {"id": f"{user}/{name}", "sha": found[0], "siblings": []})
            case _:
                self.answer(404, {"error": "nothing here"}, X_Error_Code="RepoNotFound")

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and not self.may_write):
            return self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        commit = repository.at(revision)
        if commit is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        number, files = commit
        if path not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=number)
        oid = hashlib.sha256(files[path]).hexdigest()
        self.hub.blobs[oid] = files[path]
        # The store is another host, as with the real hub: the client takes its headers from here.
        store = self.hub.endpoint.replace("127.0.0.1", "localhost")
        return self.answer(
            302,
            Location=f"{store}/store/{oid}",
            X_Repo_Commit=number,
            X_Linked_ETag=f'"{oid}"',
            X_Linked_Size=str(len(files[path])),
        )


def mode(file: dict[str, Any], commit: tuple[str, dict[str, bytes]] | None) -> dict[str, Any]:
    """How a file is to be sent, and its checksum if it is there already."""
    path = file["path"]
    how = "lfs" if path.endswith(".safetensors") else "regular"
    oid = None
    if commit is not None and path in commit[1]:
        content = commit[1][path]
        blob = f"blob {len(content)}\0".encode() + content
        oid = hashlib.sha256(content) if how == "lfs" else hashlib.sha1(blob)
        oid = oid.hexdigest()
    return {"path": path, "uploadMode": how, "shouldIgnore": False, "oid": oid}


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers at ``endpoint`` until the block ends."""
    hub = Hub()
    handler = type("HandlerOfOneHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
