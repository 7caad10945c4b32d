"""Training on rooms: only new layers are new, cameras keep the undeformed points, and images bring what points lack."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.pointcloud import comparison, training
from examples.pointcloud.room_batches import Scene, Voxels, batch_of, scene
from examples.pointcloud.rooms import CLASSES, FLAT
from examples.pointcloud.segmentation import VARIANTS, Segmenter, Variant, build, load_weights, save_weights
from examples.pointcloud.training_plan import Plan, Rooms, rooms_of

from dinoneck import ConfigError, load_backbone
from dinoneck.points import SparseFeatures

SMALL = {"views": 3, "size": (96, 128), "points": 3000}
PLAN = Plan(
    variant="3d",
    seed=0,
    rooms=2,
    test_rooms=1,
    views=3,
    image_size=(96, 128),
    points=3000,
    voxel=0.25,
    point_colours=False,
    backbone="dinoneck_tiny",
    random_backbone=False,
    network="small",
    wrong_images=False,
    steps=3,
    batch=2,
    lr=1e-3,
)
WORDS = [
    *("--rooms", "2", "--test-rooms", "1", "--views", "3", "--image-size", "96x128", "--points", "3000"),
    *("--voxel", "0.25", "--backbone", "dinoneck_tiny", "--network", "small", "--steps", "2"),
]


@cache
def seen(seed: int = 0) -> Scene:
    return scene(seed, backbone=load_backbone("dinoneck_tiny"), **SMALL)  # type: ignore[arg-type]


@cache
def rooms() -> Rooms:
    return rooms_of(PLAN, images=True)


def made(variant: Variant) -> Segmenter:
    torch.manual_seed(0)
    return build(variant, network="small", in_channels=4, classes=len(CLASSES), c_dino=64).eval()


def scores(model: Segmenter, scenes: list[Scene], **options: Any) -> torch.Tensor:
    batch = batch_of(scenes, Voxels(0.25, strides=model.strides, **options))
    with torch.no_grad():
        found: torch.Tensor = model(batch.grid, batch.feats, batch.pyramid)
    return found


def test_features_follow_points_that_are_deformed_after_projection() -> None:
    """A point's voxel has the point's own features, wherever turning, mirroring, scaling and shifting takes it."""
    one = seen()
    rows = torch.arange(0, len(one.points), 50)
    alone = replace(one, points=one.points[rows], normals=one.normals[rows], colours=one.colours[rows],
                    labels=one.labels[rows], links=_subset(one, rows))  # fmt: skip
    fine = Voxels(0.001, strides=(1,))  # a voxel each
    still = batch_of([alone], fine)
    assert len(still.grid) == len(rows)
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        moved = batch_of([alone], fine, generator)
        assert not torch.equal(moved.grid.coords, still.grid.coords)
        assert still.pyramid is not None and moved.pyramid is not None
        own, other = (batch.pyramid[1].feats[batch.grid.inverse] for batch in (still, moved))  # type: ignore[index]
        assert torch.equal(own, other) and own.any()
        assert torch.equal(still.labels, moved.labels)
        # normals turn with the surfaces they belong to: distances along them stay, up to the factor
        flat = (moved.feats[moved.grid.inverse, 1:4] * moved.grid.centers()[moved.grid.inverse]).sum(1)
        before = (alone.normals * alone.points).sum(1)
        walls = alone.normals[:, 0] != 0
        same = walls & (alone.normals[:, 0] == 1) & (before.abs() < 1e-9)  # one wall: one plane, wherever it is now
        assert float(flat[same].max() - flat[same].min()) < 0.002


def _subset(one: Scene, rows: torch.Tensor) -> Any:
    assert one.links is not None
    keep = torch.isin(one.links.point, rows)
    place = torch.zeros(len(one.points), dtype=torch.int64).index_copy(0, rows, torch.arange(len(rows)))
    part = {name: getattr(one.links, name)[keep] for name in ("view", "uv", "z")}
    return replace(one.links, **part, point=place[one.links.point[keep]], num_points=len(rows), counts=None)


def test_rooms_of_a_batch_are_what_they_are_alone() -> None:
    two = [seen(0), seen(1)]
    voxels = Voxels(0.25, point_colours=True, strides=(1, 2, 4, 8))
    both, alone = batch_of(two, voxels), [batch_of([one], voxels) for one in two]
    assert torch.equal(both.feats, torch.cat([batch.feats for batch in alone]))
    assert both.pyramid is not None
    for stride, level in both.pyramid.items():
        parts = [batch.pyramid[stride] for batch in alone]  # type: ignore[index]
        assert torch.equal(level.batch, torch.cat([part.batch + i for i, part in enumerate(parts)]))
        assert torch.equal(level.coords, torch.cat([part.coords for part in parts]))
        torch.testing.assert_close(level.feats, torch.cat([part.feats for part in parts]))


def test_before_its_first_step_inject_is_the_3d_network_bit_for_bit(tmp_path: Path) -> None:
    plain = made("3d")
    save_weights(plain, tmp_path / "3d.safetensors")
    model = made("inject")
    torch.nn.init.ones_(model.classifier.weight)  # the file overwrites it
    assert load_weights(model, tmp_path / "3d.safetensors") == ("injection",)
    assert torch.equal(scores(model, [seen()]), scores(plain, [seen()]))
    assert model.injection is not None
    torch.nn.init.ones_(model.injection.levels["2"].proj.weight)  # type: ignore[union-attr,arg-type]
    assert not torch.equal(scores(model, [seen()]), scores(plain, [seen()]))


def test_where_no_image_looks_every_variant_is_the_3d_network(tmp_path: Path) -> None:
    plain = made("3d")
    save_weights(plain, tmp_path / "3d.safetensors")
    batch = batch_of([seen()], Voxels(0.25, strides=(1, 2, 4, 8)))
    assert batch.pyramid is not None
    blind = {
        stride: SparseFeatures(x.coords, x.batch, x.feats, torch.zeros_like(x.valid), stride)
        for stride, x in batch.pyramid.items()
    }
    with torch.no_grad():
        expected = plain(batch.grid, batch.feats)
        for variant in VARIANTS:
            model = made(variant)
            load_weights(model, tmp_path / "3d.safetensors")
            assert torch.equal(model(batch.grid, batch.feats, blind), expected)
            assert torch.equal(model(batch.grid, batch.feats, None), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_gives_back_the_model_it_was_made_of(variant: Variant, tmp_path: Path) -> None:
    model, other = made(variant), made(variant)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_weights(model, tmp_path / "file.safetensors")
    assert load_weights(other, tmp_path / "file.safetensors") == ()
    assert torch.equal(scores(other, [seen()]), scores(model, [seen()]))


def test_iou_is_intersection_over_union() -> None:
    truth, predicted = torch.randint(0, 4, (2, 500), generator=torch.Generator().manual_seed(0))
    confusion = torch.zeros(5, 5, dtype=torch.int64)
    for a, b in zip(truth.tolist(), predicted.tolist(), strict=True):
        confusion[a, b] += 1
    found = training.iou(confusion)
    for k in range(4):
        union = ((truth == k) | (predicted == k)).sum()
        assert found[k] == ((truth == k) & (predicted == k)).sum().double() / union
    assert found[4].isnan()


def test_a_run_is_its_seed_and_writes_all_of_it_down(tmp_path: Path) -> None:
    plan = replace(PLAN, variant="both", steps=2)
    one, again = (training.train(plan, rooms(), tmp_path / name) for name in "ab")
    other = training.train(replace(plan, seed=1), rooms(), tmp_path / "c")
    for key in ("test", "untrained", "loss", "parameters"):
        assert one[key] == again[key], key
    assert one["loss"] != other["loss"]
    assert (tmp_path / "a" / "weights.safetensors").read_bytes() == (
        tmp_path / "b" / "weights.safetensors"
    ).read_bytes()
    assert one == json.loads((tmp_path / "a" / "result.json").read_text())
    assert set(one["test"]) == {"miou", "iou", "fusion", "injection"}
    assert 0.1 < one["test"]["fusion"]["coverage"] < 1
    assert one["test"]["injection"]["8"]["hit_rate"] > one["test"]["injection"]["1"]["hit_rate"] > 0.1
    assert one["untrained"]["injection"]["8"]["ratio"] == 0 < one["test"]["injection"]["8"]["ratio"]
    assert one["fresh"] == ["unet", "classifier", "fusion", "injection"]


def test_compare_starts_every_variant_from_the_3d_file_and_reads_finished_runs(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    comparison.add_arguments(parser)
    words = ["--out", str(tmp_path), "--seeds", "0", "1", "--pretrain-steps", "2", *WORDS]
    assert comparison.run(parser.parse_args(words)) == 0
    written = (tmp_path / "point_segmentation.json").read_text()
    found = json.loads(written)["blocks"]["geometry"]
    assert found["summary"]["injection_at_step_0_is_3d_only"]
    assert found["seeds"]["0"]["inject"]["fresh"] == ["injection"]
    assert comparison.run(parser.parse_args(words)) == 0
    assert (tmp_path / "point_segmentation.json").read_text() == written
    with pytest.raises(ConfigError, match="steps"):
        comparison.run(parser.parse_args([*words, "--steps", "3"]))


@pytest.mark.slow
def test_images_tell_what_points_cannot(tmp_path: Path) -> None:
    plan = replace(
        PLAN, rooms=6, test_rooms=2, views=6, image_size=(192, 256), points=8_000, voxel=0.2, steps=40, lr=3e-3
    )
    drawn = rooms_of(plan, images=True)
    plain = training.train(plan, drawn, tmp_path / "3d")
    start = tmp_path / "3d" / training.WEIGHTS
    again = training.train(plan, drawn, tmp_path / "again", start)
    injected = training.train(replace(plan, variant="inject"), drawn, tmp_path / "inject", start)
    assert plain["test"]["miou"] > 0.3
    assert injected["test"]["miou"] > again["test"]["miou"] + 0.05
    flat = [max(run["test"]["iou"][name] for name in FLAT) for run in (again, injected)]
    assert flat[1] > flat[0] + 0.1
