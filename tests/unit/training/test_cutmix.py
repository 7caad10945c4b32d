"""Pasted rectangles, seen on images that hold their own coordinates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.unit.training.blends import (
    HALVES,
    PARTS,
    RATIO,
    STATE,
    blended,
    ratio_targets,
    read_back,
    seeded,
)
from torch import Tensor

from dinoneck import (
    GridError,
    ShapeError,
    Task,
)
from dinoneck.training import cutmix


def index_images(batch: int, height: int, width: int) -> Tensor:
    """Channel 0 holds the sample, 1 the row and 2 the column of the pixel."""
    planes = torch.meshgrid(torch.arange(batch), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(planes, dim=1).double()


@pytest.mark.parametrize(("size", "patch", "steps"), [((48, 80), 16, (16, 16)), ((28, 64), (14, 16), (14, 16))])
def test_every_pasted_pixel_stays_at_its_place(size: Any, patch: Any, steps: Any) -> None:
    images = index_images(40, *size)
    before = images.clone()
    targets = {"own": torch.eye(40, dtype=torch.float64)}
    mixed, result = cutmix(images, targets, 1.0, patch_size=patch, generator=seeded(11))
    assert torch.equal(images, before)
    assert torch.equal(mixed[:, 1:], images[:, 1:])
    strangers = []
    for i in range(40):
        sources = set(mixed[i, 0].flatten().int().tolist())
        other = [source for source in sources if source != i]
        assert len(other) <= 1
        taken = mixed[i, 0] != i
        kept = 1 - taken.double().mean()
        assert torch.isclose(result["own"][i, i], kept, atol=1e-15) or not other
        if other:
            strangers += other
            assert torch.isclose(result["own"][i, other[0]], 1 - kept, atol=1e-15)
            rows, cols = (taken.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
            assert taken.sum() == len(rows) * len(cols)  # one full rectangle
            for places, step in ((rows, steps[0]), (cols, steps[1])):
                assert places[-1] - places[0] + 1 == len(places)
                assert places[0] % step == 0
                assert len(places) % step == 0
    assert len(strangers) > 20
    assert len(set(strangers)) == len(strangers)


def test_rectangles_are_sized_by_lambda_and_centred_anywhere() -> None:
    """With lambda = 1/2 the sides are 0.7071 of the image's; a cell is hit as often as the clipped window allows."""
    size, length = 40, 28
    hits, sides = torch.zeros(size, size), set()
    for seed in range(60):
        mixed, _ = cutmix(index_images(30, size, size), {}, HALVES, generator=seeded(seed))
        taken = mixed[:, 0] != torch.arange(30.0).double()[:, None, None]
        met = taken.flatten(1).any(dim=1)
        hits += taken[met].float().mean(dim=0)
        sides.add(int(taken.any(dim=1).sum(dim=1).max()))
    assert sides == {length}
    centre = torch.arange(size)
    window = [((centre - 14 <= y) & (y < centre + 14)).float().mean() for y in range(size)]
    expected = torch.stack(window)
    assert torch.allclose(hits / 60, expected[:, None] * expected, atol=0.06)


def test_cutmix_mixes_scalars_in_grams_shares_by_mass_and_classes_by_area() -> None:
    torch.manual_seed(12)
    grams, shares = torch.rand(9) * 200, torch.randn(9, 3).softmax(dim=1)
    targets = {
        **ratio_targets(grams.tolist(), shares.tolist()),
        "state": torch.randint(0, 4, (9,)),
        "own": torch.eye(9),
    }
    own = Task("own", dim=9)
    mixed, result = cutmix(
        index_images(9, 64, 96),
        targets,
        1.0,
        tasks=[*RATIO, STATE, own],
        compositions=[PARTS],
        patch_size=16,
        generator=seeded(1),
    )
    partner, kept = read_back(result["own"])
    counted = (mixed[:, 0] == torch.arange(9.0)[:, None, None]).double().mean(dim=(1, 2))
    assert torch.allclose(kept, counted, atol=1e-7)
    assert len(set(counted.tolist())) > 2
    transform = RATIO[0].transform
    assert transform is not None
    total = transform.inverse(result["total"])
    assert torch.allclose(total, blended(grams.double()[:, None], partner, kept), rtol=1e-6)
    parts = blended(grams.double()[:, None] * targets["ratio"], partner, kept)
    assert torch.allclose(total * result["ratio"], parts, rtol=1e-5)
    assert torch.allclose(result["state"].double(), blended(F.one_hot(targets["state"], 4), partner, kept), atol=1e-6)


def test_maps_and_their_masks_are_pasted_by_the_same_rectangle() -> None:
    torch.manual_seed(13)
    images = index_images(12, 64, 96)
    soft = F.one_hot(images[:, 0].long(), 12).movedim(-1, 1).float()
    cells, halves, pixels = images[:, :1, ::16, ::16].clone(), images[:, :, ::8, ::8], images[:, 0].long()
    pixels[3, :5] = -1
    cells[2, 0, 1, 1] = math.nan
    tasks = [
        Task("cells", kind="dense"),
        Task("halves", dim=3, kind="dense"),
        Task("cover", dim=12, kind="segmentation"),
    ]
    weight, whole = torch.rand(12, 4, 6), torch.arange(12) % 4 > 0
    mixed, result, masks = cutmix(
        images,
        {"cells": cells, "halves": halves, "cover": pixels},
        1.0,
        tasks=tasks,
        masks={"cells": weight, "halves": whole, "cover": pixels >= 0},
        patch_size=16,
        generator=seeded(4),
    )
    source = mixed[:, 0].long()
    assert (source != images[:, 0]).any()
    coarse = source[:, ::16, ::16]
    rows = torch.arange(4)[None, :, None], torch.arange(6)
    assert torch.equal(result["cells"][:, 0].nan_to_num(-9), cells[coarse, 0, *rows].nan_to_num(-9))
    assert torch.equal(masks["cells"], weight[coarse, *rows])
    assert torch.equal(result["halves"], mixed[:, :, ::8, ::8])
    expected = torch.where((source == 3) & (images[:, 1] < 5), -1, source)
    assert result["cover"].dtype == torch.int64
    assert torch.equal(result["cover"], expected)
    assert torch.equal(masks["cover"], expected >= 0)
    partner = torch.stack([(row[row != i] if (row != i).any() else row)[0] for i, row in enumerate(source.flatten(1))])
    touched = (partner != torch.arange(12)).nonzero()[:, 0]
    assert torch.equal(masks["halves"][touched], (whole & whole[partner])[touched])
    plain = cutmix(images, {"cells": cells, "soft": soft}, 1.0, patch_size=16, generator=seeded(4))[1]
    assert torch.equal(plain["cells"].nan_to_num(-9), result["cells"].nan_to_num(-9))
    assert torch.equal(plain["soft"].argmax(dim=1), source)


def test_a_rectangle_never_cuts_a_cell() -> None:
    images = torch.zeros(2, 3, 64, 96)
    options: dict[str, Any] = {"tasks": [Task("ndvi", kind="dense")]}
    cells = torch.zeros(2, 1, 4, 6)
    with pytest.raises(ShapeError, match=r"'ndvi' has 4x6 cells .* 64x96 px.*whole 1x1 px.*patch_size.*16x16"):
        cutmix(images, {"ndvi": cells}, 1.0, **options)
    with pytest.raises(ShapeError, match="whole 8x8 px"):
        cutmix(images, {"ndvi": cells}, 1.0, patch_size=8, **options)
    with pytest.raises(ShapeError, match="5x6 cells"):
        cutmix(images, {"ndvi": cells[:, :, [0, 1, 2, 3, 3]]}, 1.0, patch_size=16, **options)
    with pytest.raises(ShapeError, match=r"the mask of 'ndvi' has 4x6 cells"):
        cutmix(images, {"ndvi": torch.zeros(2, 1, 64, 96)}, 1.0, masks={"ndvi": cells[:, 0]}, **options)
    with pytest.raises(GridError, match="96 % 14"):
        cutmix(images, {}, 1.0, patch_size=14)
