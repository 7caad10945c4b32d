"""Right data sets drawn from seeds, and a command that prints what one version reads of them.

``python -m tests.net.generated FIRST LAST`` prints JSON: seed -> reading.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.net import readers
from tests.net.files import bands, coco, rectangle, write_images, write_json, write_mask, write_rows

Read = Callable[[Path], Any]
SPECIES = ("alder", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine")
SUFFIXES = (".png", ".jpg", ".bmp", ".tif")
PALETTE = [0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200, 200, 200, 0]


@dataclass(frozen=True)
class Drawn:
    """A data set that was written.

    Attributes:
        kind: of it, in words.
        read: reads it from its folder.
        feature: what both versions read differently, a name of ``differential.DIFFERENCES``; empty =
            nothing.
    """

    kind: str
    read: Read
    feature: str = ""


def _names(draw: random.Random, count: int) -> list[str]:
    """File names in any order, some in folders."""
    suffix = draw.choice(SUFFIXES)
    folder = draw.choice(("", "", "a/", "field 1/"))
    style = draw.choice(("{:03}", "IMG_{}", "plot-{:02}", "{}_é"))
    numbers = draw.sample(range(100), count)
    return [f"{folder}{style.format(number)}{suffix}" for number in numbers]


def _table(root: Path, draw: random.Random) -> Drawn:
    """A table of numbers, classes, groups, folds and masks, with gaps."""
    count = draw.randint(6, 12)
    names = _names(draw, count)
    separator = draw.choice((",", ",", ";", "\t"))
    has_comma = separator == ";" and draw.random() < 0.5
    columns: dict[str, list[str]] = {"image": names}
    numbers = [f"{draw.uniform(-5, 500):.2f}" for _ in names]
    has_kinds = draw.random() < 0.6
    if has_kinds and draw.random() < 0.5:
        numbers[draw.randrange(count)] = draw.choice(("", "NA", "NaN"))
    columns["mass"] = [number.replace(".", ",") if has_comma else number for number in numbers]
    data: dict[str, Any] = {"csv": "./t.csv", "targets": ["mass"]}
    folds: dict[str, Any] = {"count": 2}
    groups: dict[str, Any] = {"folds": folds}
    feature = ""
    if has_kinds:
        kinds = draw.sample(SPECIES, 3)
        columns["kind"] = [kinds[i % 3] for i in range(count)]
        draw.shuffle(columns["kind"])
        data["targets"].append("kind")
    if draw.random() < 0.2:
        columns["code"] = [f"{i % 2 + 7:03}" for i in range(count)]
        data["targets"].append("code")
        feature = "codes"
    if draw.random() < 0.4:
        columns["site"] = [f"{draw.choice(SPECIES)} {i % 4}" for i in range(count)]
        folds["group"] = ["site"]
    elif draw.random() < 0.4:
        columns["part"] = [("early", "late", "mid")[i % 3] for i in range(count)]
        folds["column"] = "part"
        folds.pop("count")
    if draw.random() < 0.4:
        words = draw.sample(SPECIES, 3)
        mark = "|" if separator == ";" else draw.choice((";", "|"))
        sets = [words[:1], words[1:], words[::2], []]
        columns["plants"] = [mark.join(sets[i % 4]) or "none" for i in range(count)]
        data["multilabel"] = ["plants"]
    if draw.random() < 0.3:
        data["target_weights"] = {"mass": draw.choice((0.5, 2.0))}
    if len(data["targets"]) > 1 or "multilabel" in data:
        data.pop("target_weights", None)
    if draw.random() < 0.3:
        columns["mask"] = [f"masks/{i}.png" for i in range(count)]
        for i in range(count):
            write_mask(root / f"masks/{i}.png", bands(*draw.sample(range(3), 2)))
        data["labels"] = "mask"
        data["classes"] = ["soil", "crop", "weed"]
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    encoding = draw.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))
    write_rows(root / "t.csv", rows, separator, encoding)
    return Drawn("table", lambda folder: readers.folds(folder, data, **groups), feature)


def _class_folders(root: Path, draw: random.Random) -> Drawn:
    """Folders of classes, nested ones among them."""
    for name in draw.sample(SPECIES, draw.randint(2, 5)):
        nested = "" if draw.random() < 0.7 else "deep/er/"
        numbers = range(draw.randint(2, 4))
        write_images(root / name, [f"{nested}{name}{i}{draw.choice(SUFFIXES)}" for i in numbers])
    return Drawn(
        "class folders",
        lambda folder: readers.folds(folder, {"images": "./"}, folds={"count": 2}),
    )


def _parts(root: Path, draw: random.Random) -> Drawn:
    """Class folders below train and val, with files of equal names."""
    kinds = draw.sample(SPECIES, draw.randint(2, 4))
    parts = draw.choice((("train", "val"), ("train", "valid", "test"), ("train", "val", "test")))
    for part in parts:
        for kind in kinds:
            write_images(root / part / kind, [f"{i}.png" for i in range(draw.randint(1, 3))])
    return Drawn("parts", lambda folder: readers.folds(folder, {"images": "./"}))


def _masks(root: Path, draw: random.Random) -> Drawn:
    """Images and masks in two folders."""
    names = _names(draw, draw.randint(4, 7))
    ending = draw.choice(("", "", "_mask", "_seg"))
    pictures, labels = draw.choice((("images", "masks"), ("rgb", "truth")))
    write_images(root / pictures, names)
    kind = draw.choice(("index", "palette", "0 and 255", "values", "void", "numbers"))
    data: dict[str, Any] = {"images": f"./{pictures}", "labels": f"./{labels}"}
    options: dict[str, Any] = {}
    feature = ""
    values = [0, 1, 2]
    if kind == "palette":
        options["palette"] = PALETTE
    elif kind == "0 and 255":
        values = [0, 255]
    elif kind == "values":
        values = [3, 10, 50]
        data["class_values"] = values
    elif kind == "void":
        values = [0, 1, 2, 255]
        if draw.random() < 0.5:
            data["nodata"] = [255]
        else:
            data["classes"] = ["soil", "crop", "weed"]
            feature = "void"
    elif kind == "numbers":
        values = [draw.randrange(60000) for _ in range(4)]
        options["dtype"] = np.uint16
        data |= {"label_kind": "numbers", "scale": draw.choice((1.0, 0.01))}
    # the first mask holds all values, so that no class is missing in any set
    for number, name in enumerate(names):
        path = Path(name)
        shown = values if number == 0 else [draw.choice(values) for _ in values]
        picture = bands(*shown)
        write_mask(root / labels / path.with_name(f"{path.stem}{ending}.png"), picture, **options)
        write_images(root / pictures, [name], picture.shape)
    return Drawn(
        f"masks of {kind}",
        lambda folder: readers.folds(folder, data, folds={"count": 2}),
        feature,
    )


def _objects(root: Path, draw: random.Random) -> Drawn:
    """COCO boxes, with masks or without, ids of numbers or of text, crowds and images without any."""
    count = draw.randint(3, 6)
    ids: list[Any] = draw.sample(range(1, 1000), count)
    if draw.random() < 0.4:
        ids = [f"image {number}" for number in ids]
    images = dict(zip(ids, _names(draw, count), strict=True))
    keys = draw.sample(range(1, 100), 4)
    names = dict(zip(keys, draw.sample(SPECIES, 4), strict=True))
    has_masks = draw.random() < 0.5
    has_crowds = draw.random() < 0.3
    items: list[dict[str, Any]] = []
    for number, key in enumerate(ids):
        for place in range(0 if number == count - 1 else draw.randint(1, 3)):
            width, height = draw.randint(3, 9), draw.randint(3, 9)
            left, top = 11 * place + draw.randint(0, 1), draw.randint(0, 20)
            box = [left, top, width, height]
            item = {"image_id": key, "category_id": draw.choice(keys[:3]), "bbox": box}
            item["iscrowd"] = int(has_crowds and place == 2)
            if has_masks:
                item["segmentation"] = [rectangle(*box)]
            items.append(item)
    write_json(root / "o.json", coco(images, items, names, (32, 40)))
    write_images(root / "i", images.values(), (32, 40))

    def read(folder: Path) -> Any:
        reading = readers.boxes(folder, "o.json", "i")
        if has_masks:
            reading["pixels"] = readers.object_pixels(folder, "o.json", "i")
        return reading

    return Drawn("instances" if has_masks else "boxes", read)


_KINDS = (_table, _table, _class_folders, _parts, _masks, _objects)


def write_set(root: Path, seed: int) -> Drawn:
    """Write the data set of a seed into an empty folder."""
    draw = random.Random(seed)
    return _KINDS[seed % len(_KINDS)](root, draw)


def reading_of(root: Path, seed: int) -> Any:
    """Return what is read of the data set of a seed, as JSON has it; of a refusal its message."""
    drawn = write_set(root, seed)
    try:
        reading = drawn.read(root)
    except Exception as error:
        reading = {"error": f"{type(error).__name__}: {error}".replace(str(root), "")}
    return json.loads(
        json.dumps({"kind": drawn.kind, "feature": drawn.feature, "reading": reading})
    )


def main(first: int, last: int) -> None:
    """Print the readings of a range of seeds."""
    logging.disable(logging.WARNING)
    readings = {}
    for seed in range(first, last):
        with tempfile.TemporaryDirectory() as folder:
            readings[str(seed)] = reading_of(Path(folder), seed)
    json.dump(readings, sys.stdout, separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
