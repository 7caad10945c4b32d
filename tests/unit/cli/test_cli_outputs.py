"""What a verb writes replaces no input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dinoneck import Backbone, PatchMeanHead, Task, save_head
from dinoneck.cli.main import main


@pytest.fixture
def head(tiny: Backbone, tmp_path: Path) -> Path:
    preprocess = tiny.preprocess.changed(size=(32, 48))
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=tiny, preprocess=preprocess)
    return tmp_path / "h.safetensors"


@pytest.mark.parametrize("hard", [False, True])
def test_no_head_is_replaced(hard: bool, head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by its name, nor by a hard link to it."""
    before, out = head.read_bytes(), head
    if hard:
        out = head.parent / "link.safetensors"
        os.link(head, out)
    assert main(["export", str(head), "--format", "state-dict", "--out", str(out)]) == 1
    assert "is one of the inputs and would be replaced" in capsys.readouterr().err
    assert head.read_bytes() == before
