"""Heads on the hub, with a hub made of folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, PatchMeanHead, Predictor, Task, load_head, save_head
from dinoneck.checkpoint.hub import download_head, names_a_repo

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Publish = Callable[[str, list[str]], None]


@pytest.fixture
def head(tiny: Backbone, tmp_path: Path) -> Path:
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("a")]), backbone=tiny)
    return tmp_path / "h.safetensors"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, head: Path) -> list[Any]:
    """A hub with me/one (one head), me/many (two) and me/none; what was asked of it."""
    files = {
        "me/one": ["README.md", "fold.safetensors"],
        "me/many": ["b.safetensors", "a/a.safetensors"],
        "me/none": [],
    }
    questions: list[Any] = []

    def model_info(self: Any, repo_id: str, *, revision: str | None, timeout: float) -> Any:
        questions.append((repo_id, revision))
        if repo_id not in files:
            raise ConnectionError("no such repository")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files[repo_id]], sha=COMMIT)

    def download(repo_id: str, name: str, *, revision: str) -> str:
        questions.append((repo_id, name, revision))
        place = tmp_path / "models--me--one" / "snapshots" / revision / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(head.read_bytes())
        return str(place)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return questions


def test_the_one_head_of_a_repository_is_loaded(asked: list[Any], head: Path, tiny: Backbone) -> None:
    checkpoint = HeadCheckpoint.load("me/one", revision="v1")
    assert asked == [("me/one", "v1"), ("me/one", "fold.safetensors", COMMIT)]
    assert checkpoint.revision == COMMIT
    assert HeadCheckpoint.load(head).revision is None
    photo = torch.rand(3, 32, 48)
    expected = Predictor(head)(photo)
    assert Predictor("me/one")(photo) == expected
    assert Predictor(["me/one", head], tiny, weights=[1, 0])(photo) == expected
    assert isinstance(load_head("me/one"), PatchMeanHead)


def test_none_and_several_are_refused_by_name(asked: list[Any]) -> None:
    with pytest.raises(CheckpointError, match=r"me/many holds 2 head files: a/a.safetensors, b.safetensors; one was"):
        download_head("me/many")
    with pytest.raises(CheckpointError, match="me/none holds no head file"):
        download_head("me/none")


def test_what_the_hub_does_not_have_is_said(asked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="no file or folder me/gone, .*ConnectionError: no such repository"):
        HeadCheckpoint.load("me/gone")


def test_without_a_network_the_cache_answers(
    asked: list[Any], head: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "x.safetensors").write_bytes(head.read_bytes())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder))
    assert download_head("me/offline") == folder / "x.safetensors"
    assert HeadCheckpoint.load("me/offline").revision == COMMIT


def test_local_names_are_no_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "heads").mkdir(parents=True)
    assert names_a_repo("me/one")
    for local in ("runs/heads", "runs/gone", "me/one.safetensors", "/me/one", "one", "a/b/c", "../one", "", None, 3):
        assert not names_a_repo(local), local
    with pytest.raises(CheckpointError, match="there is no head file runs/gone"):
        HeadCheckpoint.load("runs/gone")
