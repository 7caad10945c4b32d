"""Heads on the hub: listed, loaded and published, against a hub on loopback that speaks its HTTP interface."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from tests import kit
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
)
from dinoneck.checkpoint import model_card, push_to_hub
from dinoneck.checkpoint.hub import download, names_a_repo
from dinoneck.hub_errors import redacted_line

# the client's own way of uploading without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
HEAD = "head.safetensors"
FILES = {".gitattributes", HEAD, "config.json", "README.md"}


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return kit.saved_head(
        tmp_path / "spring.safetensors", PatchMeanHead(64, [Task("total", unit="g")])
    )


def refusal(repo_id: str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        HeadCheckpoint.load(repo_id, revision=revision)
    assert caught.value.step == "hub"
    return str(caught.value)


def no_push(source: Any, repo_id: Any = "me/one", **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        push_to_hub(source, repo_id, **options)
    return str(caught.value)


def test_the_head_of_a_repository_is_loaded(
    hub: Hub, head: Path, tiny: Backbone, tmp_path: Path
) -> None:
    extras = {
        "README.md": b"# x",
        "config.json": b"{}",
        "pytorch_model.bin": b"\x80",
        "fold.safetensors": b"x",
    }
    repo = hub.repo("me/one", {HEAD: head.read_bytes(), **extras})
    checkpoint = HeadCheckpoint.load("me/one")
    assert checkpoint.revision == repo.branches["main"]
    assert hub.fetched() == {HEAD, "config.json"}, "the hub counts downloads by config.json"
    checkpoint.save(tmp_path / "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_bytes() == head.read_bytes()
    image = torch.rand(3, 32, 48)
    other = PatchMeanHead(64, [Task("total", unit="g")])
    assert Predictor(["me/one", other], tiny, weights=[1, 0])(image) == Predictor(head)(image)
    assert isinstance(load_head("me/one"), PatchMeanHead)


def test_a_branch_is_resolved_and_may_move(hub: Hub, head: Path) -> None:
    repo = hub.repo("me/one", {HEAD: head.read_bytes()})
    first = repo.branches["main"]
    before = HeadCheckpoint.load("me/one", revision="main")
    HeadCheckpoint.from_module(PatchMeanHead(64, [Task("a")])).save(head)
    repo.commit({HEAD: head.read_bytes()})
    after = HeadCheckpoint.load("me/one")
    assert (before.revision, after.revision) == (first, repo.branches["main"])
    assert before.meta["digest"] != after.meta["digest"]
    assert HeadCheckpoint.load("me/one", revision=first).meta == before.meta


@pytest.mark.parametrize("way", ["down", "offline", "busy", "gone"])
def test_without_the_hub_the_cache_is_used(
    hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    repo = hub.repo("me/one", {HEAD: head.read_bytes()})
    repo.branches["v1"] = first = repo.branches["main"]
    HeadCheckpoint.load("me/one")
    HeadCheckpoint.load("me/one", revision="v1")
    repo.commit({"notes.txt": b"x"})
    if way == "down":
        hub.stop()
    elif way == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif way == "gone":
        del hub.repos["me/one"]
    else:
        hub.down = 503
    for revision in (None, "main", "v1", first):
        assert HeadCheckpoint.load("me/one", revision=revision).revision == first
    reason = {
        "down": "reached",
        "offline": "HF_HUB_OFFLINE",
        "busy": "503",
        "gone": "does not exist",
    }[way]
    for repo_id, revision in (("me/gone", None), ("me/one", "v2")):
        text = refusal(repo_id, revision)
        assert reason in text
        assert repo_id in text


def test_missing_private_and_gated_are_distinguished(
    hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {HEAD: head.read_bytes()}
    hub.repo("me/one", content)
    hub.repo("me/private", content, private=True)
    hub.repo("me/gated", content, gated=True)
    hub.repo("me/none", {"pytorch_model.bin": b"\x80"})
    assert f"me/none holds no {HEAD}" in refusal("me/none")
    for name in ("me/gone", "me/private"):
        assert (
            f"{name} ({hub.url}/{name}) does not exist, or it is private and you are not"
            in refusal(name)
        )
    assert f"me/gated ({hub.url}/me/gated) is gated" in refusal("me/gated")
    for revision in ("v9", "0123456789abcdef0123456789abcdef01234567"):
        assert revision in refusal("me/one", revision)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert "or it is private and your account may not see it" in refusal("me/private")
    monkeypatch.setenv("HF_TOKEN", "hf_oldoldoldoldoldold")
    assert "(401)" in refusal("me/one")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    for name in ("me/private", "me/gated"):
        assert HeadCheckpoint.load(name).revision == hub.repos[name].branches["main"]


def test_heads_on_the_hub_are_listed(hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("me/another-model", {"README.md": b"---\nlibrary_name: timm\n---\n"})
    hub.repo("me/without-a-page")
    for name, private in (("me/old", False), ("me/private", True), ("you/new", False)):
        hub.repo(
            name, {HEAD: head.read_bytes(), "README.md": model_card(head).encode()}, private=private
        )
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.repos["you/new"].commit({"notes.txt": b"x"})
    heads = list_heads()
    assert [row.id for row in heads] == ["you/new", "me/old", "me/private"]
    assert (heads[0].last_modified, heads[0].downloads) == (datetime(2026, 1, 2, tzinfo=UTC), 3)
    assert [row.id for row in list_heads("me/")] == ["me/old", "me/private"]
    monkeypatch.delenv("HF_TOKEN")
    assert [row.id for row in list_heads()] == ["you/new", "me/old"]


def test_damage_on_the_hub_and_in_the_cache_is_refused_with_its_place(hub: Hub, head: Path) -> None:
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    hub.repo("me/damaged", {HEAD: bytes(content)})
    hub.repo("me/one", {HEAD: head.read_bytes()})
    with pytest.raises(CheckpointError, match="me/damaged at [0-9a-f]{40}") as caught:
        HeadCheckpoint.load("me/damaged")
    assert caught.value.step == "digest"
    HeadCheckpoint.load("me/one")
    stored = download("me/one").resolve()
    stored.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"delete {stored}"):
        HeadCheckpoint.load("me/one")


def test_no_token_in_messages_and_logs(
    writer: Hub, head: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the hub's reply repeats it; the storage host never sees it."""
    writer.repo("me/one", {HEAD: head.read_bytes()})
    texts = []
    with caplog.at_level(logging.DEBUG):
        HeadCheckpoint.load("me/one")
        for status in (401, 403, 404, 418, 500):
            writer.down = status
            with pytest.raises(CheckpointError) as caught:
                HeadCheckpoint.load("me/two")
            assert caught.value.__cause__ is None
            texts.append(str(caught.value))
        writer.down = None
        texts += [no_push(head, token=token) for token in (READER, "hf_wrongwrong")]
        assert "(401)" in texts[-1]
        assert push_to_hub(head, "me/one", token=WRITER).oid in caplog.text
    texts.append(redacted_line(f"\n403 for {WRITER} at https://x/y?X-Sign=s3cr3t\nmore"))
    assert texts[-1] == "403 for <secret> at https://x/y"
    texts.append(redacted_line("bad header Authorization: Bearer abc", token="abc"))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("dinoneck")]
    for text in texts + ours:
        assert not any(
            secret in text for secret in (WRITER, READER, "hf_wrongwrong", "s3cr3t", "Bearer abc")
        )
    assert all(token is None for _, path, token in writer.requests if "/cdn/" in path)


def test_local_names_are_not_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "heads").mkdir(parents=True)
    assert names_a_repo("me/one")
    for local in (
        "runs/heads",
        "runs/gone",
        "me/one.safetensors",
        "/me/one",
        "one",
        "a/b/c",
        "../one",
        "",
        None,
        3,
    ):
        assert not names_a_repo(local), local
    with pytest.raises(CheckpointError, match="runs/gone"):
        HeadCheckpoint.load("runs/gone")


def test_pushed_then_loaded_gives_the_same_in_one_commit(
    writer: Hub, head: Path, tmp_path: Path
) -> None:
    checkpoint = HeadCheckpoint.load(head)
    Image.new("RGB", (4, 4), "green").save(tmp_path / "gate_map.png")
    pushed = checkpoint.push_to_hub(
        "me/one", commit_message="spring", figures=[tmp_path / "gate_map.png"]
    )
    repo = writer.repos["me/one"]
    assert repo.messages == ["", "spring"], "the first commit of the repository, and ours"
    files = repo.commits[pushed.oid]
    assert set(files) == FILES | {"figures/gate_map.png"}
    assert pushed.commit_url == f"{writer.url}/me/one/commit/{pushed.oid}"
    loaded = HeadCheckpoint.load("me/one")
    assert (loaded.revision, loaded.meta) == (pushed.oid, checkpoint.meta)
    assert json.loads(files["config.json"])["digest"] == checkpoint.meta["digest"]
    assert files["README.md"].decode() == model_card(
        checkpoint.meta, "me/one", figures=["figures/gate_map.png"]
    )
    assert files[HEAD] == head.read_bytes(), "byte for byte"
    first, again = (push_to_hub(head, "me/two") for _ in range(2))
    assert first.oid == again.oid, "nothing has changed, so both pushes are one commit"


def test_a_push_to_a_branch_leaves_main_alone(writer: Hub, head: Path) -> None:
    repo = writer.repo("me/one")
    main = repo.branches["main"]
    assert repo.branches == {"v2": push_to_hub(head, "me/one", revision="v2").oid, "main": main}
    assert HeadCheckpoint.load("me/one", revision="v2").revision != main


def test_a_head_on_dinov3_is_pushed_with_the_text_of_its_licence(
    writer: Hub, tiny: Backbone, tmp_path: Path
) -> None:
    record = tiny.record() | {"license": "dinov3-license"}
    head = HeadCheckpoint.from_module(PatchMeanHead(64, [Task("total", unit="g")]), backbone=record)
    terms = tmp_path / "dinov3.txt"
    terms.write_text(" \n")
    with pytest.raises(CheckpointError, match="dinov3-license.*--terms"):
        head.push_to_hub("me/three")
    with pytest.raises(CheckpointError, match="dinov3.txt are empty"):
        head.push_to_hub("me/three", terms=terms)
    assert "me/three" not in writer.repos
    terms.write_text("the agreement")
    pushed = head.push_to_hub("me/three", terms=terms)
    assert writer.repos["me/three"].commits[pushed.oid]["LICENSE.txt"] == b"the agreement"


def on_weights(licence: str | None, tiny: Backbone, **weights: Any) -> HeadCheckpoint:
    """A head on a backbone whose record states this licence and origin of its weights."""
    record = tiny.record() | {"license": licence, "weights": weights}
    return HeadCheckpoint.from_module(PatchMeanHead(64, [Task("total")]), backbone=record)


@pytest.mark.parametrize(
    "licence",
    [
        "apache-2.0",
        "Apache License 2.0",
        "MIT",
        "BSD-3-Clause",
        "CC0-1.0",
        "cc-by-4.0",
        "CC-BY-3.0",
    ],
)
def test_a_head_on_openly_licensed_weights_needs_no_terms(
    licence: str, writer: Hub, tiny: Backbone
) -> None:
    on_weights(licence, tiny, kind="hub", repo="timm/a").push_to_hub("me/open")
    assert "me/open" in writer.repos


@pytest.mark.parametrize(
    "licence",
    [
        "fair-noncommercial-research-license",
        "DINOv3-License",
        "cc-by-nc-4.0",
        "cc-by-sa-4.0",
        "other",
        "not MIT",
        None,
    ],
)
def test_a_head_on_other_weights_needs_terms(
    licence: str | None, writer: Hub, tiny: Backbone, tmp_path: Path
) -> None:
    head = on_weights(licence, tiny, kind="file")
    with pytest.raises(CheckpointError, match="--terms"):
        head.push_to_hub("me/four")
    assert not writer.repos
    (tmp_path / "terms.txt").write_text("do as you are told")
    pushed = head.push_to_hub("me/four", terms=tmp_path / "terms.txt")
    assert b"told" in writer.repos["me/four"].commits[pushed.oid]["LICENSE.txt"]


def test_random_weights_need_no_terms_after_training_either(writer: Hub, tiny: Backbone) -> None:
    random = {"kind": "seeded", "seed": 0, "scheme": "philox-uniform-1"}
    record = tiny.record() | {"license": None, "weights": {"kind": "modified", "base": random}}
    head = PatchMeanHead(64, [Task("total")])
    checkpoint = HeadCheckpoint.from_module(
        head, backbone=record, backbone_weights=tiny.state_dict()
    )
    checkpoint.push_to_hub("me/five")
    assert "me/five" in writer.repos


def test_a_push_that_fails_sends_nothing(
    writer: Hub, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.down = 501
    assert "501" in no_push(head)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in no_push(head)
    assert not writer.repos


def test_private_is_private(writer: Hub, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(head, "me/secret", private=True)
    push_to_hub(head, "me/open")
    assert (writer.repos["me/secret"].private, writer.repos["me/open"].private) == (True, False)
    push_to_hub(head, "me/secret")
    assert writer.repos["me/secret"].private
    writer.repo("me/public")
    assert "me/public" in no_push(head, "me/public", private=True)
    assert len(writer.repos["me/public"].commits) == 1
    monkeypatch.delenv("HF_TOKEN")
    assert "me/one" in no_push(head), "not logged in"
