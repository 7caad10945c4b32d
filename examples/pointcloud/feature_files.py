"""Features of frames as files: one float16 tensor (C, rows, cols) per frame, in a parallel folder tree.

The image ``2D/<scene>/color/<number>.jpg`` has its features in ``<folder>/<scene>/color/<number>.pt``,
the layout that loaders of ESAM read. A file holds neither the backbone nor the size of the image;
a feature store (``dinoneck.FeatureStore``) holds both.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dinoneck.atomic import write_whole
from dinoneck.errors import BackboneError, DataError
from dinoneck.weight_files import read_any
from examples.pointcloud.frames import pixels

SUFFIX = ".pt"


def feature_file(folder: Path, frame: str) -> Path:
    """Return the file of a frame, ``<scene>/color/<number>``."""
    return folder / f"{frame}{SUFFIX}"


def write_map(folder: Path, frame: str, features: Tensor) -> None:
    """Write the features of a frame, whole or not at all.

    Args:
        folder: root of the tree.
        frame: ``<scene>/color/<number>``.
        features: (C, rows, cols) of real numbers.

    Raises:
        DataError: if a value is not finite in float16.
    """
    half = features.detach().half().cpu()
    if not half.isfinite().all():
        raise DataError(
            f"{frame}: the features reach {float(features.abs().max()):g}, and float16 ends at "
            "65504; store them in a feature store as bf16"
        )
    content = io.BytesIO()
    torch.save(half.contiguous().clone(), content)
    path = feature_file(folder, frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def read_map(path: Path) -> Tensor:
    """Read the features (C, rows, cols) of a frame, float16; nothing in the file can run.

    Raises:
        DataError: if the file is missing, damaged, holds anything else, or numbers that float16
            does not reach.
    """
    try:
        found = read_any(path)
    except BackboneError as error:
        raise DataError(f"the features {path} cannot be read: {error}") from error
    is_map = isinstance(found, Tensor) and found.ndim == 3 and found.is_floating_point()
    if not is_map or not found.numel():
        form = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
        raise DataError(f"{path} holds {form}; expected a floating tensor (C, rows, cols)")
    half = found.half()
    beyond = half.isinf() & found.isfinite()
    if beyond.any():
        raise DataError(
            f"{path} reaches {float(found[beyond].abs().max()):g} in {int(beyond.sum())} values, "
            "and features are read as float16, which ends at 65504; scale them, or use a feature "
            "store in bf16"
        )
    return half


def read_maps(folder: Path, frames: Sequence[str]) -> Tensor:
    """Read the features of frames, float16 (V, C, rows, cols).

    Raises:
        DataError: if a frame has no file, or files differ in their shape.
    """
    maps = []
    for frame in frames:
        features = read_map(feature_file(folder, frame))
        if maps and features.shape != maps[0].shape:
            raise DataError(
                f"the features of {frame} are {tuple(features.shape)} and those of {frames[0]} "
                f"{tuple(maps[0].shape)}; one shape for all frames of a scene"
            )
        maps.append(features)
    return torch.stack(maps)


def check_aspect(path: Path, cells: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise unless a map has the sides' ratio of its image, as a map of the whole image has.

    A file does not say which part of the image it shows, and points are looked up in it as in the
    whole one. Patches are square; each side may be rounded to whole patches, up or down.

    Args:
        path: of the map, for the message.
        cells: (rows, cols) of the map.
        image_size: (height, width) in pixels.

    Raises:
        DataError: naming both.
    """
    rows, cols = cells
    height, width = image_size
    # how many patches a pixel may have along each side, if less than one patch was rounded away
    least = max((rows - 1) / height, (cols - 1) / width)
    most = min((rows + 1) / height, (cols + 1) / width)
    if least >= most:
        raise DataError(
            f"{path} has {pixels(cells)} cells, and its frame is {pixels(image_size)} px; expected "
            "the same ratio of the sides: extract whole images, neither cropped nor stretched"
        )


def is_feature_tree(folder: Path) -> bool:
    """Whether a folder holds such files below it, and is no feature store."""
    return next(folder.glob(f"*/**/*{SUFFIX}"), None) is not None
