"""Limits of numbers that a call, a configuration or a file gives."""

from __future__ import annotations

from dinoneck.errors import ConfigError

LARGEST_SIDE = 8192  # pixels of an image that a file or a call asks for
LARGEST_FLOAT = 3.4028234663852886e38  # of float32, as which labels are read


def check_minimum(minimum: int, **values: int) -> None:
    """Check that every named number is ``minimum`` or more.

    Raises:
        ConfigError: naming the first that is not.
    """
    for name, value in values.items():
        if value < minimum:
            raise ConfigError(f"{name} is {value}; expected {minimum} or more")
