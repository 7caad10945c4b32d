"""What a raster file says of its numbers: which mark pixels without a label, and a scale."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.ExifTags import Base

from dinoneck.atomic import open_regular
from dinoneck.data.label_tiffs import Raw
from dinoneck.errors import DataError, reason_of

# GDAL's private TIFF tags, https://gdal.org/en/stable/drivers/raster/gtiff.html
_GDAL_METADATA = 42112
_GDAL_NODATA = 42113

_LARGEST_SIDECAR = 1 << 20  # bytes of an .aux.xml file; GDAL's are a few kilobytes
_BAND_NOTES = re.compile(r'<PAMRasterBand band="(\d+)"[^>]*>(.*?)</PAMRasterBand>', re.DOTALL)
_NODATA_NOTE = re.compile(r"<NoDataValue[^>]*>([^<]*)</NoDataValue>")
_NOT_A_NUMBER = re.compile(r"^[+-]?(nan|1\.#q?nan|1\.#ind)", re.IGNORECASE)
LARGEST_FLOAT = 3.4028234663852886e38  # of float32
# float32's lowest value in any number of digits; GDAL and ArcGIS write 6 to 20 of them
_NEAR_LOWEST = 3.4028e38


@dataclass(frozen=True)
class FileNodata:
    """What a file says of pixels without a label.

    Attributes:
        values: one for all bands, or one per band; NaN = none.
        source: what messages call the place, such as ``the tag GDAL_NODATA``.
        removal: how to remove it.
    """

    values: tuple[float, ...]
    source: str
    removal: str

    def pixels(self, values: Raw) -> Raw:
        """Return where any band of ``values`` (H, W, K) is marked, (H, W) bool."""
        marked = np.zeros(values.shape[:2], bool)
        for band in range(values.shape[2]):
            number = self.values[band] if len(self.values) > 1 else self.values[0]
            marked |= equals(values[..., band], number)
        return marked

    def words(self) -> str:
        """Return the values as text, such as ``-9999``."""
        distinct = dict.fromkeys(f"{value:.12g}" for value in self.values)
        return ", ".join(distinct)

    def agrees(self, other: FileNodata) -> bool:
        """Return whether another place says the same, as far as float32 can tell."""
        with np.errstate(over="ignore"):
            single = {str(np.float32(value)) for value in self.values}
            other_single = {str(np.float32(value)) for value in other.values}
        return single == other_single

    def contradiction(self, nodata: Sequence[float]) -> str:
        """Return that ``nodata`` names other values, and what to do."""
        passed = ", ".join(f"{value:.12g}" for value in nodata)
        return (
            f"{self.source} marks {self.words()} as unlabelled, and nodata is {passed}; name all "
            f"of them (nodata=({passed}, {self.words()})), or {self.removal} if {self.words()} is "
            "a label"
        )


def equals(values: Raw, number: float) -> Raw:
    """Return where ``values`` have the number, as far as their dtype can hold it.

    A number beyond float32, GDAL's habit for float64 data, is any of float32's lowest values, and
    infinity.
    """
    if values.dtype.kind != "f":
        # such as -9999 for unsigned bytes: no pixel has it
        if not np.isfinite(number) or number != np.floor(number):
            return np.zeros(values.shape, bool)
        return np.asarray(values == int(number))
    with np.errstate(over="ignore"):  # half floats have no such numbers but infinity
        if number <= -_NEAR_LOWEST:
            return np.asarray(values <= -_NEAR_LOWEST)
        if number >= _NEAR_LOWEST:
            return np.asarray(values >= _NEAR_LOWEST)
        return np.asarray(values == values.dtype.type(number))


def tag_nodata(tags: Mapping[int, Any], name: str) -> FileNodata | None:
    """Return the nodata values of GDAL's tag; None = there is none.

    Raises:
        DataError: if it holds no number.
    """
    stored = tags.get(_GDAL_NODATA)
    if stored is None:
        return None
    if isinstance(stored, tuple):
        text = " ".join(map(str, stored))
    elif isinstance(stored, bytes):
        text = stored.decode("ascii", errors="replace")
    else:
        text = str(stored)
    words = text.replace("\0", " ").split()
    if not words:
        return None
    return _nodata(
        words,
        name,
        source="the tag GDAL_NODATA",
        removal="remove the tag (gdal_edit.py -unsetnodata)",
    )


def _nodata(words: Sequence[str], name: str, *, source: str, removal: str) -> FileNodata:
    numbers = []
    for word in words:
        try:
            numbers.append(float("nan") if _NOT_A_NUMBER.match(word) else float(word))
        except ValueError:
            raise DataError(
                f"{name}: {source} holds {word[:40]!r}, which is no number; write one, or {removal}"
            ) from None
    return FileNodata(tuple(numbers), source, removal)


@dataclass(frozen=True)
class Sidecar:
    """What GDAL noted next to a file, in its .aux.xml.

    Attributes:
        nodata: values of pixels without a label; None = none.
        scaling: the rule from stored numbers to quantities, in words; "" = none.
    """

    nodata: FileNodata | None = None
    scaling: str = ""


def read_sidecar(path: Path, bands: int) -> Sidecar:
    """Return what GDAL noted next to a file.

    Raises:
        DataError: if the notes cannot be read, or a value is no number.
    """
    sidecar = Path(f"{path}.aux.xml")
    if not sidecar.exists():
        return Sidecar()
    try:
        with open_regular(sidecar) as file:
            text = file.read(_LARGEST_SIDECAR).decode("utf-8", errors="replace")
    except OSError as error:
        raise DataError(
            f"{sidecar} cannot be read: {reason_of(error)}; remove it or make it readable"
        ) from error
    words = ["nan"] * bands
    for number, content in _BAND_NOTES.findall(text):
        value = _NODATA_NOTE.search(content)
        if value and 1 <= int(number) <= bands:
            words[int(number) - 1] = value[1].strip()
    noted = _nodata(
        words,
        str(path),
        source=f"its file {sidecar.name}",
        removal=f"remove NoDataValue from {sidecar.name}",
    )
    factor = _number_in(r"<Scale>([^<]*)</Scale>", text, 1.0)
    offset = _number_in(r"<Offset>([^<]*)</Offset>", text, 0.0)
    return Sidecar(
        nodata=None if all(np.isnan(noted.values)) else noted, scaling=_rule(factor, offset)
    )


def scaling_of(tags: Mapping[int, Any]) -> str:
    """Return the rule from stored numbers to quantities that GDAL or ImageJ noted, in words; "" = none."""
    factor = 1.0
    offset = 0.0
    gdal = tags.get(_GDAL_METADATA)
    if isinstance(gdal, str):
        factor = _number_in(r'role="scale"[^>]*>([^<]*)<', gdal, factor)
        offset = _number_in(r'role="offset"[^>]*>([^<]*)<', gdal, offset)
    description = tags.get(Base.ImageDescription)
    if isinstance(description, str) and description.startswith("ImageJ="):
        is_linear = re.search(r"^cf=0\s*$", description, re.MULTILINE)
        if is_linear:
            factor = _number_in(r"^c1=(\S+)", description, factor)
            offset = _number_in(r"^c0=(\S+)", description, offset)
    return _rule(factor, offset)


def _rule(factor: float, offset: float) -> str:
    if (factor, offset) == (1.0, 0.0):
        return ""
    return f"stored * {factor:.9g} + {offset:.9g}"


def _number_in(pattern: str, text: str, default: float) -> float:
    match = re.search(pattern, text, re.MULTILINE)
    try:
        return float(match[1]) if match else default
    except ValueError:
        return default
