"""On mosaics of photographs, tiles show what the photographs alone show.

The detector remembers the photographs: it knows a cell by the pixels in the middle of it, so that it
finds a cell in any tile that shows its middle, cut where the tile ends. Its boxes are off, in every
tile by a little more or less; some cells it does not know, and some it knows by a wrong name.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from torch import Tensor
from torchvision.ops import box_iou

from dinoneck import STAPyramid
from dinoneck.data import BoxImages
from dinoneck.detection import DetectionHead, Detector, score_boxes

CELLS = Path(os.environ.get("DINONECK_DATA", "")) / "blood_cells"
PART = (480, 640)
GRID = (2, 3)  # parts of a mosaic
CLASSES = ("WBC", "RBC", "Platelets")
OVERLAP = 256  # px; the longest of these cells has fewer
WINDOW = 12  # px on a side, by which a cell is known
SAMPLES = 24  # values of a window that are looked at
MOST_OFF_PX = 5
MOST_OFF_IN_TILE_PX = 0.5
MOST_IOU = 0.4  # of two cells that are known: those above would be one object


@dataclass(frozen=True)
class Cell:
    """A cell that the detector knows: what it says of it, and its middle."""

    box: np.ndarray
    middle: tuple[int, int]
    label: int
    score: float


def keys_of(picture: np.ndarray) -> np.ndarray:
    """A number for the window right of and below every pixel of a picture (3, h, w)."""
    height = picture.shape[1] - WINDOW + 1
    width = picture.shape[2] - WINDOW + 1
    rng = np.random.default_rng(0)
    keys = np.zeros((height, width), np.uint64)
    for _ in range(SAMPLES):
        channel, y, x = rng.integers((3, WINDOW, WINDOW))
        weight = np.uint64(rng.integers(1, 2**63))
        keys += weight * picture[channel, y : y + height, x : x + width]
    return keys


class Memory:
    """The cells of photographs by the keys of their middles."""

    def __init__(self) -> None:
        self.cells: dict[int, Cell] = {}
        self.rng = np.random.default_rng(0)

    def learn(self, picture: Tensor, boxes: list[dict[str, Any]]) -> None:
        keys = keys_of(picture.numpy())
        corners = torch.tensor([box["bbox"] for box in boxes])
        corners[:, 2:] += corners[:, :2]
        ious = box_iou(corners, corners).fill_diagonal_(0)
        for number, (x0, y0, x1, y1) in enumerate(corners.tolist()):
            is_forgotten = self.rng.random() < 0.1
            is_wrong = self.rng.random() < 0.1
            score = float(self.rng.uniform(0.3, 1.0))
            middle = (int(y0 + y1) // 2, int(x0 + x1) // 2)
            box = np.array([x0, y0, x1, y1]) + self.rng.uniform(-MOST_OFF_PX, MOST_OFF_PX, 4)
            is_at_edge = middle[0] >= keys.shape[0] or middle[1] >= keys.shape[1]
            if is_forgotten or is_at_edge or ious[number].max() > MOST_IOU:
                continue
            if (keys == keys[middle]).sum() > 1:
                continue
            label = boxes[number]["category_id"] - 1
            if is_wrong:
                label = (label + 1) % len(CLASSES)
            self.cells[int(keys[middle])] = Cell(box, middle, label, score)

    def see(self, images: Tensor) -> list[dict[str, Tensor]]:
        """What a detector's forward returns for images (B, 3, h, w) in 0 ... 1."""
        return [self._see_one((255 * image).round().byte().numpy()) for image in images]

    def _see_one(self, picture: np.ndarray) -> dict[str, Tensor]:
        keys = keys_of(picture)
        known = np.array(list(self.cells), np.uint64)
        height, width = picture.shape[1:]
        rng = np.random.default_rng(int(keys[0, 0]) % 2**32)
        boxes = []
        scores = []
        labels = []
        for y, x in np.argwhere(np.isin(keys, known)).tolist():
            cell = self.cells[int(keys[y, x])]
            move = np.array([x - cell.middle[1], y - cell.middle[0]] * 2)
            off = rng.uniform(-MOST_OFF_IN_TILE_PX, MOST_OFF_IN_TILE_PX, 4)
            boxes.append((cell.box + move + off).clip(0, [width, height, width, height]))
            scores.append(cell.score)
            labels.append(cell.label)
        return {
            "boxes": torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
            "scores": torch.tensor(scores),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }


def read(name: str) -> Tensor:
    pixels = np.array(Image.open(CELLS / "images" / name).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def corner_of(number: int) -> tuple[int, int]:
    """(top, left) of a part in its mosaic."""
    row, col = divmod(number, GRID[1])
    return row * PART[0], col * PART[1]


def mosaic_of(parts: list[Tensor]) -> Tensor:
    mosaic = torch.zeros(3, GRID[0] * PART[0], GRID[1] * PART[1], dtype=torch.uint8)
    for number, part in enumerate(parts):
        top, left = corner_of(number)
        mosaic[:, top : top + PART[0], left : left + PART[1]] = part
    return mosaic


def dataset_of(
    folder: Path, pictures: list[Tensor], boxes_of_pictures: list[list[dict[str, Any]]]
) -> Any:
    """Pictures with known boxes; their ids are their numbers."""
    folder.mkdir()
    images = []
    annotations = []
    for number, (picture, boxes) in enumerate(zip(pictures, boxes_of_pictures, strict=True)):
        height, width = picture.shape[1:]
        name = f"{number}.png"
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for box in boxes:
            annotations.append({**box, "id": len(annotations) + 1, "image_id": number})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    file = folder / "boxes.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return BoxImages(file, folder, classes=CLASSES)


@dataclass(frozen=True)
class Mosaic:
    """Photographs, a mosaic of them, their known cells, and what the detector finds in both."""

    parts: list[Tensor]
    picture: Tensor
    boxes_of_parts: list[list[dict[str, Any]]]
    boxes: list[dict[str, Any]]
    of_parts: list[dict[str, Any]]
    of_picture: dict[str, Any]


@pytest.fixture(scope="module", params=[0, 6, 12, 18])
def mosaic(request: pytest.FixtureRequest) -> Mosaic:
    if not CELLS.exists():
        pytest.skip("the shared data are not there")
    truth = json.loads((CELLS / "val.json").read_text())
    first = request.param
    memory = Memory()
    parts = []
    boxes_of_parts = []
    boxes_of_mosaic = []
    for number, image in enumerate(truth["images"][first : first + GRID[0] * GRID[1]]):
        top, left = corner_of(number)
        parts.append(read(image["file_name"]))
        boxes = [box for box in truth["annotations"] if box["image_id"] == image["id"]]
        boxes_of_parts.append(boxes)
        memory.learn(parts[-1], boxes)
        for box in boxes:
            x, y, width, height = box["bbox"]
            boxes_of_mosaic.append({**box, "bbox": [x + left, y + top, width, height]})

    head = DetectionHead("fcos", CLASSES, STAPyramid(64, 32))
    detector = Detector(head, kit.backbone(), PART)
    picture = mosaic_of(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "forward", memory.see)
        of_parts = detector.predict(parts, min_score=0.0)
        [of_picture] = detector.predict(picture, min_score=0.0, tile=PART, overlap=OVERLAP)
    return Mosaic(parts, picture, boxes_of_parts, boxes_of_mosaic, of_parts, of_picture)


def test_every_cell_of_a_photograph_is_found_once_in_the_mosaic(mosaic: Mosaic) -> None:
    num_cells = 0
    for number, of_part in enumerate(mosaic.of_parts):
        top, left = corner_of(number)
        boxes = of_part["boxes"] + torch.tensor([left, top, left, top])
        ious = box_iou(boxes, mosaic.of_picture["boxes"])
        is_of_class = of_part["labels"][:, None] == mosaic.of_picture["labels"]
        assert (((ious > 0.5) & is_of_class).sum(dim=1) == 1).all()
        num_cells += len(boxes)
    assert num_cells >= 40
    assert len(mosaic.of_picture["boxes"]) == num_cells


def test_no_two_cells_of_a_mosaic_that_are_found_are_one(mosaic: Mosaic) -> None:
    boxes = mosaic.of_picture["boxes"]
    labels = mosaic.of_picture["labels"]
    ious = box_iou(boxes, boxes).fill_diagonal_(0)

    assert ious[labels[:, None] == labels].max() <= 0.5


def test_the_precision_of_a_mosaic_is_that_of_its_parts(mosaic: Mosaic, tmp_path: Path) -> None:
    parts = dataset_of(tmp_path / "parts", mosaic.parts, mosaic.boxes_of_parts)
    whole = dataset_of(tmp_path / "whole", [mosaic.picture], [mosaic.boxes])

    of_parts = score_boxes(parts, dict(enumerate(mosaic.of_parts)))
    of_whole = score_boxes(whole, {0: mosaic.of_picture})

    assert 0.3 < of_parts["AP"] < 0.95
    assert of_whole["AP"] == pytest.approx(of_parts["AP"], abs=0.01)
    assert of_whole["AP50"] == pytest.approx(of_parts["AP50"], abs=0.001)
