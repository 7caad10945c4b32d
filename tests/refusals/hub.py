"""What the Hugging Face Hub makes impossible: heads that are listed, loaded and published.

The hub is one on loopback. The network is never asked.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub
import pytest

from dinoneck import CheckpointError, HeadCheckpoint, list_heads
from dinoneck.checkpoint import push_to_hub
from tests import kit
from tests.faults import signed
from tests.hub_server import READER, WRITER, Hub, point_client_at
from tests.refusals import Row
from tests.refusals.head_files import last_bit_flipped, sound, sound_file

HEAD = "head.safetensors"
DOWN = 501  # the client asks again, and waits, after the other answers of a server that is down


def asked(
    ask: Callable[[Hub, Path], Any], token: str | None = None, offline: bool = False
) -> Callable[[Path], Any]:
    """Ask an empty hub on loopback, with this access token."""

    def call(folder: Path) -> Any:
        with Hub() as hub, pytest.MonkeyPatch.context() as monkeypatch:
            point_client_at(hub, monkeypatch, folder)
            if token is not None:
                monkeypatch.setenv("HF_TOKEN", token)
            if offline:
                monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
            return ask(hub, folder)

    return call


def loaded(token: str | None = None, revision: str | None = None, **options: bool) -> Any:
    """Load a head from a repository that is private, gated or open."""

    def ask(hub: Hub, folder: Path) -> Any:
        hub.repo("me/one", {HEAD: sound()}, **options)
        return HeadCheckpoint.load("me/one", revision=revision)

    return asked(ask, token)


def list_all(hub: Hub, folder: Path) -> Any:
    return list_heads()


def list_while_down(hub: Hub, folder: Path) -> Any:
    hub.down = DOWN
    return list_heads()


def load_missing(hub: Hub, folder: Path) -> Any:
    return HeadCheckpoint.load("me/gone")


def load_while_down(hub: Hub, folder: Path) -> Any:
    hub.down = DOWN
    return HeadCheckpoint.load("me/one")


def load_after_the_end(hub: Hub, folder: Path) -> Any:
    hub.stop()
    return HeadCheckpoint.load("me/one")


def load_into_a_full_cache(hub: Hub, folder: Path) -> Any:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with patch.object(huggingface_hub, "snapshot_download", side_effect=full):
        return HeadCheckpoint.load("me/one")


def load_without_a_head(hub: Hub, folder: Path) -> Any:
    hub.repo("me/one", {"pytorch_model.bin": b"\x80"})
    return HeadCheckpoint.load("me/one")


def load_damaged(hub: Hub, folder: Path) -> Any:
    hub.repo("me/one", {HEAD: last_bit_flipped(sound())})
    return HeadCheckpoint.load("me/one")


def load_newer(hub: Hub, folder: Path) -> Any:
    """Load a sound file that needs another version."""
    meta, chunks = signed.read(sound())
    meta["schema"] = 7
    hub.repo("me/one", {HEAD: signed.write(meta, chunks)})
    return HeadCheckpoint.load("me/one")


def load_file_at_a_revision(folder: Path) -> Any:
    return HeadCheckpoint.load(sound_file(folder), revision="v2")


def push(hub: Hub, folder: Path) -> Any:
    return push_to_hub(sound_file(folder), "me/one")


def push_while_down(hub: Hub, folder: Path) -> Any:
    hub.down = DOWN
    return push(hub, folder)


def push_after_another(hub: Hub, folder: Path) -> Any:
    hub.down = 412
    return push(hub, folder)


def push_private_to_public(hub: Hub, folder: Path) -> Any:
    hub.repo("me/one")
    return push_to_hub(sound_file(folder), "me/one", private=True)


def under_licence(licence: str | None, **options: Any) -> Any:
    """Publish a head on published weights under this licence; None states none."""
    weights = {"kind": "hub", "repo": "timm/a"}
    record = kit.backbone().record() | {"license": licence, "weights": weights}
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=record)
    return checkpoint.push_to_hub("me/one", **options)


def empty_terms(folder: Path) -> Any:
    (folder / "terms.txt").write_text(" \n")
    return under_licence("dinov3-license", terms=folder / "terms.txt")


ROWS: list[Row] = [
    # listing
    (asked(list_while_down), CheckpointError, "501"),
    (asked(list_all, offline=True), CheckpointError, "HF_HUB_OFFLINE"),
    # loading
    (asked(load_missing), CheckpointError, ("me/gone", "hf auth login")),
    (asked(load_missing, READER), CheckpointError, ("me/gone", "your account may not see it")),
    (asked(load_missing, "hf_oldoldoldold"), CheckpointError, ("me/gone", "401")),
    (asked(load_missing, offline=True), CheckpointError, ("me/gone", "HF_HUB_OFFLINE")),
    (asked(load_while_down), CheckpointError, ("me/one", "501")),
    (asked(load_after_the_end), CheckpointError, ("me/one", "check the network")),
    (loaded(gated=True), CheckpointError, ("me/one", "gated")),
    (loaded(revision="v9"), CheckpointError, ("me/one", "'v9'")),
    (asked(load_into_a_full_cache), CheckpointError, ("me/one", "hub-cache", "make room")),
    (asked(load_without_a_head), CheckpointError, ("me/one", HEAD)),
    (asked(load_damaged), CheckpointError, ("me/one", "digest", "delete")),
    (asked(load_newer), CheckpointError, ("me/one", "schema 7")),
    (lambda: HeadCheckpoint.load("me/a--b"), CheckpointError, "'me/a--b'"),
    (load_file_at_a_revision, CheckpointError, ("'v2'", "h.safetensors")),
    # publishing
    (asked(push), CheckpointError, ("me/one", "not logged in")),
    (asked(push, READER), CheckpointError, ("me/one", "403")),
    (asked(push_while_down, WRITER), CheckpointError, ("me/one", "501")),
    (asked(push, WRITER, offline=True), CheckpointError, ("me/one", "HF_HUB_OFFLINE")),
    (asked(push_after_another, WRITER), CheckpointError, ("me/one", "push again")),
    (asked(push_private_to_public, WRITER), CheckpointError, ("me/one", "private=True")),
    (lambda: under_licence("dinov3-license"), CheckpointError, ("dinov3-license", "--terms")),
    (lambda: under_licence("cc-by-nc-4.0"), CheckpointError, ("cc-by-nc-4.0", "--terms")),
    (lambda: under_licence(None), CheckpointError, ("states no licence", "--terms")),
    (empty_terms, CheckpointError, ("terms.txt", "empty", "dinov3-license")),
]
