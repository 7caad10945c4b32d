"""OpenVINO gives the tokens of torch for every published architecture, in both precisions."""

from __future__ import annotations

import importlib.util
import re

import pytest
from benchmarks.parity_runtimes import (
    DEPTH,
    LIBRARIES,
    SETTINGS,
    Differences,
    compare,
    compare_rf_detr,
    model_of,
)

from dinoneck.backbones.known import KNOWN, Known
from dinoneck.backbones.runtime import TokenDifference
from dinoneck.published.detectors import DETECTORS

pytestmark = pytest.mark.slow

# looked for without an import, which would report it
is_missing = importlib.util.find_spec("openvino") is None
needs_openvino = pytest.mark.skipif(is_missing, reason="the extra [fast] is not installed")
DEPTH_OF_LARGE = 24
# a program of two blocks of the others takes minutes and gigabytes
UP_TO_LARGE = [known for known in KNOWN if known.depth <= DEPTH_OF_LARGE]
LARGER = [known for known in KNOWN if known.depth > DEPTH_OF_LARGE]
# one of each kind, with few channels
QUICK = (
    ("vit_small_patch14_dinov2", "timm"),
    ("vit_small_patch14_reg4_dinov2", "transformers"),
    ("vit_tiny_patch16_dinov3_qkvb", "timm"),
)


@needs_openvino
@pytest.mark.parametrize(("name", "library"), QUICK)
def test_tokens_of_each_kind_agree_on_an_odd_grid(name: str, library: str) -> None:
    [architecture] = [known for known in KNOWN if known.name == name]
    model = model_of(architecture, library, 1)
    differences = compare(model, patch=architecture.patch, depth=1, settings=SETTINGS[:1])
    assert_agree(differences)


@needs_openvino
@pytest.mark.campaign
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("architecture", UP_TO_LARGE, ids=lambda architecture: architecture.name)
def test_tokens_of_every_published_architecture_agree(architecture: Known, library: str) -> None:
    """In its own width, for the first blocks, on grids of three sizes, with and without the norm."""
    model = model_of(architecture, library, DEPTH)
    assert_agree(compare(model, patch=architecture.patch, depth=DEPTH))


@needs_openvino
@pytest.mark.campaign
@pytest.mark.parametrize("architecture", LARGER, ids=lambda architecture: architecture.name)
def test_tokens_of_every_larger_architecture_agree(architecture: Known) -> None:
    """In its own width, for the first block on one grid; the benchmark runs as much as of the others."""
    model = model_of(architecture, "timm", 1)
    assert_agree(compare(model, patch=architecture.patch, depth=1, settings=SETTINGS[:1]))


@needs_openvino
@pytest.mark.campaign
@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_plus_patch16_dinov3"])
def test_tokens_agree_after_all_blocks(name: str) -> None:
    [architecture] = [known for known in KNOWN if known.name == name]
    depth = architecture.depth
    model = model_of(architecture, "timm", depth)
    assert_agree(compare(model, patch=architecture.patch, depth=depth, settings=SETTINGS[:1]))


@needs_openvino
def test_tokens_of_the_windows_of_rf_detr_agree() -> None:
    """Of four windows with an odd side, at another size than that of the positions."""
    differences = compare_rf_detr(DETECTORS["rf_detr_nano"], grids=(6,))
    assert_agree(differences)


@needs_openvino
@pytest.mark.campaign
@pytest.mark.parametrize("name", DETECTORS)
def test_tokens_of_every_rf_detr_agree(name: str) -> None:
    """The benchmark compares them at their published size too."""
    detector = DETECTORS[name]
    grids = (3 * detector.num_windows, 5 * detector.num_windows)
    assert_agree(compare_rf_detr(detector, grids=grids))


def assert_agree(differences: Differences) -> None:
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
        ({"bfloat16": TokenDifference(0.0, 0.3)}, "bfloat16"),
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
