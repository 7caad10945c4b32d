"""Augmentation patterns: which they are, what they do to pixels, and that they do it again."""

from __future__ import annotations

import colorsys
import json

import numpy as np
import pytest
import torch

from dinoneck.data import Views
from dinoneck.data.views import CHANGES, draws

COLOUR = Views.named("color20")
PINNED_BRIGHTNESS = {"brightness": 1.0292827613172169}
PINNED_HSV = {"brightness": 0.9986779439676288, "saturation": 0.9484204407513458, "hue": 0.0010315976600764679}
SET = [["brightness"], ["contrast"], ["brightness", "saturation", "hue"], ["gamma"]]


def image(seed: int = 0, height: int = 9, width: int = 7) -> torch.Tensor:
    """Random colours with a black, a white and a grey pixel, and pure ones."""
    x = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    x[:, 0, :6] = torch.tensor([[0, 1, 0.5, 1, 0, 0], [0, 1, 0.5, 0, 1, 0], [0, 1, 0.5, 0, 0, 1.0]])
    return x


def plain(x: torch.Tensor, drawn: dict[str, float]) -> np.ndarray:
    """Every change in fp64, written out."""
    y = x.double().numpy()
    grey = 0.2989 * y[0] + 0.587 * y[1] + 0.114 * y[2]
    if "brightness" in drawn:
        y = np.clip(y * drawn["brightness"], 0, 1)
    if "contrast" in drawn:
        y = np.clip(grey.mean() + (y - grey.mean()) * drawn["contrast"], 0, 1)
    if "saturation" in drawn:
        grey = 0.2989 * y[0] + 0.587 * y[1] + 0.114 * y[2]
        y = np.clip(grey + (y - grey) * drawn["saturation"], 0, 1)
    if "hue" in drawn:
        for r, c in np.ndindex(*y.shape[1:]):
            h, s, v = colorsys.rgb_to_hsv(*y[:, r, c])
            y[:, r, c] = colorsys.hsv_to_rgb((h + drawn["hue"]) % 1.0, s, v)
    return y ** drawn["gamma"] if "gamma" in drawn else y


def test_the_twenty_patterns_in_their_order() -> None:
    assert [len(Views.named(name)) for name in ("none", "flips4", "color20")] == [1, 4, 20]
    flips = [(False, False), (True, False), (False, True), (True, True)]
    assert [COLOUR.flips(i) for i in range(20)] == flips + [flip for flip in flips for _ in range(4)]
    for i, record in enumerate(COLOUR.record()):
        assert [name for name in record if name in CHANGES] == ([] if i < 4 else SET[i % 4])
    little = (1 - 20 / 255, 1 + 20 / 255)
    assert COLOUR.record()[6] == {"brightness": little, "saturation": little, "hue": (-20 / 360, 20 / 360)}
    assert COLOUR.record()[:2] == [{}, {"horizontal": True}]
    ranges = [COLOUR.views[i] for i in (4, 5, 7)]
    assert (ranges[0].brightness, ranges[1].contrast, ranges[2].gamma) == ((0.8, 1.2),) * 3


def test_flips_are_exact_and_the_given_image_stays_as_it_is() -> None:
    x = image()
    kept = x.clone()
    expected = [x, x.flip(-1), x.flip(-2), x.flip(-1, -2)]
    for i, flipped in enumerate(expected):
        found = COLOUR.apply(x, i, "a")
        assert torch.equal(found, flipped)
        found.zero_()
        assert torch.equal(x, kept)


@pytest.mark.parametrize("i", [4, 9, 14, 19])  # one of each change, each flip
def test_every_pattern_equals_its_plain_formulation(i: int) -> None:
    """Flip first, then the colour: the flipped image, changed pixel by pixel in fp64 by what was drawn."""
    x = image(i)
    drawn = draws(COLOUR.views[i], i, "field/7")
    assert list(drawn) == SET[i % 4]
    found = COLOUR.apply(x, i, "field/7")
    assert found.shape == x.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    horizontal, vertical = COLOUR.flips(i)
    turned = x.flip([axis for axis, on in ((-1, horizontal), (-2, vertical)) if on])
    np.testing.assert_allclose(found.numpy(), plain(turned, drawn), atol=2e-6)
    assert not torch.equal(found, turned)


def test_draws_repeat_and_depend_on_image_and_pattern() -> None:
    x = image()
    torch.manual_seed(1)
    first = COLOUR.apply(x, 6, "a")
    torch.manual_seed(2)
    assert torch.equal(first, COLOUR.apply(x, 6, "a"))
    assert not torch.equal(first, COLOUR.apply(x, 6, "b"))
    bright = [draws(COLOUR.views[i], i, "a")["brightness"] for i in (4, 8, 12, 16)]
    assert len(set(bright)) == 4
    before = torch.get_rng_state()
    COLOUR.apply(x, 6, "a")
    assert torch.equal(before, torch.get_rng_state())


def test_draws_are_the_same_on_every_machine() -> None:
    """Pinned: another number here would give a store other pixels than those it was begun with."""
    assert draws(COLOUR.views[4], 4, "field/0001") == PINNED_BRIGHTNESS
    assert draws(COLOUR.views[14], 14, "Weide/ä") == PINNED_HSV


def test_records_rebuild_and_differ_between_lists() -> None:
    record = json.loads(json.dumps(COLOUR.record()))
    assert Views(record) == COLOUR and hash(Views(record)) == hash(COLOUR)
    record[7]["gamma"][1] = 1.25
    assert Views(record) != COLOUR != Views.named("flips4")
    assert Views(record).record() != COLOUR.record()
