"""Training on rooms: only new layers are new, cameras keep the undeformed points, and images bring what points lack."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from examples.pointcloud import training
from examples.pointcloud.__main__ import main
from examples.pointcloud.room_batches import Scene, Voxels, batch_of, scene
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.segmentation import VARIANTS, Segmenter, Variant, build, load_weights, save_weights
from examples.pointcloud.training_plan import Plan, rooms_of
from tests import kit

SMALL = {"views": 3, "size": (96, 128), "points": 3000}
PLAN = Plan(rooms=2, test_rooms=1, views=3, image_size=(96, 128), points=3000, voxel=0.25, backbone="dinoneck_tiny",
            network="small", steps=2, lr=1e-3)  # fmt: skip
WORDS = "--rooms 2 --test-rooms 1 --views 3 --image-size 96 128 --points 3000 --voxel 0.25 --backbone dinoneck_tiny"
WORDS += " --network small --steps 2 --seeds 0 1 --pretrain-steps 2"


@cache
def seen(seed: int = 0) -> Scene:
    return scene(seed, backbone=kit.backbone(), **SMALL)  # type: ignore[arg-type]


def made(variant: Variant) -> Segmenter:
    torch.manual_seed(0)
    return build(variant, network="small", in_channels=4, classes=len(CLASSES), c_dino=64).eval()


def test_features_follow_points_that_are_deformed_after_projection() -> None:
    """A point's voxel has the point's own features, wherever turning, mirroring, scaling and shifting takes it."""
    one = seen()
    fine, generator = Voxels(0.001, strides=(1,)), torch.Generator().manual_seed(3)  # a voxel each, but for a few
    still = batch_of([one], fine)
    alone = still.grid.inverse.bincount()[still.grid.inverse] == 1
    for _ in range(6):
        moved = batch_of([one], fine, generator)
        assert not torch.equal(moved.grid.coords, still.grid.coords)
        rows = alone & (moved.grid.inverse.bincount()[moved.grid.inverse] == 1)
        own, other = (batch.pyramid[1].feats[batch.grid.inverse][rows] for batch in (still, moved))
        assert rows.double().mean() > 0.9 and torch.equal(own, other) and own.any()
        # normals turn with the surfaces they belong to: one wall is one plane, wherever it is now
        flat = (moved.feats[moved.grid.inverse, 1:4] * moved.grid.centers()[moved.grid.inverse]).sum(1)
        wall = rows & (one.normals[:, 0] == 1) & (one.points[:, 0].abs() < 1e-9)
        assert float(flat[wall].max() - flat[wall].min()) < 0.002


def test_before_its_first_step_every_variant_without_images_is_the_3d_network(tmp_path: Path) -> None:
    """With images too, where they are injected; the weights come from the 3D network's file, but for what is new."""
    plain = made("3d")
    save_weights(plain, tmp_path / "3d.safetensors")
    batch = batch_of([seen()], Voxels(0.25, strides=(1, 2, 4, 8)))
    blind = {stride: replace(x, valid=torch.zeros_like(x.valid)) for stride, x in batch.pyramid.items()}
    with torch.no_grad():
        expected = plain(batch.grid, batch.feats)
        for variant in VARIANTS:
            model = made(variant)
            torch.nn.init.ones_(model.classifier.weight)  # the file overwrites it
            fresh = load_weights(model, tmp_path / "3d.safetensors")
            assert [part for part in ("fusion", "injection") if getattr(model, part) is not None] == list(fresh)
            for pyramid in (blind, None, *([batch.pyramid] if variant == "inject" else [])):
                assert torch.equal(model(batch.grid, batch.feats, pyramid), expected)
        torch.nn.init.ones_(model.injection.levels["2"].proj.weight)
        assert not torch.equal(model(batch.grid, batch.feats, batch.pyramid), expected)
    save_weights(model, tmp_path / "both.safetensors")
    again = made("both")
    assert load_weights(again, tmp_path / "both.safetensors") == ()
    assert kit.same(dict(again.state_dict()), dict(model.state_dict()))


def test_a_run_is_its_seed_and_writes_all_of_it_down(tmp_path: Path) -> None:
    plan, rooms = replace(PLAN, variant="both"), rooms_of(PLAN, images=True)
    one, again = (training.train(plan, rooms, tmp_path / name) for name in "ab")
    for key in ("test", "untrained", "loss", "parameters"):
        assert one[key] == again[key], key
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert one == json.loads((tmp_path / "a" / "result.json").read_text())
    assert set(one["test"]) == {"miou", "iou", "fusion", "injection"}
    assert 0.1 < one["test"]["fusion"]["coverage"] < 1
    assert one["test"]["injection"]["8"]["hit_rate"] > one["test"]["injection"]["1"]["hit_rate"] > 0.1
    assert one["untrained"]["injection"]["8"]["ratio"] == 0 < one["test"]["injection"]["8"]["ratio"]


@pytest.mark.slow
def test_compare_starts_every_variant_from_the_3d_file_and_reads_finished_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--out", str(tmp_path), *WORDS.split()]
    assert main(words) == 0
    written = (tmp_path / "point_segmentation.json").read_text()
    found = json.loads(written)["blocks"]["geometry"]
    assert found["summary"]["injection_at_step_0_is_3d_only"]
    assert found["seeds"]["0"]["inject"]["fresh"] == ["injection"]
    assert main(words) == 0
    assert (tmp_path / "point_segmentation.json").read_text() == written
    assert main([*words, "--steps", "3"]) == 1 and "steps" in capsys.readouterr().err
