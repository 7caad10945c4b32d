"""``inspect`` and ``verify`` print the facts of head files and of folders of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dinoneck import Backbone, PatchMeanHead, Task, save_head
from dinoneck.checkpoint import read_header
from dinoneck.cli.main import main


def test_the_facts_of_a_file(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"seed": 7, "data": {"name": "pasture", "revision": "r1"}, "metrics": {"R2": {"mean": 0.5, "sd": 0.25}}}
    head = PatchMeanHead(64, [Task("a")], hidden_dim=2)
    records = {"backbone": tiny, "preprocess": tiny.preprocess, "license": "MIT", "tta": "flip4"}
    save_head(tmp_path / "h", head, training=facts, **records)
    assert main(["inspect", str(tmp_path / "h")]) == 0
    printed = capsys.readouterr().out
    shown = ("seed 7", "data (name pasture, revision r1)", "metrics (R2 (mean 0.5, sd 0.25))", "schema 1, made by")
    for text in (*shown, "licence    MIT", "views      flip4", "mean [0.485, 0.456, 0.406]"):
        assert text in printed
    assert main(["verify", str(tmp_path / "h")]) == 0
    assert read_header(tmp_path / "h").meta["digest"] in capsys.readouterr().out


def test_a_folder_of_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fold in range(2):
        torch.manual_seed(fold)
        save_head(tmp_path / f"fold-{fold}.safetensors", PatchMeanHead(64, [Task("total", unit="g")]))
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "folder of 2 head files" in shown
    assert "fold-1.safetensors: patch_mean, total (kind regression, dim 1, unit g), sha256:" in shown
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["heads"]) == ["fold-0.safetensors", "fold-1.safetensors"]
