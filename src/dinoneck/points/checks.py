"""What every function of this package rejects: other types, shapes and dtypes, and matrices that are no cameras."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from dinoneck.errors import DataError, ShapeError

ROTATION_TOLERANCE = 2e-3  # poses written with three decimals pass
BOTTOM_TOLERANCE = 1e-6
# a focal length of fewer pixels belongs to an image measured in its own width
NORMALISED_FOCAL = 5.0
# the distance of a principal point from the middle, as a share of the side
_NEAR_HALF = 0.05  # of calibrations
_OFF_HALF = 0.1  # of exchanged sides, at least
_SHOWN = 5  # views that a message names
_SAME_ASPECT = 0.03  # 480x640 depth of 968x1296 images differs by 0.004


def check_tensor(name: str, value: object) -> None:
    """Reject arrays, lists and None where a tensor is taken.

    Raises:
        ShapeError: naming the value's type.
    """
    if not isinstance(value, Tensor):
        raise ShapeError(
            f"{name} is a {type(value).__name__}; expected a tensor (torch.from_numpy makes one)"
        )


def check_dtype(name: str, values: Tensor, owner: str, weight: Tensor) -> None:
    """Reject values of another dtype than a module's weights, unless autocast converts both.

    Raises:
        ShapeError: naming both dtypes.
    """
    if values.dtype != weight.dtype and not torch.is_autocast_enabled(values.device.type):
        raise ShapeError(
            f"{name} are {values.dtype}, the weights of {owner} {weight.dtype}; convert one of them "
            "(.to(dtype=...)), or run under torch.autocast"
        )


def check_integers(name: str, values: Tensor, columns: int | None) -> None:
    """Reject anything but integers (N, columns), or (N,) for None.

    Raises:
        ShapeError: naming shape and dtype.
    """
    check_tensor(name, values)
    if columns is None:
        expected = "(N,)"
        fits = values.ndim == 1
    else:
        expected = f"(N, {columns})"
        fits = values.ndim == 2 and values.shape[1] == columns
    if not fits or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ShapeError(
            f"{name} are {values.dtype} of shape {tuple(values.shape)}; expected integers {expected}"
        )


def check_index(name: str, values: Tensor, length: int) -> None:
    """Reject anything but int64 (length,).

    Raises:
        ShapeError: naming shape and dtype.
    """
    check_tensor(name, values)
    if values.dtype != torch.int64 or tuple(values.shape) != (length,):
        raise ShapeError(
            f"{name} is {values.dtype} {tuple(values.shape)}; expected torch.int64 ({length},)"
        )


def check_finite(points: Tensor) -> None:
    """Reject points (N, 3) that are not finite.

    Raises:
        DataError: with their number, and the first.
    """
    lost = ~points.isfinite().all(1)
    if lost.any():
        row = int(lost.nonzero()[0])
        raise DataError(
            f"{int(lost.sum())} of {len(points)} points are not finite, the first is "
            f"points[{row}] = {points[row].tolist()}; drop them: points[points.isfinite().all(1)]"
        )


def check_depth(depth: Tensor, views: int, size: tuple[int, int]) -> None:
    """Reject anything but floating depth (views, rows, cols) m, and depth transposed to ``size``; warn of its aspect.

    Depth may have any size that shows the images' field of view, each axis scaled by itself:
    another aspect can be right. The images' own aspect the other way round comes from exchanged
    axes.

    Raises:
        ShapeError: naming shape and dtype, or both sizes.
    """
    check_tensor("depth", depth)
    if depth.ndim != 3 or len(depth) != views or (views and not depth.numel()):
        raise ShapeError(
            f"depth has shape {tuple(depth.shape)}; expected ({views} views, rows, cols)"
        )
    if not depth.is_floating_point():
        raise ShapeError(
            f"depth is {depth.dtype}; expected floating metres (16-bit files hold millimetres: "
            "depth / 1000)"
        )
    if not depth.numel():
        return
    rows, cols = depth.shape[1:]
    height, width = size
    is_same = _same_aspect(rows, cols, height, width)
    is_turned = _same_aspect(rows, cols, width, height)
    if (rows, cols) != size and ((cols, rows) == size or (is_turned and not is_same)):
        raise ShapeError(
            f"depth has {rows}x{cols} px (rows x columns) for images of {height}x{width} px "
            "(height x width): it is transposed, or size is (width, height); pass depth.mT, or "
            "Cameras(size=(height, width))"
        )
    if not is_same:
        warnings.warn(
            f"depth of {rows}x{cols} px has another aspect than the images of {height}x{width} "
            "px; expected depth that shows all of the image: resize it so, or crop both alike "
            "(Cameras.crop)",
            stacklevel=3,
        )


def _same_aspect(rows: int, cols: int, height: int, width: int) -> bool:
    """Whether both sizes have one ratio of sides, up to a share and a pixel of each side of the first."""
    return abs(rows * width - cols * height) <= _SAME_ASPECT * rows * width + width + height


def checked(name: str, matrices: Tensor, side: int) -> Tensor:
    """Return matrices (V, side, side) in float64; reject another shape, kind or values that are not finite."""
    check_tensor(name, matrices)
    if matrices.shape[1:] != (side, side):
        remedy = _shape_remedy(name, matrices, side)
        raise ShapeError(
            f"{name} has shape {tuple(matrices.shape)}; expected (views, {side}, {side}){remedy}"
        )
    if not matrices.is_floating_point():
        raise ShapeError(f"{name} is {matrices.dtype}; expected a floating dtype")
    matrices = matrices.detach().double()
    lost = ~matrices.flatten(1).isfinite().all(1)
    if lost.any():
        raise DataError(
            f"{name} of {_views(lost)} is not finite; RGB-D scans mark frames that lost their "
            "track so: leave them out"
        )
    return matrices


def _shape_remedy(name: str, matrices: Tensor, side: int) -> str:
    """How matrices of another shape become (views, side, side); empty where that is not known."""
    if tuple(matrices.shape) == (side, side):
        return f": pass {name}[None]"
    if side != 3 or tuple(matrices.shape[-2:]) != (4, 4) or matrices.ndim not in (2, 3):
        return ""
    unit = torch.eye(4, dtype=matrices.dtype, device=matrices.device)
    is_padded = (matrices[..., 3, :] == unit[3]).all() and (matrices[..., :, 3] == unit[:, 3]).all()
    if not is_padded:
        return ""  # a pose, or intrinsics with a baseline
    if matrices.ndim == 2:
        return f": pass {name}[:3, :3][None]"
    return f": pass {name}[:, :3, :3]"


def check_intrinsics(intrinsics: Tensor, size: tuple[int, int]) -> None:
    """Reject intrinsics (V, 3, 3) that are no pinhole in pixels of an image of ``size``."""
    lower = torch.stack(
        [intrinsics[:, 1, 0], intrinsics[:, 2, 0], intrinsics[:, 2, 1], intrinsics[:, 2, 2] - 1], 1
    )
    wrong = lower.abs().amax(1) > BOTTOM_TOLERANCE
    if wrong.any():
        upper = torch.stack([intrinsics[:, 0, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2]], 1)
        remedy = "divide by the last entry if that is not 1"
        if (upper[wrong] == 0).all() and (intrinsics[wrong, 2, 2] == 1).all():
            remedy = "it looks transposed: pass K.mT"
        raise DataError(
            f"K of {_views(wrong)} is {_row(intrinsics[wrong][0])}; expected [[fx, s, cx], [0, "
            f"fy, cy], [0, 0, 1]] ({remedy})"
        )
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], 1)
    negative = focal.amin(1) <= 0
    if negative.any():
        raise DataError(
            f"K of {_views(negative)} has focal lengths {_row(focal[negative][0])}; expected "
            "positive ones (cameras that look along -z with y up: Cameras.from_opengl)"
        )
    relative = (focal.amax(1) < NORMALISED_FOCAL) & (intrinsics[:, :2, 2].abs().amax(1) <= 1.5)
    if min(size) > 2 * NORMALISED_FOCAL and relative.any():
        raise DataError(
            f"K of {_views(relative)} has focal lengths {_row(focal[relative][0])} for an image "
            f"of {size[0]}x{size[1]} px; it looks relative to the image: multiply its rows by "
            "width and height"
        )


def looks_swapped(intrinsics: Tensor, size: tuple[int, int]) -> bool:
    """Whether all principal points of K (V, 3, 3) lie at half of the other side of ``size``, and not of their own."""
    if not len(intrinsics):
        return False
    sides = intrinsics.new_tensor([size[1], size[0]])  # width, height
    points = intrinsics[:, :2, 2]
    off_own_half = (points / sides - 0.5).abs().amax(1)
    off_other_half = (points / sides.flip(0) - 0.5).abs().amax(1)
    is_swapped = (off_other_half < _NEAR_HALF) & (off_own_half > _OFF_HALF)
    return bool(is_swapped.all())


def all_outside(intrinsics: Tensor, size: tuple[int, int]) -> bool:
    """Whether all principal points of K (V, 3, 3) lie outside of images of ``size``."""
    sides = intrinsics.new_tensor([size[1], size[0]])  # width, height
    points = intrinsics[:, :2, 2] + 0.5  # counted from the image's corner
    outside = ((points < 0) | (points > sides)).any(1)
    return len(intrinsics) > 0 and bool(outside.all())


def check_poses(name: str, poses: Tensor) -> None:
    """Reject poses (V, 4, 4) that are not rigid, and name their likely form."""
    bottom = (poses[:, 3] - poses.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().amax(1) > BOTTOM_TOLERANCE
    if bottom.any():
        first = poses[bottom][0]
        remedy = "a rigid 4x4 matrix ends so"
        if first[:, 3].tolist() == [0.0, 0.0, 0.0, 1.0]:
            remedy = f"it looks transposed: pass {name}.mT"
        raise DataError(
            f"{name} of {_views(bottom)} ends in {_row(first[3])}; expected 0, 0, 0, 1 ({remedy})"
        )
    rotation = poses[:, :3, :3]
    gram = rotation @ rotation.mT
    unit = torch.eye(3, dtype=poses.dtype, device=poses.device)
    error = (gram - unit).abs().flatten(1).amax(1)
    bent = error > ROTATION_TOLERANCE
    if bent.any():
        first = gram[bent][0]
        scale = float(first.diagonal().mean().sqrt())
        remedy = "its rows are not orthonormal"
        if scale > 0 and float((first / scale**2 - unit).abs().max()) <= ROTATION_TOLERANCE:
            millimetres = "; it looks in millimetres" if abs(scale - 1000) < 1 else ""
            remedy = (
                f"it is a rotation scaled by {scale:.4g}{millimetres}: divide the upper 3x4 by it "
                "if positions share it"
            )
        raise DataError(
            f"{name} of {_views(bent)} is not a rotation, off by {float(error[bent][0]):.2g} "
            f"({remedy})"
        )
    mirrored = torch.linalg.det(rotation) < 0
    if mirrored.any():
        raise DataError(
            f"{name} of {_views(mirrored)} is a mirror (determinant -1); a left-handed source (y "
            "or z flipped once) has to be brought to right-handed axes first"
        )


def _views(wrong: Tensor) -> str:
    """Return ``view 3`` or ``views 1, 2, 5 and 4 more``."""
    indices = [str(i) for i in wrong.nonzero()[:, 0].tolist()]
    if len(indices) == 1:
        return f"view {indices[0]}"
    more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
    return f"views {', '.join(indices[:_SHOWN])}{more}"


def _row(values: Tensor) -> str:
    """Return the numbers (C,) or (R, C) to four decimals, as a list."""
    if values.ndim == 1:
        return str([round(value, 4) for value in values.tolist()])
    rows = [[round(value, 4) for value in row] for row in values.tolist()]
    return str(rows)
