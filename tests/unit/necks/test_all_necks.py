"""What holds for every neck: one dtype under autocast, weights in either layout, group norms that are not instance
norms, exports that take any batch."""

from __future__ import annotations

import pytest
from tests.kit import WIDTH
from torch import nn

from dinoneck import (
    SpatialTuningAdapter,
    ViTFPN,
)


def group_norms(module: nn.Module) -> list[nn.GroupNorm]:
    return [part for part in module.modules() if isinstance(part, nn.GroupNorm)]


@pytest.mark.parametrize(
    ("width", "count"),
    [(1, 1), (4, 1), (8, 1), (16, 2), (20, 2), (22, 2), (23, 1), (36, 4), (96, 12), (256, 32), (768, 96)],
)
def test_group_norms_have_the_most_groups_of_at_least_eight_channels(width: int, count: int) -> None:
    for neck in (ViTFPN(WIDTH, 3, width, norm="group"), SpatialTuningAdapter(WIDTH, width, detail=None, norm="group")):
        assert {norm.num_groups for norm in group_norms(neck)} == {count}
