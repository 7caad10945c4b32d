"""Whole pipelines and cost: what is compared is the same work, and the arithmetic is right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from benchmarks.speed import cost
from benchmarks.speed.pipeline_forms import TASKS, PlainHead, Work, careful, ours, source
from benchmarks.speed.pipeline_stores import steps
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dinoneck import CLSGatingHead, FeatureStore, Tokens, load_backbone
from dinoneck.store.encoding import encode
from dinoneck.store.images import ImageFile
from dinoneck.store.writer import Writer


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("layer", [3, 5])
def test_every_way_predicts_the_same(layer: int, photos: list[Path], tmp_path: Path) -> None:
    work = Work("dinoneck_tiny", layer, (32, 48), folds=2)
    backbone = work.load(torch.float64)
    heads = work.heads(64, 16, torch.float64)
    plain = [PlainHead(head) for head in heads]
    truth = source(work, backbone, plain, None)(photos)
    assert truth.shape == (3, 4) and not torch.allclose(truth[0], truth[1], rtol=1e-4)
    files = tmp_path / "files"
    files.mkdir()
    for run in (
        source(work, backbone, plain, files),
        careful(work, backbone, plain, stop_early=False),
        careful(work, backbone, plain, stop_early=True, batch=2),
        ours(work, backbone, heads, batch=2),
    ):
        torch.testing.assert_close(run(photos), truth, rtol=1e-6, atol=0)  # images are float32 everywhere
    other = Work("dinoneck_tiny", 8 - layer, (32, 48), folds=2)
    assert not torch.allclose(ours(other, other.load(torch.float64), heads)(photos), truth, rtol=1e-4)


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


@pytest.mark.parametrize(
    ("model", "name"), [(cost.SMALL, "vit_small_patch16_dinov3"), (cost.HUGE, "vit_huge_plus_patch16_dinov3")]
)
def test_flops_are_those_that_torch_counts(model: cost.Vit, name: str) -> None:
    with torch.device("meta"):
        vit = timm.create_model(name, pretrained=False, num_classes=0, depth=1)
        images = torch.empty(1, 3, 64, 96)
    vit.blocks[0].attn.fused_attn = False
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        vit.forward_features(images)
    assert counted.get_total_flops() == replace(model, depth=1).flops(24)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_bytes_and_shards_of_a_plan_are_those_of_a_store(dtype: str, tmp_path: Path, monkeypatch) -> None:
    plan = cost.Plan(cost.Vit("tiny", 64, 6, 256, prefix=3), 48, layers=2, patterns=4)
    backbone = load_backbone("dinoneck_tiny", layers=2)
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)).save(folder / "a.png")
    store = FeatureStore.create(
        tmp_path / "store", backbone=backbone, patterns="flips4", image_size=(48, 48), dtype=dtype
    )
    store.extract(folder)
    lines = [line for path in (tmp_path / "store" / "index").iterdir() for line in path.read_text().splitlines()]
    [line] = [line for line in lines if '"id"' in line]
    assert f'"length":{plan.bytes(dtype) // 4},' in line
    tokens = store.batch(["a"] * 4, [0, 1, 2, 3])
    layout = store.description.layout(tokens.grid)
    shard_bytes = plan.bytes(dtype) * 2 + 1
    monkeypatch.setattr(cost, "SHARD_BYTES", shard_bytes)
    records = encode(tokens, layout, torch.ones(2, 64))
    writer = Writer(tmp_path / "store", shard_bytes=shard_bytes)
    for i in range(7):
        writer.add(f"b{i}", records, layout, ImageFile(1))
    writer.flush()
    written = [path for path in (tmp_path / "store" / "data").iterdir() if path.name.startswith(writer.name)]
    assert plan.per_shard(dtype) == 3 and len(written) == 3
