"""What a verb writes replaces no input; streams that are closed or full, and a batch system's SIGTERM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.store.store_samples import make, write_images

from dinoneck import Backbone, PatchMeanHead, Task, save_head
from dinoneck.cli.main import main


@pytest.fixture
def head(tiny: Backbone, tmp_path: Path) -> Path:
    preprocess = tiny.preprocess.changed(size=(32, 48))
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=tiny, preprocess=preprocess)
    return tmp_path / "h.safetensors"


@pytest.mark.parametrize(("verb", "hard"), [(["card"], False), (["export", "--format", "state-dict"], True)])
def test_no_head_is_replaced(verb: list[str], hard: bool, head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by its name, nor by a hard link to it."""
    before, out = head.read_bytes(), head
    if hard:
        out = head.parent / "link.safetensors"
        os.link(head, out)
    assert main([verb[0], str(head), *verb[1:], "--out", str(out)]) == 1
    assert "is one of the inputs and would be replaced" in capsys.readouterr().err
    assert head.read_bytes() == before


def test_a_store_is_not_written_into(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, ["p/a.png"])
    make(tmp_path / "s", tiny, views="none").extract(tmp_path / "p")
    for out in ("s", "s/inside"):
        job = ["store", "convert", str(tmp_path / "s"), "--format", "pt", "--overwrite", "--out", str(tmp_path / out)]
        assert main(job) == 1
        assert "lies in the store" in capsys.readouterr().err
