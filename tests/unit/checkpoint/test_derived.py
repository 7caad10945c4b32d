"""``dinoneck verify`` on a folder refuses a config.json or README.md that names another head by its digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.hub_server import WRITER, Hub

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Task
from dinoneck.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def made(tiny: Backbone, seed: int = 0) -> HeadCheckpoint:
    torch.manual_seed(seed)
    training = {"metrics": {"r2": 0.5}, "data": {"name": "me/pasture"}}
    head = PatchMeanHead(64, [Task("a", unit="g")])
    return HeadCheckpoint.from_module(head, backbone=tiny, license="MIT", training=training)


@pytest.fixture
def folder(hub: Hub, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub repository as ``hf download --local-dir`` leaves it."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    made(tiny).push_to_hub("me/one")
    repo = hub.repos["me/one"]
    (tmp_path / "one").mkdir()
    for name, content in repo.commits[repo.branches["main"]].items():
        (tmp_path / "one" / name).write_bytes(content)
    return tmp_path / "one"


def verified(folder: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    assert main(["verify", str(folder)]) == code
    printed = capsys.readouterr()
    return printed.err if code else printed.out


def test_what_was_pushed_belongs_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(folder, capsys).startswith(f"ok       {folder / 'head.safetensors'}")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\n## Thanks\n")
    verified(folder, capsys)
    (folder / "README.md").write_bytes(b"my own page, \xff\xfe")
    (folder / "config.json").unlink()
    verified(folder, capsys)


def test_the_page_and_configuration_of_another_head_are_refused(
    folder: Path, tiny: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    old = HeadCheckpoint.load(folder / "head.safetensors").meta["digest"]
    made(tiny, 7).save(folder / "head.safetensors")
    errors = verified(folder, capsys, 1)
    for name in ("config.json", "README.md"):
        assert f"differs  {folder / name}  kind derived file: it names another head, {old}; the head file" in errors
    assert main(["verify", str(folder), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["checked"]
    assert [(row["state"], old in row.get("message", "")) for row in rows] == [
        ("ok", False),
        ("differs", True),
        ("differs", True),
    ]


def test_files_of_others_are_not_looked_at(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of heads under other names, with a config.json of another library."""
    made(tiny).save(tmp_path / "fold0.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert "config.json" not in verified(tmp_path, capsys)
