"""AP of instances: analytic scenes, plain re-formulations over sets and dense labels, and an untrained network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples.pointcloud.instances import AP_OF, LEAST_POINTS, Masks, connected_masks, instance_precision, true_masks
from torch import Tensor

from dinoneck.points import VoxelGrid

NAMES = ("floor", "box", "chair")
FLOOR, BOX, CHAIR = range(3)


def of(grid: VoxelGrid, probabilities: Tensor, labels: Tensor, instances: Tensor) -> dict[str, float | None]:
    found = instance_precision([(connected_masks(grid, probabilities), true_masks(labels, instances))], NAMES)
    assert found["per_class"]["floor"] == {"AP": None, "AP50": None, "AP25": None}, "no object is a floor"
    return {name: found[name] for name in AP_OF}


def test_connected_voxels_are_those_of_dense_labels() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    generator = torch.Generator().manual_seed(1)
    coords = (torch.rand(12, 11, 10, generator=generator) < 0.3).nonzero() - 5
    grid = VoxelGrid.from_coords(coords.repeat(2, 1), batch=torch.arange(2).repeat_interleave(len(coords)))
    shares = torch.rand(len(grid), 3, generator=generator).softmax(1)
    masks = connected_masks(grid, shares)
    cells, parts = torch.zeros(2, 12, 11, 10, dtype=torch.int64), 0
    place = (grid.batch, *(grid.coords + 5).T)
    cells[place] = shares.argmax(1) + 1
    own = torch.empty(len(grid), dtype=torch.int64)
    own[grid.inverse] = masks.place  # of voxels
    for sample in range(2):
        for label in range(3):
            dense, count = ndimage.label((cells[sample] == label + 1).numpy(), np.ones((3, 3, 3)))
            for number in range(1, count + 1):
                rows = torch.from_numpy(dense == number)[place[1:]] & (grid.batch == sample)
                [part] = own[rows].unique().tolist()
                assert torch.equal(own == part, rows)
                assert masks.classes[part] == label
                assert masks.scores[part] == pytest.approx(float(shares[rows, label].mean()), abs=1e-6)
            parts += count
    assert parts == len(masks.classes) > 50


def drawn(generator: torch.Generator) -> tuple[Masks, Masks]:
    """True instances, the last of them small, and predictions: copies of a share of each, and others at random."""
    true = torch.randint(-1, 5, (1200,), generator=generator)
    true[: LEAST_POINTS - 2] = 5
    copied = torch.rand(1200, generator=generator) < (0.4 + 0.6 * torch.rand(7, generator=generator))[true]
    place = torch.where(copied, true, torch.randint(-1, 9, (1200,), generator=generator))
    classes = torch.randint(0, 2, (9,), generator=generator)
    known = torch.cat([classes[:5], 1 - classes[5:6]])
    return Masks(place, classes, torch.rand(9, generator=generator)), Masks(true, known, torch.ones(6))


def plain(scenes: list[tuple[Masks, Masks]], label: int, threshold: float) -> float | None:
    """AP over sets: for every score as a limit, the precision and recall of the predictions at or above it."""
    truths, predictions = {}, []
    ignored: list[set[int]] = []
    for number, (predicted, true) in enumerate(scenes):
        known = set()
        for k, own in enumerate(true.classes.tolist()):
            points = set((true.place == k).nonzero()[:, 0].tolist())
            if len(points) >= LEAST_POINTS:
                known |= points
                if own == label:
                    truths[number, k] = points
        ignored.append(set(range(len(true.place))) - known)
        for k, (own, score) in enumerate(zip(predicted.classes.tolist(), predicted.scores.tolist(), strict=True)):
            points = set((predicted.place == k).nonzero()[:, 0].tolist())
            if own == label and len(points) >= LEAST_POINTS:
                predictions.append((score, number, points))
    if not truths:
        return None
    curve = []
    for limit, _, _ in predictions:
        right, wrong, left = 0, 0, dict(truths)
        for _, number, points in sorted((one for one in predictions if one[0] >= limit), key=lambda one: -one[0]):
            overlaps = {key: len(points & own) / len(points | own) for key, own in left.items() if key[0] == number}
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
            expected = {key: [plain(scenes, label, t) for t in thresholds] for key, thresholds in AP_OF.items()}
            for key, each in expected.items():
                assert found["per_class"][name][key] == pytest.approx(np.mean(each))  # type: ignore[arg-type]
        assert found["AP"] == pytest.approx(np.mean([row["AP"] for row in found["per_class"].values()]))
        assert 0 < found["AP"] < found["AP50"] < found["AP25"] < 1
