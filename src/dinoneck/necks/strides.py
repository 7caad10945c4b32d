"""The strides of necks, as their arguments state them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STRIDES = (8, 16, 32)
"""Pixels of the image per cell of the levels of detail, and of a neck that follows the image."""


def half_patch_strides(patch_size: int) -> tuple[float, ...]:
    """Return the strides of three levels: half a patch, a patch and two patches."""
    return (patch_size / 2, float(patch_size), 2.0 * patch_size)


def adapter_strides(patch_size: int, *, follows_image: bool) -> tuple[float, ...]:
    """Return the strides of a spatial tuning adapter, whose levels follow the image or the tokens."""
    if follows_image:
        return tuple(float(stride) for stride in STRIDES)
    return half_patch_strides(patch_size)


def stated_strides(
    neck: str, arguments: Mapping[str, Any], patch_size: int
) -> tuple[float, ...] | None:
    """Return the strides of a neck that a configuration describes; None where its class alone tells them.

    Args:
        neck: its registered name.
        arguments: the others of the configuration.
        patch_size: pixels per patch of the backbone.
    """
    patch_size = arguments.get("patch_size", patch_size)
    if not isinstance(patch_size, int):  # which the class of the neck refuses
        return None
    if neck == "spatial_tuning_adapter":
        return adapter_strides(patch_size, follows_image=arguments.get("grid_from") == "image")
    if neck == "sta_pyramid" and arguments.get("strides", "native") == "native":
        return half_patch_strides(patch_size)
    return None
