"""Feature maps of a scene's images, with the cameras at the size of the ViT's input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError
from dinoneck.grid import PatchSize, TokenGrid, patch_pair
from dinoneck.points import Cameras
from dinoneck.store import FeatureStore
from examples.pointcloud.feature_files import (
    check_aspect,
    feature_file,
    is_feature_tree,
    read_maps,
)
from examples.pointcloud.frames import Frames, pixels

_LARGER = 1.25  # at most, to keep the sides' ratio exactly


def input_size(image: tuple[int, int], patch: PatchSize) -> tuple[int, int]:
    """Return the size (height, width) at which a ViT sees images of a size: no smaller, in whole patches.

    The sides' ratio is kept exactly where that takes no more than a quarter more (480x640 stays so
    for patches of 16 and becomes 504x672 for 14), otherwise to within half a patch; the cameras
    follow either way.

    Examples:
        >>> input_size((480, 640), 16), input_size((480, 640), 14), input_size((968, 1296), 16)
        ((480, 640), (504, 672), (976, 1312))
    """
    height, width = image
    down, right = patch_pair(patch)
    # rows : cols for which rows * down : cols * right is height : width
    across, along = height * right, width * down
    divisor = math.gcd(across, along)
    rows, cols = across // divisor, along // divisor
    times = math.ceil(height / (rows * down))
    if times * rows * down <= _LARGER * height:
        return times * rows * down, times * cols * right
    rows = math.ceil(height / down)
    return rows * down, max(1, round(rows * down * width / height / right)) * right


@torch.no_grad()
def frame_maps(
    backbone: Backbone, frames: Frames, size: tuple[int, int] | None = None, batch: int = 4
) -> tuple[Tensor, Cameras]:
    """Run a backbone over all images.

    Args:
        backbone: the last of its layers is taken.
        frames: images and cameras.
        size: (height, width) the images are brought to; None = :func:`input_size`.
        batch: images at a time.

    Returns:
        Maps (V, C, rows, cols) on the backbone's device, and the cameras of what it saw, on the
        CPU.

    Raises:
        GridError: if the patch does not divide ``size``.
    """
    size = size or input_size(frames.cameras.size, backbone.patch_size)
    TokenGrid(backbone.patch_size).size(size)
    device = next(backbone.parameters()).device
    maps = []
    for start in range(0, len(frames), batch):
        images = backbone.preprocess(
            frames.images[start : start + batch], size=size, resize="stretch"
        )
        maps.append(backbone(images.to(device)).last.maps()[0])
    return torch.cat(maps), frames.cameras.resize(size)


def store_maps(
    store: FeatureStore, names: Sequence[str], cameras: Cameras
) -> tuple[Tensor, Cameras]:
    """Read the maps of frames from a feature store instead.

    Args:
        store: with the frames' names as ids (``<scene>/color/<n>``).
        names: of the frames.
        cameras: of the images, one per name.

    Returns:
        As :func:`frame_maps`, float32 on the CPU.

    Raises:
        DataError: if a frame is not in the store.
        ConfigError: for a store of padded or cropped images: depth shows what whole ones do.
    """
    tokens = store.batch(names, views=0).last
    prepare, seen = store.preprocess, tokens.image_size
    if prepare.placement(cameras.size).resized != seen:
        raise ConfigError(
            f"{store} was extracted with resize={prepare.resize!r}: of images of "
            f"{pixels(cameras.size)} px the ViT saw {pixels(seen)}, which is not the whole image; "
            "depth shows all of it. Extract whole images, as the verb extract does"
        )
    return tokens.maps()[0], cameras.resize(seen)


def maps_of(folder: Path, names: Sequence[str], cameras: Cameras) -> Tensor:
    """Read the maps (V, C, rows, cols) of frames from a feature store, or from a tree of ``.pt`` files.

    Raises:
        DataError: if a frame is not there, or its map has another ratio of the sides than the image.
        StoreError: if the folder is neither.
    """
    if is_feature_tree(folder):
        maps = read_maps(folder, names)
        rows, cols = maps.shape[-2:]
        check_aspect(feature_file(folder, names[0]), (rows, cols), cameras.size)
        return maps
    return store_maps(FeatureStore.open(folder), names, cameras)[0].half()
