"""Boxes over images: edges at the coordinates, labels with their boxes, known ones dashed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from tests.unit.viz.drawn import captions, colour_at, pixels

from dinoneck import ConfigError, DataError, ShapeError
from dinoneck.viz import boxes_figure

IMAGE = np.full((60, 100, 3), 255, np.uint8)
BOXES = np.array([[10.0, 20.0, 40.0, 50.0], [60.5, 5.25, 90.0, 30.0]])


def corners(patch: object) -> list[float]:
    box = patch.get_bbox()  # type: ignore[attr-defined]
    return [float(end) for end in (box.x0, box.y0, box.x1, box.y1)]


def test_edges_lie_at_the_coordinates_and_pixels_span_whole_numbers() -> None:
    figure = boxes_figure(IMAGE, BOXES)
    [axes] = figure.axes
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 100), (60, 0))
    assert tuple(axes.images[0].get_extent()) == (0, 100, 60, 0)
    assert [corners(patch) for patch in axes.patches] == BOXES.tolist()
    sheet = pixels(figure, 300)
    line = np.array(to_rgb(axes.patches[0].get_edgecolor()))
    x0, y0, x1, y1 = BOXES[0]
    for x, y in ((x0, 35.0), (x1, 35.0), (25.0, y0), (25.0, y1)):
        np.testing.assert_allclose(colour_at(sheet, axes, x, y), line, atol=0.02)
    for x, y in ((x0 - 2, 35.0), (x0 + 2, 35.0), (25.0, y0 - 2), (25.0, y1 + 2)):
        np.testing.assert_allclose(colour_at(sheet, axes, x, y), 1.0, atol=0.02)


def test_classes_have_a_colour_each_and_scores_an_order() -> None:
    boxes = np.concatenate([BOXES, BOXES + 3])
    figure = boxes_figure(IMAGE, boxes, [0, 1, 1, 0], [0.9, 0.3, 0.5, 0.1], min_score=0.3, classes=("cell", "clot"))
    [axes] = figure.axes
    assert [corners(patch) for patch in axes.patches] == [boxes[1].tolist(), boxes[2].tolist(), boxes[0].tolist()]
    one, same, other = (patch.get_edgecolor() for patch in axes.patches)
    assert one == same != other
    assert captions(axes) == ["3 of 4 boxes, score 0.3 or more", "clot 0.30", "clot 0.50", "cell 0.90"]
    assert len(boxes_figure(IMAGE, boxes, classes=("cell", "clot")).axes[0].patches) == 4, "classes without labels"


def test_known_boxes_are_dashed_and_dicts_are_read() -> None:
    detection = {"boxes": torch.from_numpy(BOXES), "labels": torch.tensor([4, 2]), "scores": torch.tensor([0.5, 0.25])}
    truth = {"boxes": torch.tensor([[0.0, 0.0, 100.0, 60.0]]), "labels": torch.tensor([4])}
    figure = boxes_figure(torch.from_numpy(IMAGE).permute(2, 0, 1), detection, truth=truth)
    [axes] = figure.axes
    assert [patch.get_linestyle() for patch in axes.patches] == ["--", "-", "-"]
    assert corners(axes.patches[0]) == [0, 0, 100, 60]
    assert captions(axes) == ["2 boxes; 1 known, dashed", "2 0.25", "4 0.50"]


@pytest.mark.parametrize("labels", [np.array([[1], [0]]), list(torch.tensor([1, 0])), ["clot", 0]])
def test_labels_are_numbers_of_any_library_or_names(labels: object) -> None:
    figure = boxes_figure(IMAGE, BOXES, labels, classes=("cell", "clot"))  # type: ignore[arg-type]
    assert captions(figure.axes[0])[1:] == ["clot", "cell"]


@pytest.mark.parametrize("empty", [np.zeros((0, 4)), [], {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0),
                                                         "scores": torch.zeros(0)}])  # fmt: skip
def test_none_found_is_an_image_alone(empty: object) -> None:
    figure = boxes_figure(IMAGE, empty)  # type: ignore[arg-type]
    assert not figure.axes[0].patches
    assert captions(figure.axes[0]) == ["0 boxes"]


def test_many_boxes_have_a_legend_instead_of_labels() -> None:
    boxes = np.tile(BOXES, (50, 1))
    [axes] = boxes_figure(IMAGE, boxes, [0, 1] * 50, classes=("cell", "clot")).axes
    assert captions(axes) == ["100 boxes"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cell", "clot"]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[10.0, 20.0, 5.0, 50.0\] ends before it begins"):
        boxes_figure(IMAGE, [[10.0, 20.0, 5.0, 50.0]])
    with pytest.raises(DataError, match="true boxes hold nan"):
        boxes_figure(IMAGE, BOXES, truth=[[0.0, 0.0, np.nan, 1.0]])
    with pytest.raises(ShapeError, match=r"expected \(n, 4\)"):
        boxes_figure(IMAGE, BOXES[:, :3])
    with pytest.raises(ShapeError, match="2 boxes and 1 labels"):
        boxes_figure(IMAGE, BOXES, ["a"])
    with pytest.raises(ShapeError, match=r"scores, one per box, have shape \(1,\); expected \(2\)"):
        boxes_figure(IMAGE, BOXES, None, [0.5])
    with pytest.raises(DataError, match="a label is 2; classes name 2: cell, clot"):
        boxes_figure(IMAGE, BOXES, [0, 2], classes=("cell", "clot"))
    with pytest.raises(DataError, match="a label is 'spot'; classes name 2: cell, clot"):
        boxes_figure(IMAGE, BOXES, ["cell", "spot"], classes=("cell", "clot"))
    with pytest.raises(ShapeError, match="boxes hold no 'boxes'; expected"):
        boxes_figure(IMAGE, {"labels": [1]})
    with pytest.raises(ConfigError, match="there are no scores"):
        boxes_figure(IMAGE, BOXES, min_score=0.5)
    with pytest.raises(ConfigError, match="min_score is 2"):
        boxes_figure(IMAGE, BOXES, None, [0.5, 0.5], min_score=2)
