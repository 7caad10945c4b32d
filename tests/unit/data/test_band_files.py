"""Bands of one scene in files of their own are counted, and names that may be anything are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck.data import read_folders
from dinoneck.data.band_files import bands_beside
from dinoneck.data.sources import list_pictures

SCENES = (0, 1, 2)
COLOURS = ("red", "green", "blue", "yellow")
FIVE = tuple(range(1, 6))


def written(root: Path, name: str, bands: Sequence[object], mode: str = "L") -> list[Path]:
    """Write a file of noise for each scene and band; ``name`` has places for both."""
    files = [root / name.format(scene, band) for scene in SCENES for band in bands]
    for seed, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(file)
    return files


@pytest.mark.parametrize(
    ("name", "bands"),
    [
        pytest.param("IMG_000{}_{}.tif", FIVE, id="MicaSense"),
        pytest.param("IMG_000{}_{}.tif", range(1, 11), id="MicaSense, two cameras"),
        pytest.param("DJI_00{}{}.TIF", FIVE, id="Phantom"),
        pytest.param("IMG_{}_{}.TIF", ("GRE", "RED", "REG"), id="Sequoia"),
        pytest.param("T32UNU_2023060{}_{}.tif", ("B02", "B03", "B8A"), id="Sentinel"),
        pytest.param("T32UNU_2023060{}_{}_10m.tif", ("B02", "B03"), id="Sentinel, metres"),
        pytest.param("LC08_2020061{}_{}.TIF", ("B2", "B3", "B4"), id="Landsat"),
        pytest.param("{}_{}.png", COLOURS, id="colours"),
        pytest.param("img{}_{}.tif", "RGB", id="letters"),
        pytest.param("plate_A0{}_{}.tif", ("w1", "w2"), id="wavelengths"),
    ],
)
def test_further_bands_of_a_scene_are_counted(
    name: str, bands: Sequence[object], tmp_path: Path
) -> None:
    files = written(tmp_path, name, bands)
    found = bands_beside(files)
    first_bands = {companion.image for companion in found}
    assert len(found) == len(SCENES) * (len(bands) - 1)
    assert len(first_bands) == len(SCENES)
    assert first_bands.isdisjoint(companion.path for companion in found)


def test_channels_that_fiji_split_are_counted(tmp_path: Path) -> None:
    files = written(tmp_path, "C{1}-cell{0}.tif", (1, 2))
    pairs = {companion.path.name: companion.image.name for companion in bands_beside(files)}
    assert pairs == {f"C2-cell{i}.tif": f"C1-cell{i}.tif" for i in SCENES}


@pytest.mark.parametrize(
    ("name", "bands", "mode"),
    [
        pytest.param("IMG_000{}_{}.tif", FIVE, "RGB", id="pictures in colours"),
        pytest.param("IMG_000{}_{}.jpg", FIVE, "L", id="JPEG"),
        pytest.param("IMG_000{}_{}.tif", (1, 2, 3), "L", id="three numbers"),
        pytest.param("patient{}_{}.tif", FIVE, "L", id="numbers of another name"),
        pytest.param("apple{}_{}.png", ("red", "green"), "RGB", id="colours of apples"),
        pytest.param("{}_{}.png", "RL", "L", id="right and left"),
        pytest.param("plot{}_{}.jpg", ("B01", "B02"), "RGB", id="blocks"),
        pytest.param("{}_{}.tif", ("c1",), "L", id="one band"),
    ],
)
def test_other_names_and_pictures_say_nothing(
    name: str, bands: Sequence[object], mode: str, tmp_path: Path
) -> None:
    assert bands_beside(written(tmp_path, name, bands, mode)) == []


def test_bands_of_one_scene_alone_say_nothing(tmp_path: Path) -> None:
    files = written(tmp_path, "{}_{}.png", COLOURS)[: len(COLOURS)]
    assert bands_beside(files) == []


def test_scenes_with_other_bands_say_nothing(tmp_path: Path) -> None:
    files = written(tmp_path, "{}_{}.png", COLOURS)
    del files[0], files[-1]
    assert bands_beside(files) == []


def test_prediction_and_class_folders_name_bands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "crop", "IMG_000{}_{}.tif", FIVE)
    written(tmp_path / "weed", "w{}.jpg", [""], "RGB")
    list_pictures([tmp_path])
    read_folders(tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    expected = f"IMG_0000_2.tif beside {tmp_path / 'crop/IMG_0000_1.tif'}; "
    assert [line for line in lines if "12 files" in line and expected in line] == lines
    assert len(lines) == 2
