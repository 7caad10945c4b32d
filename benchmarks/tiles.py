"""Memory and time of boxes, masks and segments in tiles of large images: ``python -m benchmarks tiles``.

Every prediction runs in a process of its own, whose allocator returns what is freed
(``MALLOC_MMAP_THRESHOLD_``, of glibc). The networks run, and what they find in a tile is
replaced by objects that are drawn: seeded random weights find none of a usual size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.measure import Row
from dinoneck import Predictor, STAPyramid, Task, load_backbone
from dinoneck.detection import DetectionHead, Detector
from dinoneck.heads.head import Head
from dinoneck.inference.tile_merging import tiles_of, tiling_for_objects

ROUNDS = 1
SIDES = (4000, 12_000)
SHORT_SIDES = (400, 1200)
TILE = 1024
SHORT_TILE = 128
INPUT = (256, 256)  # of the networks
OBJECTS_IN_TILE = 20
LEAST_OBJECT_PX = 10
MOST_OBJECT_PX = 60
MASK_STRIDE = 4  # of the masks of a detector
LABELS = ("soil", "plant")
BLOCK_PX = 8  # of the pictures
MMAP_FROM_BYTES = "1000000"


def drawn_boxes(size: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Boxes (n, 4) XYXY of whole pixels in a tile of (height, width)."""
    height, width = size
    sides = rng.integers(LEAST_OBJECT_PX, MOST_OBJECT_PX, (OBJECTS_IN_TILE, 2))
    corners = rng.integers(0, [width - MOST_OBJECT_PX, height - MOST_OBJECT_PX], sides.shape)
    return torch.from_numpy(np.concatenate([corners, corners + sides], axis=1))


def drawn_masks(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Their masks (n, height, width) bool."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


class DrawnDetector(Detector):
    """A detector whose network runs, and whose objects are drawn."""

    def __init__(self, tile: int, with_masks: bool) -> None:
        backbone = load_backbone("dinoneck_tiny")
        super().__init__(DetectionHead("fcos", LABELS, STAPyramid(64, 32)), backbone, INPUT)
        self.tile = tile
        self.with_masks = with_masks
        self.rng = np.random.default_rng(0)

    def forward(self, images: Tensor, targets: Any = None) -> Any:
        """Return drawn objects of each image."""
        super().forward(images)
        return [self._drawn(images.shape[2:]) for _ in images]

    def _drawn(self, size: Sequence[int]) -> dict[str, Tensor]:
        scale = INPUT[0] / self.tile
        boxes = drawn_boxes((self.tile, self.tile), self.rng)
        found = {
            "boxes": boxes * scale,
            "scores": torch.from_numpy(self.rng.uniform(0.5, 1.0, len(boxes))).float(),
            "labels": torch.from_numpy(self.rng.integers(0, len(LABELS), len(boxes))),
        }
        if self.with_masks:
            cells = [side // MASK_STRIDE for side in size]
            at_cells = (boxes * scale / MASK_STRIDE).floor().long()
            at_cells[:, 2:] = torch.maximum(at_cells[:, 2:], at_cells[:, :2] + 1)
            found["masks"] = 2.0 * drawn_masks(at_cells, cells).float() - 1.0
        return found


class DrawnHead(Head):
    """A head of objects that are drawn, which reads the tokens of a backbone that runs."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.embed_dim = 64
        things = {"things": LABELS[1:]} if kind == "panoptic" else {}
        task: Any = Task("plant", dim=len(LABELS), kind=kind, labels=LABELS, **things)
        self.tasks = (task,)
        self.rng = np.random.default_rng(0)

    def forward(self, tokens: Any) -> dict[str, Tensor]:
        """Raise an error: only objects are asked for."""
        raise NotImplementedError

    def predict_instances(
        self, tokens: Any, size: Sequence[int], min_score: float | None = None
    ) -> list[dict[str, Tensor]]:
        """Return drawn instances."""
        boxes = drawn_boxes(size, self.rng)
        return [
            {
                "boxes": boxes.float(),
                "labels": torch.from_numpy(self.rng.integers(0, len(LABELS), len(boxes))),
                "scores": torch.from_numpy(self.rng.uniform(0.5, 1.0, len(boxes))).float(),
                "masks": drawn_masks(boxes, size),
            }
        ]

    def predict_panoptic(
        self, tokens: Any, size: Sequence[int], min_score: float | None = None
    ) -> list[Any]:
        """Return drawn things on soil."""
        segments = torch.ones(*size, dtype=torch.int64)
        boxes = drawn_boxes(size, self.rng)
        for number, (x0, y0, x1, y1) in enumerate(boxes.tolist(), start=2):
            segments[y0:y1, x0:x1] = number
        entries = [{"id": 1, "category_id": 0, "isthing": False, "score": 0.9}]
        for number in range(2, len(boxes) + 2):
            score = float(self.rng.uniform(0.5, 1.0))
            entries.append({"id": number, "category_id": 1, "isthing": True, "score": score})
        return [(segments, entries)]


def predictor_of(kind: str, tile: int) -> Callable[[Path], int]:
    """Return what predicts a file and counts the objects."""
    if kind in ("boxes", "masks"):
        detector = DrawnDetector(tile, with_masks=kind == "masks")
        detector.use_tiles(tile)
        return lambda file: len(detector.predict(file)[0]["scores"])
    backbone = load_backbone("dinoneck_tiny")
    preprocess = backbone.preprocess.changed(size=INPUT)
    predictor = Predictor(DrawnHead(kind), backbone, tile=tile, preprocess=preprocess)

    def count(file: Path) -> int:
        [row] = predictor(file)
        if kind == "panoptic":
            return len(row["plant"][1])
        return len(row["plant"]["scores"])

    return count


KINDS = {
    "boxes": "boxes of a detector",
    "masks": "masks of a detector",
    "instances": "instances of a head",
    "panoptic": "panoptic segments of a head",
}


def picture(file: Path, side: int) -> Path:
    """Write a square JPEG of coloured blocks."""
    count = -(-side // BLOCK_PX)
    blocks = np.random.default_rng(0).integers(0, 256, (count, count, 3), np.uint8)
    image = Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST)
    image.save(file, quality=90)
    return file


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield one table: a row per kind of objects and size of image."""
    sides = SHORT_SIDES if options.short else SIDES
    tile = SHORT_TILE if options.short else TILE
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as name:
        files = {side: picture(Path(name) / f"{side}.jpg", side) for side in sides}
        for kind in options.only or KINDS:
            peaks = []
            for side, file in files.items():
                measured = in_process(kind, file, tile, threads=options.threads)
                tiling = tiling_for_objects(tile, None)
                peaks.append(measured["peak_mb"])
                row = {
                    "tiles": len(tiles_of((side, side), tiling)) if tiling else 1,
                    "objects": measured["objects"],
                    "s": measured["seconds"],
                    "peak MB": measured["peak_mb"],
                }
                if len(peaks) > 1:
                    row["more than the smaller image, MB"] = peaks[-1] - peaks[0]
                    row["its picture, MB"] = 3 * (side**2 - sides[0] ** 2) / 1e6
                rows[f"{KINDS[kind]}, {side:,} × {side:,} px"] = row
    yield "memory", rows


def in_process(kind: str, file: Path, tile: int, threads: int) -> dict[str, Any]:
    """Return what :func:`main` prints in a process of its own."""
    words = [kind, str(file), str(tile), str(threads)]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.tiles", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": MMAP_FROM_BYTES},
    )
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


def main(kind: str, file: str, tile: str, threads: str) -> None:
    """Predict a file, and print the seconds, the number of objects and the peak of the memory."""
    torch.set_num_threads(int(threads))
    predict = predictor_of(kind, int(tile))
    begin = time.perf_counter()
    num_objects = predict(Path(file))
    seconds = time.perf_counter() - begin
    [peak_kb] = [
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    print(json.dumps({"objects": num_objects, "seconds": seconds, "peak_mb": peak_kb * 1024 / 1e6}))


if __name__ == "__main__":
    main(*sys.argv[1:])
