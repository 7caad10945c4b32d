"""Verbs extract and layout: the aspect is kept, cameras follow, a tree of tensors holds the same values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples.pointcloud import extraction, layout
from examples.pointcloud.extraction import common_size
from examples.pointcloud.frame_tree import frames_of
from tests.unit.pointcloud.frame_samples import run_verb, write_frames

from dinoneck import FeatureStore, load_backbone
from dinoneck.points import Cameras

IDS = ("s0/color/0", "s0/color/1000", "s0/color/200", "s1/color/0")
TINY = ("--backbone", "dinoneck_tiny")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("tree"), {"s0": [0, 20, 200, 1000], "s1": [0, 20]})


@pytest.fixture(scope="module")
def store(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    out = tmp_path_factory.mktemp("stores") / "store"
    assert run_verb(extraction, tree, "--out", out, *TINY) == 0
    return FeatureStore.open(out)


def cameras(size: tuple[int, int]) -> Cameras:
    height, width = size
    K = torch.tensor([[[0.9 * width, 0, width / 2 - 0.5], [0, 0.9 * width, height / 2 - 0.5], [0, 0, 1]]])
    return Cameras(K, torch.eye(4)[None], size)


@pytest.mark.parametrize(
    ("image", "patch", "size"),
    [((480, 640), 16, (480, 640)), ((480, 640), 14, (504, 672)), ((640, 480), 14, (672, 504)),
     ((48, 64), (16, 8), (48, 64)), ((512, 512), 16, (512, 512))],
)  # fmt: skip
def test_auto_keeps_the_aspect_exactly(
    tmp_path: Path, image: tuple[int, int], patch: int | tuple[int, int], size: tuple[int, int]
) -> None:
    assert common_size(frames_of(write_frames(tmp_path, {"s": [0]}, image)), patch) == size
    assert image[0] * size[1] == image[1] * size[0]


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
    common = (tree / "2D", "--out", tmp_path / "store", *TINY)
    assert run_verb(extraction, *common, "--shard", "1/2") == 0
    assert "2 extracted, 0 were there" in capsys.readouterr().out
    assert run_verb(extraction, *common) == 0
    output = capsys.readouterr().out
    assert "4 frames of 2 scenes: 2 extracted, 2 were there; 64 channels on 3x4 patches, 48x64 px" in output
    again = FeatureStore.open(tmp_path / "store")
    assert again.ids == IDS
    assert torch.equal(again.batch(IDS).sequence[0], store.batch(IDS).sequence[0])


@pytest.mark.slow
def test_processes_share_the_frames_and_go_on(
    store: FeatureStore, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (tree, "--out", tmp_path / "store", *TINY)
    run_verb(extraction, *common, "--shard", "0/4")
    assert run_verb(extraction, *common, "--processes", 2) == 0
    assert "4 frames of 2 scenes: 3 extracted, 1 were there" in capsys.readouterr().out
    assert torch.equal(FeatureStore.open(tmp_path / "store").batch(IDS).sequence[0], store.batch(IDS).sequence[0])


def test_every_scenes_and_batches_are_options(store: FeatureStore, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("s1\n")
    out = tmp_path / "store"
    more = ("--every", 20, "--scenes", tmp_path / "train.txt", "--batch-size", 2, "--device", "cpu")
    assert run_verb(extraction, tree, "--out", out, *TINY, *more) == 0
    found = FeatureStore.open(out)
    assert found.ids == ("s1/color/0", "s1/color/20")
    torch.testing.assert_close(found["s1/color/0"].sequence[0], store["s1/color/0"].sequence[0], atol=4e-3, rtol=1e-3)


def test_layout_and_back_is_exact(store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clip_feat"
    assert run_verb(layout, "--to", store.path, folder) == 0
    assert "4 files written" in capsys.readouterr().out
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        f"{name}.pt" for name in IDS
    ]
    own = torch.load(folder / "s0/color/200.pt", weights_only=True)
    assert (own.dtype, own.shape) == (torch.float16, (64, 3, 4))
    assert torch.equal(own.float(), store["s0/color/200"].maps()[0][0])
    assert run_verb(layout, "--from", folder, tmp_path / "back", "--patch-size", 16) == 0
    back = FeatureStore.open(tmp_path / "back")
    assert back.ids == IDS
    assert torch.equal(back.batch(IDS).patches[0], store.batch(IDS).patches[0])
    assert back.preprocess.patch_size == 16
