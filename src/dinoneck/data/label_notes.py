"""What a raster file says of its numbers: which mark pixels without a label, and a scale."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.ExifTags import Base

from dinoneck.atomic import open_regular
from dinoneck.data import xml_notes
from dinoneck.data.label_tiffs import Raw
from dinoneck.data.xml_notes import Element
from dinoneck.errors import DataError
from dinoneck.images.orientation import warn_once
from dinoneck.text import reason_of

# GDAL's private TIFF tags, https://gdal.org/en/stable/drivers/raster/gtiff.html
_GDAL_METADATA = 42112
_GDAL_NODATA = 42113

# bytes of an .aux.xml file: notes are a few kilobytes, tables of 65,536 values some megabytes
_LARGEST_SIDECAR = 1 << 26
_NOT_A_NUMBER = re.compile(r"^[+-]?(nan|1\.#q?nan|1\.#ind)", re.IGNORECASE)
# float32's lowest value in any number of digits; GDAL and ArcGIS write 6 to 20 of them
_NEAR_LOWEST = 3.4028e38
# programs write a factor with 6 to 17 digits
_EQUAL_TO = 1e-6


@dataclass(frozen=True)
class FileNodata:
    """What a file says of pixels without a label.

    Attributes:
        values: one for all bands, or one per band; NaN = none.
        source: what messages call the place, such as ``the tag GDAL_NODATA``.
        removal: how to remove it.
        in_all_bands: a pixel is marked if all of its bands have their value; else one is enough.
    """

    values: tuple[float, ...]
    source: str
    removal: str
    in_all_bands: bool = False

    def pixels(self, values: Raw) -> Raw:
        """Return which pixels of ``values`` (H, W, K) are marked, (H, W) bool."""
        has_value = np.zeros(values.shape, bool)
        for band in range(values.shape[2]):
            number = self.values[band] if len(self.values) > 1 else self.values[0]
            has_value[..., band] = equals(values[..., band], number)
        if self.in_all_bands:
            return np.asarray(has_value.all(axis=2))
        return np.asarray(has_value.any(axis=2))

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
    """Return the nodata values of GDAL's tags; None = there are none.

    Raises:
        DataError: if they hold no number.
    """
    words = _text_of(tags.get(_GDAL_NODATA)).split()
    if words:
        return _nodata(
            words,
            name,
            source="the tag GDAL_NODATA",
            removal="remove the tag (gdal_edit.py -unsetnodata)",
        )
    root = xml_notes.parse(_text_of(tags.get(_GDAL_METADATA)).encode())
    return _nodata_of_all_bands(
        root,
        name,
        source="the item NODATA_VALUES of the tag GDAL_METADATA",
        removal="remove it (gdal_edit.py -unsetmd)",
    )


def _text_of(stored: Any) -> str:
    """A tag's value as text, without the zero that ends it; "" if there is none."""
    if stored is None:
        return ""
    if isinstance(stored, tuple):
        text = " ".join(map(str, stored))
    elif isinstance(stored, bytes):
        text = stored.decode("utf-8", errors="replace")
    else:
        text = str(stored)
    return text.replace("\0", " ").strip()


def _nodata(
    words: Sequence[str], name: str, *, source: str, removal: str, in_all_bands: bool = False
) -> FileNodata:
    numbers = []
    for word in words:
        is_nan = _NOT_A_NUMBER.match(word)
        numbers.append(math.nan if is_nan else _number(word, name, source, removal))
    return FileNodata(tuple(numbers), source, removal, in_all_bands)


def _nodata_of_all_bands(
    root: Element | None, name: str, *, source: str, removal: str
) -> FileNodata | None:
    """The values of GDAL's item NODATA_VALUES, all of which a pixel without a label has."""
    if root is None:
        return None
    for item in root.named("item", "mdi"):
        key = item.attributes.get("name") or item.attributes.get("key", "")
        words = item.text.split()
        if key.upper() == "NODATA_VALUES" and words:
            return _nodata(words, name, source=source, removal=removal, in_all_bands=True)
    return None


def _number(word: str, name: str, source: str, removal: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise DataError(
            f"{name}: {source} holds {word[:40]!r}, which is no number; write one, or {removal}"
        ) from None


# Scales
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """From stored numbers to quantities: ``stored * factor + offset``."""

    factor: float = 1.0
    offset: float = 0.0

    def words(self) -> str:
        """Return the rule as text, such as ``stored * 0.0001``."""
        text = f"stored * {self.factor:.9g}"
        return f"{text} + {self.offset:.9g}" if self.offset else text

    def stored(self, quantity: float) -> float:
        """Return the stored number of a quantity, without the error of the division."""
        return float(f"{(quantity - self.offset) / self.factor:.9g}")

    def agrees(self, other: Rule) -> bool:
        """Return whether another rule is the same, up to the digits that programs write."""
        has_factor = math.isclose(self.factor, other.factor, rel_tol=_EQUAL_TO)
        has_offset = math.isclose(self.offset, other.offset, rel_tol=_EQUAL_TO)
        return has_factor and has_offset


NO_CHANGE = Rule()
"""The rule of numbers that are quantities."""


@dataclass(frozen=True)
class FileScale:
    """What a file says of the quantities that its numbers stand for.

    Attributes:
        rules: one for all bands, or one per band.
        source: what messages call the place, such as ``the tag GDAL_METADATA``.
        removal: how to remove it.
    """

    rules: tuple[Rule, ...]
    source: str
    removal: str

    def words(self) -> str:
        """Return the rules as text, with the bands where they differ."""
        if self.is_one_rule():
            return self.rules[0].words()
        parts = [f"{rule.words()} in band {band}" for band, rule in enumerate(self.rules)]
        return ", ".join(parts)

    def is_one_rule(self) -> bool:
        """Return whether all bands have one rule."""
        return all(rule.agrees(self.rules[0]) for rule in self.rules)

    def agrees(self, other: FileScale) -> bool:
        """Return whether another place or file has the same rule in every band."""
        if self.is_one_rule() and other.is_one_rule():
            return self.rules[0].agrees(other.rules[0])
        if len(self.rules) != len(other.rules):
            return False
        pairs = zip(self.rules, other.rules, strict=True)
        return all(rule.agrees(other_rule) for rule, other_rule in pairs)


def tag_scale(tags: Mapping[int, Any], bands: int, name: str) -> FileScale | None:
    """Return the scale that GDAL or ImageJ noted in a TIFF file; None = there is none.

    Raises:
        DataError: if it holds no number.
    """
    factors = [1.0] * bands
    offsets = [0.0] * bands
    source = "the tag GDAL_METADATA"
    removal = "remove the scale (gdal_edit.py -scale 1 -offset 0)"
    root = xml_notes.parse(_text_of(tags.get(_GDAL_METADATA)).encode())
    items = [] if root is None else list(root.named("item"))
    for item in items:
        role = item.attributes.get("role", "").lower()
        if role not in ("scale", "offset"):
            continue
        number = _number(item.text, name, source, removal)
        numbers = factors if role == "scale" else offsets
        sample = item.attributes.get("sample", "")
        for band in range(bands):
            if sample in ("", str(band)):
                numbers[band] = number
    noted = _scale(factors, offsets, source, removal)
    return noted or _scale_of_imagej(tags, name)


def _scale_of_imagej(tags: Mapping[int, Any], name: str) -> FileScale | None:
    description = tags.get(Base.ImageDescription)
    if not isinstance(description, str) or not description.startswith("ImageJ="):
        return None
    is_linear = re.search(r"^cf=0\s*$", description, re.MULTILINE)
    factor = re.search(r"^c1=(\S+)", description, re.MULTILINE)
    offset = re.search(r"^c0=(\S+)", description, re.MULTILINE)
    if not is_linear or factor is None:
        return None
    source = "the ImageDescription of ImageJ"
    removal = "remove the calibration (in ImageJ: Analyze, Calibrate, None)"
    factors = [_number(factor[1], name, source, removal)]
    offsets = [_number(offset[1], name, source, removal) if offset else 0.0]
    return _scale(factors, offsets, source, removal)


def _scale(
    factors: Sequence[float], offsets: Sequence[float], source: str, removal: str
) -> FileScale | None:
    """The scale of a file; None if no band has another rule than the numbers as they are."""
    rules = tuple(map(Rule, factors, offsets))
    if all(rule == NO_CHANGE for rule in rules):
        return None
    return FileScale(rules, source, removal)


# Notes next to a file
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sidecar:
    """What GDAL or ArcGIS noted next to a file, in its .aux.xml.

    Attributes:
        nodata: values of pixels without a label; None = none.
        scale: from stored numbers to quantities; None = none.
    """

    nodata: FileNodata | None = None
    scale: FileScale | None = None


def read_sidecar(path: Path, bands: int) -> Sidecar:
    """Return what is noted next to a file. Notes that are no XML are ignored, with a warning.

    Raises:
        DataError: if the notes cannot be read, or a value is no number.
    """
    sidecar = Path(f"{path}.aux.xml")
    if not sidecar.exists():
        return Sidecar()
    try:
        with open_regular(sidecar) as file:
            content = file.read(_LARGEST_SIDECAR)
    except OSError as error:
        raise DataError(
            f"{sidecar} cannot be read: {reason_of(error)}; remove it or make it readable"
        ) from error
    root = xml_notes.parse(content)
    if root is None:
        warn_once(
            f"{sidecar} is no XML that can be read, so a nodata value or a scale in it is ignored; "
            "write it again, or remove it"
        )
        return Sidecar()
    return Sidecar(
        nodata=_sidecar_nodata(root, bands, str(path), sidecar.name),
        scale=_sidecar_scale(root, bands, str(path), sidecar.name),
    )


def _sidecar_nodata(root: Element, bands: int, name: str, sidecar: str) -> FileNodata | None:
    source = f"its file {sidecar}"
    removal = f"remove NoDataValue from {sidecar}"
    words = ["nan"] * bands
    for band, notes in _notes_of_bands(root, bands).items():
        words[band] = notes.first_text("nodatavalue") or "nan"
    noted = _nodata(words, name, source=source, removal=removal)
    if not all(map(math.isnan, noted.values)):
        return noted
    removal = f"remove NODATA_VALUES from {sidecar}"
    return _nodata_of_all_bands(root, name, source=source, removal=removal)


def _sidecar_scale(root: Element, bands: int, name: str, sidecar: str) -> FileScale | None:
    source = f"its file {sidecar}"
    removal = f"remove Scale and Offset from {sidecar}"
    factors = [1.0] * bands
    offsets = [0.0] * bands
    for band, notes in _notes_of_bands(root, bands).items():
        factor = notes.first_text("scale")
        offset = notes.first_text("offset")
        if factor:
            factors[band] = _number(factor, name, source, removal)
        if offset:
            offsets[band] = _number(offset, name, source, removal)
    return _scale(factors, offsets, source, removal)


def _notes_of_bands(root: Element, bands: int) -> dict[int, Element]:
    """The notes of each band, by its number from 0; those without a number are in their order."""
    notes = {}
    for position, element in enumerate(root.named("pamrasterband"), start=1):
        number = element.attributes.get("band") or str(position)
        if number.isdecimal() and 1 <= int(number) <= bands:
            notes[int(number) - 1] = element
    return notes
