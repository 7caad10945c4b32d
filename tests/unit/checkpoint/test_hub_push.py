"""Publishing heads, against a hub on loopback."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from tests.hub_server import READER, WRITER, Hub

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, PatchMeanHead, Task
from dinoneck.checkpoint import model_card, push_to_hub
from dinoneck.checkpoint.card import config_json

# the client's own way of uploading without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
FILES = {".gitattributes", "head.safetensors", "config.json", "README.md"}


@pytest.fixture
def checkpoint(tiny: Backbone) -> HeadCheckpoint:
    return HeadCheckpoint.from_module(PatchMeanHead(64, [Task("total", unit="g")]), backbone=tiny)


@pytest.fixture
def writer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub


def refusal(source: Any, repo_id: str = "me/one", **options: Any) -> str:
    push = source.push_to_hub if isinstance(source, HeadCheckpoint) else partial(push_to_hub, source)
    with pytest.raises(CheckpointError) as caught:
        push(repo_id, **options)
    return str(caught.value)


def test_pushed_then_loaded_gives_the_same_in_one_commit(
    writer: Hub, checkpoint: HeadCheckpoint, tmp_path: Path
) -> None:
    Image.new("RGB", (4, 4), "green").save(tmp_path / "gate_map.png")
    pushed = checkpoint.push_to_hub("me/one", commit_message="spring", figures=[tmp_path / "gate_map.png"])
    repo = writer.repos["me/one"]
    assert repo.messages == ["", "spring"], "the first commit of the repository, and ours"
    files = repo.commits[pushed.commit]
    assert set(files) == FILES | {"figures/gate_map.png"}
    assert pushed.url == f"{writer.url}/me/one/commit/{pushed.commit}"
    loaded = HeadCheckpoint.load("me/one")
    assert loaded.revision == pushed.commit
    assert loaded.meta == checkpoint.meta
    assert loaded.state_dict.keys() == checkpoint.state_dict.keys()
    assert all(torch.equal(loaded.state_dict[key], value) for key, value in checkpoint.state_dict.items())
    assert files["config.json"].decode() == config_json(checkpoint.meta)
    assert files["README.md"].decode() == model_card(checkpoint.meta, "me/one", figures=["figures/gate_map.png"])
    assert "![gate map](figures/gate_map.png)" in files["README.md"].decode()
    assert json.loads(files["config.json"])["digest"] == checkpoint.meta["digest"]


def test_a_file_is_pushed_byte_for_byte(writer: Hub, checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "spring.safetensors")
    pushed = push_to_hub(tmp_path / "spring.safetensors", "me/one")
    sent = writer.repos["me/one"].commits[pushed.commit]["head.safetensors"]
    assert sent == (tmp_path / "spring.safetensors").read_bytes()
    again = push_to_hub(tmp_path / "spring.safetensors", "me/one")
    assert again.commit == pushed.commit, "nothing has changed, so there is no second commit"


def test_what_is_damaged_is_not_pushed(writer: Hub, checkpoint: HeadCheckpoint, tmp_path: Path) -> None:
    file = tmp_path / "spring.safetensors"
    checkpoint.save(file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    text = refusal(file)
    assert text.startswith(f"{file} was not pushed. {file}: the content does not match its digest")
    assert "dinoneck-push" not in text
    checkpoint.state_dict["mlps.0.out.bias"] = torch.tensor([float("nan")])
    assert "not" in refusal(checkpoint)
    assert "does not exist" in refusal(tmp_path / "gone.safetensors")
    assert "the path of a head file is 3" in refusal(3)
    assert writer.requests == []


def test_names_and_figures_are_checked_before_anything_is_sent(
    writer: Hub, checkpoint: HeadCheckpoint, tmp_path: Path
) -> None:
    for name in ("one", "a/b/c", "me/..", "me/a--b", "../x", "me/x\ny", "", None):
        with pytest.raises(CheckpointError, match="is not the name of a Hub repository"):
            checkpoint.push_to_hub(name)  # type: ignore[arg-type]
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"<script>")
    (tmp_path / "c.svg").write_text("<svg/>")
    (tmp_path / "x](y).png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert "b.png cannot be used: expected PNG" in refusal(checkpoint, figures=[tmp_path / "b.png"])
    assert "c.svg cannot be used: expected PNG" in refusal(checkpoint, figures=[tmp_path / "c.svg"])
    assert "needs a plain name" in refusal(checkpoint, figures=[tmp_path / "x](y).png"])
    assert "d.png cannot be used: [Errno 2]" in refusal(checkpoint, figures=[tmp_path / "d.png"])
    assert "two figures" in refusal(checkpoint, figures=[tmp_path / "a.png", tmp_path / "in" / "a.png"])
    assert "goes to a branch" in refusal(checkpoint, revision="0" * 40)
    assert writer.requests == []


def test_private_is_private(writer: Hub, checkpoint: HeadCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.push_to_hub("me/secret", private=True)
    checkpoint.push_to_hub("me/open")
    assert (writer.repos["me/secret"].private, writer.repos["me/open"].private) == (True, False)
    checkpoint.push_to_hub("me/secret")
    assert writer.repos["me/secret"].private
    writer.repo("me/public")
    assert "me/public exists and is public, so nothing was pushed" in refusal(checkpoint, "me/public", private=True)
    assert len(writer.repos["me/public"].commits) == 1
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="me/secret .* or it is private and you are not logged in"):
        HeadCheckpoint.load("me/secret", revision="main")


def test_branches_are_made_or_refused(writer: Hub, checkpoint: HeadCheckpoint) -> None:
    assert "hub repository me/one" in refusal(checkpoint, create=False)
    writer.repo("me/one")
    assert "has no branch, tag or commit 'v2'" in refusal(checkpoint, create=False, revision="v2")
    pushed = checkpoint.push_to_hub("me/one", revision="v2")
    assert HeadCheckpoint.load("me/one", revision="v2").revision == pushed.commit
    with pytest.raises(CheckpointError, match="holds no head file; expected one"):
        HeadCheckpoint.load("me/one")
    checkpoint.push_to_hub("me/one", create=False)
    assert HeadCheckpoint.load("me/one").meta == checkpoint.meta


def test_a_second_head_in_the_repository_is_refused(writer: Hub, checkpoint: HeadCheckpoint) -> None:
    writer.repo("me/one", {"fold_1.safetensors": b"x"})
    assert "me/one holds other head files: fold_1.safetensors" in refusal(checkpoint)
    assert len(writer.repos["me/one"].commits) == 1


def test_pushes_at_once_do_not_mix(writer: Hub, checkpoint: HeadCheckpoint) -> None:
    repo = writer.repo("me/one")
    writer.before_commit = lambda: repo.commit({"README.md": b"another user"})
    assert "another commit to me/one (" in refusal(checkpoint)
    assert set(repo.commits[repo.branches["main"]]) == {".gitattributes", "README.md"}


def test_users_without_write_access_get_the_reason(
    hub: Hub, checkpoint: HeadCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repo("me/one")
    with caplog.at_level(logging.DEBUG):
        texts = [refusal(checkpoint), refusal(checkpoint, token=READER), refusal(checkpoint, token="hf_wrongwrong")]
        pushed = checkpoint.push_to_hub("me/one", token=WRITER)
    assert "you are not logged in" in texts[0]
    assert "may not do this with me/one (" in texts[1]
    assert "does not accept your access token (401)" in texts[2]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("dinoneck")]
    assert any(pushed.commit in line for line in ours)
    for text in texts + ours:
        assert not any(secret in text for secret in (READER, WRITER, "hf_wrongwrong"))


def test_a_hub_that_breaks_down_is_reported(writer: Hub, checkpoint: HeadCheckpoint) -> None:
    writer.repo("me/one")
    writer.down = 501
    assert "the push to me/one broke off: the hub is busy or down (501)" in refusal(checkpoint)
    writer.down = None
    writer.stop()
    assert "the push to me/one broke off: the hub could not be reached (Connect" in refusal(checkpoint)


def test_offline_pushes_nothing(writer: Hub, checkpoint: HeadCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "broke off: HF_HUB_OFFLINE is set, so the hub was not asked; unset it" in refusal(checkpoint)
    assert writer.requests == []
