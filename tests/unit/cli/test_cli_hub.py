"""``dinoneck push``, ``pull`` and ``card``, against a hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.hub_server import WRITER, Hub

from dinoneck import PatchMeanHead, Task, save_head
from dinoneck.checkpoint import model_card
from dinoneck.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def head(tmp_path: Path) -> Path:
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("total")]))
    return tmp_path / "h.safetensors"


def test_programs_get_the_commit(
    hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert main(["push", str(head), "me/one", "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    commit = hub.repos["me/one"].branches["main"]
    assert (pushed["verb"], pushed["ok"], pushed["commit"], pushed["repo"]) == ("push", True, commit, "me/one")
    assert WRITER not in json.dumps(pushed)
    out = str(tmp_path / "back.safetensors")
    assert main(["pull", "me/one", "--out", out, "--json"]) == 0
    pulled = json.loads(capsys.readouterr().out)
    assert (pulled["commit"], pulled["written"]) == (commit, out)
    assert main(["verify", "me/one", "--json"]) == 0
    [checked] = json.loads(capsys.readouterr().out)["checked"]
    assert (checked["kind"], checked["commit"]) == ("hub repository", commit)


def test_a_missing_folder_is_reported_before_the_hub_is_asked(
    hub: Hub, head: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    assert main(["pull", "me/one", "--out", str(tmp_path / "none" / "h.safetensors")]) == 1
    assert f"the folder {tmp_path / 'none'} does not exist; create it first" in capsys.readouterr().err
    assert hub.requests == []


def test_the_page_is_printed_or_written(head: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["card", str(head)]) == 0
    assert capsys.readouterr().out == model_card(head)
    assert main(["card", str(head), "--repo", "me/one", "--out", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == model_card(head, "me/one")
