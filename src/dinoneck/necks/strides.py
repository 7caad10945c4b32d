"""The strides of necks, as their arguments state them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from dinoneck.errors import ConfigError

STRIDES = (8, 16, 32)
"""Pixels of the image per cell of the levels of detail, and of a neck that follows the image."""
DPT_SCALES = (4.0, 2.0, 1.0, 0.5)
"""Cells per token of the levels of a DPTNeck with four layers."""
PYRAMID_SCALES = (4.0, 2.0, 1.0, 0.5, 0.25)
"""Cells per token that a SimplePyramid may have."""
DEFAULT_PYRAMID_SCALES = (4.0, 2.0, 1.0, 0.5)
"""Those of a SimplePyramid that states none."""
DEFAULT_FPN_LEVELS = 3
"""The number of levels of a ViTFPN that states none."""


def half_patch_strides(patch_size: int) -> tuple[float, ...]:
    """Return the strides of three levels: half a patch, a patch and two patches."""
    return (patch_size / 2, float(patch_size), 2.0 * patch_size)


def sta_pyramid_strides(
    strides: Literal["native"] | tuple[int, ...], patch_size: int
) -> tuple[float, ...]:
    """Return the strides of an STAPyramid.

    Raises:
        ConfigError: unless they are ``native``, those of it, or three integers that double.
    """
    native = half_patch_strides(patch_size)
    if strides == "native" or strides == native:
        return native
    is_doubled = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
    if strides[0] < 1 or not is_doubled:
        raise ConfigError(
            f"strides is {strides}; expected 'native' or three positive integers, each "
            "twice the one before, such as (8, 16, 32)"
        )
    return tuple(float(stride) for stride in strides)


def adapter_strides(patch_size: int, *, follows_image: bool) -> tuple[float, ...]:
    """Return the strides of a spatial tuning adapter, whose levels follow the image or the tokens."""
    if follows_image:
        return tuple(float(stride) for stride in STRIDES)
    return half_patch_strides(patch_size)


def pyramid_strides(scales: tuple[float, ...], patch_size: int) -> tuple[float, ...]:
    """Return the strides of a SimplePyramid.

    Raises:
        ConfigError: if a scale is none of :data:`PYRAMID_SCALES`, or the scales do not fall.
    """
    if not scales or not set(scales) <= set(PYRAMID_SCALES):
        allowed = ", ".join(f"{scale:g}" for scale in PYRAMID_SCALES)
        raise ConfigError(f"scales is {scales}; expected one or more of {allowed}")
    falling = tuple(sorted(set(scales), reverse=True))
    if scales != falling:
        raise ConfigError(
            f"scales is {scales}; expected them strictly falling, since levels go from fine "
            f"to coarse: {falling}"
        )
    return tuple(patch_size / scale for scale in scales)


def dpt_strides(num_layers: int, patch_size: int) -> tuple[float, ...]:
    """Return the strides of a DPTNeck, whose coarsest level is the same for all numbers of layers.

    Raises:
        ConfigError: for more than 4 layers.
    """
    if num_layers > len(DPT_SCALES):
        raise ConfigError(
            f"num_layers is {num_layers}; a DPTNeck has {len(DPT_SCALES)} scales, so at most "
            f"{len(DPT_SCALES)} layers: pick them with load_backbone(layers=...) or "
            "tokens.select(...)"
        )
    return tuple(patch_size / scale for scale in DPT_SCALES[-num_layers:])


def fpn_strides(num_levels: int, patch_size: int) -> tuple[float, ...]:
    """Return the strides of a ViTFPN: a patch, and twice as much for each level."""
    return tuple(float(patch_size * 2**level) for level in range(num_levels))


def stated_strides(
    neck: str, arguments: Mapping[str, Any], patch_size: int
) -> tuple[float, ...] | None:
    """Return the strides of a neck that a configuration describes; None where its class alone tells them.

    Values of another type are left to the class, which refuses them.

    Args:
        neck: its registered name.
        arguments: the others of the configuration.
        patch_size: pixels per patch of the backbone.

    Raises:
        ConfigError: for strides, scales or a number of layers that the neck does not take.
    """
    patch_size = arguments.get("patch_size", patch_size)
    if not _is_count(patch_size):
        return None
    if neck == "spatial_tuning_adapter":
        return adapter_strides(patch_size, follows_image=arguments.get("grid_from") == "image")
    if neck == "sta_pyramid":
        strides = arguments.get("strides", "native")
        if strides == "native":
            return half_patch_strides(patch_size)
        if _are_numbers(strides) and len(strides) == len(STRIDES):
            return sta_pyramid_strides(tuple(strides), patch_size)
    if neck == "simple_pyramid":
        scales = arguments.get("scales", DEFAULT_PYRAMID_SCALES)
        if _are_numbers(scales):
            return pyramid_strides(tuple(scales), patch_size)
    if neck == "dpt_neck":
        num_layers = arguments.get("num_layers", len(DPT_SCALES))
        if _is_count(num_layers):
            return dpt_strides(num_layers, patch_size)
    if neck == "vit_fpn":
        num_levels = arguments.get("num_levels", DEFAULT_FPN_LEVELS)
        if _is_count(num_levels):
            return fpn_strides(num_levels, patch_size)
    return None


def _is_count(value: Any) -> bool:
    """Whether a value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_numbers(values: Any) -> bool:
    """Whether values are a sequence of numbers."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return False
    return all(isinstance(value, int | float) for value in values)
