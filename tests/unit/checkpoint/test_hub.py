"""Heads on the hub, against a hub on loopback that speaks its HTTP interface."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
import pytest
import torch
from tests.hub_server import READER, WRITER, Hub

from dinoneck import (
    Backbone,
    CheckpointError,
    HeadCheckpoint,
    PatchMeanHead,
    Predictor,
    Task,
    list_heads,
    load_head,
    save_head,
)
from dinoneck.checkpoint import hub as hub_rooms
from dinoneck.checkpoint import model_card
from dinoneck.checkpoint.hub import download, names_a_repo
from dinoneck.hub_errors import redacted_line, unreachable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def head(tiny: Backbone, tmp_path: Path) -> Path:
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("a")]), backbone=tiny)
    return tmp_path / "h.safetensors"


def other_head() -> bytes:
    """The bytes of a second head."""
    torch.manual_seed(7)
    with TemporaryDirectory() as folder:
        HeadCheckpoint.from_module(PatchMeanHead(64, [Task("a")])).save(Path(folder, "x.safetensors"))
        return Path(folder, "x.safetensors").read_bytes()


def refusal(repo_id: str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        HeadCheckpoint.load(repo_id, revision=revision)
    assert caught.value.step == "hub"
    return str(caught.value)


def test_the_one_head_of_a_repository_is_loaded(hub: Hub, head: Path, tiny: Backbone) -> None:
    extras = {"README.md": b"# x", "config.json": b"{}", "pytorch_model.bin": b"\x80", "code.py": b"raise SystemExit"}
    repo = hub.repo("me/one", {"fold.safetensors": head.read_bytes(), **extras})
    checkpoint = HeadCheckpoint.load("me/one")
    assert checkpoint.revision == repo.branches["main"]
    assert hub.fetched() == {"fold.safetensors", "config.json"}, "the hub counts downloads by config.json"
    assert HeadCheckpoint.load(head).revision is None
    image = torch.rand(3, 32, 48)
    expected = Predictor(head)(image)
    assert Predictor("me/one")(image) == expected
    other = PatchMeanHead(64, [Task("a")])
    assert Predictor(["me/one", other], tiny, weights=[1, 0])(image) == expected
    assert isinstance(load_head("me/one"), PatchMeanHead)


def test_a_branch_is_resolved_and_may_move(hub: Hub, head: Path, caplog: pytest.LogCaptureFixture) -> None:
    repo = hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    first = repo.branches["main"]
    with caplog.at_level(logging.INFO, "dinoneck"):
        before = HeadCheckpoint.load("me/one", revision="main")
    assert f"me/one: 'main' is commit {first}" in caplog.text
    repo.commit({"h.safetensors": other_head()})
    after = HeadCheckpoint.load("me/one")
    assert (before.revision, after.revision) == (first, repo.branches["main"])
    assert before.meta["digest"] != after.meta["digest"]
    asked = len(hub.requests)
    pinned = HeadCheckpoint.load("me/one", revision=first)
    assert pinned.meta["digest"] == before.meta["digest"]
    assert len(hub.requests) == asked, "a commit that is in the cache needs no hub"
    assert HeadCheckpoint.load("me/one").revision == after.revision
    assert len(hub.requests) == asked + 1, "a branch that has not moved needs one question"


@pytest.mark.parametrize("way", ["down", "offline", "busy"])
def test_without_the_hub_the_cache_answers(
    hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    repo = hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    repo.branches["v1"] = first = repo.branches["main"]
    HeadCheckpoint.load("me/one")
    HeadCheckpoint.load("me/one", revision="v1")
    repo.commit({"h.safetensors": other_head()})
    if way == "down":
        hub.stop()
    elif way == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        hub.down = 503
    reason = {"down": "could not be reached", "offline": "HF_HUB_OFFLINE is set", "busy": "busy or down (503)"}[way]
    for revision in (None, "main", "v1", first):
        assert HeadCheckpoint.load("me/one", revision=revision).revision == first
    assert reason in caplog.text
    for repo_id, revision in (("me/gone", None), ("me/one", "v2")):
        text = refusal(repo_id, revision)
        assert reason in text
        assert f"no file or folder {repo_id}" in text


def test_missing_private_and_gated_are_distinguished(hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"h.safetensors": head.read_bytes()}
    hub.repo("me/one", content)
    hub.repo("me/private", content, private=True)
    hub.repo("me/gated", content, gated=True)
    for name in ("me/gone", "me/private"):
        where = f"the hub repository {name} ({hub.url}/{name}) does not exist"
        assert f"{where}, or it is private and you are not logged in; log in" in refusal(name)
    assert f"me/gated ({hub.url}/me/gated) is gated: accept its owner's terms on that page" in refusal("me/gated")
    assert f"me/one ({hub.url}/me/one) has no branch, tag or commit 'v9'" in refusal("me/one", "v9")
    assert f"has no branch, tag or commit '{COMMIT}'" in refusal("me/one", COMMIT)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "or it is private and your account may not see it" in refusal("me/gone")
    assert "or it is private and your account may not see it" in refusal("me/private")
    assert "'hf auth login'" in refusal("me/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_oldoldoldoldoldold")
    assert "the hub does not accept your access token (401)" in refusal("me/one")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    for name in ("me/private", "me/gated"):
        assert HeadCheckpoint.load(name).revision == hub.repos[name].branches["main"]


def test_heads_on_the_hub_are_listed(hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("me/another-model", {"README.md": b"---\nlibrary_name: timm\n---\n"})
    hub.repo("me/without-a-page")
    files = {"head.safetensors": head.read_bytes(), "README.md": model_card(head).encode()}
    for name, private in (("me/old", False), ("me/private", True), ("you/new", False)):
        hub.repo(name, files, private=private)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.repos["you/new"].commit({"notes.txt": b"x"})
    heads = list_heads()
    assert [row.repo_id for row in heads] == ["you/new", "me/old", "me/private"]
    assert heads[0].last_modified == datetime(2026, 1, 2, tzinfo=UTC)
    assert heads[0].downloads == 3
    assert isinstance(load_head(heads[0].repo_id), PatchMeanHead)
    assert [row.repo_id for row in list_heads("me/")] == ["me/old", "me/private"]
    monkeypatch.delenv("HF_TOKEN")
    assert [row.repo_id for row in list_heads()] == ["you/new", "me/old"]


def test_a_no_of_the_hub_is_not_hidden_by_the_cache(hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.repo("me/one", {"h.safetensors": head.read_bytes()}).branches["main"]
    HeadCheckpoint.load("me/one")
    del hub.repos["me/one"]
    text = refusal("me/one")
    assert "hub repository me/one" in text
    assert f"Commit {first} is in the cache: HF_HUB_OFFLINE=1 uses it" in text
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert HeadCheckpoint.load("me/one").revision == first


def test_none_and_several_are_refused_by_name(hub: Hub, head: Path) -> None:
    hub.repo("me/many", {"b.safetensors": head.read_bytes(), "a/a.safetensors": head.read_bytes()})
    hub.repo("me/none", {"pytorch_model.bin": b"\x80"})
    assert "me/many holds a/a.safetensors, b.safetensors; expected one *.safetensors" in refusal("me/many")
    assert "me/none holds no head file; expected one *.safetensors" in refusal("me/none")
    assert hub.fetched() == set()


def test_what_is_too_large_is_not_fetched(hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("me/huge", {"h.safetensors": head.read_bytes()})
    monkeypatch.setattr(hub_rooms, "MAX_FILE_BYTES", 1000)
    with pytest.raises(CheckpointError, match="at most 1000. It was not fetched"):
        HeadCheckpoint.load("me/huge")
    assert hub.fetched() == set()


def test_a_short_download_is_refused_and_leaves_nothing_that_counts(hub: Hub, head: Path) -> None:
    hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    hub.short = True
    assert "the download of h.safetensors from me/one broke off" in refusal("me/one")
    hub.short = False
    assert HeadCheckpoint.load("me/one").meta["digest"] == HeadCheckpoint.load(head).meta["digest"]


def test_a_cache_that_cannot_be_written(hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    text = refusal("me/one")
    assert "the download of h.safetensors from me/one broke off (NotADirectoryError: " in text
    assert f"check that the local cache {tmp_path / 'file'} is writable and has room; HF_HUB_CACHE sets another" in text


def test_damage_on_the_hub_and_in_the_cache_is_refused_with_its_place(hub: Hub, head: Path) -> None:
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    hub.repo("me/damaged", {"h.safetensors": bytes(content)})
    hub.repo("me/pointer", {"h.safetensors": pointer})
    hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    with pytest.raises(CheckpointError, match="me/damaged at [0-9a-f]{40}: .*does not match its digest") as caught:
        HeadCheckpoint.load("me/damaged")
    assert caught.value.step == "digest"
    with pytest.raises(CheckpointError, match="looks like a Git LFS pointer") as caught:
        HeadCheckpoint.load("me/pointer")
    assert caught.value.step == "header"
    HeadCheckpoint.load("me/one")
    stored = download("me/one").resolve()
    stored.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"delete {stored} and load again"):
        HeadCheckpoint.load("me/one")
    stored.unlink()
    assert HeadCheckpoint.load("me/one").meta["digest"] == HeadCheckpoint.load(head).meta["digest"]


def test_no_token_in_messages_and_logs(
    hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the hub's answer repeats it; the storage host never sees it."""
    hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    hub.repo(f"me/{WRITER}", {"h.safetensors": b"short"})
    texts = []
    with caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("HF_TOKEN", WRITER)
        HeadCheckpoint.load("me/one")
        for status in (401, 403, 404, 418, 500):
            hub.down = status
            with pytest.raises(CheckpointError) as caught:
                HeadCheckpoint.load("me/two")
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__
            texts.append(str(caught.value))
    texts.append(redacted_line(f"\n403 for {WRITER} at https://x/y?X-Sign=s3cr3t\nmore"))
    texts.append(redacted_line("bad header Authorization: Bearer abc", token="abc"))
    monkeypatch.setenv("HF_TOKEN", "of another form")
    assert redacted_line("no of another form here", token="nor this") == "no <secret> here"
    assert redacted_line("no of another form, nor this", token="nor this") == "no <secret>, <secret>"
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("dinoneck")]
    assert ours
    for text in texts + ours:
        assert WRITER not in text
        assert "s3cr3t" not in text
        assert "Bearer abc" not in text
    assert redacted_line("size is 2 ((…)f9?X-Sign=s3cr3t).") == "size is 2 ((…)f9).", "a shortened address"
    refused = RuntimeError(f"HTTP status client error (403 Forbidden) for url https://x/y?X-Sign={WRITER}")
    assert unreachable(refused) == "the hub's storage refuses this (403 Forbidden)", "hf_xet"
    assert texts[-2] == "403 for <secret> at https://x/y"
    assert all(token is None for _, path, token in hub.requests if "/cdn/" in path)


def test_a_copy_of_a_fetched_head_has_its_bytes(hub: Hub, head: Path, tmp_path: Path) -> None:
    hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    HeadCheckpoint.load("me/one").save(tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_bytes() == head.read_bytes()


def test_local_names_are_no_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "heads").mkdir(parents=True)
    assert names_a_repo("me/one")
    for local in ("runs/heads", "runs/gone", "me/one.safetensors", "/me/one", "one", "a/b/c", "../one", "", None, 3):
        assert not names_a_repo(local), local
    with pytest.raises(CheckpointError, match="the head file runs/gone"):
        HeadCheckpoint.load("runs/gone")
