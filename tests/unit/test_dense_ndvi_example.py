"""The dense NDVI example: nothing of the test is learnt from, labels stay on their image, the command goes through."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from examples.dense_ndvi import __main__ as example
from examples.dense_ndvi.bands import BANDS, BLACK_LEVEL, EXIF, EXPOSURE, ISO, MOVES_PX, XMP, moved, read_bands
from PIL import Image, TiffImagePlugin

from dinoneck import Backbone, DataError, HeadCheckpoint, Predictor

TAGS = (
    "<x><MicaSense:RadiometricCalibration> <rdf:Seq> <rdf:li>0.0003</rdf:li></rdf:Seq>"
    "</MicaSense:RadiometricCalibration><DLS:SpectralIrradiance>0.7</DLS:SpectralIrradiance></x>"
)
HEIGHT, WIDTH, TILE = 80, 208, 32
ROW = re.compile(r"^\| ([^|]+) \| (-?[\d.]+) \| [\d.]+ \|$", re.MULTILINE)


def write_capture(folder: Path) -> None:
    """Soil with round plants; where plants stand, red is dark and near infrared bright."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    plant = (np.hypot((y % 40) - 20, (x % 44) - 22) < 14).astype(np.float64)
    light = {"red": 0.5 - 0.4 * plant, "green": 0.4 + 0.1 * plant, "blue": 0.3 - 0.1 * plant,
             "nir": 0.55 + 0.3 * plant, "red_edge": 0.5 + 0.1 * plant}  # fmt: skip
    for band, number in BANDS.items():
        stored = 4800 + 50000 * (light[band] + 0.02 * rng.standard_normal((HEIGHT, WIDTH))).clip(0.01, 1)
        down, right = MOVES_PX[band]
        image = Image.fromarray(moved(stored, (-down, -right)).round().astype(np.uint16))
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[BLACK_LEVEL], tags.tagtype[BLACK_LEVEL] = (4800, 4800, 4800, 4800), 3
        tags[XMP], tags.tagtype[XMP] = TAGS.encode(), 7
        tags[EXIF] = {EXPOSURE: TiffImagePlugin.IFDRational(1, 1000), ISO: 100}
        image.save(folder / f"IMG_0001_{number}.tif", tiffinfo=tags)


def pixels(size: tuple[int, int], tiles: list[example.Tile], side: int) -> np.ndarray:
    """Which pixels some tiles show (height, width), read off an index image."""
    index = np.arange(size[0] * size[1]).reshape(size)
    seen = np.zeros(size, bool)
    for tile in tiles:
        seen.ravel()[example.cut(index, tile, side)] = True
    return seen


@pytest.mark.parametrize(("size", "tile", "patch"), [((960, 1280), 256, 16), ((112, 256), 32, 16)])
def test_nothing_of_the_test_is_learnt_from(size: tuple[int, int], tile: int, patch: int) -> None:
    split = example.split_capture(size, tile, patch)
    learnt, tested = pixels(size, split.train, tile), pixels(size, split.test, tile)
    edge, left = int(size[1] * 0.6), split.part[1].start
    assert learnt[:, :edge].all() and tested[split.part].all() and tested.sum() == tested[split.part].size
    assert np.flatnonzero(learnt.any(axis=0)).max() + tile < np.flatnonzero(tested.any(axis=0)).min() == left
    assert not (learnt & tested).any()
    assert all(side - patch < own.stop <= side for side, own in zip(size, split.part, strict=True))
    with pytest.raises(DataError, match="64x161 px"):
        example.split_capture((64, 161), 64, 16)
    assert all(one.top % patch == 0 == (one.left - left) % patch for one in split.test)
    assert len(set(split.train)) == len(split.train) == 4 * len({(one.top, one.left) for one in split.train})


@pytest.mark.slow
def test_the_command_goes_through(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On plants that colour tells apart: everything beats the mean, and the file alone predicts what was scored."""
    capture = tmp_path / "capture"
    write_capture(capture)
    arguments = [str(capture), "--out", str(tmp_path / "run"), "--backbone", "dinoneck_tiny", "--tile", str(TILE)]
    assert example.main([*arguments, "--epochs", "5"]) == 0
    text = capsys.readouterr().out
    rows = {name: float(own) for name, own in ROW.findall(text)}
    assert list(rows) == [
        "mean of training", "colour ridge", "token ridge, last layer", "DenseHead, last layer", "FPNHead, four layers",
    ]  # fmt: skip
    assert -1 < rows.pop("mean of training") <= 0
    assert min(rows.values()) > 0.5
    file = tmp_path / "run" / "ndvi.safetensors"
    assert file.with_suffix(".png").is_file() == (find_spec("matplotlib") is not None)
    assert HeadCheckpoint.load(file).meta["backbone"]["layers"] == [0, 2, 3, 5]
    assert HeadCheckpoint.load(file).preprocess == tiny.preprocess

    bands = read_bands(capture)
    split = example.split_capture((HEIGHT, WIDTH), TILE, 16)
    maps = Predictor(file)([example.cut(bands.rgb, tile, TILE) for tile in split.test], maps="patch")
    whole = example.mosaic(np.stack([found["maps"]["ndvi"][0] for found in maps]), split, 16)
    valid, ndvi = bands.valid[split.part], np.nan_to_num(bands.ndvi[split.part])
    weight, total = (
        x.reshape(-1, 16, x.shape[1] // 16, 16).sum(axis=(1, 3)) for x in (valid, np.where(valid, ndvi, 0))
    )
    assert (weight[weight < 128] > 0).any(), "cells at the rim show some pixels with data"
    weight = np.where(weight >= 128, weight, 0)  # half of 16 x 16 px
    assert example.score(whole, total / weight.clip(min=1), weight)[0] == pytest.approx(
        rows["FPNHead, four layers"], abs=0.006
    )
