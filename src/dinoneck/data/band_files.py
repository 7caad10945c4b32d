"""Find the files of one folder that are bands of one scene: ``IMG_0000_1.tif`` and ``IMG_0000_2.tif`` of MicaSense.

Cameras, satellites and microscopes write each band into a file of its own. As images of their own they
count a scene several times. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dinoneck.data.mask_pixels import MAX_OPENED, has_one_band
from dinoneck.data.masks_beside import Companion

_COLOURS = {"red", "green", "blue", "yellow", "gre", "reg", "nir", "rededge", "re", "swir"}
_LETTERS = {"r", "g", "b"}
# numbered bands: B02, B8A, band3 of satellites, c1, w2 of microscopes
_NUMBERED = re.compile(r"(?:b|band[_\-]?|c|w)\d{1,2}a?")
# the last word, and after it the metres of a pixel: _B02_10m
_LAST = re.compile(r"(.+?)[_\-. ]([a-z]+|(?:b|band[_\-]?|c|w)\d{1,2}a?)(?:_\d+m)?", re.IGNORECASE)
_FIRST = re.compile(r"(c\d)-(.+)", re.IGNORECASE)  # of channels that Fiji split
_MICASENSE = re.compile(r"(img_\d{4,5})_(\d{1,2})", re.IGNORECASE)
_NUMBERS_OF_MICASENSE = (5, 6, 10)  # bands of its cameras
_PHANTOM = re.compile(r"(dji_\d{3})([1-5])", re.IGNORECASE)  # 0 is the picture in colours
_BANDS_OF_PHANTOM = 5
_TIFF_SUFFIXES = (".tif", ".tiff")
_LEAST_SCENES = 2
_NEARLY_ALL = 0.9  # of the scenes have the same bands


def bands_beside(images: Sequence[Path]) -> list[Companion]:
    """Return the files that are further bands of a scene, each with the file of its first band.

    They have names of bands, which are the same in all scenes, and one band each.
    """
    for scenes in _possible_scenes(images):
        with_bands = [file_of_band for file_of_band in scenes.values() if len(file_of_band) > 1]
        if len(with_bands) < _LEAST_SCENES:
            continue
        # the bands that most scenes have
        counts = Counter(frozenset(file_of_band) for file_of_band in with_bands)
        bands, number = counts.most_common(1)[0]
        if number < max(_LEAST_SCENES, _NEARLY_ALL * len(with_bands)) or not _are_bands(bands):
            continue
        in_order = [_in_order_of_bands(file_of_band) for file_of_band in with_bands]
        if not all(map(has_one_band, in_order[0][:MAX_OPENED])):
            continue
        companions = []
        for files in in_order:
            companions += [Companion(file, files[0]) for file in files[1:]]
        return companions
    return []


def _in_order_of_bands(file_of_band: Mapping[str, Path]) -> list[Path]:
    return [file_of_band[band] for band in sorted(file_of_band)]


def _possible_scenes(images: Sequence[Path]) -> Iterator[dict[str, dict[str, Path]]]:
    """Yield scene -> band -> file, for each way in which names have both."""
    for split in (_by_last_word, _by_first_word, _by_micasense, _by_phantom):
        scenes: dict[str, dict[str, Path]] = {}
        for file in images:
            scene_and_band = split(file)
            if scene_and_band is not None:
                scene, band = scene_and_band
                scenes.setdefault(scene, {})[band.lower()] = file
        yield scenes


def _by_last_word(file: Path) -> tuple[str, str] | None:
    match = _LAST.fullmatch(file.stem)
    if match is None:
        return None
    band = match[2].lower()
    is_band = band in _COLOURS or band in _LETTERS or _NUMBERED.fullmatch(band) is not None
    return (match[1], band) if is_band else None


def _by_first_word(file: Path) -> tuple[str, str] | None:
    match = _FIRST.fullmatch(file.stem)
    return None if match is None else (match[2], match[1])


def _by_micasense(file: Path) -> tuple[str, str] | None:
    match = _MICASENSE.fullmatch(file.stem)
    is_tiff = file.suffix.lower() in _TIFF_SUFFIXES
    return (match[1], match[2]) if match is not None and is_tiff else None


def _by_phantom(file: Path) -> tuple[str, str] | None:
    match = _PHANTOM.fullmatch(file.stem)
    is_tiff = file.suffix.lower() in _TIFF_SUFFIXES
    return (match[1], match[2]) if match is not None and is_tiff else None


def _are_bands(names: frozenset[str]) -> bool:
    """Whether the last words of a scene's files are bands: colours, letters of all three, or numbers from 1."""
    if all(map(str.isdigit, names)):
        numbers = sorted(map(int, names))
        is_whole = numbers == list(range(1, len(numbers) + 1))
        return is_whole and len(numbers) in (_BANDS_OF_PHANTOM, *_NUMBERS_OF_MICASENSE)
    letters = names & _LETTERS
    return not letters or letters == _LETTERS
