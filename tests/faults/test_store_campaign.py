"""What is done to a feature store or its images, and what comes of it: the judge predicts with the tokens it reads.

Every case is *refused* (an error of dinoneck), *noticed* (``verify`` names an image), *harmless* (the predictions of
all images are the right ones, bit for bit) or *silent*, which no case may be. ``campaign()`` counts all cases.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.test_store_faults import Crash, count_down
from tests.unit.store.store_samples import make, write_images

from dinoneck import Backbone, DinoneckError, FeatureStore, PatchMeanHead, Task, load_backbone
from dinoneck.data import Views
from dinoneck.store import shards

NAMES = ["a.bmp", "b.bmp", "c.bmp"]
OUTCOMES = ("refused", "noticed", "harmless", "silent")


class World:
    """A small sound store, its images, and what a head predicts from it; cases damage copies."""

    def __init__(self, folder: Path, backbone: Backbone, every: bool) -> None:
        self.folder, self.backbone, self.every = folder, backbone, every
        self.root, self.images, self.other = folder / "store", folder / "images", folder / "other"
        write_images(self.images, NAMES)
        write_images(self.other, NAMES, seed=30)  # the same names and, being BMP, the same sizes
        torch.manual_seed(0)
        self.head = PatchMeanHead(backbone.embed_dim, [Task("x", dim=4)]).eval()
        sound = self.extracted(folder / "sound", self.images, shard_bytes=1)
        self.right = self.predictions(sound)
        os.utime(folder / "sound" / "data", (10**9, 10**9))  # so old that its time is trusted
        sound.refresh(rebuild=True)
        assert sound.entries.times[0] == 10**18

    def extracted(self, root: Path, images: Path, shard_bytes: int = 1 << 20, **changes: Any) -> FeatureStore:
        """Extract what is missing of a folder of images."""
        views = Views(Views.named("flips4").views[:2])
        options = {"backbone": self.backbone, "views": views, "image_size": (16, 32), "dtype": "int8", **changes}
        store = make(root, **options)
        store.extract(images, workers=1, shard_bytes=shard_bytes)
        return store

    def predictions(self, store: FeatureStore) -> dict[str, list[float]]:
        """Predict from every view of every image that the store lists, and of every image that was stored."""
        ids = sorted({*store.ids, *(Path(name).stem for name in NAMES)})
        with torch.no_grad():
            return {i: self.head.predict(store.batch([i, i], [0, 1]))["x"].flatten().tolist() for i in ids}

    def copy(self) -> Path:
        """Return the store, sound again and trusted by its times."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.folder / "sound", self.root)
        FeatureStore.open(self.root).refresh(rebuild=True)
        return self.root

    def outcome(self, extract: Path | None = None, right: dict[str, list[float]] | None = None) -> str:
        """Extract a folder of images, if one is given, then read everything, predict and judge."""
        try:
            if extract is not None:
                self.extracted(self.root, extract)
            store = FeatureStore.open(self.root)
            predicted = self.predictions(store)
            if store.verify():
                return "noticed"
        except DinoneckError:
            return "refused"
        return "harmless" if predicted == (right or self.right) else "silent"


Mode = Callable[[World], Iterator[str]]


def flips(files: str, part: str = "all", *, index_lost: bool = False, some: int = 60, most: int = 10**9) -> Mode:
    """Flip one bit at a time of the files, at most so many; ``part`` of a shard: its header or its records."""

    def run(world: World) -> Iterator[str]:
        for path in sorted(world.copy().glob(files)):
            raw = path.read_bytes()
            header = 8 + int.from_bytes(raw[:8], "little")
            begin, end = {"all": (0, len(raw)), "header": (0, header), "records": (header, len(raw))}[part]
            bits = range(8 * begin, 8 * end)
            count = min(len(bits), most if world.every and not index_lost else some)
            for bit in random.Random(0).sample(bits, count):
                damaged = bytearray(raw)
                damaged[bit // 8] ^= 1 << bit % 8
                if index_lost:
                    (world.copy() / "index.sqlite").unlink()
                path.write_bytes(damaged)
                yield world.outcome(world.images if index_lost else None)
            path.write_bytes(raw)

    return run


def rows(*changes: str) -> Mode:
    """Change rows of the index, each two images in turn."""

    def run(world: World) -> Iterator[str]:
        for one, other in itertools.permutations(("a", "b", "c"), 2):
            with contextlib.closing(sqlite3.connect(world.copy() / "index.sqlite")) as database:
                for change in changes:
                    database.execute(change, {"one": one, "other": other, "none": "z"})
                database.commit()
            yield world.outcome()

    return run


EXCHANGED = "update image set {0} = (select {0} from image as i where i.id = iif(image.id = :one, :other, :one))"
EXCHANGED += " where id in (:one, :other)"
IDS = [f"update image set id = {new} where id = {old}" for new, old in ((":none", ":one"), (":one", ":other"),
                                                                       (":other", ":none"))]  # fmt: skip


def lost(world: World) -> Iterator[str]:
    """Remove every row, then the index file, then every shard."""
    for image_id in ("a", "b", "c"):
        with contextlib.closing(sqlite3.connect(world.copy() / "index.sqlite")) as database:
            database.execute("delete from image where id = ?", [image_id])
            database.commit()
        yield world.outcome()
    (world.copy() / "index.sqlite").unlink()
    yield world.outcome()
    for number in range(3):
        sorted((world.copy() / "data").iterdir())[number].unlink()
        yield world.outcome()


def moved(world: World) -> Iterator[str]:
    """Cut, rename, duplicate, exchange and replace shards; their folder keeps the time that the index holds."""
    for first, second in itertools.permutations(range(3), 2):
        for change in ("cut", "empty", "rename", "duplicate", "exchange", "replace", "text"):
            data = world.copy() / "data"
            one, other = (sorted(data.iterdir())[number] for number in (first, second))
            raw, spare = one.read_bytes(), data / "w-1.safetensors"
            if change == "cut":
                one.write_bytes(raw[:-1])
            elif change == "empty":
                one.write_bytes(b"")
            elif change == "rename":
                one.rename(spare)
            elif change == "duplicate":
                shutil.copy(one, spare)
            elif change == "exchange":
                one.write_bytes(other.read_bytes())
                other.write_bytes(raw)
            elif change == "replace":
                one.write_bytes(other.read_bytes())
            else:
                spare.write_text("not a shard")
            os.utime(data, (10**9, 10**9))
            yield world.outcome()


def replaced(world: World) -> Iterator[str]:
    """Put other images of the same size under stored names, or exchange two images, and extract again."""
    old, new = ({name: (folder / name).read_bytes() for name in NAMES} for folder in (world.images, world.other))
    a, _, c = NAMES
    for content in (*({name: new[name]} for name in NAMES), new, {a: old[c], c: old[a]}, old):
        with tempfile.TemporaryDirectory(dir=world.folder) as place:
            images = shutil.copytree(world.images, Path(place) / "images")
            shutil.rmtree(world.root, ignore_errors=True)
            world.extracted(world.root, images)
            for name, raw in content.items():
                (images / name).write_bytes(raw)
            yield world.outcome(images, world.predictions(world.extracted(Path(place) / "fresh", images)))


def another_root(world: World) -> Iterator[str]:
    """Extract from another folder: the same images moved there, and other images of equal names, sizes and times."""
    with tempfile.TemporaryDirectory(dir=world.folder) as place:
        right = world.predictions(world.extracted(Path(place) / "fresh", world.other))
        moved = shutil.copytree(world.images, Path(place) / "moved")
        for images, expected in ((moved, world.right), (world.other, right)):
            for same_times in (True, False):
                for name in NAMES:
                    moment = (world.images / name).stat().st_mtime_ns if same_times else 10**18
                    os.utime(images / name, ns=(moment, moment))
                world.copy()
                yield world.outcome(images, expected)


def another_store(world: World) -> Iterator[str]:
    """Replace parts by those of a store that differs in one thing: the images, the backbone, the size, the views."""
    turned = Views(world.extracted(world.root, world.images).views.views[::-1])
    changes: list[dict[str, Any]] = [{}, {"backbone": load_backbone("dinoneck_tiny", seed=1)}]
    changes += [{"image_size": (32, 16)}, {"views": turned}, {"dtype": "fp16"}]
    for change in changes:
        images = world.images if change else world.other
        with tempfile.TemporaryDirectory(dir=world.folder) as place:
            other = Path(world.extracted(Path(place) / "store", images, **change).path)
            scale = "channel_scale.safetensors"
            for parts in (["index.sqlite", "data"], ["data"], ["store.json"], [scale], ["index.sqlite"], ["added"]):
                root = world.copy()
                for path in (other / "data").iterdir() if parts == ["added"] else ():  # two stores in one folder
                    shutil.copy(path, root / "data")
                for part in parts:
                    if (other / part).is_dir():
                        shutil.rmtree(root / part)
                        shutil.copytree(other / part, root / part)
                    elif (other / part).exists():
                        shutil.copy(other / part, root)
                yield world.outcome()


def killed(world: World) -> Iterator[str]:
    """End an extraction at its n-th change of the disk, and extract again."""
    for step in itertools.count(1, 1 if world.every else 9):
        shutil.rmtree(world.root, ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "SHARD_SECONDS", 0.0)  # a shard per image
            count = count_down(patch, step, Crash)
            try:
                world.extracted(world.root, world.images)
                return
            except Crash:
                assert count() >= step
        yield world.outcome(world.images)


MODES: dict[str, Mode] = {
    "a bit of store.json is flipped": flips("store.json"),
    "a bit of the index is flipped": flips("index.sqlite", some=200, most=2500),
    "a bit of a shard's header is flipped": flips("data/*", "header", most=1200),
    "a bit of a shard's header is flipped, the index is lost, and extract is called": flips(
        "data/*", "header", index_lost=True, some=8
    ),
    "a bit of a record is flipped": flips("data/*", "records", most=800),
    "a bit of the channel scale is flipped": flips("channel_scale.safetensors", most=800),
    "two index rows exchange their ids": rows(*IDS),
    "two index rows exchange records": rows(*map(EXCHANGED.format, ("shard", "offsets"))),
    "the grid of an index row is turned": rows("update image set rows = cols, cols = rows where id = :one"),
    "an index row, the index or a shard is removed": lost,
    "shards are cut, renamed, duplicated, exchanged or replaced": moved,
    "images are replaced by others of the same size, and extract is called": replaced,
    "another root with the same names, and extract is called": another_root,
    "index and shards, store.json or the channel scale come from another store": another_store,
    "extract is killed at a change of the disk, and called again": killed,
}
"""What is done -> the outcomes of its cases."""


def counts(world: World, mode: Mode) -> dict[str, int]:
    """Return how many cases there were, and how many of each outcome."""
    outcomes = Counter(mode(world))
    return {"cases": outcomes.total(), **{outcome: outcomes[outcome] for outcome in OUTCOMES}}


def campaign() -> dict[str, dict[str, int]]:
    """Run all cases of all modes."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), load_backbone("dinoneck_tiny"), every=True)
        return {name: counts(world, mode) for name, mode in MODES.items()}


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "all"])
def world(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone, request: pytest.FixtureRequest) -> Iterator[World]:
    yield World(tmp_path_factory.mktemp("world"), tiny, request.param)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", MODES)
def test_nothing_is_silent(world: World, name: str) -> None:
    found = counts(world, MODES[name])
    assert found["cases"] >= 4
    assert found["silent"] == 0, found


def test_the_judge_sees_what_is_silent(world: World, tmp_path: Path) -> None:
    images = shutil.copytree(world.images, tmp_path / "images")
    (images / "a.bmp").write_bytes((images / "c.bmp").read_bytes())
    shutil.rmtree(world.root, ignore_errors=True)
    world.extracted(world.root, images)
    assert world.outcome() == "silent"
