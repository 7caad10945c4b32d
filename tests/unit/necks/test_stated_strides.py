"""Strides that the command line reads from a configuration are those of the neck that it describes."""

from __future__ import annotations

from typing import Any

import pytest

from dinoneck import DPTNeck, SimplePyramid, SpatialTuningAdapter, STAPyramid, ViTFPN
from dinoneck.errors import ConfigError
from dinoneck.necks.strides import stated_strides


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize(
    ("name", "neck_class", "arguments"),
    [
        ("sta_pyramid", STAPyramid, {}),
        ("spatial_tuning_adapter", SpatialTuningAdapter, {}),
        ("spatial_tuning_adapter", SpatialTuningAdapter, {"grid_from": "image"}),
        ("sta_pyramid", STAPyramid, {"strides": (4, 8, 16)}),
        ("simple_pyramid", SimplePyramid, {}),
        ("simple_pyramid", SimplePyramid, {"scales": (2.0, 0.25)}),
        ("dpt_neck", DPTNeck, {}),
        ("dpt_neck", DPTNeck, {"num_layers": 3}),
        ("vit_fpn", ViTFPN, {"num_layers": 4}),
        ("vit_fpn", ViTFPN, {"num_layers": 4, "num_levels": 2}),
    ],
)
def test_the_strides_of_a_neck_follow_its_arguments(
    name: str, neck_class: type[Any], arguments: dict[str, Any], patch_size: int
) -> None:
    neck = neck_class(64, patch_size=patch_size, **arguments)
    assert stated_strides(name, arguments, patch_size) == neck.strides


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("my_neck", {}),
        ("sta_pyramid", {"strides": "image"}),
        ("sta_pyramid", {"strides": (8, 16)}),
        ("simple_pyramid", {"scales": 4.0}),
        ("simple_pyramid", {"scales": "4"}),
        ("dpt_neck", {"num_layers": True}),
        ("vit_fpn", {"num_levels": 0}),
        ("vit_fpn", {"patch_size": 16.5}),
    ],
)
def test_what_only_a_class_tells_is_not_stated(name: str, arguments: dict[str, Any]) -> None:
    assert stated_strides(name, arguments, 16) is None


@pytest.mark.parametrize(
    ("name", "neck_class", "arguments"),
    [
        ("sta_pyramid", STAPyramid, {"strides": (8, 16, 24)}),
        ("sta_pyramid", STAPyramid, {"strides": (0, 0, 0)}),
        ("simple_pyramid", SimplePyramid, {"scales": (3.0,)}),
        ("simple_pyramid", SimplePyramid, {"scales": ()}),
        ("simple_pyramid", SimplePyramid, {"scales": (1.0, 2.0)}),
        ("dpt_neck", DPTNeck, {"num_layers": 5}),
    ],
)
def test_what_a_neck_refuses_is_refused_without_it(
    name: str, neck_class: type[Any], arguments: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as of_class:
        neck_class(64, **arguments)
    with pytest.raises(ConfigError) as of_configuration:
        stated_strides(name, arguments, 16)
    assert str(of_configuration.value) == str(of_class.value)
