"""A small server that speaks the hub's protocol, for the real clients: `huggingface_hub`, `datasets`, `transformers`.

It knows repositories with several commits, gated ones, and ways in which a network fails.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KIND = {"models": "", "datasets": "datasets/"}
API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """`commits` maps each commit to its files; the last one is `main`. Of a gated one the files are refused."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        """Adds a commit that holds these files; returns its name."""
        content = repr(sorted(files.items())).encode()
        name = hashlib.sha1(content + str(len(self.commits)).encode()).hexdigest()
        self.commits[name] = files
        return name

    def resolve(self, revision: str) -> str | None:
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


Fault = Callable[["Request"], bool]


class Hub:
    """The server, at work while the context lasts. `repositories` by path, such as `datasets/lab/corpus`.

    `fault`, if set, sees every request first and returns whether it dealt with it. `requests` are the paths asked for.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.fault: Fault | None = None
        self.released = threading.Event()
        self.port = 0
        self.listen()
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), type("BoundRequest", (Request,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def add(self, path: str, files: dict[str, bytes], gated: bool = False) -> str:
        """A repository, or another commit of one. Returns the commit."""
        repository = self.repositories.setdefault(path, Repository(gated=gated))
        return repository.commit(files)

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        self.fault, self.released = fault, threading.Event()
        try:
            yield
        finally:
            self.fault = None
            self.released.set()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens at the port: connections are refused."""
        self.close()
        try:
            yield
        finally:
            self.listen()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Request(BaseHTTPRequestHandler):
    """One connection of a client."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {unquote(self.path)}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.fault is not None and self.hub.fault(self):
            return
        path = unquote(urlsplit(self.path).path)
        if match := API.fullmatch(path):
            kind, name, question, revision, rest = match.groups()
            self.answer_api(KIND[kind] + name, question or "revision", revision or "main", rest or "", body)
        elif match := RESOLVE.fullmatch(path):
            self.answer_file((match[1] or "") + match[2], match[3], match[4])
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_POST = do_GET

    def answer_api(self, path: str, question: str, revision: str, rest: str, body: bytes) -> None:
        if (found := self.find(path, revision)) is None:
            return
        repository, commit = found
        files = repository.commits[commit]
        if question == "revision":
            siblings = [{"rfilename": name} for name in files]
            gated = "manual" if repository.gated else False
            self.send_json({"id": path.removeprefix("datasets/"), "sha": commit, "siblings": siblings, "gated": gated})
        elif question == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            self.send_json([entry for name in asked for entry in entries(files, name, exactly=True)])
        else:
            recursive = "recursive=true" in self.path.lower()
            listed = [entry for entry in entries(files, rest) if recursive or depth(entry["path"], rest) == 1]
            self.send_json(listed) if listed else self.refuse(404, "EntryNotFound")

    def answer_file(self, path: str, revision: str, name: str) -> None:
        if (found := self.find(path, revision)) is None:
            return
        repository, commit = found
        if repository.gated:
            self.refuse(403, "GatedRepo", "Access to it is restricted.")
        elif name not in repository.commits[commit]:
            self.refuse(404, "EntryNotFound", headers={"X-Repo-Commit": commit})
        else:
            content = repository.commits[commit][name]
            headers = {"ETag": f'"{oid(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                self.send(206, content[start : end + 1], headers)
            else:
                self.send(200, content, headers)

    def find(self, path: str, revision: str) -> tuple[Repository, str] | None:
        """Refuses what is not there as the hub does: of a repository that one may not see, it does not say so."""
        repository = self.hub.repositories.get(path)
        if repository is None:
            self.refuse(401, "RepoNotFound", "Invalid username or password.")
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return None
        return repository, commit

    def stall(self) -> bool:
        """A fault: no answer as long as it lasts."""
        self.hub.released.wait()
        self.close_connection = True
        return True

    def hang_up(self) -> bool:
        """A fault: half an answer, then the connection is closed."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"PAR1")
        self.close_connection = True
        return True

    def refuse(self, status: int, code: str, message: str = "", headers: dict[str, str] | None = None) -> None:
        self.send(status, b"", {"X-Error-Code": code, "X-Error-Message": message or code} | (headers or {}))

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def entries(files: dict[str, bytes], under: str, exactly: bool = False) -> list[dict[str, Any]]:
    """The files and folders at or under a path as the hub lists them."""
    found: dict[str, dict[str, Any]] = {}
    for name, content in files.items():
        parts = name.split("/")
        for i in range(1, len(parts)):
            folder = "/".join(parts[:i])
            found[folder] = {"type": "directory", "path": folder, "oid": oid(folder.encode()), "size": 0}
        found[name] = {"type": "file", "path": name, "oid": oid(content), "size": len(content)}
    if exactly:
        return [found[under]] if under in found else []
    return [entry for path, entry in found.items() if not under or path.startswith(under + "/")]


def depth(path: str, under: str) -> int:
    return path.count("/") + 1 - (under.count("/") + 1 if under else 0)


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
