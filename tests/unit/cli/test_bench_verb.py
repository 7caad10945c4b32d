"""``dinoneck bench``: what is timed is what was asked for; no test judges a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dinoneck import (
    Backbone,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    SpatialTuningAdapter,
    Task,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.cli.main import main

TINY = ("--backbone", "dinoneck_tiny", "--random-backbone", "--rounds", "2")


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
    found = bench(capsys, *TINY, "--size", "32x48", "--batch-size", "1", "3", "--dtype", "fp32", "bf16")
    assert [(row["dtype"], row["batch_size"]) for row in found["rows"]] == [
        ("fp32", 1), ("fp32", 3), ("bf16", 1), ("bf16", 3)
    ]  # fmt: skip
    for row in found["rows"]:
        assert set(row["ms_per_image"]) == {"prepare", "backbone", "whole"}
        assert row["images_per_s"] == pytest.approx(1000 / row["ms_per_image"]["whole"])
    assert found["image"] == "generated JPEG of 64x96 px (height x width)"
    assert (found["rounds"], found["backbone"], found["layers"]) == (2, "dinoneck_tiny", [5])
    assert found["machine"]["versions"]["torch"]


def test_a_neck(capsys: pytest.CaptureFixture[str]) -> None:
    for neck in ("vit_fpn", "simple_pyramid", "dpt", "sta_pyramid"):
        found = bench(capsys, *TINY, "--size", "32x48", "--neck", neck, "--layers", "1", "3", "5")
        assert "head" in found["rows"][0]["ms_per_image"], neck
        assert (found["neck"], found["layers"]) == (neck, [1, 3, 5])


def test_a_head(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, head, "--rounds", "2", "--dtype", "bf16")
    assert set(found["rows"][0]["ms_per_image"]) == {"prepare", "backbone", "head", "whole"}
    assert found["image"] == "generated JPEG of 64x96 px (height x width)", "twice the head's own size"
    Image.new("RGB", (80, 40)).save(tmp_path / "p.png")
    assert bench(capsys, head, "--rounds", "2", "--image", tmp_path / "p.png")["image"] == str(tmp_path / "p.png")
    own = HeadCheckpoint.load(head).meta
    ensemble = HeadEnsemble.from_heads([load_head(head)])
    save_head(tmp_path / "many", ensemble, backbone=own["backbone"], preprocess=own["inputs"])
    assert "head" in bench(capsys, tmp_path / "many", "--rounds", "2")["rows"][0]["ms_per_image"]


def test_refusals(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = load_backbone("dinoneck_tiny", seed=3)
    save_head(tmp_path / "own.safetensors", PatchMeanHead(64, [Task("x")]), backbone=foreign)
    neck = SpatialTuningAdapter(64, out_channels=16, num_layers=1)
    save_head(tmp_path / "neck.safetensors", neck, backbone=foreign)
    for arguments, message in (
        ([str(tmp_path / "neck.safetensors")], "does not run on tokens alone"),
        ([*TINY, "--size", "32x48", "--neck", "spatial_tuning_adapter"], "does not run on tokens alone"),
        ([*TINY, "--size", "32x48", "--neck", "vit_fpm"], "Did you mean 'vit_fpn'"),
        ([*TINY, "--size", "32x48", "--neck", "patch_mean"], "expected a subclass of Neck"),
        (["--size", "32"], "give a head file, or --backbone NAME"),
        ([*TINY], "give it with --size"),
        ([str(head), "--neck", "dpt"], "leave out --neck"),
        ([str(tmp_path / "own.safetensors")], "images in their own size"),
    ):
        assert main(["bench", *arguments]) == 1
        assert message in capsys.readouterr().err
