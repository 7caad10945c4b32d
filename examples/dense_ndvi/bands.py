"""One capture of a five-band camera -> a colour image and its NDVI, pixel on pixel.

The lenses of a MicaSense RedEdge stand next to each other, so its bands are shifted.
:func:`read_bands` moves them onto Red by whole pixels and makes reflectances of them with what the
files say about themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dinoneck.errors import DataError

Array = np.ndarray[Any, Any]

BANDS = {"blue": 1, "green": 2, "red": 3, "nir": 4, "red_edge": 5}
FIRST_BAND = "blue"
MOVES_PX = {
    "blue": (8, 7),
    "green": (-2, -1),
    "red": (0, 0),
    "nir": (-4, -14),
    "red_edge": (2, -14),
}
SATURATED = 65520  # 12 bit, stored times 16
# tags of TIFF, DNG and Exif
BLACK_LEVEL = 50714
EXIF = 34665
EXPOSURE = 33434
ISO = 34867
XMP = 700
SHOWN_PERCENTILES = (1.0, 99.0)


@dataclass(frozen=True)
class Bands:
    """One aligned capture.

    Attributes:
        rgb: (H, W, 3) float32 in 0 ... 1; every band is stretched between its percentiles 1 and 99,
            the rim is 0.
        ndvi: (H, W) float32, (NIR - Red) / (NIR + Red) of reflectances; NaN where not ``valid``.
        valid: (H, W) bool; False on the rim that the shifts leave, where Red or NIR is saturated,
            and where neither saw any light.
        reflectance: band name -> (H, W) float32 on Red's pixels, without vignetting correction; the
            rim is 0.
    """

    rgb: Array
    ndvi: Array
    valid: Array
    reflectance: dict[str, Array]


def read_bands(folder: str | Path, name: str = "IMG_0001") -> Bands:
    """Read ``<name>_1.tif`` ... ``<name>_5.tif`` (blue, green, red, near infrared, red edge) and align them.

    Reflectance is (stored - black level) * a1 / (exposure * gain * irradiance) * pi / 65536, with
    the black level, exposure, gain (ISO / 100), radiometric calibration a1 and downwelling
    irradiance that each file carries. Left out, for a demonstration: vignetting, the calibration's
    row gradient, lens distortion (whole-pixel shifts are up to 5 px off in the corners) and the
    tilt of the light sensor, which NDVI does not see.

    Reference: MicaSense's radiometric calibration model (L = a1 / gain * (p - black) / exposure, p
    in 0 ... 1).

    Raises:
        DataError: if a file is missing, is no such TIFF or lacks a tag, or sizes differ, naming the
            file.
    """
    raw: dict[str, Array] = {}
    reflectance: dict[str, Array] = {}
    for band, number in BANDS.items():
        path = Path(folder) / f"{name}_{number}.tif"
        stored, black, factor = _read(path)
        raw[band] = moved(stored, MOVES_PX[band])
        first_shape = raw[FIRST_BAND].shape
        if raw[band].shape != first_shape:
            raise DataError(f"{path} is {raw[band].shape} px, other bands {first_shape}")
        light = (stored.astype(np.float64) - black).clip(min=0.0) * factor
        reflectance[band] = moved(light.astype(np.float32), MOVES_PX[band])
    inside = np.ones_like(raw["red"], bool)  # where all bands hold image after the moves
    for by in MOVES_PX.values():
        inside &= moved(np.ones_like(inside), by)

    red = reflectance["red"]
    nir = reflectance["nir"]
    is_lit = red + nir > 0
    is_saturated = (raw["red"] >= SATURATED) | (raw["nir"] >= SATURATED)
    valid = inside & is_lit & ~is_saturated
    ndvi = np.full(red.shape, np.nan, np.float32)
    ndvi[valid] = (nir[valid] - red[valid]) / (nir[valid] + red[valid])
    shown = [_stretched(reflectance[band], inside) for band in ("red", "green", "blue")]
    return Bands(np.stack(shown, axis=-1), ndvi, valid, reflectance)


def moved(band: Array, by: tuple[int, int]) -> Array:
    """Return the band moved ``by`` (down, right) px: out[y, x] = band[y - down, x - right]; 0 where that is outside."""
    down, right = by
    height, width = band.shape
    rows_to = slice(max(down, 0), height + min(down, 0))
    rows_from = slice(max(-down, 0), height + min(-down, 0))
    cols_to = slice(max(right, 0), width + min(right, 0))
    cols_from = slice(max(-right, 0), width + min(-right, 0))
    out = np.zeros_like(band)
    out[rows_to, cols_to] = band[rows_from, cols_from]
    return out


def _stretched(band: Array, inside: Array) -> Array:
    """The band from 0 to 1 between its percentiles, 0 on the rim."""
    low, high = np.percentile(band[inside], SHOWN_PERCENTILES)
    stretched = (band - low) / max(high - low, 1e-12)
    return np.where(inside, stretched.clip(0.0, 1.0), 0.0).astype(np.float32)


def _read(path: Path) -> tuple[Array, float, float]:
    """The stored numbers, their black level, and reflectance per number above it."""
    try:
        with Image.open(path) as image:
            stored = np.asarray(image)
            tags = image.getexif()
            exif = tags.get_ifd(EXIF)
            xmp = tags[XMP][0] if isinstance(tags[XMP], tuple) else tags[XMP]
            text = xmp.decode() if isinstance(xmp, bytes) else str(xmp)
            black = float(tags[BLACK_LEVEL][0])
            exposure = float(exif[EXPOSURE])
            gain = float(exif[ISO]) / 100
    except FileNotFoundError:
        raise DataError(
            f"there is no {path}; expected the five bands <name>_1.tif ... <name>_5.tif"
        ) from None
    except (UnidentifiedImageError, OSError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no band of a MicaSense capture: {error!r}") from error
    if stored.dtype != np.uint16 or stored.ndim != 2:
        raise DataError(
            f"{path} holds {stored.dtype} values of shape {stored.shape}; expected one band of "
            "uint16"
        )
    sensitivity = re.search(
        r"<MicaSense:RadiometricCalibration>\s*<rdf:Seq>\s*<rdf:li>([^<]+)<", text
    )
    irradiance = re.search(r"<DLS:SpectralIrradiance>([^<]+)<", text)
    if sensitivity is None or irradiance is None:
        raise DataError(
            f"{path} does not say its radiometric calibration and irradiance; expected both in "
            "its XMP"
        )
    light = exposure * gain * float(irradiance[1])
    return stored, black, float(sensitivity[1]) / light * np.pi / 65536
