"""Published heads by their names, in the Predictor and on the command line, on a backbone with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.published import official_files as official
from tests.unit.published.test_published import SAFE_READER

from dinoneck import CheckpointError, Predictor, load_backbone, load_published
from dinoneck.cli.main import main

pytestmark = pytest.mark.skipif(not SAFE_READER, reason="torch before 2.10 does not read pickles without a known hash")
DEPTH, CLASSES = "dinov2_vits14_nyu_linear", "dinov2_vits14_voc2012_linear"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two heads, weights of their backbone, and an image of 70x100 px, which needs padding."""
    folder = tmp_path_factory.mktemp("published")
    for name in (DEPTH, CLASSES):
        official.write(folder / f"{name}.pth", official.random_state(official.shapes_of(name)[0]))
    load_backbone("dinov2_vits14", pretrained=False, seed=0).save_weights(folder / "backbone.safetensors")
    pixels = np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


def file_backbone(folder: Path, name: str = "dinov2_vits14", pos_embed: str = "official") -> object:
    return load_backbone(name, checkpoint=folder / "backbone.safetensors", pos_embed=pos_embed)  # type: ignore[arg-type]


def test_other_backbones_are_refused(folder: Path) -> None:
    head = load_published(DEPTH, weights=folder / f"{DEPTH}.pth")
    with pytest.raises(CheckpointError, match="pos_embed"):
        Predictor(head, file_backbone(folder, pos_embed="native"))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="seeded"):
        Predictor(head, load_backbone("dinov2_vits14", pretrained=False, pos_embed="official"))
    module = head.build()
    tokens = file_backbone(folder)(torch.zeros(1, 3, 28, 28))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="pos_embed"):
        head.check_backbone(file_backbone(folder, pos_embed="native"))  # type: ignore[arg-type]
    assert tokens.normed
    with pytest.raises(Exception, match="normed"):
        module(tokens)


def test_the_command_line_takes_a_name_and_a_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "depth.csv"
    words = ["predict", folder / "image.png", "--heads", DEPTH, "--weights", folder / f"{DEPTH}.pth", "--out", out]
    words += ["--backbone-file", folder / "backbone.safetensors", "--maps", tmp_path / "m", "--overlay", tmp_path / "o"]
    assert main([*map(str, words)]) == 0
    assert "depth" in out.read_text()
    with Image.open(tmp_path / "m" / "image.tif") as stored:
        depth = np.asarray(stored)
    assert depth.shape == (70, 100)
    assert 0.001 <= depth.min() < depth.max() <= 10.0
    assert (tmp_path / "o" / "image.jpg").is_file()


def test_a_name_that_is_a_path_too_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_published(DEPTH, weights=folder / f"{DEPTH}.pth").save(DEPTH)
    with pytest.raises(CheckpointError, match=f"./{DEPTH}"):
        Predictor(DEPTH)
    with pytest.raises(CheckpointError, match="Did you mean 'dinov2_vits14_nyu_dpt'"):
        Predictor("dinov2_vits14_nyu_dtp")
    predictor = Predictor(f"./{DEPTH}", file_backbone(folder))  # type: ignore[arg-type]
    assert predictor.tasks[0].unit == "m"
