"""``dinoneck bench``: what is timed is what was asked for; no test judges a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
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
from dinoneck.cli import bench as bench_module
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


def test_every_pipeline_runs_once_per_round_and_the_first_round_does_not_count(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[bench_module.Pipeline] = []
    plans = {"a": [99.0, 0.002, 0.008, 0.004, 0.006, 9.0], "b": [99.0, 0.1, 0.1, 0.1, 0.3, 0.1]}

    def seconds_of(pipeline: bench_module.Pipeline, device: torch.device) -> dict[str, float]:
        order.append(pipeline)
        return {"whole": plans[pipeline.images[0].name].pop(0)}

    monkeypatch.setattr(bench_module, "seconds_of", seconds_of)
    pipelines = {(name, 2): bench_module.Pipeline([Path(name)] * 2, tiny.preprocess, tiny) for name in plans}
    done: list[int] = []
    seconds, _ = bench_module.time_in_turn(pipelines, 5, lambda: done.append(1))
    assert {key: [one["whole"] for one in took] for key, took in seconds.items()} == {
        ("a", 2): [0.002, 0.008, 0.004, 0.006, 9.0],
        ("b", 2): [0.1, 0.1, 0.1, 0.3, 0.1],
    }
    assert len(done) == 6
    pairs = [order[i : i + 2] for i in range(0, len(order), 2)]
    assert all({one.images[0].name, two.images[0].name} == {"a", "b"} for one, two in pairs), "each once a round"
    assert len({pair[0].images[0].name for pair in pairs}) == 2, "in an order that changes"


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
    images = [tmp_path / "p.png"] * 2
    pipeline = bench_module.Pipeline(images, tiny.preprocess.changed(size=(32, 48)), tiny, head)
    took = bench_module.seconds_of(pipeline, torch.device("cpu"))
    assert seen == [(2, 6, 64)]
    assert set(took) == {"prepare", "backbone", "head", "whole"}
    assert took["whole"] == pytest.approx(sum(took[part] for part in ("prepare", "backbone", "head")))
    assert head.training, "modules are left as they were"
