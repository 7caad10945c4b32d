"""AP of instances against plain formulas; training of the point cloud example."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.pointcloud import training
from examples.pointcloud.__main__ import main
from examples.pointcloud.instances import (
    AP_OF,
    LEAST_POINTS,
    Masks,
    connected_masks,
    instance_precision,
)
from examples.pointcloud.room_batches import Scene, Voxels, batch_of, scene
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.segmentation import (
    VARIANTS,
    Segmenter,
    Variant,
    build,
    load_weights,
    save_weights,
)
from examples.pointcloud.training_plan import Plan, rooms_of
from tests import kit

from dinoneck.points import VoxelGrid


def test_connected_voxels_are_those_of_dense_labels() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    generator = torch.Generator().manual_seed(1)
    coords = (torch.rand(12, 11, 10, generator=generator) < 0.3).nonzero() - 5
    grid = VoxelGrid.from_coords(
        coords.repeat(2, 1), batch=torch.arange(2).repeat_interleave(len(coords))
    )
    shares = torch.rand(len(grid), 3, generator=generator).softmax(1)
    masks = connected_masks(grid, shares)
    cells, parts = torch.zeros(2, 12, 11, 10, dtype=torch.int64), 0
    place = (grid.batch, *(grid.coords + 5).T)
    cells[place] = shares.argmax(1) + 1
    own = torch.empty(len(grid), dtype=torch.int64)
    own[grid.inverse] = masks.instance  # of voxels
    for sample in range(2):
        for label in range(3):
            dense, count = ndimage.label((cells[sample] == label + 1).numpy(), np.ones((3, 3, 3)))
            for number in range(1, count + 1):
                rows = torch.from_numpy(dense == number)[place[1:]] & (grid.batch == sample)
                [part] = own[rows].unique().tolist()
                assert torch.equal(own == part, rows)
                assert masks.classes[part] == label
                assert masks.scores[part] == pytest.approx(
                    float(shares[rows, label].mean()), abs=1e-6
                )
            parts += count
    assert parts == len(masks.classes) > 50


def drawn(generator: torch.Generator) -> tuple[Masks, Masks]:
    """True instances, the last of them small, and predictions: copies of a share of each, and others at random."""
    true = torch.randint(-1, 5, (1200,), generator=generator)
    true[: LEAST_POINTS - 2] = 5
    copied = (
        torch.rand(1200, generator=generator)
        < (0.4 + 0.6 * torch.rand(7, generator=generator))[true]
    )
    place = torch.where(copied, true, torch.randint(-1, 9, (1200,), generator=generator))
    classes = torch.randint(0, 2, (9,), generator=generator)
    known = torch.cat([classes[:5], 1 - classes[5:6]])
    return Masks(place, classes, torch.rand(9, generator=generator)), Masks(
        true, known, torch.ones(6)
    )


def plain(scenes: list[tuple[Masks, Masks]], label: int, threshold: float) -> float | None:
    """AP over sets: for every score as a limit, the precision and recall of the predictions at or above it."""
    truths, predictions = {}, []
    ignored: list[set[int]] = []
    for number, (predicted, true) in enumerate(scenes):
        known = set()
        for k, own in enumerate(true.classes.tolist()):
            points = set((true.instance == k).nonzero()[:, 0].tolist())
            if len(points) >= LEAST_POINTS:
                known |= points
                if own == label:
                    truths[number, k] = points
        ignored.append(set(range(len(true.instance))) - known)
        for k, (own, score) in enumerate(
            zip(predicted.classes.tolist(), predicted.scores.tolist(), strict=True)
        ):
            points = set((predicted.instance == k).nonzero()[:, 0].tolist())
            if own == label and len(points) >= LEAST_POINTS:
                predictions.append((score, number, points))
    if not truths:
        return None
    curve = []
    for limit, _, _ in predictions:
        right, wrong, left = 0, 0, dict(truths)
        for _, number, points in sorted(
            (one for one in predictions if one[0] >= limit), key=lambda one: -one[0]
        ):
            overlaps = {
                key: len(points & own) / len(points | own)
                for key, own in left.items()
                if key[0] == number
            }
            best = max(overlaps, key=overlaps.__getitem__, default=None)
            if best is not None and overlaps[best] > threshold:
                right += 1
                del left[best]
            elif len(points & ignored[number]) / len(points) <= threshold:
                wrong += 1
        if right:
            curve.append((right / len(truths), right / (right + wrong)))
    recalls = sorted({recall for recall, _ in curve})
    steps = zip([0.0, *recalls], recalls, strict=False)
    return sum((high - low) * max(p for r, p in curve if r >= high) for low, high in steps)


def test_ap_is_that_of_plain_sets() -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        scenes = [drawn(generator) for _ in range(4)]
        found = instance_precision(scenes, ("a", "b"))
        for label, name in enumerate("ab"):
            expected = {
                key: [plain(scenes, label, t) for t in thresholds]
                for key, thresholds in AP_OF.items()
            }
            for key, each in expected.items():
                assert found["per_class"][name][key] == pytest.approx(np.mean(each))  # type: ignore[arg-type]
        assert found["AP"] == pytest.approx(
            np.mean([row["AP"] for row in found["per_class"].values()])
        )
        assert 0 < found["AP"] < found["AP50"] < found["AP25"] < 1


SMALL = {"views": 3, "size": (96, 128), "points": 3000}


PLAN = Plan(
    rooms=2,
    test_rooms=1,
    views=3,
    image_size=(96, 128),
    points=3000,
    voxel=0.25,
    backbone="dinoneck_tiny",
    network="small",
    steps=2,
    lr=1e-3,
)


WORDS = (
    "--rooms 2 --test-rooms 1 --views 3 --image-size 96 128 --points 3000 --voxel 0.25 "
    "--backbone dinoneck_tiny"
)


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
    # a voxel each, but for a few
    fine, generator = Voxels(0.001, strides=(1,)), torch.Generator().manual_seed(3)
    still = batch_of([one], fine)
    alone = still.grid.inverse.bincount()[still.grid.inverse] == 1
    for _ in range(6):
        moved = batch_of([one], fine, generator)
        assert not torch.equal(moved.grid.coords, still.grid.coords)
        rows = alone & (moved.grid.inverse.bincount()[moved.grid.inverse] == 1)
        own, other = (batch.pyramid[1].feats[batch.grid.inverse][rows] for batch in (still, moved))
        assert rows.double().mean() > 0.9 and torch.equal(own, other) and own.any()
        # normals turn with the surfaces they belong to: one wall is one plane, wherever it is now
        flat = (
            moved.feats[moved.grid.inverse, 1:4] * moved.grid.centers()[moved.grid.inverse]
        ).sum(1)
        wall = rows & (one.normals[:, 0] == 1) & (one.points[:, 0].abs() < 1e-9)
        assert float(flat[wall].max() - flat[wall].min()) < 0.002


def test_before_its_first_step_every_variant_without_images_is_the_3d_network(
    tmp_path: Path,
) -> None:
    """With images too, where they are injected; the weights come from the 3D network's file, but for what is new."""
    plain = made("3d")
    save_weights(plain, tmp_path / "3d.safetensors")
    batch = batch_of([seen()], Voxels(0.25, strides=(1, 2, 4, 8)))
    blind = {
        stride: replace(x, valid=torch.zeros_like(x.valid)) for stride, x in batch.pyramid.items()
    }
    with torch.no_grad():
        expected = plain(batch.grid, batch.feats)
        for variant in VARIANTS:
            model = made(variant)
            torch.nn.init.ones_(model.classifier.weight)  # the file overwrites it
            fresh = load_weights(model, tmp_path / "3d.safetensors")
            assert [
                part for part in ("fusion", "injection") if getattr(model, part) is not None
            ] == list(fresh)
            for pyramid in (blind, None, *([batch.pyramid] if variant == "inject" else [])):
                assert torch.equal(model(batch.grid, batch.feats, pyramid), expected)
        torch.nn.init.ones_(model.injection.levels["2"].proj.weight)
        assert not torch.equal(model(batch.grid, batch.feats, batch.pyramid), expected)
    save_weights(model, tmp_path / "both.safetensors")
    again = made("both")
    assert load_weights(again, tmp_path / "both.safetensors") == ()
    assert kit.same(dict(again.state_dict()), dict(model.state_dict()))


@pytest.mark.slow
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
    assert (
        one["test"]["injection"]["8"]["hit_rate"] > one["test"]["injection"]["1"]["hit_rate"] > 0.1
    )
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
