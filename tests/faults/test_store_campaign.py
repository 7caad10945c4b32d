"""What is done to a feature store or its images, and what comes of it: the judge predicts with the tokens it reads.

Every case is *refused* (an error of dinoneck), *noticed* (``verify`` names an image), *harmless* (the predictions of
all images are the right ones, bit for bit) or *silent*, which no case may be. ``campaign()`` counts all cases.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
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
from dinoneck.data import Patterns
from dinoneck.store import table, writer
from dinoneck.store.index import checked_line

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
        self.right = self.predictions(self.extracted(folder / "sound", self.images))

    def extracted(self, root: Path, images: Path, **changes: Any) -> FeatureStore:
        """Extract what is missing of a folder of images."""
        patterns = Patterns(Patterns.named("flips4").patterns[:2])
        options = {"backbone": self.backbone, "patterns": patterns, "image_size": (16, 32), "dtype": "int8", **changes}
        store = make(root, **options)
        store.extract(images, workers=1)
        return store

    def predictions(self, store: FeatureStore) -> dict[str, list[float]]:
        """Predict from every pattern of every image."""
        with torch.no_grad():
            return {i: self.head.predict(store.batch([i, i], [0, 1]))["x"].flatten().tolist() for i in store.ids}

    def copy(self) -> Path:
        """Return the store, sound again."""
        shutil.rmtree(self.root, ignore_errors=True)
        return shutil.copytree(self.folder / "sound", self.root)

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


def flips(files: str, part: str = "all", *, index_lost: bool = False, some: int = 60) -> Mode:
    """Flip one bit at a time of the files; ``part`` of a shard: its header or its records."""

    def run(world: World) -> Iterator[str]:
        for path in sorted(world.copy().glob(files)):
            raw = path.read_bytes()
            header = 8 + int.from_bytes(raw[:8], "little")
            begin, end = {"all": (0, len(raw)), "header": (0, header), "records": (header, len(raw))}[part]
            bits = range(8 * begin, 8 * end)
            for bit in bits if world.every and not index_lost else random.Random(0).sample(bits, some):
                damaged = bytearray(raw)
                damaged[bit // 8] ^= 1 << bit % 8
                if index_lost:
                    shutil.rmtree(world.copy() / "index")
                path.write_bytes(damaged)
                yield world.outcome(world.images if index_lost else None)
            path.write_bytes(raw)

    return run


def lines(change: Callable[..., object], *, checked: bool) -> Mode:
    """Change one or two lines of the index; ``checked``: and write checksums that fit."""

    def run(world: World) -> Iterator[str]:
        [path] = (world.copy() / "index").iterdir()
        first, *texts = path.read_text().splitlines()
        for places in itertools.permutations(range(len(texts)), 2):
            contents: list[dict[str, Any]] = [json.loads(text) for text in texts]
            change(*(contents[place] for place in places))
            if checked:
                rest = [checked_line({k: v for k, v in c.items() if k != "line_crc32"}) for c in contents]
            else:
                rest = [json.dumps(content, separators=(",", ":")) for content in contents]
            path.write_text("".join(f"{line}\n" for line in [first, *rest]))
            yield world.outcome()

    return run


def exchange(*keys: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Exchange entries of two lines."""

    def change(one: dict[str, Any], other: dict[str, Any]) -> None:
        for key in keys:
            one[key], other[key] = other[key], one[key]

    return change


def lost(world: World) -> Iterator[str]:
    """Remove every line, then the index file, then the shard."""
    [path] = (world.copy() / "index").iterdir()
    text = path.read_text().splitlines(keepends=True)
    for place in range(len(text)):
        path.write_text("".join(text[:place] + text[place + 1 :]))
        yield world.outcome()
    path.unlink()
    yield world.outcome()
    [shard] = (world.copy() / "data").iterdir()
    shard.unlink()
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
    """Replace parts by those of a store that differs in one thing: the images, the backbone, the size, the patterns."""
    turned = Patterns(world.extracted(world.root, world.images).patterns.patterns[::-1])
    changes: list[dict[str, Any]] = [{}, {"backbone": load_backbone("dinoneck_tiny", seed=1)}]
    changes += [{"image_size": (32, 16)}, {"patterns": turned}, {"dtype": "fp16"}]
    for change in changes:
        images = world.images if change else world.other
        with tempfile.TemporaryDirectory(dir=world.folder) as place:
            other = Path(world.extracted(Path(place) / "store", images, **change).path)
            for parts in (["index", "data"], ["store.json"], ["channel_scale.safetensors"], ["index.table"]):
                root = world.copy()
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
            patch.setattr(writer, "FIRST_SHARD_SECONDS", 0.0)  # a shard per image
            count = count_down(patch, step, Crash)
            try:
                world.extracted(world.root, world.images)
                return
            except Crash:
                assert count() >= step
        yield world.outcome(world.images)


MODES: dict[str, Mode] = {
    "a bit of store.json is flipped": flips("store.json"),
    "a bit of the index is flipped": flips("index/*"),
    "a bit of the index table is flipped": flips("index.table"),
    "a bit of a shard's header is flipped": flips("data/*", "header"),
    "a bit of a shard's header is flipped, the index is lost, and extract is called": flips(
        "data/*", "header", index_lost=True, some=8
    ),
    "a bit of a record is flipped": flips("data/*", "records"),
    "a bit of the channel scale is flipped": flips("channel_scale.safetensors"),
    "two index lines exchange their ids": lines(exchange("id"), checked=False),
    "two index lines exchange their ids, with checksums that fit": lines(exchange("id"), checked=True),
    "two index lines exchange records, with checksums that fit": lines(exchange("offset", "crc32"), checked=True),
    "the grid of an index line is turned, with a checksum that fits": lines(
        lambda one, _: one["grid"].reverse(), checked=True
    ),
    "an index line, the index or a shard is removed": lost,
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "LARGEST_TAIL", 0)  # small stores have a table too
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
