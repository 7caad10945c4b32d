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


def is_feature_tree(folder: Path) -> bool:
    """Whether a folder holds such files below it, and is no feature store."""
    return next(folder.glob(f"*/**/*{SUFFIX}"), None) is not None
