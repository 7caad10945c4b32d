"""What feature stores, their extraction and their readers refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from dinoneck import (
    ConfigError,
    DataError,
    FeatureStore,
    GridError,
    ShapeError,
    StoreError,
    Tokens,
    load_backbone,
)
from dinoneck.store import MemoryStore, StoreDataset, image_ids
from dinoneck.store.encoding import encode
from tests.refusals import Row
from tests.unit.backbones.test_channels import backbone_of
from tests.unit.store.store_samples import make, write_images

LARGE = Tokens.from_patches(torch.full((1, 4, 8), 7e4), grid=(2, 2), patch_size=16, layers=[5])
NOT_A_NUMBER = replace(LARGE, sequence=(torch.full((1, 4, 8), float("nan")),))
Call = Callable[[Path], Any]


def two_layers(**options: Any) -> Any:
    return load_backbone("dinoneck_tiny", layers=[0, -1], **options)


def opened(read: Callable[[FeatureStore], Any], **options: Any) -> Call:
    """Extract two images and read the store."""

    def call(folder: Path) -> Any:
        store = make(folder / "store", two_layers(), **options)
        store.extract(write_images(folder / "images", ["a.png", "b.png"]))
        return read(store)

    return call


def under_another_root(folder: Path) -> Any:
    """Extract images, and extract them again with other ids."""
    write_images(folder / "images", ["a.png", "b.png"])
    store = make(folder / "store", two_layers())
    store.extract(folder / "images")
    return store.extract(folder / "images", root=folder)


def changed(backbone: Callable[[], Any] = two_layers, **options: Any) -> Call:
    """Make a store, and ask for another one in the same folder."""

    def call(folder: Path) -> Any:
        make(folder / "store", two_layers())
        return make(folder / "store", backbone(), **options)

    return call


def described(old: str, new: str | None) -> Call:
    """Open a store whose description was edited, or is cut to one sign."""

    def call(folder: Path) -> Any:
        make(folder / "store", two_layers())
        path = folder / "store" / "store.json"
        path.write_text(old if new is None else path.read_text().replace(old, new))
        return FeatureStore.open(folder / "store")

    return call


def other_weights(folder: Path) -> Any:
    backbone = two_layers()
    store = make(folder / "store", backbone)
    with torch.no_grad():
        next(backbone.parameters()).add_(1.0)
    return store.extract(write_images(folder / "images", ["a.png"]))


def images(*names: str, root: str | None = None, listed: tuple[str, ...] = ("",)) -> Call:
    def call(folder: Path) -> Any:
        write_images(folder, [*names])
        return image_ids(
            [folder / name for name in listed], root=None if root is None else folder / root
        )

    return call


def npz(**arrays: Any) -> Call:
    def call(folder: Path) -> Any:
        np.savez(folder / "a.npz", **arrays)
        return FeatureStore.from_npz(folder, folder / "store", grid=(3, 3), patch_size=16)

    return call


def in_a_folder(folder: Path) -> Any:
    (folder / "thesis.txt").write_text("important")
    return make(folder, two_layers())


def unusable(folder: Path) -> Any:
    store = make(folder / "store", two_layers())
    return store.extract(
        [*write_images(folder / "images", ["m.png"]), touched(folder / "images" / "empty.png")]
    )


def missing_image(folder: Path) -> Any:
    store = make(folder / "store", two_layers())
    return store.extract([folder / "zz.png"])


def beyond_the_world(store: FeatureStore) -> Any:
    with mock.patch.dict("os.environ", {"RANK": "3", "WORLD_SIZE": "2"}):
        return store.extract(Path(store.path).parent / "images")


def removed_meanwhile(folder: Path) -> Any:
    store = make(folder / "store", two_layers())
    shutil.rmtree(folder / "store")
    return store.extract(write_images(folder / "images", ["a.png"]))


def written_by_others_only(folder: Path) -> Any:
    store = make(folder / "store", two_layers())
    images = write_images(folder / "images", ["a.png"])
    with mock.patch("os.access", return_value=False):  # of root it never is
        return store.extract(images)


def touched(path: Path) -> Path:
    path.touch()
    return path


CHANGES: list[tuple[dict[str, Any], str | tuple[str, ...]]] = [
    ({"image_size": (48, 48)}, ("inputs.size", "[32, 48]", "[48, 48]")),
    ({"views": "none"}, "views"),
    ({"dtype": "bf16"}, ("dtype", "fp16", "bf16")),
    ({"resize": "crop"}, ("inputs.resize", "stretch", "crop")),
    ({"interpolation": "bicubic"}, "inputs.interpolation"),
    ({"backbone": lambda: load_backbone("dinoneck_tiny")}, ("backbone.layers", "[0, 5]", "[5]")),
    ({"backbone": lambda: two_layers(seed=1)}, "backbone.weights_sha256"),
]
READS: list[tuple[Callable[[FeatureStore], Any], type[Exception], str | tuple[str, ...]]] = [
    (lambda store: store.batch(["a", "d"]), DataError, ("'d'", "2 images")),
    (lambda store: store["a", 4], DataError, "[4]"),
    (lambda store: store.batch(["a"], [0, 1]), DataError, ("2 numbers", "1 id")),
    (lambda store: store.batch(["a"], ["0"]), DataError, "['0']"),  # type: ignore[list-item]
    (lambda store: store.batch("ab"), DataError, ("'ab'", "['ab']")),
    (lambda store: store.batch([]), DataError, "no ids"),
    (lambda store: store.quantised(["a"]), StoreError, "fp16"),
    (lambda store: MemoryStore(store, ["b"]).batch(["b", "a"]), DataError, ("'a'", "1 image")),
    (lambda store: StoreDataset(store, views="all"), DataError, "'all'"),  # type: ignore[arg-type]
    (lambda store: StoreDataset(store, ["z"]), DataError, "'z'"),
    (
        lambda store: store.extract(Path(store.path).parent / "images", shard=(2, 2)),
        ConfigError,
        "(2, 2)",
    ),
    (lambda store: store.extract(".", shard="0/2"), ConfigError, "'0/2'"),  # type: ignore[arg-type]
    (lambda store: store.extract(".", shard=(0, 1, 2)), ConfigError, "(0, 1, 2)"),  # type: ignore[arg-type]
    (lambda store: store.extract(".", shard=(0, 2), engine="ray"), ConfigError, ("(0, 2)", "ray")),
    (lambda store: store.extract(".", batch_size=0), ConfigError, "batch_size is 0"),
    (lambda store: store.extract(".", workers=1.5), ConfigError, "workers is 1.5"),  # type: ignore[arg-type]
    (lambda store: store.extract(".", shard_bytes=0), ConfigError, "shard_bytes is 0"),
    (beyond_the_world, ConfigError, ("RANK is 3", "WORLD_SIZE 2")),
    (lambda store: store.extract(".", engine="rey"), ConfigError, "'rey'"),  # type: ignore[arg-type]
    (lambda store: FeatureStore.open(store.path).extract(["x.png"]), StoreError, "backbone"),
    (
        lambda store: FeatureStore.open(store.path, check="alway"),  # type: ignore[arg-type]
        ConfigError,
        ("'alway'", "first, always, never"),
    ),
]

ROWS: list[Row] = [
    *((changed(**own), StoreError, named) for own, named in CHANGES),
    (other_weights, StoreError, "backbone.weights_sha256"),
    *((opened(read), error, named) for read, error, named in READS),
    (
        opened(lambda store: store.quantised(["a"]).linear(torch.ones(5, 31)), dtype="int8"),
        ShapeError,
        ("(5, 31)", "(D, 64)"),
    ),
    (lambda folder: FeatureStore.open(folder / "no"), StoreError, ("/no", "holds no store.json")),
    (lambda folder: FeatureStore.open(touched(folder / "a.txt")), StoreError, "a.txt is a file"),
    (lambda: FeatureStore.open("memory://no-such-store"), StoreError, "store.json"),
    (in_a_folder, StoreError, "'thesis.txt'"),
    (lambda folder: make(touched(folder / "a.txt"), two_layers()), StoreError, "a.txt"),
    (removed_meanwhile, StoreError, ("store/data", "moved or removed")),
    (written_by_others_only, StoreError, ("store/data", "right to write")),
    (
        lambda folder: make(folder / "x", two_layers(), dtype="fp32"),
        ConfigError,
        ("'fp32'", "fp16, bf16, int8"),
    ),
    (
        lambda folder: make(folder / "x", two_layers(), image_size=(10, 80), resize="crop"),
        GridError,
        "10 px",
    ),
    (lambda folder: make(folder / "x", "dinoneck_tiny"), ConfigError, "'dinoneck_tiny'"),  # type: ignore[arg-type]
    (lambda folder: make(folder / "x", torch.nn.Linear(1, 1)), ConfigError, "Linear"),  # type: ignore[arg-type]
    (
        lambda folder: FeatureStore.create(
            folder / "s", backbone=backbone_of(4), views="color20", image_size=None
        ),
        ConfigError,
        ("color20", "4 channels"),
    ),
    (
        lambda: FeatureStore.create("memory://x", backbone=two_layers(), image_size=32),
        StoreError,
        "memory://x",
    ),
    (described('"schema": 1', '"schema": 2'), StoreError, ("schema 2", "schema 1", "dinoneck 0.")),
    (described("dinoneck.store", "dinoneck.head"), StoreError, "'dinoneck.store'"),
    (described('"patch_size"', '"patch"'), StoreError, ("store.json", "edited")),
    (described('"fp16"', '"bf16"'), StoreError, "digest"),
    (described("{", None), StoreError, ("store.json", "no JSON")),
    (described("[" * 100_000, None), StoreError, "store.json"),
    (under_another_root, StoreError, ("2 images", "a.png", "'a'", "'images/a'", "--root")),
    (unusable, DataError, ("empty.png", "--skip-unusable")),
    (missing_image, DataError, ("there is no image", "zz.png", "is kept")),
    (lambda: encode(LARGE, "fp16"), StoreError, ("layer 5", "70000", "65504", "norm=True")),
    (lambda: encode(NOT_A_NUMBER, "bf16"), StoreError, "layer 5"),
    (lambda: encode(LARGE, "int8"), StoreError, "int8"),
    (images("x/a.png", "x/a.jpg"), DataError, ("a.jpg", "a.png", "'x/a'")),
    (images("x/a.png", root="y", listed=("x/a.png",)), DataError, ("a.png", "y")),
    (lambda: image_ids([]), DataError, "no images"),
    (npz(patches_0=np.zeros((6, 8))), DataError, ("a.npz", "3 rows")),
    (npz(patches_0=np.array([{"a": 1}], dtype=object)), DataError, "a.npz"),
    (lambda folder: FeatureStore.from_pt(folder, folder / "s", patch_size=16), DataError, ".pt"),
    (
        lambda folder: FeatureStore.from_pt(folder, folder / "s", patch_size=16, dtype="int8"),
        ConfigError,
        ("'int8'", "'fp16' or 'bf16'"),
    ),
]
