"""Verb ``layout``: from a store to the tree ``clip_feat/<scene>/color/<number>.pt`` and back, value for value.

A file of the tree is one float16 tensor (C, rows, cols) that ``torch.load(file, weights_only=True)`` reads: what ESAM's
loaders take. It holds neither the backbone nor the size of the image, which a store does.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from dinoneck import FeatureStore
from dinoneck.atomic import write_whole
from dinoneck.errors import ConfigError, DataError, some_of
from dinoneck.grid import PatchSize
from examples import kinds
from examples.pointcloud.frame_tree import COLOR

HELP = "write a store as a clip_feat/<scene>/color/<number>.pt tree, or read such a tree into a store"

_ID = re.compile(rf"[^/]+/{COLOR}/[0-9]+")
_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", nargs=2, type=Path, metavar=("STORE", "FOLDER"), help="write FOLDER/<scene>/color/<n>.pt")
    way.add_argument("--from", nargs=2, type=Path, metavar=("FOLDER", "STORE"), dest="source", help="read such files")
    parser.add_argument("--patch-size", type=kinds.count, metavar="PX", help="with --from: the files do not hold it")
    parser.add_argument("--force", action="store_true", help="with --to: replace files")


def run(options: argparse.Namespace) -> int:
    """Convert, and print how many files."""
    if options.to is not None:
        if options.patch_size is not None:
            raise ConfigError("--patch-size belongs to --from; a store has its own")
        count = write_tree(FeatureStore.open(options.to[0]), options.to[1], force=options.force)
        print(f"{count} files written to {options.to[1]}")
        return 0
    if options.patch_size is None:
        raise ConfigError("--from needs --patch-size: 14 for a ViT-L/14, 16 for DINOv3; the files do not hold it")
    if options.force:
        raise ConfigError("--force belongs to --to; what a store holds is never replaced")
    store = read_tree(options.source[0], options.source[1], options.patch_size)
    print(f"{len(store)} frames are in {store}")
    return 0


def write_tree(store: FeatureStore, folder: Path, *, force: bool = False) -> int:
    """Write one ``.pt`` per frame, each whole or not at all; return how many.

    Raises:
        DataError: if an id is not a frame's, or files are there and ``force`` is not set.
        ConfigError: if the store has several layers.
    """
    if (layers := store.description.num_layers) != 1:
        raise ConfigError(f"{store.path} holds {layers} layers, and a file of the tree holds one; extract one layer")
    _check_ids(store.ids, store.path)
    if not store.ids:
        raise DataError(f"{store.path} holds no frames")
    there = [image_id for image_id in store.ids if (folder / f"{image_id}.pt").exists()]
    if there and not force:
        raise DataError(
            f"{folder} holds {len(there)} of {len(store)} files already: {some_of(there, _SHOWN)}; give another "
            "folder, or --force to replace them"
        )
    for image_id in store.ids:
        content = io.BytesIO()
        torch.save(store[image_id].maps()[0][0].half().contiguous(), content)  # (C, rows, cols)
        path = folder / f"{image_id}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    return len(store)


def read_tree(folder: Path, store: Path, patch_size: PatchSize) -> FeatureStore:
    """Make a store of a tree; called again, it adds the files that came since.

    Raises:
        DataError: if there are no files, or one is not a frame's or cannot be used.
        StoreError: if another store is there, or a file is not the one that was stored (its hash differs).
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; expected <scene>/{COLOR}/<number>.pt in it")
    _check_ids([path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.pt")], str(folder))
    return FeatureStore.from_pt(folder, store, patch_size=patch_size)


def _check_ids(ids: Iterable[str], name: str) -> None:
    if strange := [image_id for image_id in ids if not _ID.fullmatch(image_id)]:
        raise DataError(
            f"{name} holds {some_of(strange, _SHOWN)}; expected <scene>/{COLOR}/<number>, as from the verb extract"
        )
