"""Panels: every cell lies over its patch in the colour of its value; boxes are drawn at their coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw

from dinoneck import Tokens
from dinoneck.data import Preprocessing
from dinoneck.viz import boxes_panel, heat, pca_panels, pca_rgb
from dinoneck.viz.style import PALETTE

WIDTH = 320  # of one picture
BOXES = np.array([[90.0, 180.0, 360.0, 450.0], [540.0, 45.0, 810.0, 270.0]])


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into pictures."""
    written: list[str] = []
    write = ImageDraw.ImageDraw.text

    def keep(self: Any, place: Any, text: str, *more: Any, **how: Any) -> None:
        written.append(text)
        write(self, place, text, *more, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", keep)
    return written


def picture(sheet: Image.Image, column: int, size: tuple[int, int]) -> np.ndarray:
    """The pixels of one picture of a sheet, 0 ... 1; ``size`` is (height, width) of the images."""
    height = round(WIDTH * size[0] / size[1])
    pixels = np.asarray(sheet, float) / 255.0
    is_white = (pixels == 1.0).all(axis=(1, 2))
    left = 6 + column * (WIDTH + 6)
    [top] = [y for y in range(1, len(pixels) - height + 1) if is_white[y - 1] and not is_white[y : y + height].any()]
    return pixels[top : top + height, left : left + WIDTH]


def check_cells(seen: np.ndarray, expected: np.ndarray) -> None:
    """Cell (r, c) of ``expected`` (rows, cols, 3) fills exactly its part of the picture."""
    rows, cols = expected.shape[:2]
    for r in range(rows):
        for c in range(cols):
            for down in (0.06, 0.5, 0.94):
                for along in (0.06, 0.5, 0.94):
                    place = int((r + down) * seen.shape[0] / rows), int((c + along) * seen.shape[1] / cols)
                    np.testing.assert_allclose(seen[place], expected[r, c], atol=2.5 / 255, err_msg=f"{(r, c)}")


def test_low_is_dark_and_high_is_yellow_at_their_places() -> None:
    values = np.zeros((3, 5))
    values[1, 4] = 2.0
    pixels = np.asarray(heat(values, 0.0, 2.0))
    assert pixels.shape == (3, 5, 3)
    assert pixels[1, 4].tolist() == [253, 231, 37]
    assert pixels[0, 0].tolist() == [68, 1, 84]
    assert np.asarray(heat(np.full((2, 2), 7.0), 7.0, 7.0)).shape == (2, 2, 3)


def test_features_of_a_padded_image_lie_over_its_patches(texts: list[str]) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    recipe = Preprocessing(size=(64, 96), resize="pad")
    seen = recipe.picture(colours.repeat(16, axis=0).repeat(16, axis=1))
    means = seen.unfold(1, 16, 16).unfold(2, 16, 16).mean(dim=(-1, -2))  # what a patch shows, as a feature
    tokens = Tokens.from_patches(means[None].flatten(2).mT, grid=(4, 6), patch_size=16, layers=[11])
    sheet = pca_panels(seen, tokens)
    expected = np.concatenate([colours / 255.0, np.broadcast_to(recipe.mean, (4, 3, 3))], axis=1)
    check_cells(picture(sheet, 0, (64, 96)), expected)
    check_cells(picture(sheet, 1, (64, 96)), pca_rgb(tokens)[0])
    assert any("block 11" in text for text in texts)


# -- boxes -----------------------------------------------------------------------------------------------


def hues(sheet: Image.Image, box: np.ndarray) -> list[list[int]]:
    """The colour of a box's four edges, 1 pixel inside, in the middle of each."""
    x0, y0, x1, y1 = box.astype(int).tolist()
    pixels = np.asarray(sheet)
    middle = (x0 + x1) // 2, (y0 + y1) // 2
    places = ((middle[1], x0 + 1), (middle[1], x1 - 1), (y0 + 1, middle[0]), (y1 - 1, middle[0]))
    return [pixels[place].tolist() for place in places]


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_edges_lie_at_the_coordinates(scale: float) -> None:
    side = round(900 * scale), round(540 * scale)
    sheet = boxes_panel(np.full((side[1], side[0], 3), 128, np.uint8), {"boxes": BOXES * scale, "labels": [0, 1]},
                        classes=("cell", "clot"))  # fmt: skip
    assert sheet.size == (900, 540)
    first, second = ({tuple(hue) for hue in hues(sheet, box)} for box in BOXES)
    assert len(first) == len(second) == 1 and first != second, "every class has one colour"
    assert np.asarray(sheet)[315, 225].tolist() == [128, 128, 128], "the inside stays"


def test_boxes_have_their_class_and_score(texts: list[str]) -> None:
    image = np.zeros((540, 900, 3), np.uint8)
    detection = {"boxes": torch.from_numpy(BOXES), "labels": torch.tensor([1, 0]), "scores": torch.tensor([0.5, 0.25])}
    boxes_panel(image, detection, classes=("cell", "clot"))
    assert texts == ["clot 0.50", "cell 0.25"]
    texts.clear()
    boxes_panel(image, {"boxes": BOXES, "names": ["clot", "<b>\x07"], "scores": [0.5, 0.25]})
    assert texts == ["clot 0.50", r"<b>\x07 0.25"]
    texts.clear()
    many = {"boxes": np.tile(BOXES, (50, 1)), "labels": [0, 1] * 50}
    boxes_panel(image, many, classes=("cell", "clot"))
    assert texts == ["cell", "clot"], "many boxes have a list of classes instead of labels"


def test_known_boxes_show_on_any_ground() -> None:
    for shade in (0, 255):
        image = np.full((540, 900, 3), shade, np.uint8)
        known = np.asarray(boxes_panel(image, np.zeros((0, 4)), {"boxes": BOXES}))
        shades = {tuple(colour) for colour in known[300, 85:100].tolist()}
        assert {(0, 0, 0), (255, 255, 255)} <= shades
        predicted = np.asarray(boxes_panel(image, BOXES[:1], BOXES[1:]))
        assert (predicted[300, 85:100] != known[300, 85:100]).any(), "predicted boxes look different"


def edge(sheet: Image.Image, box: np.ndarray) -> np.ndarray:
    """The pixels across the left edge of a box, (12 lines, 9 pixels around the edge, 3)."""
    x0, y0 = box[:2].astype(int).tolist()
    return np.asarray(sheet)[y0 + 40 : y0 + 72, x0 - 4 : x0 + 5].astype(int)


def test_found_boxes_are_thick_false_ones_thin_and_missed_ones_dashed() -> None:
    image, far = np.full((540, 900, 3), 128, np.uint8), np.array([[400.0, 300.0, 500.0, 500.0]])
    known = {"boxes": np.concatenate([BOXES, far]), "names": ["cell", "cell", "clot"]}
    shifted = BOXES + 5.0  # an IoU above 0.9
    sheet = boxes_panel(image, {"boxes": shifted, "names": ["cell", "clot"]}, known)
    grey, shades = np.array([128, 128, 128]), [tuple(ImageColor.getrgb(colour)) for colour in PALETTE[:2]]
    widths = [(edge(sheet, box) == shade).all(axis=-1).sum(axis=1) for box, shade in zip(shifted, shades, strict=True)]
    assert (widths[0] == 3).all() and (widths[1] == 1).all(), "the clot is a cell: false"
    missed = edge(sheet, far[0])[:, 5, 0]  # along the middle of the line
    assert {*missed.tolist()} == {0, 255} and (np.diff(missed) != 0).sum() >= 3, "black dashes with white gaps"
    assert (edge(sheet, BOXES[1]) == 0).all(axis=-1).any(), "the cell is missed too"
    assert (edge(sheet, BOXES[0])[:, :4] == grey).all(), "what is found has no frame of its own"
    plain = boxes_panel(image, {"boxes": shifted, "names": ["cell", "clot"]}, {"boxes": BOXES})
    assert ((edge(plain, shifted[1]) == shades[1]).all(axis=-1).sum(axis=1) == 3).all(), "no classes are known"
