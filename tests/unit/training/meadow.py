"""A folder of small images with everything that a table can hold about them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.unit.training.histories import logged, without_memory

from dinoneck.training import TrainConfig

COUNT, HEIGHT, WIDTH = 12, 32, 64
SOIL, CROP, WEED = (120, 80, 40), (20, 220, 30), (240, 240, 20)
GAP = ""


def write_meadow(folder: Path) -> Path:
    """Write 12 images of soil, crop and weed in vertical bands, their masks and ``t.csv``; the table is returned.

    Columns: the shares of the pixels and their sums, ``kind`` (which band is widest), ``place``
    (four of three images), ``part`` (two folds), ``height`` and ``weather`` with gaps, ``mask``.
    """
    random = np.random.RandomState(0)
    rows: list[dict[str, Any]] = []
    for i in range(COUNT):
        kind = i % 3
        widths = [1, 1, 1]
        widths[kind] = 2
        bands = random.permutation(3)
        classes = np.repeat(bands, [16 * widths[band] for band in bands])[None].repeat(
            HEIGHT, axis=0
        )
        image = np.array((SOIL, CROP, WEED), np.uint8)[classes]
        image = np.clip(image + random.randint(-8, 9, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i:02}.png")
        Image.fromarray(classes.astype(np.uint8)).save(folder / f"{i:02}-mask.png")
        grams = [float(random.randint(20, 60)) * width for width in widths]
        rows.append(
            {
                "image": f"{i:02}.png",
                "soil": grams[0],
                "crop": grams[1],
                "weed": grams[2],
                "green": sum(grams[1:]),
                "total": sum(grams),
                "kind": ("bare", "crop", "weedy")[kind],
                "place": f"place {i // 3}",
                "part": "late" if i % 2 else "early",
                "height": GAP if i == 4 else 5 + 3 * kind,
                "weather": GAP if i == 7 else ("rain", "sun")[kind == 1],
                "mask": f"{i:02}-mask.png",
            }
        )
    return write_rows(folder / "t.csv", rows)


def a_run(table: Path | None, targets: Sequence[str] = (), **groups: Any) -> TrainConfig:
    """Two short folds on the built-in backbone; groups are added to these values, others replace them."""
    data = {"targets": list(targets)} | ({} if table is None else {"csv": str(table)})
    plain: dict[str, Any] = {
        "data": data,
        "backbone": {"name": "dinoneck_tiny"},
        "optim": {"epochs": 2, "batch_size": 4},
        "folds": {"count": 2},
    }
    merged = {
        name: {**plain.get(name, {}), **own} if isinstance(own, Mapping) else own
        for name, own in groups.items()
    }
    return TrainConfig.from_dict({**plain, **merged})


def one_image_only(extract: Any) -> Any:
    """``MemoryTokens.extract`` for a single image, on which a head is tried before the work."""

    def first(backbone: Any, images: Any, *arguments: Any, **options: Any) -> Any:
        assert len(images) == 1, "the work has begun"
        return extract(backbone, images, *arguments, **options)

    return first


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, Any]:
    """Every file below a folder; logs without times, reports without the peak memory."""
    contents: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".jsonl":
            contents[name] = logged(path)
        elif path.name == "report.json":
            contents[name] = without_memory(json.loads(path.read_text()))
        elif path.is_file():
            contents[name] = path.read_bytes()
    return contents


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a CSV file with the columns of its first row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def with_columns(path: Path, **columns: Sequence[Any]) -> Path:
    """The table with further columns."""
    values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return write_rows(
        path, [{**row, **own} for row, own in zip(rows_of(path), values, strict=True)]
    )


def with_gaps(path: Path, **known: Any) -> Path:
    """The table with empty cells in all other rows of some columns."""
    gaps = [{name: GAP for name, kept in known.items() if i not in kept} for i in range(COUNT)]
    return write_rows(path, [{**row, **own} for row, own in zip(rows_of(path), gaps, strict=True)])
