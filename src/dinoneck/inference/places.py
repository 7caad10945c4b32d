"""Heads that score the places of one patch grid: at another grid of as many patches they would scramble them."""

from __future__ import annotations

from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError
from dinoneck.grid import GridSize, TokenGrid


def grid_of(inputs: Preprocessing | None) -> GridSize | None:
    """Return the patch grid of images prepared like this; None if it depends on the image or is not recorded."""
    if inputs is None or inputs.size is None or inputs.fit == "keep":
        return None
    return TokenGrid(inputs.patch_size, inputs.policy).size(inputs.size)


def check_places(trained: GridSize | None, seen: GridSize, turned: bool) -> None:
    """Refuse a view on another grid than a gate over places was trained on.

    Args:
        trained: the grid its file tells of; None if it does not: then a view has to have the grid of its image.
        seen: the grid of the view.
        turned: whether it is the image turned by a quarter.

    Raises:
        CheckpointError: naming both grids.
    """
    wanted = trained or (GridSize(seen.cols, seen.rows) if turned else seen)
    if seen != wanted:
        raise CheckpointError(
            f"a head with a gate of mode 'mlp' scores the places of one grid, {wanted.rows} rows x {wanted.cols} cols; "
            f"it is given {seen.rows} x {seen.cols}. Prepare images as in training (preprocess=), without views that "
            "turn them (tta=), or build the head with mode='resized' or 'query'",
            step="pairing",
        )
