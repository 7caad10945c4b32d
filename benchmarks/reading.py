"""Label files of 100,000 entries and a head file of 100 MB: ``python -m benchmarks reading``.

Each kind of file has a function of its own, which :func:`measure` calls. Each variant runs in a
process of its own, which waits while the others are measured. ``--against FOLDER`` adds the code of
another checkout, such as ``git archive 3ff49b8a src | tar -x -C FOLDER`` makes it. The head file is
read in this process, next to what a script does and to the hash alone.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.measure import Row, cpu, ratios, turns
from dinoneck import PatchMeanHead, Task, load_head, save_head

ROUNDS = 9
ROWS = 100_000
ROWS_IN_SHORT = 2_000
ROOT = Path(__file__).resolve().parents[1]
# variants of tables, and of boxes
PANDAS = "pandas.read_csv"
THIS = "read_table"
OTHER = "read_table, --against"
JSON = "json.loads"
BOXES = "BoxImages"
OTHER_BOXES = "BoxImages, --against"
BOXES_PER_IMAGE = 50
NUM_CLASSES = 20
HEIGHT = 480
WIDTH = 640
CORNERS_OF_OUTLINES = 20
# variants of head files
SCRIPT = "load_file and load_state_dict"
HEAD = "load_head"
HASH = "SHA-256 of the bytes"
WIDTH_OF_TOKENS = 1024
HIDDEN_OF_100_MB = 25_000
HIDDEN_IN_SHORT = 250
# what separates the cells, and the decimal mark
LAYOUTS = {"commas": (",", "."), "semicolons and decimal commas": (";", ",")}
# read the file whose name is on a line, and answer with CPU seconds and sums of what was read
WORKERS = {
    "table": """
import sys, time
from dinoneck.data import read_table
for line in sys.stdin:
    path, separator, decimal = line.rstrip("\\n").split("|")
    begin = time.process_time()
    table = read_table(path, targets=["mass", "height", "kind"], group="field")
    seconds = time.process_time() - begin
    print(seconds, table["mass"].sum(), table["height"].sum(), flush=True)
""",
    "pandas": """
import sys, time
import pandas
columns = ["image", "mass", "height", "kind", "field"]
for line in sys.stdin:
    path, separator, decimal = line.rstrip("\\n").split("|")
    begin = time.process_time()
    table = pandas.read_csv(path, sep=separator, decimal=decimal, usecols=columns)
    seconds = time.process_time() - begin
    print(seconds, table["mass"].sum(), table["height"].sum(), flush=True)
""",
    "boxes": """
import sys, time
from dinoneck.data import BoxImages
for line in sys.stdin:
    path = line.rstrip("\\n").split("|")[0]
    begin = time.process_time()
    data = BoxImages(path)
    seconds = time.process_time() - begin
    print(seconds, sum(data.numbers.values()), flush=True)
""",
    "json": """
import json, sys, time
for line in sys.stdin:
    path = line.rstrip("\\n").split("|")[0]
    begin = time.process_time()
    with open(path, encoding="utf-8") as file:
        content = json.loads(file.read())
    seconds = time.process_time() - begin
    print(seconds, len(content["annotations"]), flush=True)
""",
}


class Worker:
    """A process that reads a label file whenever it is asked to."""

    def __init__(self, code: str, source: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def read(self, path: Path, separator: str = "", decimal: str = "") -> tuple[float, list[float]]:
        """Return the CPU seconds, and the sums of the columns of numbers, or the number of boxes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}|{separator}|{decimal}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().split()
        if not answer:
            raise SystemExit("a process that reads label files ended; its error is above")
        return float(answer[0]), [float(value) for value in answer[1:]]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def write_table(path: Path, rows: int, separator: str, decimal: str) -> None:
    """Write a CSV file of images with masses, heights (some are missing), kinds, fields and notes."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["image", "mass", "height", "kind", "field", "notes"])
        for row in range(rows):
            height = ""
            if row % 7 != 0:
                height = f"{generator.uniform(0, 100):.1f}"
            mass = f"{generator.uniform(0, 100):.4f}"
            kind = generator.choice(["wheat", "oats", "rye", "clover"])
            writer.writerow(
                [
                    f"a/{row:06}.jpg",
                    mass.replace(".", decimal),
                    height.replace(".", decimal),
                    kind,
                    f"field {row // 50}",
                    "after rain",
                ]
            )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="src folder of another checkout"
    )


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the rows of every kind of label file."""
    yield "CSV tables", tables(options)
    yield "COCO files", coco_files(options)
    yield "head files", head_files(options)


def head_files(options: argparse.Namespace) -> dict[str, Row]:
    """Return the CPU time of loading a head of 100 MB, next to a script that checks nothing.

    ``load_head`` compares the SHA-256 of the bytes, whose time is a row of its own, and checks that
    every number is finite.
    """
    hidden_dim = HIDDEN_IN_SHORT if options.short else HIDDEN_OF_100_MB

    def build() -> PatchMeanHead:
        return PatchMeanHead(WIDTH_OF_TOKENS, [Task("mass")], hidden_dim=hidden_dim)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head.safetensors")
        save_head(path, build())
        content = path.read_bytes()

        def load_by_script() -> None:
            head = build()
            head.load_state_dict(load_file(path))

        variants: dict[str, Callable[[], Any]] = {
            SCRIPT: load_by_script,
            HEAD: lambda: load_head(path),
            HASH: lambda: hashlib.sha256(content).digest(),
        }
        seconds = turns(variants, rounds=options.rounds, timer=cpu)
    return ratios(seconds, SCRIPT, f"× {SCRIPT}")


def tables(options: argparse.Namespace) -> dict[str, Row]:
    """Return the CPU time of reading a table, next to pandas.read_csv and another checkout.

    ``pandas.read_csv`` parses the same columns and checks nothing.

    Raises:
        SystemExit: if two variants read different numbers.
    """
    workers = {
        PANDAS: Worker(WORKERS["pandas"], ROOT / "src"),
        THIS: Worker(WORKERS["table"], ROOT / "src"),
    }
    if options.against is not None:
        workers[OTHER] = Worker(WORKERS["table"], options.against.resolve())
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (separator, decimal) in LAYOUTS.items():
            path = Path(folder, f"{name}.csv")
            write_table(path, ROWS_IN_SHORT if options.short else ROWS, separator, decimal)
            reads = {}
            for variant, worker in workers.items():
                reads[variant] = partial(worker.read, path, separator, decimal)
            _check_equal(reads, THIS)
            seconds = turns(reads, rounds=options.rounds, timer=lambda read: read()[0])
            against_pandas = ratios(seconds, PANDAS, "× pandas")
            for variant, row in against_pandas.items():
                rows[f"{name}: {variant}"] = row
            if options.against is not None:
                speed = ratios(seconds, OTHER, "× --against")[THIS]
                rows[f"{name}: {THIS}"]["× --against"] = speed["× --against"]
    for worker in workers.values():
        worker.close()
    return rows


def coco_files(options: argparse.Namespace) -> dict[str, Row]:
    """Return the CPU time of reading boxes, next to json.loads and another checkout.

    ``json.loads`` parses the file and checks nothing.

    Raises:
        SystemExit: if two variants read other numbers of boxes.
    """
    workers = {
        JSON: Worker(WORKERS["json"], ROOT / "src"),
        BOXES: Worker(WORKERS["boxes"], ROOT / "src"),
    }
    if options.against is not None:
        workers[OTHER_BOXES] = Worker(WORKERS["boxes"], options.against.resolve())
    rows: dict[str, Row] = {}
    count = ROWS_IN_SHORT if options.short else ROWS
    with tempfile.TemporaryDirectory() as folder:
        for name, with_outlines in (("boxes", False), ("boxes and outlines", True)):
            path = Path(folder, f"{name}.json")
            write_coco(path, count, with_outlines)
            reads = {}
            for variant, worker in workers.items():
                reads[variant] = partial(worker.read, path)
            _check_equal(reads, BOXES)
            seconds = turns(reads, rounds=options.rounds, timer=lambda read: read()[0])
            for variant, row in ratios(seconds, JSON, "× json.loads").items():
                rows[f"{name}: {variant}"] = row
            if options.against is not None:
                speed = ratios(seconds, OTHER_BOXES, "× --against")[BOXES]
                rows[f"{name}: {BOXES}"]["× --against"] = speed["× --against"]
    for worker in workers.values():
        worker.close()
    return rows


def write_coco(path: Path, boxes: int, with_outlines: bool) -> None:
    """Write a COCO file of ellipses and the images that it lists, which are never decoded."""
    generator = random.Random(0)
    images = []
    for image_id in range(boxes // BOXES_PER_IMAGE):
        name = f"{image_id:05}.jpg"
        path.with_name(name).write_bytes(b"an image")
        images.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
    annotations = []
    for annotation_id in range(boxes):
        width = round(generator.uniform(5, 120), 2)
        height = round(generator.uniform(5, 70), 2)
        left = round(generator.uniform(0, WIDTH - width), 2)
        top = round(generator.uniform(0, HEIGHT - height), 2)
        annotation: dict[str, Any] = {
            "id": annotation_id,
            "image_id": generator.randrange(len(images)),
            "category_id": generator.randrange(NUM_CLASSES),
            "bbox": [left, top, width, height],
            "area": width * height,
            "iscrowd": 0,
        }
        if with_outlines:
            annotation["segmentation"] = [_outline(left, top, width, height)]
        annotations.append(annotation)
    categories = [{"id": i, "name": f"class {i}"} for i in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")


def _outline(left: float, top: float, width: float, height: float) -> list[float]:
    """Return the corners of a polygon around an ellipse, x, y, x, y, ..."""
    numbers = []
    for corner in range(CORNERS_OF_OUTLINES):
        angle = 2 * math.pi * corner / CORNERS_OF_OUTLINES
        numbers.append(round(left + width * (1 + math.cos(angle)) / 2, 2))
        numbers.append(round(top + height * (1 + math.sin(angle)) / 2, 2))
    return numbers


def _check_equal(
    reads: Mapping[str, Callable[[], tuple[float, list[float]]]], reference: str
) -> None:
    """Read once by every variant and compare the sums."""
    sums = {}
    for variant, read in reads.items():
        _, sums[variant] = read()
    for variant, values in sums.items():
        for value, expected in zip(values, sums[reference], strict=True):
            if abs(value - expected) > 1e-9 * abs(expected):
                raise SystemExit(f"{variant} reads other numbers: {values}, not {sums[reference]}")
