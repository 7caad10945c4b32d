"""Whole pipelines: what is compared is the same work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.speed.pipeline_forms import PlainHead, Work, careful, ours, source
from PIL import Image


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("layer", [3, 5])
def test_every_way_predicts_the_same(layer: int, images: list[Path], tmp_path: Path) -> None:
    work = Work("dinoneck_tiny", layer, (32, 48), folds=2)
    backbone = work.load(torch.float64)
    heads = work.heads(64, 16, torch.float64)
    plain = [PlainHead(head) for head in heads]
    truth = source(work, backbone, plain, None)(images)
    assert truth.shape == (3, 4) and not torch.allclose(truth[0], truth[1], rtol=1e-4)
    files = tmp_path / "files"
    files.mkdir()
    for run in (
        source(work, backbone, plain, files),
        careful(work, backbone, plain, stop_early=False),
        careful(work, backbone, plain, stop_early=True, batch=2),
        ours(work, backbone, heads, batch=2),
    ):
        torch.testing.assert_close(run(images), truth, rtol=1e-6, atol=0)  # images are float32 everywhere
    other = Work("dinoneck_tiny", 8 - layer, (32, 48), folds=2)
    assert not torch.allclose(ours(other, other.load(torch.float64), heads)(images), truth, rtol=1e-4)
