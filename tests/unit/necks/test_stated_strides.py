"""Strides that the command line reads from a configuration are those of the neck that it describes."""

from __future__ import annotations

from typing import Any

import pytest

from dinoneck import DPTNeck, SpatialTuningAdapter, STAPyramid
from dinoneck.necks.strides import stated_strides


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize(
    ("name", "neck_class", "arguments"),
    [
        ("sta_pyramid", STAPyramid, {}),
        ("spatial_tuning_adapter", SpatialTuningAdapter, {}),
        ("spatial_tuning_adapter", SpatialTuningAdapter, {"grid_from": "image"}),
    ],
)
def test_the_strides_of_a_neck_follow_its_arguments(
    name: str, neck_class: type[Any], arguments: dict[str, Any], patch_size: int
) -> None:
    neck = neck_class(64, 32, patch_size=patch_size, **arguments)
    assert stated_strides(name, arguments, patch_size) == neck.strides


def test_strides_that_only_a_class_tells_are_not_stated() -> None:
    assert stated_strides("sta_pyramid", {"strides": (8, 16, 32)}, 16) is None
    assert stated_strides("dpt_neck", {}, DPTNeck(64, num_layers=3).patch_size) is None
