"""Where tiles lie, what a tiled image predicts, and how many images a pass holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests import kit

from dinoneck import Backbone, DenseHead, GridSize, PatchMeanHead, Predictor, TargetTransform, Task
from dinoneck.data import Preprocessing
from dinoneck.heads import LinearHead
from dinoneck.inference.tiles import Tiling
from dinoneck.tasks import Activation


def starts(total: int, length: int, overlap: int | float) -> tuple[int, ...]:
    """The first patches of the tiles that cover an axis of an image."""
    [rows, _] = Tiling((length, length), overlap).axes(GridSize(total, 1), Preprocessing(1))
    return rows.starts


@pytest.mark.parametrize(
    ("length", "share", "patches"),
    [
        pytest.param(25, 0.28, 7, id="0.28 of 25"),
        pytest.param(100, 0.07, 7, id="0.07 of 100"),
        pytest.param(50, 0.14, 7, id="0.14 of 50"),
    ],
)
def test_an_overlap_that_is_a_share_counts_whole_patches_despite_rounding(
    length: int, share: float, patches: int
) -> None:
    """``share * length`` is a little more than ``patches`` in floating point."""
    total = 2 * length - patches

    assert starts(total, length, share) == (0, length - patches)


def test_an_overlap_that_is_no_whole_patch_is_rounded_up() -> None:
    assert starts(16, 10, 0.31) == (0, 6)
    assert len(starts(17, 10, 0.31)) == 3


@pytest.mark.parametrize(
    ("total", "length", "overlap"),
    [
        pytest.param(17, 8, 2, id="three tiles"),
        pytest.param(50, 12, 3, id="six tiles"),
        pytest.param(31, 30, 0, id="two tiles, one cell apart"),
    ],
)
def test_tiles_are_spread_evenly(total: int, length: int, overlap: int) -> None:
    steps = np.diff(starts(total, length, overlap))

    assert steps.max() - steps.min() <= 1


def test_a_number_with_a_logarithm_is_the_mean_over_tiles_of_what_the_head_answers(
    tiny: Backbone,
) -> None:
    """The mean over the map would be another number: the logarithm is not linear."""
    task = Task("mass", transform=TargetTransform(log1p=True, mean=2.0, std=1.5))
    head = kit.randomised(PatchMeanHead(64, [task], hidden_dim=8)).eval()
    image = kit.images(1, 32, 96)[0]

    [tiled] = Predictor(head, tiny, tile=(32, 48))(image, maps="patch")

    halves = Predictor(head, tiny)([image[..., :48], image[..., 48:]])
    assert tiled["mass"] == pytest.approx((halves[0]["mass"] + halves[1]["mass"]) / 2, rel=1e-5)
    assert tiled["mass"] != pytest.approx(float(tiled["maps"]["mass"].mean()), rel=1e-3)


@pytest.mark.parametrize("activation", [None, "softplus"])
def test_a_number_of_the_mean_patch_is_the_mean_of_the_joined_map_if_it_is_linear(
    tiny: Backbone, activation: Activation | None
) -> None:
    """Of two tiles that overlap by half, the joined map counts the shared patches once."""
    task = Task("mass", activation=activation, transform=TargetTransform(mean=2.0, std=1.5))
    head = kit.randomised(LinearHead(64, [task], pool="mean")).eval()
    image = kit.images(1, 32, 96)[0]

    [tiled] = Predictor(head, tiny, tile=(32, 64), overlap=0.5)(image, maps="patch")

    parts = Predictor(head, tiny)([image[..., :64], image[..., 32:]])
    mean_of_map = pytest.approx(float(tiled["maps"]["mass"].mean()), rel=1e-5)
    mean_of_tiles = pytest.approx((parts[0]["mass"] + parts[1]["mass"]) / 2, rel=1e-5)
    is_linear = activation is None
    assert (tiled["mass"] == mean_of_map) is is_linear
    assert (tiled["mass"] == mean_of_tiles) is not is_linear


@pytest.mark.parametrize(
    "resized",
    [
        pytest.param({"resize": "crop"}, id="crop"),
        pytest.param({"resize": "pad"}, id="pad"),
        pytest.param({"resize": "pad", "pad_to": "center"}, id="pad to the centre"),
        pytest.param({"resize": "keep"}, id="keep"),
    ],
)
def test_a_tiled_image_is_stretched_to_whole_patches_so_that_every_pixel_counts(
    resized: dict[str, Any], blind: Backbone
) -> None:
    """61 px are one more than a tile of 60 px: neither cut off nor padded."""
    head = DenseHead(64, [Task("height", kind="dense")], hidden_dim=8, depth=0).eval()
    recipe = blind.preprocess.changed(size=(32, 48), **resized)
    image = kit.images(1, 61, 180)[0]

    [tiled] = Predictor(head, blind, preprocess=recipe, tile=(60, 90))(image, maps="patch")

    stretched = blind.preprocess.changed(size=(32, 96), resize="stretch")
    [whole] = Predictor(head, blind, preprocess=stretched)(image, maps="patch")
    assert kit.same(tiled["maps"], whole["maps"], 1e-6)


@pytest.mark.parametrize(
    ("tta", "images", "passes"),
    [
        pytest.param("none", 4, [4], id="one view"),
        pytest.param("flip4", 2, [4, 4], id="four flips"),
        pytest.param("d6", 4, [4] * 6, id="flips and turns"),
        pytest.param("flip4", 3, [3] * 4, id="one view at a time"),
    ],
)
def test_batch_size_limits_the_images_of_a_pass_with_all_their_views(
    tta: Any, images: int, passes: list[int], tiny: Backbone
) -> None:
    predictor = Predictor(kit.head(), tiny, tta=tta, batch_size=4)
    sizes: list[int] = []
    hook = predictor.passes[0].backbone.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )

    predictor(list(kit.images(images, 32, 32)))

    hook.remove()
    assert sizes == passes


def test_tiles_of_one_image_go_through_the_backbone_in_batches(tiny: Backbone) -> None:
    predictor = Predictor(kit.head(), tiny, tile=32, batch_size=4)
    sizes: list[int] = []
    hook = predictor.passes[0].backbone.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )

    predictor(torch.rand(3, 64, 96))

    hook.remove()
    assert sizes == [4, 2]


def constant_head(value: float) -> PatchMeanHead:
    """Predicts one value of every patch, before the minimum."""
    head = PatchMeanHead(64, [Task("mass", minimum=0.0)], hidden_dim=8)
    torch.nn.init.zeros_(head.mlps[0].out.weight)
    torch.nn.init.constant_(head.mlps[0].out.bias, value)
    return head


def test_a_minimum_is_applied_to_each_member_without_tiles_and_to_the_map_with_them(
    tiny: Backbone,
) -> None:
    members = [constant_head(-5.0), constant_head(1.0)]
    image = torch.rand(3, 32, 32)

    whole = Predictor(members, tiny).one(image)
    tiled = Predictor(members, tiny, tile=16).one(image, maps="patch")

    assert whole["mass"] == 0.5
    assert tiled["mass"] == 0.0
    assert np.all(tiled["maps"]["mass"] == -2.0)
