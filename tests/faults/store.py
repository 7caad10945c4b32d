"""What is done to a feature store or its images, and what comes of it: the judge predicts with the tokens it reads.

Every case is *refused* (an error of dinoneck), *noticed* (``verify`` names an image), *harmless*
(the predictions of all images are the right ones, bit for bit) or a fault, which no case may be.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import kit
from tests.faults.judge import HARMLESS, NOTICED, REFUSED
from tests.unit.store.store_samples import make, write_images

from dinoneck import DinoneckError, FeatureStore
from dinoneck.data import View, Views

NAMES = ["a.bmp", "b.bmp", "c.bmp"]
OLD = (10**9, 10**9)  # a time of the shards' folder that the index trusts


class World:
    """A small sound store, its images, and what a head predicts from it; cases damage copies."""

    def __init__(self, folder: Path, share: float) -> None:
        self.folder, self.share, self.backbone = folder, share, kit.backbone()
        self.root, self.images, self.other = folder / "store", folder / "images", folder / "other"
        write_images(self.images, NAMES)
        write_images(self.other, NAMES, seed=30)  # the same names and, being BMP, the same sizes
        self.head = kit.head(kit.Task("x", dim=4))
        sound = self.extracted(folder / "sound", self.images, shard_bytes=1)
        self.right = self.predictions(sound)
        os.utime(folder / "sound" / "data", OLD)

    def extracted(
        self, root: Path, images: Path, shard_bytes: int = 1 << 20, **changes: Any
    ) -> FeatureStore:
        """Extract what is missing of a folder of images."""
        views = Views(Views.named("flips4").views[:2])
        options = {
            "backbone": self.backbone,
            "views": views,
            "image_size": (16, 32),
            "dtype": "int8",
        }
        store = make(root, **(options | changes))
        store.extract(images, workers=1, shard_bytes=shard_bytes)
        return store

    def predictions(self, store: FeatureStore) -> dict[str, list[float]]:
        """Predict from every view of every image that the store lists, and of every image that was stored."""
        ids = sorted({*store.ids, *(Path(name).stem for name in NAMES)})
        return {
            i: self.head.predict(store.batch([i, i], [0, 1]))["x"].flatten().tolist() for i in ids
        }

    def copy(self) -> Path:
        """Return the store, sound again and trusted by its times."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.folder / "sound", self.root)
        FeatureStore.open(self.root).refresh(rebuild=True)
        return self.root

    def outcome(
        self, extract: Path | None = None, right: dict[str, list[float]] | None = None
    ) -> str:
        """Extract a folder of images, if one is given, then read everything, predict and judge."""
        try:
            if extract is not None:
                self.extracted(self.root, extract)
            store = FeatureStore.open(self.root)
            predicted = self.predictions(store)
            if store.verify():
                return NOTICED
        except DinoneckError:
            return REFUSED
        return HARMLESS if predicted == (right or self.right) else "the predictions are others"


def flips(
    world: World, files: str, most: int, part: str = "all", index_lost: bool = False
) -> Iterator[str]:
    """Flip one bit at a time of the files, at most so many; ``part`` of a shard: its header or its records."""
    for path in sorted(world.copy().glob(files)):
        raw = path.read_bytes()
        header = 8 + int.from_bytes(raw[:8], "little")
        begin, end = {"all": (0, len(raw)), "header": (0, header), "records": (header, len(raw))}[
            part
        ]
        bits = range(8 * begin, 8 * end)
        for bit in random.Random(0).sample(bits, min(len(bits), max(5, round(world.share * most)))):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            if index_lost:
                (world.copy() / "index.sqlite").unlink()
            path.write_bytes(damaged)
            yield world.outcome(world.images if index_lost else None)
        path.write_bytes(raw)


def rows(world: World, *changes: str) -> Iterator[str]:
    """Change rows of the index, each two images in turn."""
    for one, other in itertools.permutations(("a", "b", "c"), 2):
        with contextlib.closing(sqlite3.connect(world.copy() / "index.sqlite")) as database:
            for change in changes:
                database.execute(change, {"one": one, "other": other, "none": "z"})
            database.commit()
        yield world.outcome()


EXCHANGED = (
    "update image set {0} = (select {0} from image as i where i.id = iif(image.id = :one, "
    ":other, :one))"
)
EXCHANGED += " where id in (:one, :other)"
RENAMED = "update image set id = {} where id = {}"
IDS = [
    RENAMED.format(*pair) for pair in ((":none", ":one"), (":one", ":other"), (":other", ":none"))
]


def moved(world: World) -> Iterator[str]:
    """Remove the index; cut, remove, rename, duplicate, exchange and replace shards, whose folder keeps its time."""
    changes: dict[str, Callable[[Path, Path, Path], object]] = {
        "no index": lambda one, other, spare: (one.parents[1] / "index.sqlite").unlink(),
        "cut": lambda one, other, spare: one.write_bytes(one.read_bytes()[:-1]),
        "empty": lambda one, other, spare: one.write_bytes(b""),
        "text": lambda one, other, spare: one.write_text("Tokens of the first field, 2024\n" * 99),
        "remove": lambda one, other, spare: one.unlink(),
        "rename": lambda one, other, spare: one.rename(spare),
        "duplicate": lambda one, other, spare: shutil.copy(one, spare),
        "exchange": lambda one, other, spare: [
            one.rename(spare),
            other.rename(one),
            spare.rename(other),
        ],
        "replace": lambda one, other, spare: shutil.copy(other, one),
    }
    for first, second in itertools.permutations(range(3), 2):
        for change in changes.values():
            data = world.copy() / "data"
            shards = sorted(data.iterdir())
            change(shards[first], shards[second], data / "w-1.safetensors")
            os.utime(data, OLD)
            yield world.outcome()


def replaced(world: World) -> Iterator[str]:
    """Extract again from another folder, where some images are others of equal names, sizes and often times."""
    new = {name: (world.other / name).read_bytes() for name in NAMES}
    old = {name: (world.images / name).read_bytes() for name in NAMES}
    a, _, c = NAMES
    changes = (*({name: new[name]} for name in NAMES), new, {a: old[c], c: old[a]}, {})
    for number, (content, same_times) in enumerate(itertools.product(changes, (False, True))):
        images = shutil.copytree(world.images, world.folder / f"images-{number}")
        for name, raw in content.items():
            (images / name).write_bytes(raw)
            moment = (world.images / name).stat().st_mtime_ns if same_times else 10**18
            os.utime(images / name, ns=(moment, moment))
        world.copy()
        yield world.outcome(
            images, world.predictions(world.extracted(world.folder / f"fresh-{number}", images))
        )


def another_store(world: World) -> Iterator[str]:
    """Copy a store of other images, or of another backbone, type, size or views too, or its parts, over the store."""
    turned = Views([View(turns=1), View(turns=3)])
    changes = (
        {},
        {"backbone": kit.backbone(seed=1)},
        {"dtype": "fp16"},
        {"image_size": (32, 32)},
        {"views": turned},
    )
    for number, change in enumerate(changes):
        other = Path(world.extracted(world.folder / f"other-{number}", world.other, **change).path)
        for part in (".", "data", "store.json", "channel_scale.safetensors", "index.sqlite"):
            root = world.copy()
            if (other / part).is_dir():
                shutil.copytree(other / part, root / part, dirs_exist_ok=True)
            elif (other / part).exists():
                shutil.copy(other / part, root)
            yield world.outcome()
        shutil.rmtree(world.copy() / "data")
        shutil.copytree(other / "data", world.root / "data")
        yield world.outcome()


MODES: dict[str, tuple[Any, ...]] = {
    "a bit of store.json is flipped": (flips, "store.json", 10**6),
    "a bit of the index is flipped": (flips, "index.sqlite", 2500),
    "a bit of a shard's header is flipped": (flips, "data/*", 1200, "header"),
    "the same, the index is lost, and extract is called": (flips, "data/*", 8, "header", True),
    "a bit of a record is flipped": (flips, "data/*", 800, "records"),
    "a bit of the channel scale is flipped": (flips, "channel_scale.safetensors", 800),
    "two index rows exchange their ids": (rows, *IDS),
    "two index rows exchange records": (rows, *map(EXCHANGED.format, ("shard", "offsets"))),
    "the grid of an index row is turned": (
        rows,
        "update image set rows = cols, cols = rows where id = :one",
    ),
    "an index row is removed": (rows, "delete from image where id = :one"),
    "the index is removed; shards are cut, moved or replaced": (moved,),
    "images are replaced by others of the same size, and extract is called": (replaced,),
    "parts come from another store": (another_store,),
}
"""What is done -> its function and arguments."""


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all cases of one mode, or a share of the bits that are flipped."""
    function, *arguments = MODES[mode]
    yield from function(World(folder, share), *arguments)
