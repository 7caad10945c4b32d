"""What a store refuses whose files are damaged, missing, of another store or cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dinoneck import DataError, FeatureStore, StoreError
from tests import kit
from tests.refusals import Row
from tests.unit.store.store_samples import make, write_images

SCALE = "channel_scale.safetensors"
INDEX = "index.sqlite"


@cache
def sound_files(dtype: str) -> dict[str, bytes]:
    """The files of a store of two images, by their names in its folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_images(folder / "images", ["a.png", "b.png"])
        store = make(folder / "store", kit.backbone(), views="none", dtype=dtype)
        store.extract(images, root=folder / "images")
        files = [path for path in (folder / "store").rglob("*") if path.is_file()]
        return {str(path.relative_to(folder / "store")): path.read_bytes() for path in files}


def sound(folder: Path, dtype: str = "fp16") -> Path:
    """Write a sound store."""
    for name, content in sound_files(dtype).items():
        path = folder / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "store"


def shard_in(root: Path) -> Path:
    [shard] = (root / "data").iterdir()
    return shard


def cut(path: Path, left_out: int) -> None:
    os.truncate(path, path.stat().st_size - left_out)


# reading


def shard_with_another_bit(folder: Path) -> Any:
    shard = shard_in(sound(folder))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return FeatureStore.open(folder / "store").batch(["a", "b"])


def shard_cut_while_it_is_read(folder: Path) -> Any:
    store = FeatureStore.open(sound(folder))
    cut(shard_in(folder / "store"), 8)
    return store.batch(["a", "b"])


def shard_cut_behind_a_url(folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # of its index
        store = FeatureStore.open(f"local://{sound(folder)}")
        cut(shard_in(folder / "store"), 8)
        return store.batch(["a", "b"])


def shard_missing(folder: Path) -> Any:
    store = FeatureStore.open(sound(folder))
    shard_in(folder / "store").unlink()
    return store.batch(["a"])


def shard_is_a_pipe(folder: Path) -> Any:
    store = FeatureStore.open(sound(folder))
    shard = shard_in(folder / "store")
    shard.unlink()
    os.mkfifo(shard)
    return store.batch(["a"])


def description_is_a_folder(folder: Path) -> Any:
    (folder / "store" / "store.json").mkdir(parents=True)
    return FeatureStore.open(folder / "store")


def edited(**changes: Any) -> Callable[[Path], Any]:
    """Open a store whose description has other entries; None: an entry is taken out."""

    def call(folder: Path) -> Any:
        store = sound(folder)
        content = json.loads((store / "store.json").read_text()) | changes
        kept = {name: value for name, value in content.items() if value is not None}
        (store / "store.json").write_text(json.dumps(kept))
        return FeatureStore.open(store)

    return call


def two_images_of_one_id(folder: Path) -> Any:
    """Copy the shards of another folder's images into a store."""
    root = sound(folder)
    others = write_images(folder / "others", ["a.png"], seed=9)
    other = make(folder / "other", kit.backbone(), views="none")
    other.extract(others, root=folder / "others")
    shutil.copy(shard_in(folder / "other"), root / "data")
    return FeatureStore.open(root).batch(["a"])


def shard_of_other_images_copied_over_it(folder: Path) -> Any:
    root = sound(folder)
    store = FeatureStore.open(root)
    store.batch(["a", "b"])
    others = write_images(folder / "others", ["a.png", "b.png"], seed=9)
    other = make(folder / "other", kit.backbone(), views="none")
    other.extract(others, root=folder / "others")
    shutil.copy(shard_in(folder / "other"), shard_in(root))
    return store.batch(["a"])


def images_of_two_sizes(folder: Path) -> Any:
    write_images(folder / "images", ["a.png"], height=32, width=48)
    write_images(folder / "images", ["b.png"], height=48, width=48)
    store = make(folder / "store", kit.backbone(), views="none", image_size=None, resize="crop")
    store.extract(folder / "images")
    return store.batch(["a", "b"])


# the scale of an int8 store


def scale_missing(folder: Path) -> Any:
    root = sound(folder, "int8")
    (root / SCALE).unlink()
    return FeatureStore.open(root)


def scale_of_text(folder: Path) -> Any:
    root = sound(folder, "int8")
    (root / SCALE).write_text("text")
    return FeatureStore.open(root)


def scale_with_other_values(folder: Path) -> Any:
    root = sound(folder, "int8")
    content = load_file(root / SCALE)
    save_file({**content, "channel_scale": content["channel_scale"] + 1}, root / SCALE)
    return FeatureStore.open(root)


def scale_of_other_layers(folder: Path) -> Any:
    root = sound(folder, "int8")
    content = load_file(root / SCALE)
    save_file({**content, "channel_scale": torch.ones(3, 64)}, root / SCALE)
    return FeatureStore.open(root)


def scale_of_unusable_images(folder: Path) -> Any:
    (folder / "a.png").write_text("no picture")
    store = make(folder / "store", kit.backbone(), dtype="int8")
    return store.extract([folder / "a.png"], skip_unusable=True)


# the index


def changed_index(change: str) -> Callable[[Path], Any]:
    """Ask a store for the shard of an image after its index was changed by this statement."""

    def call(folder: Path) -> Any:
        root = sound(folder)
        with contextlib.closing(sqlite3.connect(root / INDEX)) as database:
            database.execute(change)
            database.commit()
        return FeatureStore.open(root).shard_of("a")

    return call


def index_kept_nowhere(folder: Path) -> Any:
    root = sound(folder)
    (root / INDEX).unlink()
    (root / INDEX).mkdir()
    (folder / "cache").write_text("a file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        return FeatureStore.open(root).refresh(rebuild=True)


# extracting


def name_of_no_text(folder: Path) -> Any:
    [image] = write_images(folder, ["a.png"])
    image.rename(folder / os.fsdecode(b"\xff.png"))
    return make(folder / "store", kit.backbone()).extract(folder)


def changed_image(folder: Path) -> Any:
    write_images(folder / "images", ["a.png", "b.png"])
    store = make(folder / "store", kit.backbone())
    store.extract(folder / "images")
    Image.new("RGB", (60, 40), "green").save(folder / "images" / "a.png")
    return store.extract(folder / "images")


def little_room(folder: Path) -> Any:
    write_images(folder / "images", ["a.png", "b.png"])
    store = make(folder / "store", kit.backbone())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        return store.extract(folder / "images")


def shard_on_a_full_disk(folder: Path) -> Any:
    write_images(folder / "images", ["a.png"])
    store = make(folder / "store", kit.backbone())
    with kit.full_disk():
        return store.extract(folder / "images")


def scale_on_a_full_disk(folder: Path) -> Any:
    write_images(folder / "images", ["a.png"])
    store = make(folder / "store", kit.backbone(), dtype="int8")
    with kit.full_disk():
        return store.extract(folder / "images")


def made_on_a_full_disk(folder: Path) -> Any:
    with kit.full_disk():
        return make(folder / "store", kit.backbone())


def made_below_a_file(folder: Path) -> Any:
    (folder / "notes").write_text("text")
    return make(folder / "notes" / "store", kit.backbone())


def extracted_without_ray(folder: Path) -> Any:
    write_images(folder / "images", ["a.png"])
    store = make(folder / "store", kit.backbone())
    with kit.without("ray"):
        return store.extract(folder / "images", engine="ray")


# features of other programs


def converted(**files: Any) -> Callable[[Path], Any]:
    """Make a store of a .pt file per image."""

    def call(folder: Path) -> Any:
        (folder / "pt").mkdir()
        for name, content in files.items():
            torch.save(content, folder / "pt" / f"{name}.pt")
        return FeatureStore.from_pt(folder / "pt", folder / "store", patch_size=16)

    return call


def converted_text(folder: Path) -> Any:
    (folder / "npz").mkdir()
    (folder / "npz" / "a.npz").write_text("text")
    return FeatureStore.from_npz(folder / "npz", folder / "store", grid=(3, 3), patch_size=16)


def converted_views(folder: Path) -> Any:
    """Convert files of which the second has one view more."""
    (folder / "npz").mkdir()
    patches = np.zeros((9, 8), np.float32)
    np.savez(folder / "npz" / "a.npz", patches_0=patches)
    np.savez(folder / "npz" / "b.npz", patches_0=patches, patches_1=patches)
    return FeatureStore.from_npz(folder / "npz", folder / "store", grid=(3, 3), patch_size=16)


def converted_again(folder: Path) -> Any:
    """Convert a folder again in which a file has changed."""
    converted(a=torch.zeros(8, 3, 3))(folder)
    torch.save(torch.ones(8, 4, 4), folder / "pt" / "a.pt")
    return FeatureStore.from_pt(folder / "pt", folder / "store", patch_size=16)


ROWS: list[Row] = [
    # reading
    (shard_with_another_bit, StoreError, ("'b'", "data/w-", "checksum")),
    (shard_cut_while_it_is_read, StoreError, ("data/w-", "cut short")),
    (shard_cut_behind_a_url, StoreError, ("local://", "data/w-", "cut short")),
    (shard_missing, StoreError, ("data/w-", "is missing")),
    (shard_is_a_pipe, StoreError, ("data/w-", "pipe")),
    (description_is_a_folder, StoreError, ("store.json", "it is a folder")),
    (edited(views=None), StoreError, ("store.json", "lacks views")),
    (edited(dtype="fp8"), StoreError, ("store.json", "'fp8'")),
    (edited(dtype="bf16"), StoreError, ("store.json", "digest")),
    (edited(note="mine"), StoreError, ("store.json", "'note'")),
    (two_images_of_one_id, StoreError, ("'a'", "images)", "others)")),
    (
        shard_of_other_images_copied_over_it,
        StoreError,
        ("data/w-", "was replaced", "'a'", "delete", INDEX),
    ),
    (images_of_two_sizes, DataError, "2x3, 3x3"),
    # the scale of an int8 store
    (scale_missing, StoreError, SCALE),
    (scale_of_text, StoreError, SCALE),
    (scale_with_other_values, StoreError, (SCALE, "checksum")),
    (scale_of_other_layers, StoreError, (SCALE, "(3, 64)", "(1, 64)")),
    (scale_of_unusable_images, DataError, ("none of 1 image", "a.png")),
    # the index
    (changed_index("update image set rows = 'text'"), StoreError, INDEX),
    (index_kept_nowhere, StoreError, "XDG_CACHE_HOME"),
    # extracting
    (name_of_no_text, DataError, "UTF-8"),
    (changed_image, StoreError, ("'a'", "a.png", "data/w-")),
    (little_room, StoreError, ("1.00kB", "dtype='int8'")),
    (shard_on_a_full_disk, StoreError, "disk is full"),
    (scale_on_a_full_disk, StoreError, (SCALE, "disk is full")),
    (made_on_a_full_disk, StoreError, ("store", "disk is full")),
    (made_below_a_file, StoreError, "notes"),
    (extracted_without_ray, ImportError, "dinoneck[ray]"),
    (lambda: FeatureStore.open("nowhere://store"), StoreError, "nowhere"),
    # features of other programs
    (converted(a={"x": torch.zeros(2)}), DataError, ("a.pt", "dict")),
    (converted(a=torch.zeros(2, 3)), DataError, ("a.pt", "(2, 3)")),
    (converted(a=torch.zeros(2, 3, 3, dtype=torch.cfloat)), DataError, ("a.pt", "complex")),
    (
        converted(a=torch.zeros(8, 3, 3), b=torch.zeros(9, 3, 3)),
        DataError,
        ("b.pt", "(1, 9, 0)", "(1, 8, 0)"),
    ),
    (converted_text, DataError, "a.npz"),
    (converted_views, DataError, ("b.npz", "(2, 8, 0)", "(1, 8, 0)")),
    (converted_again, StoreError, ("'a'", "a.pt")),
]
