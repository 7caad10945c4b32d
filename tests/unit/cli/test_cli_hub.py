"""``dinoneck push`` and ``verify``, against a hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.hub_server import WRITER, Hub

from dinoneck import PatchMeanHead, Task, save_head
from dinoneck.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def head(tmp_path: Path) -> Path:
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("total")]))
    return tmp_path / "h.safetensors"


def test_programs_get_the_commit(
    hub: Hub, head: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    assert main(["push", str(head), "me/one", "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    commit = hub.repos["me/one"].branches["main"]
    assert (pushed["verb"], pushed["ok"], pushed["commit"], pushed["repo"]) == ("push", True, commit, "me/one")
    assert WRITER not in json.dumps(pushed)
    assert main(["verify", "me/one", "--json"]) == 0
    [checked] = json.loads(capsys.readouterr().out)["checked"]
    assert (checked["kind"], checked["commit"]) == ("hub repository", commit)
