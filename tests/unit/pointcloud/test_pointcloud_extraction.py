"""Verb extract: frames keep their numbers, a stopped extraction goes on, one store has one aspect."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples.pointcloud import extraction
from tests.unit.pointcloud.frame_samples import run_verb, write_frames

from dinoneck import DataError, FeatureStore, load_backbone

IDS = ("s0/color/0", "s0/color/1000", "s0/color/200", "s1/color/0")
TINY = ("--backbone", "dinoneck_tiny")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("tree"), {"s0": [0, 20, 200, 1000], "s1": [0, 20]})


@pytest.fixture(scope="module")
def store(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    out = tmp_path_factory.mktemp("stores") / "store"
    assert run_verb(extraction, tree, "--out", out, "--every", 200, *TINY) == 0
    return FeatureStore.open(out)


def test_frames_keep_their_numbers_and_the_tokens_are_the_backbones(store: FeatureStore, tree: Path) -> None:
    assert store.ids == IDS
    assert store.dtype == "fp16"
    backbone = load_backbone("dinoneck_tiny")
    image = tree / "2D/s0/color/1000.png"
    with torch.no_grad():
        expected = backbone(backbone.preprocess(image)).maps()[0]
    assert backbone.layers == (backbone.depth - 1,)
    assert backbone.record()["norm"] is True
    torch.testing.assert_close(store["s0/color/1000"].maps()[0], expected, atol=4e-3, rtol=1e-3)
    assert expected.shape[2:] == (3, 4)


def test_a_stopped_extraction_goes_on_and_parts_make_the_whole(
    store: FeatureStore, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (tree / "2D", "--out", tmp_path / "store", "--every", 200, *TINY)
    assert run_verb(extraction, *common, "--shard", "1/2") == 0
    assert "2 extracted, 0 were there" in capsys.readouterr().out
    assert run_verb(extraction, *common) == 0
    output = capsys.readouterr().out
    assert "4 frames: 2 extracted, 2 were there; 48x64 px" in output
    again = FeatureStore.open(tmp_path / "store")
    assert again.ids == IDS
    assert torch.equal(again.batch(IDS).sequence[0], store.batch(IDS).sequence[0])


def test_one_store_keeps_one_aspect(tmp_path: Path) -> None:
    write_frames(tmp_path, {"a": [0]})
    write_frames(tmp_path, {"b": [0]}, (48, 48))
    with pytest.raises(DataError, match="48x48"):
        run_verb(extraction, tmp_path, "--out", tmp_path / "store", *TINY)
