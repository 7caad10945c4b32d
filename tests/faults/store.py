"""What is done to a feature store or its images, and what comes of it: the judge predicts with the tokens it reads.

Every case is *refused* (an error of dinoneck), *noticed* (``verify`` names an image, whatever the
predictions are), *harmless* (the predictions of all images are the right ones, bit for bit) or a
fault, which no case may be.
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
from tests.faults.judge import HARMLESS, NOTICED, REFUSED, named
from tests.unit.store.store_samples import make, write_images

from dinoneck import DinoneckError, FeatureStore
from dinoneck.data import View, Views

FILE_NAMES = ["a.bmp", "b.bmp", "c.bmp"]
IMAGE_IDS = ("a", "b", "c")
# of access and modification, in seconds: a time of the shards' folder that the index trusts
OLD_TIMES = (10**9, 10**9)


class World:
    """A small sound store, its images, and what a head predicts from it; cases damage copies."""

    def __init__(self, folder: Path, share: float) -> None:
        self.folder = folder
        self.share = share
        self.backbone = kit.backbone()
        self.head = kit.head(kit.Task("x", dim=4))
        self.images = folder / "images"
        self.other_images = folder / "other"
        write_images(self.images, FILE_NAMES)
        # the same names and, being BMP, the same sizes
        write_images(self.other_images, FILE_NAMES, seed=30)
        self.sound = folder / "sound"
        self.right = self.predictions(self.extract(self.sound, self.images, shard_bytes=1))
        os.utime(self.sound / "data", OLD_TIMES)
        self.root = folder / "store"  # the copy that is damaged

    def extract(
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
        for image_id in sorted({*store.ids, *IMAGE_IDS}):
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
                self.extract(self.root, extract)
            store = FeatureStore.open(self.root)
            predictions = self.predictions(store)
            if store.verify():
                return NOTICED
        except DinoneckError:
            return REFUSED
        if predictions == right:
            return HARMLESS
        return "the predictions differ"


def flips(
    world: World, pattern: str, max_bits: int, region: str = "all", index_is_lost: bool = False
) -> Iterator[str]:
    """Flip one bit at a time.

    Args:
        world: has the sound store.
        pattern: of the names of the files.
        max_bits: how many bits of a file, at most.
        region: of a file: all, the header of a shard, or its records.
        index_is_lost: whether the index is removed and the images are extracted again.
    """
    num_bits = max(5, round(world.share * max_bits))
    for file in sorted(world.copy().glob(pattern)):
        raw = file.read_bytes()
        name = file.relative_to(world.root)
        for bit in bits_of(raw, region, num_bits):
            damaged = bytearray(raw)
            damaged[bit // 8] ^= 1 << bit % 8
            root = world.copy()
            (root / name).write_bytes(damaged)
            extract = None
            if index_is_lost:
                (root / "index.sqlite").unlink()
                extract = world.images
            yield named(f"{name}, bit {bit}", world.outcome(extract))


def bits_of(raw: bytes, region: str, count: int) -> list[int]:
    """Return so many random bits of a region of a file."""
    begin_of_records = 8 + int.from_bytes(raw[:8], "little")
    begin = 0
    end = len(raw)
    if region == "header":
        end = begin_of_records
    elif region == "records":
        begin = begin_of_records
    bits = range(8 * begin, 8 * end)
    return random.Random(0).sample(bits, min(len(bits), count))


def exchange_ids(database: sqlite3.Connection, first: str, second: str) -> None:
    rename = "update image set id = ? where id = ?"
    database.execute(rename, ("free", first))
    database.execute(rename, (first, second))
    database.execute(rename, (second, "free"))


def exchange_records(database: sqlite3.Connection, first: str, second: str) -> None:
    query = "select shard, offsets from image where id = ?"
    record_of_first = database.execute(query, (first,)).fetchone()
    record_of_second = database.execute(query, (second,)).fetchone()
    update = "update image set shard = ?, offsets = ? where id = ?"
    database.execute(update, (*record_of_second, first))
    database.execute(update, (*record_of_first, second))


def turn_grid(database: sqlite3.Connection, image_id: str) -> None:
    database.execute("update image set rows = cols, cols = rows where id = ?", (image_id,))


def remove_row(database: sqlite3.Connection, image_id: str) -> None:
    database.execute("delete from image where id = ?", (image_id,))


def changed_index(world: World, change: Callable[..., None], num_images: int) -> Iterator[str]:
    """Change rows of the index.

    Args:
        world: has the sound store.
        change: takes the database and one image or two.
        num_images: that it takes; all of the store in turn.
    """
    for image_ids in itertools.combinations(IMAGE_IDS, num_images):
        with contextlib.closing(sqlite3.connect(world.copy() / "index.sqlite")) as database:
            change(database, *image_ids)
            database.commit()
        yield named(", ".join(image_ids), world.outcome())


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-1])


def empty(shard: Path) -> None:
    shard.write_bytes(b"")


def write_text(shard: Path) -> None:
    shard.write_text("Tokens of the first field, 2024\n" * 99)


def remove(shard: Path) -> None:
    shard.unlink()


def rename(shard: Path) -> None:
    shard.rename(shard.with_name("w-1.safetensors"))


def duplicate(shard: Path) -> None:
    shutil.copy(shard, shard.with_name("w-1.safetensors"))


def exchange(shard: Path, other: Path) -> None:
    spare = shard.with_name("spare")
    shard.rename(spare)
    other.rename(shard)
    spare.rename(other)


def replace(shard: Path, other: Path) -> None:
    shutil.copy(other, shard)


OF_ONE_SHARD = (cut, empty, write_text, remove, rename, duplicate)
OF_TWO_SHARDS = (exchange, replace)


def changed_shards(world: World) -> Iterator[str]:
    """Remove the index or change shards; the modification time of their folder stays."""
    (world.copy() / "index.sqlite").unlink()
    yield named("no index", world.outcome())

    names = sorted(path.name for path in (world.sound / "data").iterdir())
    for change in OF_ONE_SHARD:
        for name in names:
            data = world.copy() / "data"
            change(data / name)
            os.utime(data, OLD_TIMES)
            yield named(f"{change.__name__} {name}", world.outcome())
    for pair_change in OF_TWO_SHARDS:
        for name, other in itertools.permutations(names, 2):
            data = world.copy() / "data"
            pair_change(data / name, data / other)
            os.utime(data, OLD_TIMES)
            yield named(f"{pair_change.__name__} {name}, {other}", world.outcome())


def replaced_images(world: World) -> Iterator[str]:
    """Replace images by others of the same name and size, in half of the cases of the same time, and extract again."""
    old = {name: (world.images / name).read_bytes() for name in FILE_NAMES}
    new = {name: (world.other_images / name).read_bytes() for name in FILE_NAMES}
    first, _, last = FILE_NAMES
    changes: list[dict[str, bytes]] = [{name: new[name]} for name in FILE_NAMES]
    changes.append(new)
    changes.append({first: old[last], last: old[first]})
    for number, (content, has_same_times) in enumerate(itertools.product(changes, (False, True))):
        images = shutil.copytree(world.images, world.folder / f"images-{number}")
        for name, raw in content.items():
            (images / name).write_bytes(raw)
            moment = 10**18
            if has_same_times:
                moment = (world.images / name).stat().st_mtime_ns
            os.utime(images / name, ns=(moment, moment))
        fresh = world.extract(world.folder / f"fresh-{number}", images)
        right = world.predictions(fresh)
        world.copy()
        yield named(f"number {number}", world.outcome(extract=images, right=right))


PARTS = (".", "data", "store.json", "channel_scale.safetensors", "index.sqlite")


def parts_of_another_store(world: World) -> Iterator[str]:
    """Overlay the store, or parts of it, with those of a store of other images and up to one other option."""
    changes: dict[str, dict[str, Any]] = {
        "other images": {},
        "another backbone": {"backbone": kit.backbone(seed=1)},
        "another dtype": {"dtype": "fp16"},
        "another size": {"image_size": (32, 32)},
        "other views": {"views": Views([View(turns=1), View(turns=3)])},
    }
    for difference, change in changes.items():
        root = world.folder / difference
        other = Path(world.extract(root, world.other_images, **change).path)
        for part in PARTS:
            store = world.copy()
            if (other / part).is_dir():
                shutil.copytree(other / part, store / part, dirs_exist_ok=True)
            elif (other / part).exists():
                shutil.copy(other / part, store)
            yield named(f"{difference}, {part}", world.outcome())
        store = world.copy()
        shutil.rmtree(store / "data")
        shutil.copytree(other / "data", store / "data")
        yield named(f"{difference}, data alone", world.outcome())


MODES: dict[str, Callable[[World], Iterator[str]]] = {
    "a bit of store.json is flipped": partial(flips, pattern="store.json", max_bits=10**6),
    "a bit of the index is flipped": partial(flips, pattern="index.sqlite", max_bits=2500),
    "a bit of a shard's header is flipped": partial(
        flips, pattern="data/*", max_bits=1200, region="header"
    ),
    "the same, the index is lost, and extract is called": partial(
        flips, pattern="data/*", max_bits=8, region="header", index_is_lost=True
    ),
    "a bit of a record is flipped": partial(
        flips, pattern="data/*", max_bits=800, region="records"
    ),
    "a bit of the channel scale is flipped": partial(
        flips, pattern="channel_scale.safetensors", max_bits=800
    ),
    "two index rows exchange their ids": partial(changed_index, change=exchange_ids, num_images=2),
    "two index rows exchange records": partial(
        changed_index, change=exchange_records, num_images=2
    ),
    "the grid of an index row is turned": partial(changed_index, change=turn_grid, num_images=1),
    "an index row is removed": partial(changed_index, change=remove_row, num_images=1),
    "the index is removed; shards are cut, moved or replaced": changed_shards,
    "images are replaced by others of the same size, and extract is called": replaced_images,
    "parts come from another store": parts_of_another_store,
}
"""What is done -> what judges its cases."""


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all cases of one mode, or a share of the bits that are flipped."""
    yield from MODES[mode](World(folder, share))
