"""Whether a head can be used later as its file describes: found out when the file is made, on tokens without values.

A head that is saved with the record of another backbone, or with views that it does not take, would
be refused at its first prediction, when its training is over and perhaps lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dinoneck.checkpoint.origins import is_head
from dinoneck.errors import CheckpointError, DinoneckError
from dinoneck.grid import GridSize, patch_pair
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.tokens import Tokens

logger = logging.getLogger(__name__)

# of images whose size is not recorded; not square, and enough cells for every pyramid
_GRID = GridSize(4, 6)
_NEEDED = ("embed_dim", "patch_size", "num_cls", "num_registers", "layers", "norm")
TURNING = "d6"
"""The views among which images are turned by 90 degrees."""


def check_takes_tokens(
    module: nn.Module,
    record: Mapping[str, Any] | None,
    preprocess: Preprocessing | None,
    name: str,
) -> None:
    """Run a head on the meta device, on tokens as the backbone of a record gives them.

    Args:
        module: the head, on the meta device; it is put into eval mode. Other modules pass.
        record: of the backbone. One that does not state its tokens passes.
        preprocess: how images are prepared; their size gives the patch grid.
        name: of the head's class, for messages.

    Raises:
        CheckpointError: if the head rejects such tokens, with its reason.
    """
    if record is not None and hasattr(module, "check_size"):
        _check_size(module, record, preprocess, name)
    if not is_head(module) or record is None or any(record.get(key) is None for key in _NEEDED):
        return
    grid = None if preprocess is None else preprocess.grid()
    if grid is None:
        if not _is_of_this_library(module):
            return  # it may take one grid only, which is not known here
        grid = _grid_of(module)
    tokens = _tokens(record, grid, dtype=_dtype_of(module))
    try:
        with torch.no_grad(), torch.device("meta"):
            module.eval()(tokens)
    except DinoneckError as error:
        raise CheckpointError(
            f"this {name} does not take the tokens of the backbone that it is saved with, so the "
            f"file could not be used: {error}",
            step="pairing",
        ) from error
    except Exception as error:  # of a head of the user's that looks at values
        logger.info("%s cannot run without values (%s): its tokens were not compared", name, error)


def _check_size(
    module: Any, record: Mapping[str, Any], preprocess: Preprocessing | None, name: str
) -> None:
    """Compare the size of images with the patch and the levels of a detection head."""
    size = None if preprocess is None else preprocess.size
    patch = record.get("patch_size")
    if size is None or patch is None:
        return
    try:
        module.check_size(size, patch_pair(patch))
    except DinoneckError as error:
        raise CheckpointError(
            f"this {name} does not take the images that it is saved with: {error}", step="pairing"
        ) from error


def check_views(
    module: nn.Module,
    record: Mapping[str, Any] | None,
    preprocess: Preprocessing | None,
    views: str | None,
) -> None:
    """Check that predictions of a head can be averaged over views.

    Args:
        module: the head, or a detector; other modules pass.
        record: of its backbone.
        preprocess: how images are prepared.
        views: ``"none"``, ``"flip4"`` or ``"d6"``.

    Raises:
        CheckpointError: naming the views, what does not take them, and the remedy.
    """
    if views in (None, "none"):
        return
    if hasattr(module, "check_size"):
        raise CheckpointError(
            f"tta is {views!r}, and a detector does not average its boxes over views; leave tta= "
            "out",
            step="write",
        )
    if not is_head(module):
        return
    for task in getattr(module, "tasks", ()):
        if task.is_masks:
            raise CheckpointError(
                f"tta is {views!r}, and task {task.name!r} predicts objects, which have no mean; "
                "leave tta= out",
                step="write",
            )
    if views != TURNING:
        return
    height, width = patch_pair((record or {}).get("patch_size") or 1)
    if height != width:
        raise CheckpointError(
            f"tta is {views!r}, which turns images by 90 degrees, and the patches of {height}x"
            f"{width} px are not square; use tta='flip4'",
            step="write",
        )
    grid = None if preprocess is None else preprocess.grid()
    if grid is not None and grid.rows != grid.cols and _scores_places(module):
        raise CheckpointError(
            f"tta is {views!r}, which turns images by 90 degrees, and a gate of mode 'mlp' scores "
            f"the places of the grid of {grid.rows} rows x {grid.cols} cols; use tta='flip4', or "
            "build the head with mode='resized' or 'query'",
            step="write",
        )


def _tokens(record: Mapping[str, Any], grid: GridSize, dtype: torch.dtype) -> Tokens:
    """Tokens of one image, as the backbone of a record gives them, on the meta device."""
    count = record["num_cls"] + record["num_registers"] + grid.rows * grid.cols
    height, width = patch_pair(record["patch_size"])
    layers = tuple(record["layers"])
    sequence = []
    for _ in layers:
        sequence.append(torch.empty(1, count, record["embed_dim"], dtype=dtype, device="meta"))
    return Tokens(
        sequence=tuple(sequence),
        grid=grid,
        patch_size=height if height == width else (height, width),
        num_cls=record["num_cls"],
        num_registers=record["num_registers"],
        layers=layers,
        normed=record["norm"],
    )


def _dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of the first weight; float32 without any."""
    for parameter in module.parameters():
        return parameter.dtype
    return torch.float32


def _is_of_this_library(module: nn.Module) -> bool:
    """Whether no part that is built from a configuration is a class of the user's."""
    for part in module.modules():
        if hasattr(type(part), "from_config") and not type(part).__module__.startswith("dinoneck."):
            return False
    return True


def _grid_of(module: nn.Module) -> GridSize:
    """A grid that the head takes: that of a gate with one logit per place, else any."""
    for part in module.modules():
        if _is_gate_of_places(part):
            return GridSize(1, int(part.num_patches))  # type: ignore[arg-type]
    return _GRID


def _scores_places(module: nn.Module) -> bool:
    return any(_is_gate_of_places(part) for part in module.modules())


def _is_gate_of_places(part: nn.Module) -> bool:
    """Whether it is a gate of mode ``mlp``, see :class:`dinoneck.heads.CLSGating`."""
    return getattr(part, "mode", None) == "mlp" and hasattr(part, "num_patches")
