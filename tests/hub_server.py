"""A hub on loopback: as much of its HTTP interface as pushing and loading heads needs, with state.

Repositories hold commits, commits hold files, branches point at commits. Large files go through the
LFS endpoints and are served by redirect from another origin, as on the real one. What was asked is
kept in ``requests``.

``python -m tests.hub_server`` serves an empty one until it is interrupted, to rehearse on.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import yaml
from huggingface_hub.utils import _http

if TYPE_CHECKING:
    import pytest

WRITER, READER = "hf_writerwriterwriterwriterwriter", "hf_readerreaderreaderreaderreader"
FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass
class Repo:
    """Commits by id, branches by name."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        """Put files on top of a branch."""
        now = self.commits.get(self.branches.get(branch, ""), {}) | files
        sha = hashlib.sha1(repr((len(self.commits), sorted(now.items()))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = now, sha
        self.messages.append(message)
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or a commit's own name stands for."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """The server and everything in it; use it as a context."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.down: int | None = None  # answer everything with this status
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def repo(self, name: str, files: dict[str, bytes] | None = None, **options: bool) -> Repo:
        """Make a repository, with a first commit."""
        made = self.repos[name] = Repo(**options)
        made.commit({**FIRST_FILES, **(files or {})})
        return made

    def fetched(self) -> set[str]:
        """The names of all files that were asked for."""
        return {
            path.partition("/resolve/")[2].partition("/")[2]
            for _, path, _ in self.requests
            if "/resolve/" in path
        }

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End serving; every thread has ended afterwards."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(10)
            self._server.server_close()


def point_client_at(served: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the hub's client speak to this server, with an empty cache and no one logged in.

    The client reads these names when it is called, so a process that has imported it already needs
    no more.
    """
    settings = {
        "ENDPOINT": served.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(folder / "hub-cache"),
        "HF_TOKEN_PATH": str(folder / "no-token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    # the client takes a 401 for 'no such repository' on https addresses only
    monkeypatch.setattr(
        _http, "REPO_API_REGEX", re.compile(r"/api/models/(.+)|/(.+)/resolve/(.+)"), raising=False
    )
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **body: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 20

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            authorization = self.headers.get("Authorization")
            try:
                with hub.lock:
                    hub.requests.append((self.command, self.path, authorization))
                    if hub.down is not None:
                        raise _Refusal(hub.down)
                    _route(self, hub, body, authorization)
            except _Refusal as no:
                headers = {"X-Error-Code": no.code, "X-Error-Message": no.message}
                self.send(no.status, json.dumps(no.body).encode(), headers)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, value: Any, status: int = 200) -> None:
            self.send(status, json.dumps(value).encode(), {})

    return Handler


def _route(request: Any, hub: Hub, body: bytes, authorization: str | None) -> None:
    path = unquote(urlsplit(request.path).path)
    for method, pattern, serve in _ROUTES:
        if request.command in method and (match := re.fullmatch(pattern, path)):
            if "/cdn/" not in path and "/upload/" not in path:
                _check_token(authorization)
            if serve in _WRITING:
                _may_write(authorization)
            return serve(request, hub, body, authorization, *match.groups())
    raise _Refusal(404, "", f"no such endpoint: {path}")


def _check_token(authorization: str | None) -> None:
    if authorization is not None and authorization not in (f"Bearer {WRITER}", f"Bearer {READER}"):
        raise _Refusal(401, "", "Invalid credentials in Authorization header")


def _may_write(authorization: str | None) -> None:
    if authorization is None:
        raise _Refusal(401, "", "Invalid username or password.")
    if authorization != f"Bearer {WRITER}":
        raise _Refusal(403, "", "you need write access")


def _find(hub: Hub, name: str, authorization: str | None, files: bool = False) -> Repo:
    """The repository, if this caller may see it: strangers hear 401 for what is missing and what is private."""
    repo = hub.repos.get(name)
    writer = authorization == f"Bearer {WRITER}"
    if repo is None or (repo.private and not writer):
        if authorization is None:
            raise _Refusal(401, "", "Invalid username or password.")
        raise _Refusal(404, "RepoNotFound", "Repository not found")
    if files and repo.gated and not writer:
        raise _Refusal(
            401 if authorization is None else 403,
            "GatedRepo",
            f"Access to model {name} is restricted.",
        )
    return repo


def _commit_of(repo: Repo, revision: str) -> str:
    sha = repo.resolve(revision)
    if sha is None:
        raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return sha


def _info(
    request: Any, hub: Hub, body: bytes, authorization: str | None, name: str, revision: str | None
) -> None:
    repo = _find(hub, name, authorization)
    sha = _commit_of(repo, revision or "main")
    siblings = [{"rfilename": file} for file in repo.commits[sha]]
    request.json(
        {
            "id": name,
            "modelId": name,
            "sha": sha,
            "private": repo.private,
            "gated": repo.gated,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
    )


def _tree(
    request: Any, hub: Hub, body: bytes, authorization: str | None, name: str, revision: str
) -> None:
    repo = _find(hub, name, authorization)
    rows = []
    for file, content in repo.commits[_commit_of(repo, revision)].items():
        row = {
            "type": "file",
            "path": file,
            "size": len(content),
            "oid": hashlib.sha1(content).hexdigest(),
        }
        if _is_large(file):
            row["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 134,
            }
        rows.append(row)
    request.json(rows)


def _list(request: Any, hub: Hub, body: bytes, authorization: str | None) -> None:
    asked = parse_qs(urlsplit(request.path).query)
    rows = []
    for name, repo in hub.repos.items():
        page = repo.commits[repo.branches["main"]].get("README.md", b"").decode()
        front = yaml.safe_load(page.split("---\n")[1]) if page.startswith("---\n") else {}
        tags = {front.get("library_name"), *front.get("tags", ())}
        visible = not repo.private or authorization == f"Bearer {WRITER}"
        if (
            visible
            and set(asked.get("filter", ())) <= tags
            and asked.get("search", [""])[0] in name
        ):
            row = {"id": name, "modelId": name}
            if "lastModified" in asked.get("expand", ()):
                row["lastModified"] = f"2026-01-{len(repo.messages):02}T00:00:00.000Z"
            rows.append(row | ({"downloads": 3} if "downloads" in asked.get("expand", ()) else {}))
    request.json(rows)


def _create(request: Any, hub: Hub, body: bytes, authorization: str | None) -> None:
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if name in hub.repos:
        raise _Refusal(409, "", "You already created this model repo", url=f"{hub.url}/{name}")
    hub.repo(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
    request.json({"url": f"{hub.url}/{name}", "name": name})


def _branch(
    request: Any, hub: Hub, body: bytes, authorization: str | None, name: str, branch: str
) -> None:
    repo = _find(hub, name, authorization)
    if branch in repo.branches:
        raise _Refusal(409, "", "Reference already exists")
    repo.branches[branch] = repo.branches["main"]
    request.json({})


def _validate(request: Any, hub: Hub, body: bytes, authorization: str | None) -> None:
    content = json.loads(body)["content"]
    block = re.match(r"\A---\n(.*?)\n---\n", content, re.DOTALL)
    sound = block is not None and isinstance(yaml.safe_load(block.group(1)), dict)
    errors = [] if sound else [{"message": "no front matter"}]
    request.json({"errors": errors, "warnings": []}, 400 if errors else 200)


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".png"))


def _preupload(
    request: Any, hub: Hub, body: bytes, authorization: str | None, name: str, revision: str
) -> None:
    repo = _find(hub, name, authorization)
    held = repo.commits[_commit_of(repo, revision)]
    files = []
    for file in json.loads(body)["files"]:
        path, large = file["path"], _is_large(file["path"])
        entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if (content := held.get(path)) is not None:
            sha = (
                hashlib.sha256(content)
                if large
                else hashlib.sha1(b"blob %d\0" % len(content) + content)
            )
            entry["oid"] = sha.hexdigest()
        files.append(entry)
    request.json({"files": files})


def _batch(request: Any, hub: Hub, body: bytes, authorization: str | None, name: str) -> None:
    objects = []
    for item in json.loads(body)["objects"]:
        entry = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in hub.blobs:
            entry["actions"] = {
                "upload": {
                    "href": f"http://localhost:{hub.port}/upload/{item['oid']}?X-Sign=s3cr3t"
                }
            }
        objects.append(entry)
    request.json({"transfer": "basic", "objects": objects})


def _upload(request: Any, hub: Hub, body: bytes, authorization: str | None, oid: str) -> None:
    if authorization is not None:
        raise _Refusal(400, "", "an access token has no business on the storage host")
    if hashlib.sha256(body).hexdigest() != oid:
        raise _Refusal(400, "", "the content has another hash")
    hub.blobs[oid] = body
    request.send(200, b"", {})


def _commit(
    request: Any, hub: Hub, body: bytes, authorization: str | None, name: str, branch: str
) -> None:
    repo = _find(hub, name, authorization)
    lines = [json.loads(line) for line in body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit") not in (None, repo.branches.get(branch)):
        raise _Refusal(412, "", "A commit has happened since. Please refresh and try again.")
    files: dict[str, bytes] = {}
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.blobs[value["oid"]]
    sha = repo.commit(files, branch, header["summary"])
    request.json(
        {"commitUrl": f"{hub.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None}
    )


def _resolve(
    request: Any,
    hub: Hub,
    body: bytes,
    authorization: str | None,
    name: str,
    revision: str,
    file: str,
) -> None:
    repo = _find(hub, name, authorization, files=True)
    sha = _commit_of(repo, revision)
    content = repo.commits[sha].get(file)
    if content is None:
        raise _Refusal(404, "EntryNotFound", "Entry not found")
    headers = {"X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
    if not _is_large(file):
        return request.send(
            200, content, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        )
    oid = hashlib.sha256(content).hexdigest()
    hub.blobs[oid] = content
    headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
    # the same machine under another name: to the client another origin, as the real hub's storage
    # is
    return request.send(
        302, b"", headers | {"Location": f"http://localhost:{hub.port}/cdn/{oid}?X-Sign=s3cr3t"}
    )


def _cdn(request: Any, hub: Hub, body: bytes, authorization: str | None, oid: str) -> None:
    if authorization is not None:
        raise _Refusal(400, "", "an access token has no business on the storage host")
    request.send(200, hub.blobs[oid], {})


_WRITING = (_create, _branch, _preupload, _batch, _commit)
_NAME = r"([\w.\-]+/[\w.\-]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), r"/api/models", _list),
    (("GET",), rf"/api/models/{_NAME}(?:/revision/(.+))?", _info),
    (("GET",), rf"/api/models/{_NAME}/tree/([^/]+)", _tree),
    (("POST",), r"/api/repos/create", _create),
    (("POST",), rf"/api/models/{_NAME}/branch/(.+)", _branch),
    (("POST",), r"/api/validate-yaml", _validate),
    (("POST",), rf"/api/models/{_NAME}/preupload/(.+)", _preupload),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", _batch),
    (("PUT",), r"/upload/([0-9a-f]{64})", _upload),
    (("POST",), rf"/api/models/{_NAME}/commit/(.+)", _commit),
    (("HEAD", "GET"), rf"/{_NAME}/resolve/([^/]+)/(.+)", _resolve),
    (("HEAD", "GET"), r"/cdn/([0-9a-f]{64})", _cdn),
]


def main() -> None:
    """Serve, and print what a shell must set to use it."""
    settings = f"HF_TOKEN={WRITER} HF_HUB_DISABLE_XET=1 HF_HUB_OFFLINE=0 HF_HUB_CACHE=$(mktemp -d)"
    with Hub() as served, contextlib.suppress(KeyboardInterrupt):
        print(f"export HF_ENDPOINT={served.url} {settings}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
