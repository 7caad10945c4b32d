"""Verb ``extract``: the frames of a tree through the backbone, once, into a :class:`dinoneck.FeatureStore`.

Per frame the last layer's tokens after the final norm, fp16. Images are resized whole and keep their aspect: 480x640
stays so at patch 16 and becomes 504x672 at patch 14. :func:`examples.pointcloud.features.store_maps` gives the maps
with the cameras at the size of the ViT's input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import torch

from dinoneck import FeatureStore
from dinoneck.data import read_image_size
from dinoneck.errors import ConfigError, DataError
from dinoneck.grid import PatchSize, TokenGrid
from dinoneck.progress import progress
from dinoneck.store import Extracted
from examples import kinds
from examples.pointcloud.features import device_of, input_size, pixels, same_aspect
from examples.pointcloud.frame_tree import SV_EVERY, Frame, frames_of, images_folder, read_scenes

HELP = "run a backbone over every k-th frame of a 2D/<scene>/color/<number>.jpg tree, into a feature store"

Size = tuple[int, int]
_LOOK_S = 2.0  # between two looks at how far the processes are


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("root", type=Path, help="folder that holds 2D/, or 2D itself")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument(
        "--every",
        type=kinds.count,
        default=SV_EVERY,
        metavar="K",
        help="frames whose number K divides; MV takes 40",
    )
    parser.add_argument("--scenes", type=Path, metavar="FILE", help="names of the scenes to take, one per line")
    kinds.add_backbone(parser)
    parser.add_argument("--size", type=_size, default="auto", metavar="auto|HxW", help="auto keeps the images' aspect")
    parser.add_argument("--stretch", action="store_true", help="take a size of another aspect too; cameras follow")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")
    work = parser.add_mutually_exclusive_group()
    work.add_argument("--shard", type=kinds.shard, metavar="I/N", help="do part I of N, counted from 0")
    work.add_argument("--processes", type=kinds.count, default=1, metavar="N", help="at once; cuda: a GPU each in turn")
    parser.add_argument("--batch-size", type=kinds.count, metavar="N", help="frames per backbone pass; default: one")
    parser.add_argument(
        "--skip-unusable", action="store_true", help="leave out images that cannot be decoded; list them"
    )
    parser.add_argument("--workers", type=kinds.count, default=2, metavar="N", help="threads that decode")


def run(options: argparse.Namespace) -> int:
    """Extract what the store lacks, in one process or several, and print what was done."""
    alone = options.processes == 1
    frames, store = _opened(options, options.device if alone else None)
    parts = [_extract(options, frames, store, options.shard)] if alone else _in_processes(options, store, len(frames))
    for image_id, problem in sorted(item for part in parts for item in part.unusable.items()):
        print(f"left out {image_id}: {problem}")
    backbone, size = store.backbone_record, store.preprocess.size
    rows, cols = TokenGrid(store.preprocess.patch_size).size(size)
    print(f"{len(frames)} frames of {len({frame.scene for frame in frames})} scenes: "
          f"{sum(len(part.written) for part in parts)} extracted, {sum(part.present for part in parts)} were there; "
          f"{backbone['embed_dim']} channels on {rows}x{cols} patches, {size[0]}x{size[1]} px, {store}")  # fmt: skip
    return 0


def _in_processes(options: argparse.Namespace, store: FeatureStore, total: int) -> list[Extracted]:
    """Extract in processes of their own, and show how many frames the store holds meanwhile."""
    count, device = options.processes, str(device_of(options.device))
    gpus = torch.cuda.device_count()
    devices = [f"cuda:{i % gpus}" if device == "cuda" and gpus else device for i in range(count)]
    with (
        ProcessPoolExecutor(count, get_context("spawn")) as pool,
        progress(total=total, desc="frames", unit="image") as bar,
    ):
        parts = [pool.submit(_part, options, (i, count), devices[i]) for i in range(count)]
        waiting: set[Future[Extracted]] = set(parts)
        while waiting:
            waiting = wait(waiting, timeout=_LOOK_S).not_done
            store.refresh()
            bar.update(len(store) - bar.n)
    return [part.result() for part in parts]


def _part(options: argparse.Namespace, shard: tuple[int, int], device: str) -> Extracted:
    torch.set_num_threads(max(1, torch.get_num_threads() // shard[1]))
    return _extract(options, *_opened(options, device), shard)


def _opened(options: argparse.Namespace, device_name: str | None) -> tuple[list[Frame], FeatureStore]:
    """Return the frames and the store that they go to, with the backbone on the device (None = a GPU, or the CPU)."""
    device = device_of(device_name)
    scenes = None if options.scenes is None else read_scenes(options.scenes)
    frames = frames_of(options.root, options.every, scenes)
    backbone = kinds.backbone_of(options)
    wanted = None if options.size == "auto" else options.size
    sound = readable(frames) if options.skip_unusable else frames
    size = common_size(sound, backbone.patch_size, wanted, stretch=options.stretch)
    backbone = backbone.to(device)
    return frames, FeatureStore.create(options.out, backbone=backbone, image_size=size, dtype="fp16", resize="stretch")


def _extract(
    options: argparse.Namespace, frames: Sequence[Frame], store: FeatureStore, shard: tuple[int, int] | None
) -> Extracted:
    return store.extract(
        [frame.path for frame in frames],
        images_folder(options.root),
        shard,
        batch_size=options.batch_size,
        workers=options.workers,
        skip_unusable=options.skip_unusable,
    )


def common_size(frames: Sequence[Frame], patch: PatchSize, size: Size | None = None, *, stretch: bool = False) -> Size:
    """Return the (height, width) that all frames come to in front of the ViT.

    Args:
        frames: their sizes are read from the files' headers.
        patch: the backbone's, in pixels.
        size: that is wanted; None = :func:`examples.pointcloud.features.input_size` of the first frame.
        stretch: take sizes and images of other aspects too; each axis is scaled by itself.

    Raises:
        ConfigError: if the size has another aspect than the images; one that is near is named.
        GridError: if the patch does not divide the size.
        DataError: if an image cannot be read, or its aspect is another than the first one's.
    """
    first = read_image_size(frames[0].path)
    near = input_size(first, patch)
    size = near if size is None else size
    TokenGrid(patch).size(size)
    for frame in () if stretch else frames:
        own = read_image_size(frame.path)
        if own != first and not same_aspect(own, first):
            raise DataError(
                f"{frame.path} is {pixels(own)}, {frames[0].path} {pixels(first)}: one size cannot keep both aspects. "
                "Extract such scenes by themselves (--scenes), or --stretch them"
            )
        if not same_aspect(size, own):
            off = abs(near[0] * first[1] / (near[1] * first[0]) - 1)
            raise ConfigError(
                f"{pixels(size)} has another aspect than {frame.path} ({pixels(own)}); the nearest in whole patches is "
                f"--size {pixels(near)} (aspect {off:.1%} off). --stretch takes either: each axis is scaled by itself, "
                "and cameras follow"
            )
    return size


def readable(frames: Sequence[Frame]) -> list[Frame]:
    """Return the frames whose image's header holds a size.

    Raises:
        DataError: if there is none.
    """
    found = []
    for frame in frames:
        try:
            read_image_size(frame.path)
        except DataError:
            continue
        found.append(frame)
    if not found:
        raise DataError(f"none of {len(frames)} images can be read, the first is {frames[0].path}")
    return found


def _size(text: str) -> Size | str:
    return text if text == "auto" else kinds.size(text)
