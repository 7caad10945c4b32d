"""The maps of a linear layer on the mean patch: the layer on every patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import kit
from torch.testing import assert_close

from dinoneck import CLSGatingHead, HeadEnsemble, PatchMeanHead, TargetTransform, Task, Tokens
from dinoneck.heads import LinearHead

WIDTH = 8
TOKENS = Tokens.from_patches(
    torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0)),
    grid=(2, 3),
    patch_size=16,
    cls_token=torch.zeros(2, WIDTH),
)
# of grams on a quadrat of 0.21 m²
TRANSFORM = TargetTransform(area=0.21, mean=50.0, std=20.0)


def linear(*tasks: Task, **options: Any) -> LinearHead:
    return kit.randomised(LinearHead(WIDTH, list(tasks), pool="mean", **options)).eval()


def test_a_map_is_the_layer_on_every_patch_in_original_units() -> None:
    head = linear(Task("mass", dim=2, transform=TRANSFORM))
    layer = head.readouts[0]
    weight, bias = layer.weight.double(), layer.bias.double()
    patches = TOKENS.patches[0].double()
    # (B, N, 2) in g: z-scores of g/m², times the area
    expected = ((patches @ weight.T + bias) * 20.0 + 50.0) * 0.21

    cells = head.predict_maps(TOKENS)["mass"]

    assert cells.shape == (2, 2, 2, 3)
    assert_close(cells.double(), expected.mT.reshape(2, 2, 2, 3), rtol=1e-5, atol=1e-5)


def test_the_mean_of_a_map_is_the_number() -> None:
    head = linear(Task("mass", transform=TRANSFORM), Task("rest", dim=3))

    maps = head.predict_outputs(TOKENS, with_maps=True).maps

    for name, value in head.predict(TOKENS).items():
        assert_close(maps[name].mean(dim=(2, 3)), value, rtol=1e-5, atol=1e-5)


def test_numbers_are_the_same_with_and_without_maps() -> None:
    head = linear(Task("mass", transform=TRANSFORM), Task("rest", dim=3))

    values = head.predict_outputs(TOKENS, with_maps=True).values

    assert kit.same(values, head.predict(TOKENS))


def test_without_an_affine_transform_a_cell_is_what_an_image_of_this_patch_would_have() -> None:
    """As in PatchMeanHead: the mean of such a map is not the number."""
    transform = TargetTransform(log1p=True, mean=1.0, std=0.5)
    tasks = Task("mass", transform=transform), Task("mix", dim=3, kind="ratio")
    head = linear(*tasks)

    maps = head.predict_maps(TOKENS)

    for row, col in ((0, 0), (1, 2)):
        patch = TOKENS.patches[0][:, 3 * row + col][:, None]
        of_patch = head.predict(Tokens.from_patches(patch, grid=(1, 1), patch_size=16))
        for name, value in of_patch.items():
            assert_close(maps[name][:, :, row, col], value)
    assert (maps["mass"].mean(dim=(2, 3)) - head.predict(TOKENS)["mass"]).abs().max() > 0.1


def test_a_map_is_not_cut_off_at_the_minimum() -> None:
    head = linear(Task("mass", minimum=0.0))

    cells = head.predict_maps(TOKENS)["mass"]

    assert cells.min() < 0
    assert_close(cells.mean(dim=(2, 3)).clamp_min(0.0), head.predict(TOKENS)["mass"])


@pytest.mark.parametrize("pool", ["cls", "cls+mean"])
def test_a_layer_that_reads_the_cls_token_has_no_map(pool: Any) -> None:
    head = LinearHead(WIDTH, [Task("mass")], pool=pool).eval()
    assert head.predict_outputs(TOKENS, with_maps=True).maps == {}
    assert head.predict_maps(TOKENS) == {}


def test_the_map_of_an_average_is_the_mean_of_both_maps() -> None:
    task = Task("mass")
    head = kit.randomised(PatchMeanHead(WIDTH, [task]), seed=1).eval()
    layer = linear(task)
    average = HeadEnsemble([head, layer]).eval()

    cells = average.predict_maps(TOKENS)["mass"]

    of_members = [member.predict_maps(TOKENS)["mass"] for member in (head, layer)]
    assert_close(cells, sum(of_members) / 2)
    assert_close(cells.mean(dim=(2, 3)), average.predict(TOKENS)["mass"], rtol=1e-5, atol=1e-5)
    assert torch.equal(average.predict_outputs(TOKENS, with_maps=True).maps["mass"], cells)


def test_an_average_with_a_head_without_maps_does_not_show_that_of_the_layer_alone() -> None:
    task = Task("mass")
    gating = kit.randomised(CLSGatingHead(WIDTH, [task], num_patches=6)).eval()
    layers = HeadEnsemble([linear(task), linear(Task("rest"))])

    average = HeadEnsemble([gating, layers]).eval()

    assert average.predict_maps(TOKENS).keys() == {"rest"}
    assert average.predict_outputs(TOKENS, with_maps=True).maps.keys() == {"rest"}
