"""Figures in general: no global state, threads apart, a clear word where matplotlib is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.viz.drawn import check_no_overlap, pixels

from dinoneck import FeaturePyramid, Tokens, ViTFPN
from dinoneck.viz import (
    boxes_figure,
    fusion_figure,
    gate_figure,
    pca_figure,
    points_figure,
    pyramid_figure,
    residual_figure,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
MAPS = torch.randn(1, 8, 2, 3, generator=torch.Generator().manual_seed(0))
TOKENS = Tokens.from_patches(MAPS.flatten(2).mT, grid=(2, 3), patch_size=16)
CLOUD = np.random.default_rng(1).random((200, 3))

FIGURES: dict[str, Callable[[], Any]] = {
    "boxes": lambda: boxes_figure(IMAGE, [[3.0, 4.0, 30.0, 20.0]], ["cell"], [0.5]),
    "fusion": lambda: fusion_figure(ViTFPN(8, 4, 8, num_levels=2, fusion="softmax")),
    "gate": lambda: gate_figure(IMAGE, np.full((1, 2, 3), 1 / 6)),
    "pca": lambda: pca_figure(IMAGE, TOKENS, names=["$x^2$ and 50 % of $y"]),
    "points": lambda: points_figure(CLOUD, CLOUD[:, 0]),
    "pyramid": lambda: pyramid_figure(FeaturePyramid((MAPS,), (16.0,)), IMAGE),
    "residual": lambda: residual_figure(CLOUD[:, 0], CLOUD[:, 1], groups=list("abcd") * 50),
}


def test_two_threads_draw_what_one_draws() -> None:
    names = ["boxes", "gate", "points", "residual"]
    alone = {name: pixels(FIGURES[name](), 60) for name in names}
    pairs = [name for name in names for _ in range(2)]  # the same figure in both threads, then the next
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda name: pixels(FIGURES[name](), 60), pairs))
    for name, found in zip(pairs, together, strict=True):
        np.testing.assert_array_equal(found, alone[name], err_msg=name)


@pytest.mark.parametrize("name", ["gate", "residual"])
def test_without_matplotlib_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'dinoneck\[viz\]'"):
        FIGURES[name]()


@pytest.mark.parametrize("name", FIGURES)
def test_texts_keep_apart(name: str) -> None:
    check_no_overlap(FIGURES[name]())
