"""A server that speaks the part of the Hugging Face hub's protocol that its package uses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

#: Bytes above which a file is uploaded by itself (Git LFS), as on the hub.
LARGE = 50_000


@dataclass
class Hub:
    """Repositories by name, each with its files by name, and the requests that came."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    #: Files of every commit, by its hash.
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)
    #: Answer every request with this status.
    broken: int | None = None
    #: Called before a file is sent.
    sending: Callable[[], object] = lambda: None

    def commit(self, repository: str) -> str:
        """Return the hash of what a repository holds now."""
        held, digest = self.repositories[repository], hashlib.sha1()
        for name, content in sorted(held.items()):
            digest.update(name.encode() + content)
        self.history[digest.hexdigest()] = dict(held)
        return digest.hexdigest()

    def at(self, repository: str, revision: str | None) -> dict[str, bytes] | None:
        """Return the files of a revision; None if there is no such revision."""
        if revision in (None, "main"):
            return self.repositories[repository]
        return self.history.get(revision)


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def answer(
            self, content: bytes = b"", status: int = 200, headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": f"{len(content)}", **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def answer_json(self, content: object) -> None:
            self.answer(json.dumps(content).encode(), headers={"Content-Type": "application/json"})

        def refuse(self, code: str) -> None:
            self.answer(b"{}", 404, {"X-Error-Code": code, "X-Error-Message": "not there"})

        def handle_any(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            body = self.body()
            if hub.broken is not None:
                self.answer(b"{}", hub.broken)
                return
            for pattern, handle in ROUTES.items():
                if match := re.fullmatch(pattern, path):
                    repository = match.groupdict().get("repository")
                    if repository is not None and repository not in hub.repositories:
                        self.refuse("RepoNotFound")
                        return
                    handle(self, body, **match.groupdict())
                    return
            self.answer(b"no such route", 501)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(to: Handler, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        assert wanted["type"] == "dataset"
        hub.repositories.setdefault(name, {})
        hub.private.setdefault(name, wanted.get("visibility") == "private")
        to.answer_json({"url": f"{hub.url}/datasets/{name}", "id": name})

    def preupload(to: Handler, body: bytes, repository: str) -> None:
        files = json.loads(body)["files"]
        modes = ["lfs" if each["size"] > LARGE else "regular" for each in files]
        answers = [
            {"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
            for each, mode in zip(files, modes, strict=True)
        ]
        to.answer_json({"files": answers})

    def lfs_batch(to: Handler, body: bytes, repository: str) -> None:
        wanted = json.loads(body)["objects"]
        objects = [
            {**each, "actions": {"upload": {"href": f"{hub.url}/objects/{each['oid']}"}}}
            for each in wanted
        ]
        to.answer_json({"transfer": "basic", "objects": objects})

    def put(to: Handler, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        hub.objects[oid] = body
        to.answer()

    def commit(to: Handler, body: bytes, repository: str) -> None:
        held = hub.repositories[repository]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                held[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                held[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del held[value["path"]]
        sha = hub.commit(repository)
        url = f"{hub.url}/datasets/{repository}/commit/{sha}"
        to.answer_json({"commitUrl": url, "commitOid": sha})

    def info(to: Handler, body: bytes, repository: str, revision: str | None = None) -> None:
        if (held := hub.at(repository, revision)) is None:
            to.refuse("RevisionNotFound")
            return
        sha = hub.commit(repository) if revision in (None, "main") else revision
        names = [{"rfilename": name} for name in held]
        facts = {"id": repository, "sha": sha, "private": hub.private[repository]}
        to.answer_json({**facts, "siblings": names})

    def tree(to: Handler, body: bytes, repository: str, revision: str) -> None:
        if (held := hub.at(repository, revision)) is None:
            to.refuse("RevisionNotFound")
            return
        to.answer_json(
            [
                {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                for name, content in held.items()
            ]
        )

    def resolve(to: Handler, body: bytes, repository: str, revision: str, name: str) -> None:
        content = (hub.at(repository, revision) or {}).get(name)
        if content is None:
            to.refuse("EntryNotFound")
            return
        if to.command == "GET":
            hub.sending()
        to.answer(content, headers={"ETag": f'"{oid(content)}"', "X-Repo-Commit": revision})

    def oid(content: bytes) -> str:
        return hashlib.sha1(content).hexdigest()

    place = r"(?P<repository>[^/]+/[^/]+)"
    ROUTES = {
        r"/api/repos/create": create,
        rf"/api/datasets/{place}/preupload/main": preupload,
        rf"/datasets/{place}\.git/info/lfs/objects/batch": lfs_batch,
        r"/objects/(?P<oid>\w+)": put,
        rf"/api/datasets/{place}/commit/main": commit,
        rf"/api/datasets/{place}(/revision/(?P<revision>[^/]+))?": info,
        rf"/api/datasets/{place}/tree/(?P<revision>[^/]+)": tree,
        rf"/datasets/{place}/resolve/(?P<revision>[^/]+)/(?P<name>.+)": resolve,
    }

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
