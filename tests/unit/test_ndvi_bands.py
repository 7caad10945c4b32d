"""The bands of the NDVI example lie on each other, and NDVI tells plants from soil."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from examples.dense_ndvi.bands import BANDS, MOVES_PX, SATURATED, Bands, moved, read_bands
from PIL import Image

DATA = Path(os.environ.get("DINONECK_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def folder() -> Path:
    found = DATA / "field_ndvi"
    if not (found / "IMG_0001_5.tif").is_file():
        pytest.skip(f"the field_ndvi capture is not in {found}; set DINONECK_DATA to the folder that holds it")
    return found


@pytest.fixture(scope="module")
def bands(folder: Path) -> Bands:
    return read_bands(folder)


def stored(folder: Path, band: str) -> np.ndarray:
    return np.asarray(Image.open(folder / f"IMG_0001_{BANDS[band]}.tif")).astype(np.float64)


def edges(band: np.ndarray) -> np.ndarray:
    down, across = np.gradient(np.log(band.clip(min=50.0)))
    return np.hypot(down, across)[40:-40, 40:-40]


def alike(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize("band", ["blue", "green", "nir", "red_edge"])
def test_bands_lie_on_red(folder: Path, band: str) -> None:
    red, own = edges(stored(folder, "red") - 4800), stored(folder, band) - 4800
    down, right = MOVES_PX[band]
    aligned = alike(red, edges(moved(own, (down, right))))
    assert aligned > alike(red, edges(own)) + 0.08
    assert aligned > alike(red, edges(moved(own, (-down, -right)))) + 0.1
    for other in ((down - 5, right), (down + 5, right), (down, right - 5), (down, right + 5)):
        assert aligned > alike(red, edges(moved(own, other)))


def test_what_is_valid(folder: Path, bands: Bands) -> None:
    assert bands.rgb.shape == (960, 1280, 3)
    assert bands.valid.shape == bands.ndvi.shape == (960, 1280)
    rim = np.ones((960, 1280), bool)
    rim[8:-4, 7:-14] = False
    assert not bands.valid[rim].any()
    red, nir = stored(folder, "red"), np.roll(stored(folder, "nir"), (-4, -14), axis=(0, 1))
    bright = (red >= SATURATED) | (nir >= SATURATED)
    assert bright[~rim].sum() > 1000
    assert np.array_equal(bands.valid, ~rim & ~bright)
    assert np.array_equal(np.isnan(bands.ndvi), ~bands.valid)
    assert np.isfinite(bands.rgb).all()
    assert 0 <= bands.rgb.min() < 0.01
    assert 0.99 < bands.rgb.max() <= 1


def test_ndvi_of_plants_and_of_the_road(folder: Path, bands: Bands) -> None:
    """The formula, and what the picture shows: a bare track down the middle, dense rows on the left."""
    red, nir = bands.reflectance["red"][bands.valid], bands.reflectance["nir"][bands.valid]
    assert np.allclose(bands.ndvi[bands.valid], (nir - red) / (nir + red), atol=1e-6)
    for band, level in (  # the tags of this capture, read by eye
        ("red", 2.6046664063603917e-4 / (0.0011475 * 2 * 0.6869884729385376)),
        ("nir", 2.4034012984746906e-4 / (0.0018 * 1 * 0.41153082251548767)),
    ):
        expected = moved((stored(folder, band) - 4800) * level * np.pi / 2**16, MOVES_PX[band])
        assert np.allclose(bands.reflectance[band], expected, rtol=1e-5, atol=1e-7)
    track, rows = bands.ndvi[300:640, 590:640], bands.ndvi[20:200, 20:500]
    assert 0.1 < np.nanmedian(track) < 0.35
    assert 0.6 < np.nanmedian(rows) < 0.95
    assert 0.02 < np.median(red) < 0.3
    assert 0.2 < np.median(nir) < 0.6
