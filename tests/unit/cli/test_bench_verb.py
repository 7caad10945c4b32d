"""``dinoneck bench``: what is timed is what was asked for; no test judges a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dinoneck import Backbone, PatchMeanHead, SpatialTuningAdapter, Task, load_backbone, save_head
from dinoneck.cli import bench as bench_module
from dinoneck.cli.main import main

TINY = ("--backbone", "dinoneck_tiny", "--random-backbone", "--seconds", "0.01")


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["bench", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def head(tiny: Backbone, tmp_path: Path) -> Path:
    preprocess = tiny.preprocess.changed(size=(32, 48))
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=tiny, preprocess=preprocess)
    return tmp_path / "h.safetensors"


def test_a_backbone_alone(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, *TINY, "--size", "32x48", "--batch-size", "3", "--dtype", "bfloat16")
    assert [row["part"] for row in found["parts"]] == ["prepare", "backbone"]
    assert all(row["ms_per_image"] > 0 for row in found["parts"])
    assert (found["batch_size"], found["dtype"], found["size"]) == (3, "bfloat16", [32, 48])
    assert (found["backbone"], found["layers"]) == ("dinoneck_tiny", [5])
    assert found["versions"]["torch"]


def test_a_head(head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, head, "--seconds", "0.01")
    assert [row["part"] for row in found["parts"]] == ["prepare", "backbone", "head"]
    assert found["size"] == [32, 48]


def test_refusals(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    neck = SpatialTuningAdapter(64, out_channels=16, num_layers=1)
    save_head(tmp_path / "neck.safetensors", neck, backbone=load_backbone("dinoneck_tiny"))
    for arguments, message in (
        ([str(tmp_path / "neck.safetensors")], "no tasks to predict"),
        (["--size", "32"], "give a head file, or --backbone NAME"),
        ([*TINY], "--size"),
        ([str(head), "--layers", "2"], "--layers"),
    ):
        assert main(["bench", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_the_parts_are_those_of_a_prediction(tiny: Backbone, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    class Head(PatchMeanHead):
        def predict(self, tokens):  # type: ignore[no-untyped-def]
            assert not self.training
            assert not torch.is_grad_enabled()
            seen.append(tuple(tokens.patches[0].shape))
            return super().predict(tokens)

    head = Head(64, [Task("x")])
    head.train()
    Image.new("RGB", (96, 64)).save(tmp_path / "p.png")
    rows = bench_module._measure([tmp_path / "p.png"] * 2, tiny.preprocess.changed(size=(32, 48)), tiny, head, 0.01)
    assert set(seen) == {(2, 6, 64)}
    assert [row["part"] for row in rows] == ["prepare", "backbone", "head"]
    assert head.training, "modules are left as they were"
