"""The sizes that a detector takes are whole patches and whole cells of every level."""

from __future__ import annotations

import pytest

from dinoneck import ConfigError
from dinoneck.detection.sizes import check_size


@pytest.mark.parametrize(
    ("size", "patch", "features_at", "strides", "next_size"),
    [
        # the least common multiple of 16 and of 8, 16 and 32 is 32
        ((100, 130), (16, 16), 1.0, (8.0, 16.0, 32.0), "128x160"),
        # of 14 and of 7, 14 and 28 it is 28
        ((56, 57), (14, 14), 1.0, (7.0, 14.0, 28.0), "56x84"),
        # a patch of images at half their size covers 32 pixels, and 64 is the coarsest cell
        ((64, 96), (16, 16), 0.5, (16.0, 32.0, 64.0), "64x128"),
        # a patch that is higher than wide: 32 rows, 16 columns
        ((48, 48), (32, 16), 1.0, (16.0,), "64x48"),
    ],
)
def test_a_size_with_fractions_of_cells_is_refused_with_the_next_that_fits(
    size: tuple[int, int],
    patch: tuple[int, int],
    features_at: float,
    strides: tuple[float, ...],
    next_size: str,
) -> None:
    with pytest.raises(ConfigError, match=f"such as {next_size}$"):
        check_size(size, patch, features_at=features_at, strides=strides)

    # which is taken
    height, width = map(int, next_size.split("x"))
    check_size((height, width), patch, features_at=features_at, strides=strides)
