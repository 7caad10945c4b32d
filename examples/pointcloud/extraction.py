"""Verb ``extract``: the frames of a tree through the backbone, once, into a :class:`dinoneck.FeatureStore`.

Per frame the last layer's tokens after the final norm, fp16. Images are resized whole and keep their aspect: 480x640
stays so at patch 16 and becomes 504x672 at patch 14. :func:`examples.pointcloud.features.store_maps` gives the maps
with the cameras at the size of the ViT's input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dinoneck import FeatureStore
from dinoneck.data import read_image_size
from dinoneck.devices import local_device
from dinoneck.errors import DataError
from examples import kinds
from examples.pointcloud.features import input_size, pixels, same_aspect
from examples.pointcloud.frame_tree import frames_of, images_folder

HELP = "run a backbone over every k-th frame of a 2D/<scene>/color/<number>.jpg tree, into a feature store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("root", type=Path, help="folder that holds 2D/, or 2D itself")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument("--every", type=kinds.count, default=1, metavar="K", help="frames whose number K divides")
    kinds.add_backbone(parser)
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    parser.add_argument("--shard", type=kinds.shard, metavar="I/N", help="do part I of N, counted from 0")
    parser.add_argument("--batch-size", type=kinds.count, metavar="N", help="frames per backbone pass; default: one")


def run(options: argparse.Namespace) -> int:
    """Extract what the store lacks; print what was done."""
    frames = frames_of(options.root, options.every)
    backbone = kinds.backbone_of(options).to(local_device(options.device))
    first = read_image_size(frames[0])
    for path in frames:
        if not same_aspect(read_image_size(path), first):
            raise DataError(
                f"{path} is {pixels(read_image_size(path))}, {frames[0]} {pixels(first)}: one size cannot keep both "
                "aspects; extract such scenes into a store of their own"
            )
    size = input_size(first, backbone.patch_size)
    store = FeatureStore.create(options.out, backbone=backbone, image_size=size, dtype="fp16", resize="stretch")
    done = store.extract(frames, images_folder(options.root), options.shard, batch_size=options.batch_size)
    print(f"{len(frames)} frames: {len(done.written)} extracted, {done.present} were there; {pixels(size)} px, {store}")
    return 0
