"""Pictures that are in a data set twice: one file under two names, files of equal content, or changed copies.

The same picture in two classes or with two values is a contradiction, and in a held-out part it is
scored by a head that trained on it. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dinoneck.atomic import open_regular
from dinoneck.data.folder_words import (
    BESIDE_CHANGES,
    CHANGE_WORDS,
    COPY_WORDS,
    TURN_WORDS,
    words_of,
)
from dinoneck.text import counted

logger = logging.getLogger(__name__)

_SMALLEST = 60  # bytes of a PNG file of one pixel; smaller files are no pictures
# Files of equal size are compared by their last bytes first, in which photos differ: whole files are
# read only where these agree. Uncompressed images of one camera all have one size.
_LAST_BYTES = 4096
_SEPARATORS = re.compile(r"[_\-. ~]+")
_SIZE_OR_VERSION = re.compile(r"[_\-]\d+x\d+|~\d+")  # of 0-300x200.jpg and of a telephone's 0~2.jpg
_COPY_OF = re.compile(r"(?:copy of|kopie von|copia de|copie de) ", re.IGNORECASE)
# programs that write many changed copies count them: aug_0_1234.jpg
_COUNTED_CHANGE = re.compile(r"(?:aug|augmented)[_\-](.+?)(?:[_\-]\d+)?", re.IGNORECASE)
# what says a change also where the origin is not there, by two files that have it
_LAST_CHANGE = re.compile(
    r"[_\-. ](?:(?:aug|augmented|rotated|flip|flipped|hflip|vflip|mirrored)[_\-. ]?\d*"
    r"|rot[_\-. ]?(?:90|180|270))$",
    re.IGNORECASE,
)
# Augmentor's name of each augmented version: the folder, the name of the origin, and a UUID
_AUGMENTOR = re.compile(r".*_original_(.+)\.\w+_[0-9a-f]{4,}(?:-[0-9a-f]+)+", re.IGNORECASE)
_LEAVE_OUT_OR_GROUP = (
    "Leave them out, or name the origin of each image in a table, as its group (--group)"
)
# pictures in two formats: so many pairs are compared, as so many grey pixels per side, whose mean
# difference is 1 of 255 levels for JPEG's losses, and 20 and more for two photos
_MOST_COMPARED = 8
_SMALL_SIDE = 16
_MOST_DIFFERENCE = 4.0
_MODES_OF_8_BITS = ("L", "P", "RGB", "RGBA", "LA", "CMYK")
_LEAST_EQUAL_MASKS = 3
_MANY_EQUAL_MASKS = 0.5  # of all masks
_ROBOFLOW_HASH = re.compile(r"\.rf\.[0-9a-f]+$", re.IGNORECASE)  # of each augmented version


@dataclass(frozen=True)
class Copy:
    """A picture that is there once more.

    Attributes:
        first: the file that comes first.
        second: the other one.
        is_one_file: whether both are one file, by a link or a hard link.
    """

    first: Path
    second: Path
    is_one_file: bool

    def is_kept_together(self, part_of: Mapping[Path, object]) -> bool:
        """Whether both files have a value, and the same."""
        if self.first not in part_of or self.second not in part_of:
            return False
        return part_of[self.first] == part_of[self.second]

    def differs_in(self, value_of: Mapping[Path, object]) -> bool:
        """Whether both files have a value, and not the same."""
        if self.first not in value_of or self.second not in value_of:
            return False
        return value_of[self.first] != value_of[self.second]


def find_copies(files: Iterable[Path]) -> list[Copy]:
    """Return the files that are an earlier one once more, in their order.

    Files are opened only if another one has their size. Files that do not exist or cannot be read
    are left out; whoever reads them says so.
    """
    order: dict[Path, int] = {}
    place_of: dict[tuple[int, int], Path] = {}
    by_size: dict[int, list[Path]] = {}
    copies = []
    for file in files:
        if file in order:
            continue
        order[file] = len(order)
        try:
            status = file.stat()
        except OSError:
            continue
        first = place_of.setdefault((status.st_dev, status.st_ino), file)
        if first is not file:
            copies.append(Copy(first, file, is_one_file=True))
        elif status.st_size >= _SMALLEST:
            by_size.setdefault(status.st_size, []).append(file)
    for same_size in by_size.values():
        for alike in _groups(same_size, _end_of):
            for same in _groups(alike, _hash_of):
                copies += [Copy(same[0], file, is_one_file=False) for file in same[1:]]
    return sorted(copies, key=lambda copy: order[copy.second])


def _groups(files: Sequence[Path], key: Callable[[BufferedReader], bytes]) -> list[list[Path]]:
    """The files whose contents have an equal key, two or more each."""
    if len(files) < 2:
        return []
    alike: dict[bytes, list[Path]] = {}
    for file in files:
        try:
            with open_regular(file) as opened:
                alike.setdefault(key(opened), []).append(file)
        except OSError:
            continue
    return [same for same in alike.values() if len(same) > 1]


def _end_of(opened: BufferedReader) -> bytes:
    size = opened.seek(0, os.SEEK_END)
    opened.seek(max(0, size - _LAST_BYTES))
    return opened.read()


def _hash_of(opened: BufferedReader) -> bytes:
    return hashlib.file_digest(opened, hashlib.blake2b).digest()


def warn_of_copies(
    copies: Sequence[Copy],
    parts: Mapping[Path, object],
    values: Mapping[str, Mapping[Path, object]],
    groups: Mapping[Path, object] = {},
) -> None:
    """Count the pictures that are there twice, in one line for each consequence, with two of them.

    Args:
        copies: of the files.
        parts: file -> the part or the fold that it is in; may lack files.
        values: what messages call a target -> file -> its class or value; may lack files.
        groups: file -> the group, which drawn folds keep together; may lack files.
    """
    in_two_parts = [copy for copy in copies if copy.differs_in(parts)]
    if in_two_parts:
        logger.warning(
            "%s in two parts, such as %s, so that a head is scored on what it was trained on; keep "
            "one of each",
            counted(len(in_two_parts), "picture"),
            _with_values(in_two_parts[0], parts),
        )
    named = set(in_two_parts)
    for name, value_of in values.items():
        contradicting = [copy for copy in copies if copy.differs_in(value_of)]
        if contradicting:
            logger.warning(
                "%s twice with two values of %s, such as %s; keep the right one of each",
                counted(len(contradicting), "picture"),
                name,
                _with_values(contradicting[0], value_of),
            )
        named.update(contradicting)
    in_one_part = []
    in_any_part = []
    for copy in copies:
        if copy in named:
            continue
        if copy.is_kept_together(parts) or copy.is_kept_together(groups):
            in_one_part.append(copy)
        else:
            in_any_part.append(copy)
    of_drawn_folds = ", and folds that are drawn may hold out what they train on"
    for others, consequence in ((in_one_part, ""), (in_any_part, of_drawn_folds)):
        if others:
            logger.warning(
                "%s under two names, such as %s and %s, %s twice%s; keep one of each",
                counted(len(others), "picture"),
                others[0].first,
                others[0].second,
                "counts" if len(others) == 1 else "count",
                consequence,
            )


def warn_of_equal_masks(image_of: Mapping[Path, Any]) -> None:
    """Count the masks that are that of another image once more, in one line, if many are.

    A program that writes one mask for all images makes them; two simple masks may be equal by chance.

    Args:
        image_of: mask -> its image, of masks that show more than one class. Equal masks of equal
            images are right.
    """
    copies = find_copies(image_of)
    images = [Path(image) for image in image_of.values() if isinstance(image, str | os.PathLike)]
    equal_images = {(copy.first, copy.second) for copy in find_copies(images)} if copies else set()
    others = []
    for copy in copies:
        first_image = image_of[copy.first]
        second_image = image_of[copy.second]
        if first_image != second_image and (first_image, second_image) not in equal_images:
            others.append(copy)
    if len(others) >= max(_LEAST_EQUAL_MASKS, _MANY_EQUAL_MASKS * len(image_of)):
        logger.warning(
            "%s with more than one class, such as %s, equal that of another image, such as %s: check "
            "that each image has its own",
            counted(len(others), "mask"),
            others[0].second,
            others[0].first,
        )


def warn_of_changed_copies(
    files: Iterable[Path],
    part_of: Mapping[Path, object] = {},
    remedy: str = _LEAVE_OUT_OR_GROUP,
) -> None:
    """Count the files that are called like changed copies of another one in their folder, in one line.

    These are ``0_rot90.jpg``, ``0-300x200.jpg`` and ``Copy of 0.jpg`` beside ``0.jpg``, and the
    second and every further version of one image by Roboflow, ``0_jpg.rf.1a2b.jpg``, or Augmentor.
    A second line counts files that differ in their suffix alone, ``0.png`` beside ``0.jpg``, if the
    first of them show the same.

    Args:
        files: the images.
        part_of: file -> the group or fold that it is kept in; a copy in that of the other file is
            not counted.
        remedy: what keeps the copies of an image out of two folds, as a sentence.
    """
    in_order = sorted(files, key=lambda file: len(file.stem))  # an image before its changed copies
    stems_in: dict[Path, set[str]] = {}
    for file in in_order:
        stems_in.setdefault(file.parent, set()).add(file.stem)
    origin_of: dict[Path, str] = {}  # the path without suffix -> the stem of the first origin
    first_of: dict[Path, Path] = {}  # the path of an origin without suffix -> its first file
    copies: list[Copy] = []
    other_formats: list[Copy] = []
    for file in in_order:
        origin = _origin(file.stem, stems_in[file.parent])
        # that of a copy of a copy is the first one
        origin = origin_of.get(file.parent / origin, origin)
        origin_of[file.with_suffix("")] = origin
        first = first_of.setdefault(file.parent / origin, file)
        is_kept_together = file in part_of and part_of[file] == part_of.get(first)
        if first is file or is_kept_together:
            continue
        copy = Copy(first, file, is_one_file=False)
        if origin == file.stem:
            other_formats.append(copy)
        else:
            copies.append(copy)
    if other_formats and all(map(_look_alike, other_formats[:_MOST_COMPARED])):
        logger.warning(
            "%s in two formats, such as %s and %s, which count twice: unless both are in one fold, a "
            "head is scored on what it was trained on. %s",
            counted(len(other_formats), "picture"),
            other_formats[0].second,
            other_formats[0].first,
            remedy,
        )
    if copies:
        logger.warning(
            "%s called like changed copies of another one, such as %s of %s: unless both are in "
            "one fold, a head is scored on copies of what it was trained on. %s",
            counted(len(copies), "file"),
            copies[0].second,
            copies[0].first,
            remedy,
        )


def _look_alike(copy: Copy) -> bool:
    """Whether two pictures are the same up to the losses of JPEG, by small grey copies of them."""
    grey = _small_grey(copy.second)
    other_grey = _small_grey(copy.first)
    if grey is None or other_grey is None:
        return False
    difference = np.abs(grey - other_grey).mean()
    # two pictures without contrast are as near as that, whatever they show
    has_contrast = min(grey.std(), other_grey.std()) > 2 * _MOST_DIFFERENCE
    return bool(has_contrast and difference <= _MOST_DIFFERENCE)


def _small_grey(file: Path) -> np.ndarray[Any, Any] | None:
    """A picture of 8 bits, turned upright, as few grey pixels; None if it is none, or cannot be read."""
    try:
        with open_regular(file) as opened, Image.open(opened) as image:
            if image.mode not in _MODES_OF_8_BITS:
                return None
            image.draft("L", (8 * _SMALL_SIDE, 8 * _SMALL_SIDE))
            upright = ImageOps.exif_transpose(image).convert("L")
            small = upright.resize((_SMALL_SIDE, _SMALL_SIDE), Image.Resampling.BOX)
            return np.asarray(small, np.float64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # whoever reads the pixels says so


def _origin(stem: str, stems: Collection[str]) -> str:
    """The name of the file that one is called like a changed copy of, or its own.

    Args:
        stem: the name of the file without its suffix.
        stems: those of all images beside it.
    """
    without_hash = _ROBOFLOW_HASH.sub("", stem)
    if without_hash != stem:
        return without_hash
    augmentor = _AUGMENTOR.fullmatch(stem)
    if augmentor is not None:
        return augmentor.group(1)
    candidates = [_COPY_OF.sub("", stem, count=1)]
    counted_change = _COUNTED_CHANGE.fullmatch(stem)
    if counted_change is not None:
        candidates.append(counted_change.group(1))
    for separator in _SEPARATORS.finditer(stem):
        if _says_change(stem[separator.start() :]):
            candidates.append(stem[: separator.start()])
    for candidate in candidates:
        if candidate != stem and candidate in stems:
            return candidate
    return _LAST_CHANGE.sub("", stem)


def _says_change(ending: str) -> bool:
    """Whether the ending of a name, with its separator, is that of a changed copy: ``_90deg``, ``-flipLR``, ``~2``."""
    if _SIZE_OR_VERSION.fullmatch(ending):
        return True
    for words in (words_of(ending), words_of(ending.lower())):  # flipLR, HFlip
        if words <= CHANGE_WORDS | COPY_WORDS | TURN_WORDS | BESIDE_CHANGES:
            has_number = any(map(str.isdigit, ending))
            is_turned = has_number and bool(words & TURN_WORDS)
            if is_turned or words & (CHANGE_WORDS | COPY_WORDS):
                return True
    return False


def _with_values(copy: Copy, value_of: Mapping[Path, object]) -> str:
    """Both files, each with its value."""
    return f"{copy.first} ({value_of[copy.first]}) and {copy.second} ({value_of[copy.second]})"
