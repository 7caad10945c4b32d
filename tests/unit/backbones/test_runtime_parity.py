"""OpenVINO gives the tokens of torch for every published architecture, in both precisions."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
from benchmarks.parity_runtimes import (
    DEPTH,
    LIBRARIES,
    SETTINGS,
    Differences,
    compare,
    model_of,
)

from dinoneck.backbones.known import KNOWN, Known
from dinoneck.backbones.runtime import TokenDifference

# looked for without an import, which would report it
is_missing = importlib.util.find_spec("openvino") is None
needs_openvino = pytest.mark.skipif(is_missing, reason="the extra [fast] is not installed")
# one of each kind, with few channels; the others are as slow as they are wide
QUICK = (
    ("vit_small_patch14_dinov2", "timm"),
    ("vit_small_patch14_reg4_dinov2", "transformers"),
    ("vit_tiny_patch16_dinov3_qkvb", "timm"),
)


def cases() -> list[Any]:
    """Every published architecture from every library."""
    params = []
    for architecture in KNOWN:
        for library in LIBRARIES:
            is_quick = (architecture.name, library) in QUICK
            marks = [] if is_quick else [pytest.mark.slow]
            title = f"{architecture.name}, {library}"
            params.append(pytest.param(architecture, library, id=title, marks=marks))
    return params


@needs_openvino
@pytest.mark.parametrize(("architecture", "library"), cases())
def test_tokens_of_every_published_architecture_agree(architecture: Known, library: str) -> None:
    """In its own width, for the first blocks, on grids of three sizes, with and without the norm."""
    model = model_of(architecture, library, DEPTH)
    differences = compare(model, patch=architecture.patch, depth=DEPTH)
    assert differences.problem is None
    # the two precisions were two programs, not one
    assert differences.bfloat16.of_token > 10 * differences.float32.of_token


def test_two_of_the_grids_are_odd_and_not_square() -> None:
    odd = [setting.grid for setting in SETTINGS if setting.grid[0] % 2 and setting.grid[1] % 2]
    assert len({setting.grid for setting in SETTINGS}) == 3
    assert len(odd) == 2
    assert all(rows != cols for rows, cols in odd)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"float32": TokenDifference(2e-4, 0.0)}, "float32"),
        ({"float32": TokenDifference(0.0, float("nan"))}, "float32"),
        ({"bfloat16": TokenDifference(0.0, 0.2)}, "bfloat16"),
        ({"openvino_bfloat16": TokenDifference(0.0, 0.03)}, r"3\.0e-02 from float32"),
    ],
    ids=["layer", "nan", "token", "farther than torch"],
)
def test_a_difference_above_its_bound_is_a_problem(
    change: dict[str, TokenDifference], problem: str
) -> None:
    near = TokenDifference(1e-6, 1e-6)
    half = TokenDifference(0.01, 0.01)
    differences = Differences(
        float32=near, bfloat16=half, openvino_bfloat16=half, torch_bfloat16=half
    )
    assert differences.problem is None
    named = differences._replace(**change).problem
    assert named is not None
    assert re.search(problem, named)
