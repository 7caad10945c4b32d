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
from functools import partial
from pathlib import Path
from typing import Any

from tests import kit
from tests.faults.judge import HARMLESS, NOTICED, REFUSED
from tests.unit.store.store_samples import make, write_images

from dinoneck import DinoneckError, FeatureStore
from dinoneck.data import View, Views

NAMES = ["a.bmp", "b.bmp", "c.bmp"]
IDS = ("a", "b", "c")
OLD = (10**9, 10**9)  # a time of the shards' folder that the index trusts


class World:
    """A small sound store, its images, and what a head predicts from it; cases damage copies."""

    def __init__(self, folder: Path, share: float) -> None:
        self.folder = folder
        self.share = share
        self.backbone = kit.backbone()
        self.head = kit.head(kit.Task("x", dim=4))
        self.images = folder / "images"
        self.other_images = folder / "other"
        write_images(self.images, NAMES)
        # the same names and, being BMP, the same sizes
        write_images(self.other_images, NAMES, seed=30)
        self.sound = folder / "sound"
        self.right = self.predictions(self.extracted(self.sound, self.images, shard_bytes=1))
        os.utime(self.sound / "data", OLD)
        self.root = folder / "store"  # the copy that is damaged

    def extracted(
        self, root: Path, images: Path, shard_bytes: int = 1 << 20, **changes: Any
    ) -> FeatureStore:
        """Extract what is missing of a folder of images."""
        options: dict[str, Any] = {
            "backbone": self.backbone,
            "views": Views(Views.named("flips4").views[:2]),
            "image_size": (16, 32),
            "dtype": "int8",
        }
        options.update(changes)
        store = make(root, **options)
        store.extract(images, workers=1, shard_bytes=shard_bytes)
        return store

    def predictions(self, store: FeatureStore) -> dict[str, list[float]]:
        """Predict from both views of every image that the store lists, and of every image that was stored."""
        predictions = {}
        for image_id in sorted({*store.ids, *IDS}):
            tokens = store.batch([image_id, image_id], [0, 1])
            predictions[image_id] = self.head.predict(tokens)["x"].flatten().tolist()
        return predictions

    def copy(self) -> Path:
        """Return the store, sound again and trusted by its times."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.sound, self.root)
        FeatureStore.open(self.root).refresh(rebuild=True)
        return self.root

    def outcome(
        self, extract: Path | None = None, right: dict[str, list[float]] | None = None
    ) -> str:
        """Read everything, predict and judge.

        Args:
            extract: a folder of images that is extracted first.
            right: the predictions to expect; None: those of the sound store.
        """
        if right is None:
            right = self.right
        try:
            if extract is not None:
                self.extracted(self.root, extract)
            store = FeatureStore.open(self.root)
            predictions = self.predictions(store)
            if store.verify():
                return NOTICED
        except DinoneckError:
            return REFUSED
        if predictions == right:
            return HARMLESS
        return "the predictions are others"


def flips(
    world: World, pattern: str, most: int, part: str = "all", index_is_lost: bool = False
) -> Iterator[str]:
    """Flip one bit at a time.

    Args:
        world: has the store.
        pattern: of the names of the files.
        most: how many bits of a file, at most.
        part: of a file: all, the header of a shard, or its records.
        index_is_lost: whether the index is removed and the images are extracted again.
    """
    for path in sorted(world.copy().glob(pattern)):
        raw = path.read_bytes()
        count = max(5, round(world.share * most))
        for bit in bits_of(raw, part, count):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            if index_is_lost:
                (world.copy() / "index.sqlite").unlink()
                path.write_bytes(damaged)
                yield world.outcome(extract=world.images)
            else:
                path.write_bytes(damaged)
                yield world.outcome()
        path.write_bytes(raw)


def bits_of(raw: bytes, part: str, count: int) -> list[int]:
    """Return so many random bits of a part of a file."""
    begin_of_records = 8 + int.from_bytes(raw[:8], "little")
    begin = 0
    end = len(raw)
    if part == "header":
        end = begin_of_records
    elif part == "records":
        begin = begin_of_records
    bits = range(8 * begin, 8 * end)
    return random.Random(0).sample(bits, min(len(bits), count))


RENAME = "update image set id = {} where id = {}"
EXCHANGE_IDS = (
    RENAME.format(":free", ":first"),
    RENAME.format(":first", ":second"),
    RENAME.format(":second", ":free"),
)
EXCHANGE = (
    "update image set {0} = (select {0} from image as partner where partner.id = "
    "iif(image.id = :first, :second, :first)) where id in (:first, :second)"
)
EXCHANGE_RECORDS = (EXCHANGE.format("shard"), EXCHANGE.format("offsets"))
TURN_GRID = "update image set rows = cols, cols = rows where id = :first"
REMOVE_ROW = "delete from image where id = :first"


def index_rows(world: World, *statements: str) -> Iterator[str]:
    """Change rows of the index, of each two images in turn."""
    for first, second in itertools.permutations(IDS, 2):
        with contextlib.closing(sqlite3.connect(world.copy() / "index.sqlite")) as database:
            for statement in statements:
                database.execute(statement, {"first": first, "second": second, "free": "z"})
            database.commit()
        yield world.outcome()


def remove_index(shard: Path, other: Path, spare: Path) -> None:
    (shard.parents[1] / "index.sqlite").unlink()


def cut(shard: Path, other: Path, spare: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])


def empty(shard: Path, other: Path, spare: Path) -> None:
    shard.write_bytes(b"")


def write_text(shard: Path, other: Path, spare: Path) -> None:
    shard.write_text("Tokens of the first field, 2024\n" * 99)


def remove(shard: Path, other: Path, spare: Path) -> None:
    shard.unlink()


def rename(shard: Path, other: Path, spare: Path) -> None:
    shard.rename(spare)


def duplicate(shard: Path, other: Path, spare: Path) -> None:
    shutil.copy(shard, spare)


def exchange(shard: Path, other: Path, spare: Path) -> None:
    shard.rename(spare)
    other.rename(shard)
    spare.rename(other)


def replace(shard: Path, other: Path, spare: Path) -> None:
    shutil.copy(other, shard)


# each takes a shard, another one, and a path for one more
SHARD_CHANGES: tuple[Callable[[Path, Path, Path], None], ...] = (
    remove_index,
    cut,
    empty,
    write_text,
    remove,
    rename,
    duplicate,
    exchange,
    replace,
)


def changed_shards(world: World) -> Iterator[str]:
    """Remove the index; cut, remove, rename, duplicate, exchange and replace shards, whose folder keeps its time."""
    for first, second in itertools.permutations(range(3), 2):
        for change in SHARD_CHANGES:
            data = world.copy() / "data"
            shards = sorted(data.iterdir())
            change(shards[first], shards[second], data / "w-1.safetensors")
            os.utime(data, OLD)
            yield world.outcome()


def replaced_images(world: World) -> Iterator[str]:
    """Extract again from another folder, where some images are others of equal names, sizes and often times."""
    old = {name: (world.images / name).read_bytes() for name in NAMES}
    new = {name: (world.other_images / name).read_bytes() for name in NAMES}
    first, _, last = NAMES
    changes: list[dict[str, bytes]] = [{name: new[name]} for name in NAMES]
    changes.append(new)
    changes.append({first: old[last], last: old[first]})
    changes.append({})
    cases = itertools.product(changes, (False, True))
    for number, (content, has_same_times) in enumerate(cases):
        images = shutil.copytree(world.images, world.folder / f"images-{number}")
        for name, raw in content.items():
            (images / name).write_bytes(raw)
            moment = 10**18
            if has_same_times:
                moment = (world.images / name).stat().st_mtime_ns
            os.utime(images / name, ns=(moment, moment))
        fresh = world.extracted(world.folder / f"fresh-{number}", images)
        world.copy()
        yield world.outcome(extract=images, right=world.predictions(fresh))


PARTS = (".", "data", "store.json", "channel_scale.safetensors", "index.sqlite")


def parts_of_another_store(world: World) -> Iterator[str]:
    """Copy a store of other images, or of another backbone, type, size or views too, or its parts, over the store."""
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"backbone": kit.backbone(seed=1)},
        {"dtype": "fp16"},
        {"image_size": (32, 32)},
        {"views": Views([View(turns=1), View(turns=3)])},
    )
    for number, change in enumerate(changes):
        root = world.folder / f"other-{number}"
        other = Path(world.extracted(root, world.other_images, **change).path)
        for part in PARTS:
            store = world.copy()
            if (other / part).is_dir():
                shutil.copytree(other / part, store / part, dirs_exist_ok=True)
            elif (other / part).exists():
                shutil.copy(other / part, store)
            yield world.outcome()
        store = world.copy()
        shutil.rmtree(store / "data")
        shutil.copytree(other / "data", store / "data")
        yield world.outcome()


MODES: dict[str, Callable[[World], Iterator[str]]] = {
    "a bit of store.json is flipped": partial(flips, pattern="store.json", most=10**6),
    "a bit of the index is flipped": partial(flips, pattern="index.sqlite", most=2500),
    "a bit of a shard's header is flipped": partial(
        flips, pattern="data/*", most=1200, part="header"
    ),
    "the same, the index is lost, and extract is called": partial(
        flips, pattern="data/*", most=8, part="header", index_is_lost=True
    ),
    "a bit of a record is flipped": partial(flips, pattern="data/*", most=800, part="records"),
    "a bit of the channel scale is flipped": partial(
        flips, pattern="channel_scale.safetensors", most=800
    ),
    "two index rows exchange their ids": lambda world: index_rows(world, *EXCHANGE_IDS),
    "two index rows exchange records": lambda world: index_rows(world, *EXCHANGE_RECORDS),
    "the grid of an index row is turned": lambda world: index_rows(world, TURN_GRID),
    "an index row is removed": lambda world: index_rows(world, REMOVE_ROW),
    "the index is removed; shards are cut, moved or replaced": changed_shards,
    "images are replaced by others of the same size, and extract is called": replaced_images,
    "parts come from another store": parts_of_another_store,
}
"""What is done -> what judges its cases."""


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all cases of one mode, or a share of the bits that are flipped."""
    yield from MODES[mode](World(folder, share))
