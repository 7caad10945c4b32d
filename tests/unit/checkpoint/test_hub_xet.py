"""A push where ``hf_xet`` is installed, as it is by default: large files then go to the hub's Xet storage, not by LFS.

The storage here takes the chunks as they come and does not put them together. That a commit holds the right bytes is
checked by the digest whenever the head is loaded.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tests import hub_server
from tests.hub_server import WRITER, Hub
from tests.process_group import told_by

from dinoneck import HeadCheckpoint, PatchMeanHead, Task, save_head

KNOWN = "1.8"
XET_TOKEN = "the-storages-own-token"
pytestmark = pytest.mark.slow


def _version() -> str:
    try:
        return metadata.version("hf_xet")
    except metadata.PackageNotFoundError:
        return "none"


needs_xet = pytest.mark.skipif(
    not _version().startswith(KNOWN), reason=f"hf_xet {_version()}: the storage here speaks with {KNOWN}"
)


class Storage:
    """The Xet storage of a hub: what was sent there, and the refusals it was told to give."""

    def __init__(self, hub: Hub, content: bytes) -> None:
        self.hub, self.content = hub, content
        self.asked: list[tuple[str, str | None]] = []
        self.shards: list[bytes] = []
        self.refuse: int | None = None

    def token(self, request: Any, hub: Hub, body: bytes, authorization: str | None, name: str, branch: str) -> None:
        hub_server._may_write(authorization)
        told = {"accessToken": XET_TOKEN, "exp": int(time.time()) + 3600, "casUrl": f"{hub.url}/upload/xet"}
        request.json(told)

    def serve(self, request: Any, hub: Hub, body: bytes, authorization: str | None, path: str) -> None:
        self.asked.append((path.split("/")[2], authorization))
        if self.refuse is not None:
            raise hub_server._Refusal(self.refuse)
        if "/chunks/" in path or "/xorb-grants/" in path:  # no chunk is known yet; chunks come here themselves
            raise hub_server._Refusal(404)
        if path.endswith("/shards"):
            self.shards.append(body)
            hub.blobs[hashlib.sha256(self.content).hexdigest()] = self.content
            return request.json({"type": "result", "result": 1})
        return request.json({"was_inserted": True})


@pytest.fixture
def storage(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("a")]))
    made = Storage(hub, (tmp_path / "h.safetensors").read_bytes())
    routes: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
        (("GET",), rf"/api/models/{hub_server._NAME}/xet-write-token/(.+)", made.token),
        (("GET", "HEAD", "POST", "PUT"), r"/upload/xet(/v\d/.*)", made.serve),
    ]
    monkeypatch.setattr(hub_server, "_ROUTES", [*routes, *hub_server._ROUTES])
    return made


def pushed(storage: Storage, tmp_path: Path, **settings: str) -> str:
    """Push from a process of its own: the storage's client keeps threads and caches."""
    env = {**os.environ, "HF_ENDPOINT": storage.hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITER,
           "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **settings}  # fmt: skip
    env.pop("HF_HUB_DISABLE_XET", None)
    env |= settings
    code = (
        "import sys; from dinoneck.cli.main import main; "
        f"sys.stderr = sys.stdout; print('code', main(['push', {str(tmp_path / 'h.safetensors')!r}, 'me/one']))"
    )
    return told_by([sys.executable, "-c", code], 120, env)


@needs_xet
def test_a_head_goes_to_the_storage_and_the_commit_names_it(storage: Storage, tmp_path: Path) -> None:
    told = pushed(storage, tmp_path)
    assert "code 0" in told, told
    repo = storage.hub.repos["me/one"]
    assert repo.commits[repo.branches["main"]]["head.safetensors"] == storage.content
    assert f"commit   {repo.branches['main']}" in told
    assert {what for what, _ in storage.asked} >= {"xorbs", "shards"}
    assert {authorization for _, authorization in storage.asked} == {f"Bearer {XET_TOKEN}"}, "never the hub's token"
    assert not [path for _, path, _ in storage.hub.requests if "lfs/objects" in path]
    assert WRITER not in told
    assert XET_TOKEN not in told
    assert HeadCheckpoint.load("me/one").revision == repo.branches["main"]


@needs_xet
def test_a_storage_that_refuses_is_told(storage: Storage, tmp_path: Path) -> None:
    storage.refuse = 403
    told = pushed(storage, tmp_path)
    assert "code 1" in told
    assert "the push to me/one broke off: the hub's storage refuses this (403 Forbidden)" in told
    assert len(storage.hub.repos["me/one"].commits) == 1, "nothing of it is in the repository"
    assert XET_TOKEN not in told


def test_without_xet_it_goes_by_lfs(storage: Storage, tmp_path: Path) -> None:
    told = pushed(storage, tmp_path, HF_HUB_DISABLE_XET="1")
    assert "code 0" in told, told
    assert storage.asked == []
    assert [path for _, path, _ in storage.hub.requests if "lfs/objects" in path]
