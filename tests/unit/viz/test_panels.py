"""Pictures: the right cell has the right colour."""

from __future__ import annotations

import numpy as np
import pytest

from dinoneck import DataError, ShapeError, Task
from dinoneck.viz import heat, prediction_panels


def test_low_is_dark_and_high_is_yellow_at_their_places() -> None:
    values = np.zeros((3, 5))
    values[1, 4] = 2.0
    pixels = np.asarray(heat(values, 0.0, 2.0))
    assert pixels.shape == (3, 5, 3)
    assert pixels[1, 4].tolist() == [253, 231, 37]
    assert pixels[0, 0].tolist() == [68, 1, 84]
    brightness = np.asarray(heat(np.linspace(0, 1, 50)[None], 0, 1)).astype(int).sum(axis=-1)[0]
    assert (np.diff(brightness) >= 0).all()
    assert np.asarray(heat(np.full((2, 2), 7.0), 7.0, 7.0)).shape == (2, 2, 3)


@pytest.mark.parametrize("values", [np.zeros(3), np.full((2, 2), np.nan)])
def test_what_is_no_map_is_refused(values: np.ndarray) -> None:
    with pytest.raises((DataError, ShapeError), match="heat map"):
        heat(values, 0, 1)


def test_panels_show_image_and_maps_next_to_each_other() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[..., 0] = 255
    results = [{"a": 1.5, "b": 2.0, "maps": {"a": np.eye(2)[None], "b": np.ones((1, 2, 2))}}] * 2
    sheet = prediction_panels([image, image], results, units={"a": "g"}, truths=[{"a": 1.0}, {"a": 2.0}], width=40)
    assert sheet.size == (3 * 40 + 2 * 6 + 2 * 6, 2 * (20 + 20) + (20 + 10) + 4 * 6)
    pixels = np.asarray(sheet)
    bar = pixels[-6 - 5]
    assert bar[6 + 40 + 6].tolist() == [68, 1, 84]
    assert bar[6 + 40 + 6 + 39].tolist() == [253, 231, 37]
    assert pixels[6 + 20 + 10, 6 + 20].tolist() == [255, 0, 0]
    left = 6 + 40 + 6
    assert pixels[6 + 20 + 5, left + 10].tolist() == [253, 231, 37]
    assert pixels[6 + 20 + 5, left + 30].tolist() == [68, 1, 84]
    for broken in ([{"a": 1.0}], []):
        with pytest.raises(DataError, match="maps=True"):
            prediction_panels([image], broken)


def test_cells_below_the_minimum_of_a_task_are_drawn_at_it() -> None:
    image, task = np.zeros((10, 40, 3), np.uint8), Task("a", unit="g", minimum=0)
    below, above = ({"a": 1.0, "maps": {"a": np.array([[[low, 2.0]]])}} for low in (-58.0, 0.0))
    clipped, plain = (prediction_panels([image], [one], width=280, tasks=[task]) for one in (below, above))
    maps = slice(6 + 20, 6 + 20 + 70)
    assert (np.asarray(clipped)[maps] == np.asarray(plain)[maps]).all()
    assert (np.asarray(clipped) != np.asarray(plain)).any(), "the bar states that cells were clipped"
