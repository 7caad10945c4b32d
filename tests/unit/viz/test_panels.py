"""Panels, overlays and scales: every cell lies over its patch in the colour of its value."""

from __future__ import annotations

import base64
import io
import math
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageDraw, TiffImagePlugin, TiffTags
from tests import kit

from dinoneck import Backbone, ConfigError, FPNHead, Predictor, Task, Tokens
from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.images.decoding import read_pixels
from dinoneck.inference import to_frame
from dinoneck.inference.results import table_row
from dinoneck.viz import boxes_panel, heat, overlay_panel, pca_panels, pca_rgb, style, write_maps
from dinoneck.viz.legends import colour_bar
from dinoneck.viz.overlay import map_pictures
from dinoneck.viz.panels import small_data_uri
from dinoneck.viz.pictures import label_corners
from dinoneck.viz.scales import Scale, outputs, scales, shown_cells
from dinoneck.viz.style import CLASSES, NODATA, PALETTE, class_colours

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
    [top] = [
        y
        for y in range(1, len(pixels) - height + 1)
        if is_white[y - 1] and not is_white[y : y + height].any()
    ]
    return pixels[top : top + height, left : left + WIDTH]


def check_cells(seen: np.ndarray, expected: np.ndarray) -> None:
    """Cell (r, c) of ``expected`` (rows, cols, 3) fills exactly its part of the picture."""
    rows, cols = expected.shape[:2]
    for r in range(rows):
        for c in range(cols):
            for down in (0.06, 0.5, 0.94):
                for along in (0.06, 0.5, 0.94):
                    place = (
                        int((r + down) * seen.shape[0] / rows),
                        int((c + along) * seen.shape[1] / cols),
                    )
                    np.testing.assert_allclose(
                        seen[place], expected[r, c], atol=2.5 / 255, err_msg=f"{(r, c)}"
                    )


def test_low_is_dark_and_high_is_yellow_at_their_places() -> None:
    values = np.zeros((3, 5))
    values[1, 4] = 2.0
    pixels = np.asarray(heat(values, 0.0, 2.0))
    assert pixels[1, 4].tolist() == [253, 231, 37]
    assert pixels[0, 0].tolist() == [68, 1, 84]
    assert np.asarray(heat(np.full((2, 2), 7.0), 7.0, 7.0)).shape == (2, 2, 3)


def test_features_of_a_padded_image_lie_over_its_patches(texts: list[str]) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    recipe = Preprocessing(size=(64, 96), resize="pad")
    seen = recipe.picture(colours.repeat(16, axis=0).repeat(16, axis=1))
    # what a patch shows, as a feature
    means = seen.unfold(1, 16, 16).unfold(2, 16, 16).mean(dim=(-1, -2))
    tokens = Tokens.from_patches(means[None].flatten(2).mT, grid=(4, 6), patch_size=16, layers=[11])
    sheet = pca_panels(seen, tokens)
    expected = np.concatenate([colours / 255.0, np.broadcast_to(recipe.mean, (4, 3, 3))], axis=1)
    check_cells(picture(sheet, 0, (64, 96)), expected)
    check_cells(picture(sheet, 1, (64, 96)), pca_rgb(tokens)[0])
    assert any("block 11" in text for text in texts)


def test_tokens_made_by_hand_have_a_caption_without_a_block(texts: list[str]) -> None:
    tokens = Tokens.from_patches(torch.rand(1, 6, 8), grid=(2, 3), patch_size=16)

    pca_panels(torch.rand(3, 32, 48), tokens)

    assert any(text.startswith("tokens ") for text in texts)
    assert not any("block" in text for text in texts)


def test_an_image_wider_than_its_picture_is_smoothed() -> None:
    """Of single black and white columns nothing is left but grey; the nearest pixel would be one of them."""
    stripes = np.tile(np.array([0, 255], np.uint8), (640, 480))[..., None].repeat(3, axis=2)
    tokens = Tokens.from_patches(torch.rand(1, 6, 8), grid=(2, 3), patch_size=320, layers=[1])

    sheet = pca_panels(stripes, tokens)

    seen = picture(sheet, 0, (640, 960))
    assert seen.min() > 0.3
    assert seen.max() < 0.7


def test_a_picture_that_cannot_be_small_enough_is_as_small_as_its_page_allows() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), np.uint8)

    uri = small_data_uri(Image.fromarray(noise), most_bytes=10)

    content = base64.b64decode(uri.partition("base64,")[2])
    assert Image.open(io.BytesIO(content)).size == (240, 160)


# -- boxes
# -----------------------------------------------------------------------------------------------


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
    sheet = boxes_panel(
        np.full((side[1], side[0], 3), 128, np.uint8),
        {"boxes": BOXES * scale, "labels": [0, 1]},
        classes=("cell", "clot"),
    )
    assert sheet.size == (900, 540)
    first, second = ({tuple(hue) for hue in hues(sheet, box)} for box in BOXES)
    assert len(first) == len(second) == 1 and first != second, "every class has one colour"
    assert np.asarray(sheet)[315, 225].tolist() == [128, 128, 128], "the inside stays"


def test_boxes_have_their_class_and_score(texts: list[str]) -> None:
    image = np.zeros((540, 900, 3), np.uint8)
    detection = {
        "boxes": torch.from_numpy(BOXES),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.5, 0.25]),
    }
    boxes_panel(image, detection, classes=("cell", "clot"))
    assert texts == ["clot 0.50", "cell 0.25"]
    texts.clear()
    boxes_panel(image, {"boxes": BOXES, "names": ["clot", "<b>\x07"], "scores": [0.5, 0.25]})
    assert texts == ["clot 0.50", r"<b>\x07 0.25"]
    texts.clear()
    many = {"boxes": np.tile(BOXES, (50, 1)), "labels": [0, 1] * 50}
    boxes_panel(image, many, classes=("cell", "clot"))
    assert texts == ["cell", "clot"], "many boxes have a list of classes instead of labels"


@pytest.fixture
def corners_of_texts(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """What is written into pictures -> where it begins."""
    corners: dict[str, tuple[float, float]] = {}

    def keep(self: Any, corner: Any, text: str, *more: Any, **how: Any) -> None:
        corners[text] = corner

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", keep)
    return corners


def boxes_of_classes(num_classes: int) -> dict[str, Any]:
    """Eighty boxes, of so many classes in turn."""
    names = [f"class {i % num_classes}" for i in range(80)]
    return {"boxes": np.tile(BOXES[1:], (80, 1)), "names": names}


def test_a_long_list_of_classes_has_several_columns(
    corners_of_texts: dict[str, tuple[float, float]],
) -> None:
    boxes_panel(np.zeros((540, 900, 3), np.uint8), boxes_of_classes(30))

    assert [*corners_of_texts] == [f"class {i}" for i in range(30)]
    lefts = {left for left, _ in corners_of_texts.values()}
    assert len(lefts) == 2
    assert max(top for _, top in corners_of_texts.values()) + style.LABEL_PX <= 540


def test_classes_that_do_not_fit_into_the_picture_are_counted(
    corners_of_texts: dict[str, tuple[float, float]],
) -> None:
    boxes_panel(np.zeros((90, 900, 3), np.uint8), boxes_of_classes(80))

    *listed, last = corners_of_texts
    assert last == f"and {80 - len(listed)} more"
    assert max(left for left, _ in corners_of_texts.values()) + 100 <= 900
    assert max(top for _, top in corners_of_texts.values()) + style.LABEL_PX <= 90


def test_known_boxes_show_on_any_ground() -> None:
    for shade in (0, 255):
        image = np.full((540, 900, 3), shade, np.uint8)
        known = np.asarray(boxes_panel(image, np.zeros((0, 4)), {"boxes": BOXES}))
        shades = {tuple(colour) for colour in known[300, 85:100].tolist()}
        assert {(0, 0, 0), (255, 255, 255)} <= shades
        predicted = np.asarray(boxes_panel(image, BOXES[:1], BOXES[1:]))
        assert (predicted[300, 85:100] != known[300, 85:100]).any(), (
            "predicted boxes look different"
        )


def edge(sheet: Image.Image, box: np.ndarray) -> np.ndarray:
    """The pixels across the left edge of a box, (12 lines, 9 pixels around the edge, 3)."""
    x0, y0 = box[:2].astype(int).tolist()
    return np.asarray(sheet)[y0 + 40 : y0 + 72, x0 - 4 : x0 + 5].astype(int)


def test_found_boxes_are_thick_false_ones_thin_and_missed_ones_dashed() -> None:
    image, far = np.full((540, 900, 3), 128, np.uint8), np.array([[400.0, 300.0, 500.0, 500.0]])
    known = {"boxes": np.concatenate([BOXES, far]), "names": ["cell", "cell", "clot"]}
    shifted = BOXES + 5.0  # an IoU above 0.9
    sheet = boxes_panel(image, {"boxes": shifted, "names": ["cell", "clot"]}, known)
    grey, shades = (
        np.array([128, 128, 128]),
        [tuple(ImageColor.getrgb(colour)) for colour in PALETTE[:2]],
    )
    widths = [
        (edge(sheet, box) == shade).all(axis=-1).sum(axis=1)
        for box, shade in zip(shifted, shades, strict=True)
    ]
    assert (widths[0] == 3).all() and (widths[1] == 1).all(), "the clot is a cell: false"
    missed = edge(sheet, far[0])[:, 5, 0]  # along the middle of the line
    assert {*missed.tolist()} == {0, 255} and (np.diff(missed) != 0).sum() >= 3, (
        "black dashes with white gaps"
    )
    assert (edge(sheet, BOXES[1]) == 0).all(axis=-1).any(), "the cell is missed too"
    assert (edge(sheet, BOXES[0])[:, :4] == grey).all(), "what is found has no frame of its own"
    plain = boxes_panel(image, {"boxes": shifted, "names": ["cell", "clot"]}, {"boxes": BOXES})
    assert ((edge(plain, shifted[1]) == shades[1]).all(axis=-1).sum(axis=1) == 3).all(), (
        "no classes are known"
    )


def test_boxes_of_a_class_that_the_truth_lacks_are_not_drawn_as_false() -> None:
    image = np.full((540, 900, 3), 128, np.uint8)
    predicted = {"boxes": BOXES, "names": ["cell", "clot"]}
    nothing = {"boxes": np.zeros((0, 4)), "names": [], "classes": ["cell"]}

    sheet = boxes_panel(image, predicted, nothing)

    widths = []
    for box, shade in zip(BOXES, PALETTE[:2], strict=True):
        is_line = (edge(sheet, box) == ImageColor.getrgb(shade)).all(axis=-1)
        widths.append({*is_line.sum(axis=1).tolist()})
    assert widths == [{1}, {3}], "the cell is false, and clots are not known"


def test_no_label_of_a_box_lies_on_another() -> None:
    random = np.random.default_rng(0)
    starts = random.uniform((0, 0), (800, 450), (40, 2))
    boxes = np.concatenate([starts, starts + random.uniform(30, 90, (40, 2))], axis=1)
    sizes = [(110.0, 26.0)] * 40

    corners = label_corners(boxes, sizes, (900, 540))

    placed = [corner for corner in corners if corner is not None]
    assert len(placed) > 20
    assert corners[0] == (boxes[0, 0] + 7, boxes[0, 1] + 4), "the first is inside its corner"
    for i, (left, top) in enumerate(placed):
        assert left >= 0 and top >= 0 and left + 110 <= 900 and top + 26 <= 540
        for other_left, other_top in placed[:i]:
            assert abs(left - other_left) >= 110 or abs(top - other_top) >= 26


def test_a_label_without_a_free_place_is_left_out() -> None:
    same = np.tile([[10.0, 10.0, 60.0, 40.0]], (9, 1))
    corners = label_corners(same, [(40.0, 26.0)] * 9, (900, 540))
    assert corners[0] == (17.0, 14.0)
    assert corners[-1] is None


LABELS = ("soil", "crop", "weed")


COVER = Task("cover", dim=3, kind="segmentation", labels=LABELS)


RECIPE = Preprocessing(16)


GREY = np.full((32, 64, 3), 100, np.uint8)


def left_crop_right_weed() -> np.ndarray:
    cells = np.zeros((3, 2, 4))
    cells[1, :, :2], cells[2, :, 2:] = 1, 1
    return cells


def drawn(
    task: Task, cells: np.ndarray, recipe: Preprocessing = RECIPE, image: Any = GREY, **options: Any
) -> np.ndarray:
    return np.asarray(overlay_panel(image, result(task, cells), [task], recipe, **options))


def test_classes_have_their_colours_and_the_ground_has_none() -> None:
    picture = drawn(COVER, left_crop_right_weed())
    assert picture.shape[0] > 600, "the legend is below"
    ground = 100 * 0.8 + 40
    for x, colour in ((100, CLASSES[0]), (1100, CLASSES[1])):
        expected = ground + 0.85 * (np.array(ImageColor.getrgb(colour)) - ground)
        assert np.abs(picture[300, x] - expected).max() <= 1
    soil = np.zeros((3, 2, 4))
    soil[0] = 1
    assert (drawn(COVER, soil)[:600] == 120).all()


def test_amounts_start_at_zero_and_pixels_that_were_not_seen_are_hatched() -> None:
    recipe = Preprocessing(16, size=(32, 32), resize="crop")
    picture = drawn(
        Task("mass", kind="density", unit="g"),
        np.ones((1, 2, 2)),
        recipe,
        np.zeros((32, 320, 3), np.uint8),
    )
    assert (picture[:120, :400] == NODATA).all(axis=2).mean() > 0.4
    assert not (picture[:120, 560:640] == NODATA).all(axis=2).any()
    assert len(np.unique(picture[:120, 560:640].reshape(-1, 3), axis=0)) == 1, (
        "one amount has one colour"
    )


def test_an_overlay_lists_the_labels_that_reach_their_thresholds(texts: list[str]) -> None:
    labels = ("crack", "moss", "rust")
    task = Task("tags", kind="multilabel", labels=labels, thresholds=(0.6, 0.2, 0.5))
    values = {"tags": np.array([0.55, 0.25, 0.9])}
    known = {"tags:crack": 1.0}

    overlay_panel(GREY, values, [task], RECIPE, known=known)
    assert texts == ["tags:", "moss 25 %", "rust 90 %", "crack 55 %, missed"]

    texts.clear()
    maps = {"maps": {"tags": np.full((3, 2, 4), 0.5)}}
    overlay_panel(GREY, values | maps, [task], RECIPE)
    assert texts[-3:] == ["tags:", "moss 25 %", "rust 90 %"]
    assert "tags:crack 55 %, absent" in texts

    texts.clear()
    overlay_panel(GREY, {"tags": np.zeros(3)}, [task], RECIPE)
    assert texts == ["tags: none"]


def test_an_overlay_shows_the_bounds_of_numbers_and_the_set_of_a_class(
    texts: list[str],
) -> None:
    kind = Task("kind", dim=2, kind="classification", labels=("bare", "crop"))
    tasks = [Task("mass", unit="g"), Task("parts", dim=2, labels=("a", "b")), kind]
    values = {"mass": 3.2, "parts": np.array([1.0, 2.0]), "kind": np.array([0.25, 0.75])}
    bounds = {
        "mass": (2.5, 4.1),
        "parts": (np.array([0.5, math.nan]), np.array([1.5, math.nan])),
    }

    result_of_image = values | {"interval": bounds, "set": {"kind": ["crop", "bare"]}}
    overlay_panel(GREY, result_of_image, tasks, RECIPE, known={"mass": 4.0})

    assert texts == [
        "kind: crop 75 % (among crop, bare)",
        "mass 3.2 (2.5 ... 4.1) g (true 4 g)",
        "parts:a 1 (0.5 ... 1.5)",
        "parts:b 2",
    ]
    texts.clear()
    overlay_panel(GREY, {"interval": 3.0}, [Task("interval")], RECIPE)
    assert texts == ["interval 3"]


KIND = Task("kind", dim=2, kind="classification", labels=("bare", "crop"))


def test_a_class_is_a_bar_as_long_as_it_is_probable_below_the_image_in_its_colours(
    texts: list[str],
) -> None:
    cells = np.zeros((2, 2, 4))
    cells[1] = 1.0
    values = {"kind": np.array([0.25, 0.75]), "maps": {"kind": cells}}
    image = np.full((32, 64, 3), (40, 90, 200), np.uint8)

    picture = np.asarray(overlay_panel(image, values, [KIND], RECIPE, known={"kind": "bare"}))

    assert (picture[:600] == (40, 90, 200)).all(), "the map of a class is not drawn"
    assert texts == ["kind: crop 75 %", "true bare"]
    bottom = picture[-2]
    orange = 255 + 0.45 * (np.array(ImageColor.getrgb(CLASSES[1])) - 255)
    assert np.abs(bottom[20:900] - orange).max() <= 1
    assert (bottom[900:] == style.BAR).all(), "1200 px are 100 %"


@pytest.mark.parametrize(
    ("true", "colour"), [("crop", style.RIGHT), ("bare", style.WRONG)], ids=["right", "wrong"]
)
def test_a_tick_or_a_cross_follows_the_true_class(true: str, colour: tuple[int, ...]) -> None:
    values = {"kind": np.array([0.1, 0.9])}

    picture = np.asarray(overlay_panel(GREY, values, [KIND], RECIPE, known={"kind": true}))

    mark = picture[600:, 1140:].reshape(-1, 3)
    other = style.WRONG if colour == style.RIGHT else style.RIGHT
    assert (mark == colour).all(axis=1).sum() > 50
    assert not (mark == other).all(axis=1).any()


def test_numbers_from_0_to_1_are_drawn_as_shares_in_one_picture(texts: list[str]) -> None:
    tasks = [Task(name, minimum=0, maximum=1) for name in ("crop", "weed", "soil")]
    cells = left_crop_right_weed()
    values = {"crop": 0.5, "weed": 0.5, "soil": 0.0}
    maps = {"crop": cells[1:2], "weed": cells[2:3], "soil": np.ones((1, 2, 4))}

    picture = np.asarray(
        overlay_panel(GREY, values | {"maps": maps}, tasks, RECIPE, known={"crop": 0.25})
    )

    assert texts == ["crop 50 % (true 25 %)", "weed 50 %", "soil 0 %"]
    # crop and weed are 1 in a half each; soil is 1 everywhere, and shows the grey image
    for x, colour in ((100, CLASSES[0]), (1100, CLASSES[1])):
        expected = 120 + 0.85 * (np.array(ImageColor.getrgb(colour)) - 120)
        assert np.abs(picture[300, x] - expected).max() <= 1


def test_numbers_from_0_to_1_that_overlap_are_next_to_each_other_in_full_strength(
    texts: list[str],
) -> None:
    tasks = [Task(name, minimum=0, maximum=1) for name in ("health", "cover")]
    maps = {name: np.full((1, 2, 4), 0.8) for name in ("health", "cover")}
    values = {"health": 0.8, "cover": 0.8, "maps": maps}

    picture = np.asarray(overlay_panel(GREY, values, tasks, RECIPE))

    assert texts == ["health 80 %", "cover 80 %"]
    opacity = 0.85 * 0.8**0.8
    for x, colour in ((300, CLASSES[0]), (900, CLASSES[1])):
        expected = 120 + opacity * (np.array(ImageColor.getrgb(colour)) - 120)
        assert np.abs(picture[150, x] - expected).max() <= 1
    assert picture.shape[0] < 450, "two maps of 600 x 300 px"


def test_numbers_from_0_to_1_that_overlap_have_a_picture_each_without_rows() -> None:
    """As in a report on a phone; soil has no colour, and so no picture."""
    tasks = [Task(name, minimum=0, maximum=1) for name in ("soil", "health", "cover")]
    maps = {task.name: np.full((1, 2, 4), 0.8) for task in tasks}

    pictures = map_pictures(GREY, {"maps": maps}, tasks, RECIPE, scale={})

    assert [drawing.name for drawing in pictures] == ["health", "cover"]
    opacity = 0.85 * 0.8**0.8
    for drawing, colour in zip(pictures, CLASSES, strict=False):
        expected = 120 + opacity * (np.array(ImageColor.getrgb(colour)) - 120)
        assert np.abs(np.asarray(drawing.picture)[300, 600] - expected).max() <= 1


def test_a_picture_without_its_legend_is_the_map_alone(texts: list[str]) -> None:
    cells = left_crop_right_weed()
    values = {"cover": cells.mean(axis=(1, 2)), "kind": np.array([0.2, 0.8]), "mass": 3.0}
    tasks = [COVER, Task("kind", dim=2, kind="classification"), Task("mass")]

    picture = overlay_panel(GREY, {**values, "maps": {"cover": cells}}, tasks, RECIPE, legend=False)

    assert texts == []
    assert picture.size == (1200, 600)


def test_parts_of_a_whole_without_a_map_beyond_twelve_are_counted(texts: list[str]) -> None:
    task = Task("parts", kind="ratio", dim=15)

    overlay_panel(GREY, {"parts": np.full(15, 1 / 15)}, [task], RECIPE)

    assert len(texts) == 13
    assert texts[-1] == "and 3 more"


def test_one_share_is_drawn_as_it_is_and_not_as_all_of_a_whole() -> None:
    task = Task("cover", kind="dense", shares=True)
    [output] = outputs([task])

    shown = shown_cells([output], np.array([[[0.25, 1.5, -1.0]]]))

    assert shown.tolist() == [[[0.25, 1.0, 0.0]]]


def test_the_bar_of_a_class_among_thousands_is_empty() -> None:
    task = Task("kind", dim=4000, kind="classification")

    picture = np.asarray(overlay_panel(GREY, {"kind": np.full(4000, 1 / 4000)}, [task], RECIPE))

    bar = picture[600:]
    colours_of_bar = {tuple(colour) for colour in bar[:4, 20:].reshape(-1, 3).tolist()}
    assert colours_of_bar == {style.BAR}


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(torch.full((32, 64), 100, dtype=torch.uint8), id="a tensor of two axes"),
        pytest.param(torch.full((1, 32, 64), 100, dtype=torch.uint8), id="a tensor of one channel"),
        pytest.param(np.full((32, 64), 100, np.uint8), id="an array of two axes"),
    ],
)
def test_a_grey_image_is_drawn_as_one_of_three_equal_channels(image: Any) -> None:
    cells = left_crop_right_weed()

    picture = drawn(COVER, cells, image=image)

    assert np.array_equal(picture, drawn(COVER, cells))


def test_an_index_without_a_map_is_a_number_and_not_percent(texts: list[str]) -> None:
    index = Task("ndvi", minimum=0, maximum=1)

    overlay_panel(GREY, {"ndvi": 0.8}, [index], RECIPE, known={"ndvi": 0.7})

    assert texts == ["ndvi 0.8 (true 0.7)"]


def test_every_number_without_a_map_is_listed(texts: list[str]) -> None:
    task = Task("bands", dim=15)

    overlay_panel(GREY, {"bands": np.arange(15.0)}, [task], RECIPE)

    assert texts == [f"bands:{i} {i}" for i in range(15)]


def test_shares_beyond_twelve_are_counted_in_the_legend(texts: list[str]) -> None:
    labels = tuple(f"c{i}" for i in range(15))
    task = Task("cover", kind="segmentation", dim=15, labels=labels)
    cells = np.full((15, 2, 4), 1 / 15)

    overlay_panel(
        GREY, {"cover": cells.mean(axis=(1, 2)), "maps": {"cover": cells}}, [task], RECIPE
    )

    assert len(texts) == 13
    assert texts[-1] == "and 3 more"


def test_a_long_class_is_wrapped_with_its_probability_in_a_portrait(texts: list[str]) -> None:
    labels = ("perennial ryegrass with white clover", "bare")
    task = Task("kind of pasture", dim=2, kind="classification", labels=labels)
    values = {"kind of pasture": np.array([0.75, 0.25])}
    portrait = np.full((64, 24, 3), 100, np.uint8)

    picture = overlay_panel(portrait, values, [task], RECIPE, known={"kind of pasture": "bare"})

    assert picture.width == 450
    assert " ".join(texts) == f"kind of pasture: {labels[0]} 75 % true bare"
    padding = style.CAPTION_PX // 2
    longest = max(style.font(style.CAPTION_PX).getlength(text) for text in texts)
    assert longest <= 450 - 3 * padding


def test_a_long_number_is_wrapped_with_the_true_one_in_a_portrait(texts: list[str]) -> None:
    task = Task("dry mass", unit="g per tuft")
    portrait = np.full((64, 24, 3), 100, np.uint8)

    overlay_panel(portrait, {"dry mass": 12.5}, [task], RECIPE, known={"dry mass": 12.0})

    assert " ".join(texts) == "dry mass 12.5 g per tuft (true 12 g per tuft)"
    assert max(style.font(style.CAPTION_PX).getlength(text) for text in texts) <= 450 - 4


def test_a_class_of_one_long_word_ends_in_an_ellipsis_before_its_probability(
    texts: list[str],
) -> None:
    task = Task("kind", dim=2, kind="classification", labels=("x" * 60, "bare"))
    portrait = np.full((64, 24, 3), 100, np.uint8)

    overlay_panel(portrait, {"kind": np.array([0.75, 0.25])}, [task], RECIPE)

    assert texts[0] == "kind:" and texts[-1] == "75 %"
    assert texts[1].startswith("xxx") and texts[1].endswith("x…")


def test_the_ends_of_a_colour_bar_are_above_it_in_a_portrait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lefts = []
    write = ImageDraw.ImageDraw.text

    def keep(self: Any, place: Any, text: str, *more: Any, **how: Any) -> None:
        lefts.append(place[0])
        write(self, place, text, *more, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", keep)
    task = Task("dry mass", kind="density", minimum=0, unit="g per tuft")
    [output] = outputs([task])

    wide = colour_bar(output, Scale(0.0, 12.5, " (clipped)"), 1200, fades=True)
    narrow = colour_bar(output, Scale(0.0, 12.5, " (clipped)"), 450, fades=True)

    assert min(lefts) >= 0
    assert narrow.height > wide.height
    ramp = np.asarray(narrow)[-style.CAPTION_PX, 450 * 3 // 4 - 4 : 450 - 5]
    assert (ramp < 255).any(axis=1).all(), "the colours are below the ends"


def test_numbers_of_one_unit_have_one_scale_and_are_next_to_each_other(texts: list[str]) -> None:
    tasks = [Task(name, minimum=0, unit="g") for name in ("clover", "grass")]
    maps = {"clover": np.full((1, 2, 4), 2.0), "grass": np.full((1, 2, 4), 200.0)}
    values = {"clover": 2.0, "grass": 200.0, "maps": maps}

    assert scales(outputs(tasks), [values]) == {
        "clover": Scale(0.0, 200.0, ""),
        "grass": Scale(0.0, 200.0, ""),
    }
    picture = overlay_panel(GREY, values, tasks, RECIPE)

    assert texts == ["clover 2 g", "grass 200 g", "0 g … 200 g"]
    pixels = np.asarray(picture)
    assert picture.width == 1200 and picture.height < 450, "two maps of 600 x 300 px"
    assert np.abs(pixels[150, 300].astype(int) - 120).max() <= 5, "1 % of the scale is grey"
    yellow = 120 + 0.85 * (np.array([253, 231, 37]) - 120)
    assert np.abs(pixels[150, 900] - yellow).max() <= 1


def test_numbers_without_a_unit_have_one_scale_if_their_ranges_are_alike() -> None:
    tasks = [Task(name, minimum=0) for name in ("crop", "weed", "mass")]

    def highest(**amounts: float) -> list[float]:
        maps = {name: np.full((1, 2, 4), amount) for name, amount in amounts.items()}
        listed = outputs([task for task in tasks if task.name in maps])
        return [scale.high for scale in scales(listed, [{"maps": maps}]).values()]

    assert highest(crop=1.0, weed=0.05) == [1.0, 1.0]
    assert highest(crop=1.0, mass=60.0) == [1.0, 60.0]


@pytest.mark.parametrize("unit", ["g", ""])
def test_a_map_of_zeros_takes_the_scale_of_the_others(unit: str) -> None:
    tasks = [Task(name, kind="density", minimum=0, unit=unit) for name in ("grass", "clover")]
    maps = {"grass": np.full((1, 2, 4), 0.01), "clover": np.zeros((1, 2, 4))}

    scale = scales(outputs(tasks), [{"maps": maps}])

    assert scale == {"grass": Scale(0.0, 0.01, ""), "clover": Scale(0.0, 0.01, "")}


def test_maps_of_zeros_alone_have_the_scale_0_to_1() -> None:
    tasks = [Task(name, kind="density", minimum=0, unit="g") for name in ("grass", "clover")]
    maps = {name: np.zeros((1, 2, 4)) for name in ("grass", "clover")}

    scale = scales(outputs(tasks), [{"maps": maps}])

    assert scale == {"grass": Scale(0.0, 1.0, ""), "clover": Scale(0.0, 1.0, "")}


def test_depths_of_0_share_the_scale_of_other_depths() -> None:
    tasks = [Task(name, kind="dense", unit="m") for name in ("near", "far")]
    maps = {"near": np.zeros((1, 2, 4)), "far": np.linspace(3.0, 5.0, 8).reshape(1, 2, 4)}

    scale = scales(outputs(tasks), [{"maps": maps}])

    assert scale == {"near": Scale(0.0, 5.0, ""), "far": Scale(0.0, 5.0, "")}


def test_numbers_from_0_to_1_do_not_decide_the_scale_of_others() -> None:
    tasks = [Task("a", minimum=0), Task("b", minimum=0), Task("cover", minimum=0, maximum=1)]
    highest = {"a": 20.0, "b": 15.0, "cover": 0.02}
    maps = {name: np.full((1, 2, 4), amount) for name, amount in highest.items()}

    scale = scales(outputs(tasks), [{"maps": maps}])

    assert (scale["a"].high, scale["b"].high) == (20.0, 20.0)


def test_a_depth_of_0_is_not_transparent() -> None:
    depth = Task("depth", kind="dense", minimum=0, unit="m")
    values = {"depth": 0.5, "maps": {"depth": np.array([[[0.0, 0.0], [1.0, 1.0]]])}}
    picture = np.asarray(overlay_panel(GREY, values, [depth], RECIPE))
    violet = 120 + 0.65 * (np.array([68, 1, 84]) - 120)
    assert np.abs(picture[5, 600] - violet).max() <= 1


def test_a_long_text_has_its_bar_on_the_next_line() -> None:
    name = "dry mass of all the plants of a plot"
    task = Task(name, kind="density", unit="g")
    values = {name: 8.0, "maps": {name: np.ones((1, 2, 4))}}

    short = overlay_panel(GREY, values, [task], RECIPE)
    long = overlay_panel(GREY, values, [task], RECIPE, known={name: 8.1})

    assert long.height - short.height == 2 * style.CAPTION_PX


def test_an_image_without_maps_has_its_numbers() -> None:
    picture = np.asarray(
        overlay_panel(GREY, {"mass": 3.0}, [Task("mass", unit="g")], RECIPE, known={"mass": 4.0})
    )
    assert picture[600:].min() < 100
    shares = np.eye(1000)[5]  # of many classes the legend has the largest shares
    many = overlay_panel(
        GREY, {"kind": shares}, [Task("kind", dim=1000, kind="classification")], RECIPE
    )
    assert many.height < 1000


def test_classes_are_written_as_a_palette_png(tmp_path: Path) -> None:
    mask = np.random.RandomState(0).randint(-1, 3, (33, 65))
    [file] = write_maps(tmp_path, "a/1", {"cover": mask}, [COVER])
    assert file == tmp_path / "a" / "1.png"
    with Image.open(file) as image:
        assert image.mode == "P"
        stored, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    assert np.array_equal(stored, np.where(mask == -1, 255, mask))
    for index, colour in enumerate(class_colours(LABELS)):
        assert (colours[mask == index] == (colour or (0, 0, 0))).all()
    assert np.array_equal(
        DenseLabels(classes=3, nodata=255).indices(file, Preprocessing(1))[0], mask
    )


def test_many_classes_are_written_as_a_grey_png_of_16_bits(tmp_path: Path) -> None:
    mask = np.random.RandomState(0).randint(-1, 300, (33, 65))
    species = Task("species", dim=300, kind="segmentation")

    [file] = write_maps(tmp_path, "a", {"species": mask}, [species])

    with Image.open(file) as image:
        stored = np.asarray(image)
    assert stored.dtype == np.uint16
    assert np.array_equal(stored, np.where(mask == -1, 65535, mask))


def test_values_are_written_as_tiffs_of_32_bits(tmp_path: Path) -> None:
    depth = np.random.RandomState(0).rand(1, 33, 65).astype(np.float32)
    depth[0, 0, 0] = np.nan
    [file] = write_maps(tmp_path / "one", "b", {"depth": depth}, [Task("depth", kind="dense")])
    assert np.array_equal(np.asarray(Image.open(file)), depth[0], equal_nan=True)
    tasks = [Task("depth", kind="dense"), Task("cover/x", dim=2, kind="dense", labels=("a", "b"))]
    shares = np.stack([depth[0], 1 - depth[0]])
    files = write_maps(tmp_path / "two", "b", {"depth": depth, "cover/x": shares}, tasks)
    assert [file.relative_to(tmp_path / "two").as_posix() for file in files] == [
        "depth/b.tif",
        "cover_x/a/b.tif",
        "cover_x/b/b.tif",
    ]
    assert np.array_equal(np.asarray(Image.open(files[2])), shares[1], equal_nan=True)
    outside = Task("..", dim=2, kind="dense", labels=("..", "b"))
    files = write_maps(tmp_path / "three", "b", {"..": shares}, [outside])
    assert [file.relative_to(tmp_path / "three").as_posix() for file in files] == [
        "_/_/b.tif",
        "_/b/b.tif",
    ]
    with pytest.raises(ConfigError, match="a%"):
        write_maps(
            tmp_path / "four",
            "b",
            {"x": shares},
            [Task("x", dim=2, kind="dense", labels=("a%", "a+"))],
        )
    assert not (tmp_path / "four").exists()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
@pytest.mark.parametrize(
    ("task", "aggregate"),
    [
        (Task("count", kind="density"), "sum"),
        (Task("count", kind="density", aggregate="mean"), "mean"),
        (Task("count", kind="dense"), "mean"),
    ],
    ids=["density", "mean of a density", "dense"],
)
def test_a_tiff_says_whether_the_number_is_its_sum_or_its_mean(
    task: Task, aggregate: str, tmp_path: Path
) -> None:
    values = np.ones((1, 2, 3), np.float32)

    [file] = write_maps(tmp_path, "a", {"count": values}, [task])

    with Image.open(file) as picture:
        metadata = ElementTree.fromstring(picture.tag_v2[42112])
    [item] = metadata
    assert item.attrib == {"name": "NUMBER_OF_IMAGE", "sample": "0"}
    assert item.text == aggregate


def test_a_geotiff_says_whether_the_number_is_its_sum_or_its_mean(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    place = rasterio.transform.from_origin(10, 20, 1, 1)
    image = tmp_path / "a.tif"
    with rasterio.open(
        image, "w", driver="GTiff", height=2, width=3, count=1, dtype="uint8", transform=place
    ) as source:
        source.write(np.zeros((1, 2, 3), np.uint8))
    maps = {"count": np.ones((1, 2, 3), np.float32)}

    [file] = write_maps(tmp_path / "out", "a", maps, [Task("count", kind="density")], image)

    with rasterio.open(file) as written:
        assert written.tags(1)["NUMBER_OF_IMAGE"] == "sum"


MODEL_PIXEL_SCALE_TAG = 33550  # of GeoTIFF


def test_without_rasterio_the_map_of_a_geotiff_says_what_its_number_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[MODEL_PIXEL_SCALE_TAG] = TiffTags.DOUBLE
    tags[MODEL_PIXEL_SCALE_TAG] = (1.0, 1.0, 0.0)
    image = tmp_path / "a.tif"
    Image.new("L", (3, 2)).save(image, tiffinfo=tags)
    maps = {"count": np.ones((1, 2, 3), np.float32)}

    with kit.without("rasterio"):
        [file] = write_maps(tmp_path / "out", "a", maps, [Task("count", kind="density")], image)

    assert "a.tif is a GeoTIFF; its maps have no position without rasterio" in caplog.text
    with Image.open(file) as picture:
        [item] = ElementTree.fromstring(picture.tag_v2[42112])
    assert (item.attrib["name"], item.text) == ("NUMBER_OF_IMAGE", "sum")


def test_the_maps_of_a_geotiff_keep_its_position(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    position = {
        "crs": "EPSG:25832",
        "transform": rasterio.transform.from_origin(500_000, 5_600_000, 0.1, 0.1),
    }
    size = {"height": 32, "width": 64, "count": 3}
    rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", dtype="uint8", **size, **position
    ).close()
    maps = {"cover": np.zeros((32, 64), np.int64), "depth": np.ones((1, 32, 64), np.float32)}
    tasks = [COVER, Task("depth", kind="dense")]
    for file, expected in zip(
        write_maps(tmp_path / "out", "a", maps, tasks, tmp_path / "a.tif"), (0, 1), strict=True
    ):
        with rasterio.open(file) as written:
            assert (written.crs, written.transform) == (position["crs"], position["transform"])
            assert (written.read(1) == expected).all()


ORIENTATION_TAG = 274


def with_orientation(geotiff: Path, orientation: int) -> None:
    """Add the orientation tag to a little-endian TIFF of one page, without another change."""
    raw = bytearray(geotiff.read_bytes())
    [directory] = struct.unpack_from("<I", raw, 4)
    [count] = struct.unpack_from("<H", raw, directory)
    first = directory + 2
    entries = [bytes(raw[first + 12 * i : first + 12 * i + 12]) for i in range(count)]
    entries.append(struct.pack("<HHIHH", ORIENTATION_TAG, 3, 1, orientation, 0))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    raw += b"\0" * (len(raw) % 2)
    struct.pack_into("<I", raw, 4, len(raw))
    raw += struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    geotiff.write_bytes(raw)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_maps_of_a_turned_geotiff_lie_where_its_stored_pixels_lie(
    orientation: int, tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio")
    stored = np.random.RandomState(3).randint(0, 200, (12, 20)).astype(np.uint8)
    position = {
        "crs": "EPSG:32633",
        "transform": rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.5),
    }
    size = {"height": 12, "width": 20, "count": 1}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", dtype="uint8", **size, **position
    ) as file:
        file.write(stored, 1)
    with_orientation(tmp_path / "a.tif", orientation)
    # the grey values of the upright image are its own map
    upright = read_pixels(tmp_path / "a.tif")[0].numpy()
    task = Task("grey", kind="dense")
    maps = {"grey": upright[None].astype(np.float32)}
    [written] = write_maps(tmp_path / "maps", "a", maps, [task], tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as image, rasterio.open(written) as values:
        assert values.bounds == image.bounds
        assert values.transform == image.transform
        assert np.array_equal(values.read(1), image.read(1))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
def test_the_normals_of_a_turned_geotiff_are_directions_of_its_stored_pixels(
    tmp_path: Path,
) -> None:
    """Orientation 6: what is shown is what is stored, turned clockwise by a quarter."""
    rasterio = pytest.importorskip("rasterio")
    position = {
        "crs": "EPSG:32633",
        "transform": rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.5),
    }
    size = {"height": 5, "width": 7, "count": 1}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", dtype="uint8", **size, **position
    ) as file:
        file.write(np.zeros((5, 7), np.uint8), 1)
    with_orientation(tmp_path / "a.tif", 6)
    normals = Task("normals", kind="dense", dim=3, activation="unit")
    up_in_the_picture = np.zeros((3, 7, 5), np.float32)
    up_in_the_picture[1] = 1.0

    [written] = write_maps(
        tmp_path / "maps", "a", {"normals": up_in_the_picture}, [normals], tmp_path / "a.tif"
    )

    with rasterio.open(written) as vectors:
        stored = vectors.read()
    # up in the picture is left in the stored pixels, where x counts to the left
    assert np.array_equal(stored, np.broadcast_to([[[1.0]], [[0.0]], [[0.0]]], (3, 5, 7)))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
@pytest.mark.parametrize("orientation", [1, 6])
def test_class_maps_of_a_geotiff_keep_its_control_points(orientation: int, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    control = pytest.importorskip("rasterio.control")
    points = [
        control.GroundControlPoint(0, 0, 500_000, 5_000_000),
        control.GroundControlPoint(0, 24, 500_012, 5_000_003),
        control.GroundControlPoint(16, 0, 499_999, 4_999_992),
    ]
    stored = np.random.RandomState(5).randint(0, 3, (16, 24)).astype(np.uint8)
    size = {"height": 16, "width": 24, "count": 1}
    with rasterio.open(
        tmp_path / "b.tif",
        "w",
        driver="GTiff",
        dtype="uint8",
        gcps=points,
        crs="EPSG:32633",
        **size,
    ) as file:
        file.write(stored, 1)
    with_orientation(tmp_path / "b.tif", orientation)
    maps = {"cover": read_pixels(tmp_path / "b.tif")[0].numpy().astype(np.int64)}
    [written] = write_maps(tmp_path / "maps", "b", maps, [COVER], tmp_path / "b.tif")
    with rasterio.open(written) as values:
        written_points, crs = values.gcps
        assert np.array_equal(values.read(1), stored)
    assert crs.to_epsg() == 32633
    assert [(p.row, p.col, p.x, p.y) for p in written_points] == [
        (p.row, p.col, p.x, p.y) for p in points
    ]


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # where the test writes
def test_maps_keep_the_rational_polynomials_of_a_satellite_image(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    rpc = pytest.importorskip("rasterio.rpc")
    rng = np.random.RandomState(7)
    coefficients = {
        name: rng.rand(20).tolist()
        for name in ("line_num_coeff", "line_den_coeff", "samp_num_coeff", "samp_den_coeff")
    }
    scales = {
        f"{axis}_{part}": float(rng.rand() + 1)
        for axis in ("height", "lat", "line", "long", "samp")
        for part in ("off", "scale")
    }
    polynomials = rpc.RPC(err_bias=0.5, err_rand=0.25, **coefficients, **scales)
    with rasterio.open(
        tmp_path / "c.tif", "w", driver="GTiff", dtype="uint8", height=8, width=16, count=1
    ) as file:
        file.rpcs = polynomials
        file.write(np.zeros((8, 16), np.uint8), 1)
    maps = {"depth": np.ones((1, 8, 16), np.float32)}
    task = Task("depth", kind="dense")
    [written] = write_maps(tmp_path / "maps", "c", maps, [task], tmp_path / "c.tif")
    with rasterio.open(written) as values:
        assert values.rpcs.line_num_coeff == pytest.approx(coefficients["line_num_coeff"])
        assert values.rpcs.lat_off == pytest.approx(scales["lat_off"])


def test_opencv_reads_the_colours_of_the_classes(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    mask = np.random.RandomState(0).randint(0, 3, (33, 65))
    [file] = write_maps(tmp_path, "a", {"cover": mask}, [COVER])
    colours = np.array([colour or (0, 0, 0) for colour in class_colours(LABELS)], np.uint8)
    assert np.array_equal(cv2.imread(str(file))[..., ::-1], colours[mask])


SIZE = (2, 3)  # rows, cols of the maps below


POSSIBLE = np.random.default_rng(0).dirichlet((8.0, 3.0, 1.0), SIZE).transpose(2, 0, 1)


RAMP = np.linspace(0.187, 0.446, 6).reshape(1, *SIZE)


def shares_task(*labels: str) -> Task:
    """The task that masks of classes give."""
    return Task("cells", dim=len(labels), kind="dense", labels=labels, shares=True)


def result(task: Task, cells: np.ndarray) -> dict[str, Any]:
    means = cells.mean(axis=(1, 2))
    return {task.name: means if task.dim > 1 else float(means[0]), "maps": {task.name: cells}}


@pytest.mark.parametrize(
    "task",
    [
        shares_task(*LABELS),
        Task("kind", dim=3, kind="segmentation", labels=LABELS),
        Task("parts", dim=3, kind="ratio", labels=LABELS),
    ],
    ids=lambda task: task.kind,
)
def test_shares_span_0_to_100_percent_and_impossible_ones_are_drawn_as_possible_ones(
    task: Task,
) -> None:
    members = outputs([task])
    assert scales(members, [result(task, POSSIBLE)]) == {task.name: (0.0, 1.0, "")}
    assert shown_cells(members, POSSIBLE) == pytest.approx(POSSIBLE)
    cells = POSSIBLE.copy()
    cells[:, 0, 0], cells[:, 1, 2] = (1.01, -0.043, -0.014), (0.9, 0.6, -0.1)
    predicted = result(task, cells)
    kept, row = cells.copy(), table_row(predicted, [task])
    assert scales(members, [predicted]) == {task.name: (0.0, 1.0, " (clipped, normalised)")}
    shown = shown_cells(members, cells)
    assert shown.sum(axis=0) == pytest.approx(np.ones(SIZE))
    assert shown[:, 0, 0] == pytest.approx([1.0, 0.0, 0.0]) and shown[:, 1, 2] == pytest.approx(
        [0.6, 0.4, 0.0]
    )
    assert shown[:, 0, 1] == pytest.approx(cells[:, 0, 1]), "possible shares stay"
    assert (cells == kept).all() and table_row(predicted, [task]) == row, (
        "predictions stay as they are"
    )


@pytest.mark.parametrize(
    ("task", "cells", "span"),
    [
        (Task("mass", kind="density"), RAMP, (0.0, 0.446)),
        (Task("mass", kind="density", minimum=0, aggregate="mean"), RAMP, (0.0, 0.446)),
        (Task("mass", kind="dense", minimum=0), RAMP, (0.0, 0.446)),
        (Task("mass", kind="dense", minimum=0), 0 * RAMP, (0.0, 1.0)),
        (Task("ndvi", kind="dense"), RAMP, (0.187, 0.446)),
        # cells of a sum are not clipped at the minimum of the sum
        (
            Task("mass", kind="density", minimum=5),
            np.linspace(-1.0, 4.0, 6).reshape(1, *SIZE),
            (0.0, 4.0),
        ),
        (Task("bands", dim=2, kind="dense"), np.stack([RAMP[0] - 2, RAMP[0] + 7]), (-1.813, 7.446)),
    ],
)
def test_amounts_start_at_0_and_other_numbers_keep_their_ends(
    task: Task, cells: np.ndarray, span: tuple[float, float]
) -> None:
    """One scale for all outputs of a task and all images."""
    low, high, note = scales(outputs([task]), [result(task, cells), result(task, cells)])[task.name]
    assert (low, high) == pytest.approx(span)
    assert bool(note) == (cells.min() < 0 and task.kind == "density")


def test_a_number_that_is_the_mean_of_a_map_appears_once(tiny: Backbone) -> None:
    """In tables, pictures and reports: one column per class, called as the class is."""
    pytest.importorskip("pandas")
    tasks = [Task("soil", from_map="cells"), Task("mass", unit="g"), shares_task(*LABELS)]
    torch.manual_seed(0)
    predictor = Predictor(FPNHead(64, tasks, 1, fpn_dim=8, tower_depth=1), tiny)
    results = predictor(
        [np.full((32, 48, 3), shade, np.uint8) for shade in (40, 160)], maps="patch"
    )
    frame = to_frame(results, predictor.tasks)
    assert (
        list(frame.columns)
        == ["soil", "mass", "crop", "weed"]
        == [own.key for own in outputs(predictor.tasks)]
    )
    assert frame["soil"].tolist() == [result["soil"] for result in results]
    assert frame["crop"].tolist() == pytest.approx([result["cells"][1] for result in results])


def test_letters_have_11_px_on_a_phone() -> None:
    sheet = 2 * style.WIDTH_PX + 3 * style.GAP_PX
    sizes = [
        (style.CAPTION_PX, style.OVERLAY_PX),
        (style.LABEL_PX, style.SIDE_PX),
        (style.FONT_PX, sheet),
    ]
    assert all(letters * 390 / width >= 11 for letters, width in sizes)
    assert (
        style.font(style.FONT_PX).getlength("tokens of block 11 (random weights)") <= style.WIDTH_PX
    )
