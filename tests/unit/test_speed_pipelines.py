"""Whole pipelines: what is compared is the same work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.speed.pipeline_forms import TASKS, PlainHead, Work, careful, ours, source
from benchmarks.speed.pipeline_stores import steps
from PIL import Image

from dinoneck import CLSGatingHead, Tokens


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


def test_a_training_step_of_both_heads_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    head = CLSGatingHead(16, TASKS, num_patches=6, hidden_dim=8, dropout=0.0).double()
    cls_token, patches = torch.randn(3, 16).double(), torch.randn(3, 6, 16).double()
    tokens = Tokens.from_patches(patches, grid=(2, 3), patch_size=16, cls_token=cls_token)
    theirs, own = steps(head)
    ran, found = [], []
    for run, batch in ((theirs, {"cls_token": cls_token, "patch_tokens": patches}), (own, (tokens, torch.arange(3)))):
        ran.append(run(batch))
        found.append([p.grad.clone() for p in head.parameters() if p.grad is not None])
    assert ran[0] == pytest.approx(ran[1], rel=1e-12)
    assert len(found[0]) == len(list(head.parameters()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
