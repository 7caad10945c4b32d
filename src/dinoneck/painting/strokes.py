"""Strokes that were painted on photos: the file ``strokes.json``, and the pixels that they cover.

torch is not imported: a file is refused before anything takes long.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple, Self

import msgspec
import numpy as np
from msgspec import Meta, Struct

from dinoneck.atomic import open_regular
from dinoneck.errors import DataError
from dinoneck.text import counted, did_you_mean, first_line, shorten, some_of

FORMAT = "dinoneck strokes"
VERSION = 1
UNPAINTED = 255
"""The value of a mask's pixels that no stroke covers; no class has this number."""
LARGEST_FILE = 64 << 20  # bytes; some thousand points of strokes take 100 kB
MOST_IMAGES = 100_000
MOST_POINTS = 1_000_000  # of all strokes of a file
# of a radius and of the distance of a point from the image's corner: twice the side of the largest
# pictures that Pillow opens
_LARGEST_LENGTH = 1_000_000
# pixels of an image: those of the largest picture that Pillow opens
_MOST_PIXELS = 2 * (1 << 28) // 3
_SHORTEST_PIECE = 32  # pixels of a segment that is painted at once
_LONGEST_NAME = 4096  # characters of a file's path
_HASH = re.compile(r"[0-9a-f]{64}")
_SHOWN = 5  # names in a message
_REMEDY = "save the strokes again from the page"

Mask = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Stroke:
    """A line that was painted on a photo.

    It covers the pixels whose centre lies within ``radius`` of the line through the points; of one
    point it covers a disc.

    Attributes:
        label: the class; None erases what strokes before it painted.
        radius: in pixels of the photo.
        points: (x, y) in pixels of the upright photo; the centre of its first pixel is (0.5, 0.5).
    """

    label: str | None
    radius: float
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PaintedImage:
    """A photo with strokes.

    Attributes:
        name: of the photo's file.
        sha256: of the file's bytes, in hexadecimal digits.
        height: of the upright photo, in pixels.
        width: of the upright photo, in pixels.
        strokes: in the order of painting: a later one covers an earlier one.
    """

    name: str
    sha256: str
    height: int
    width: int
    strokes: tuple[Stroke, ...]

    def mask(self, classes: Sequence[str]) -> Mask:
        """Return the painted pixels (height, width), uint8: the number of a class, or 255 where nothing is painted.

        Args:
            classes: their names; the number of a class is its position.

        Raises:
            DataError: if a stroke is of none of these classes.
        """
        number_of = {name: number for number, name in enumerate(classes)}
        mask = np.full((self.height, self.width), UNPAINTED, np.uint8)
        for stroke in self.strokes:
            if stroke.label is None:
                value = UNPAINTED
            elif stroke.label in number_of:
                value = number_of[stroke.label]
            else:
                raise _unknown_class(self.name, stroke.label, classes)
            _paint(mask, stroke, value)
        return mask


@dataclass(frozen=True)
class Strokes:
    """The content of a file ``strokes.json``.

    Attributes:
        classes: names of the classes.
        images: the photos with strokes.

    Examples:
        >>> stroke = Stroke("crop", radius=1.0, points=((1.5, 0.5), (3.5, 0.5)))
        >>> image = PaintedImage("a.jpg", "0" * 64, height=2, width=6, strokes=(stroke,))
        >>> strokes = Strokes(("soil", "crop"), (image,))
        >>> strokes.images[0].mask(strokes.classes).tolist()
        [[1, 1, 1, 1, 1, 255], [255, 1, 1, 1, 255, 255]]
        >>> Strokes.from_document(strokes.to_document()) == strokes
        True
    """

    classes: tuple[str, ...]
    images: tuple[PaintedImage, ...]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file that the painting page saved.

        Raises:
            DataError: if it is no such file, damaged, of a newer dinoneck, or holds values that no
                page writes, naming the first.
            OSError: if it cannot be read.
        """
        with open_regular(path) as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise DataError(
                f"{path} is larger than {LARGEST_FILE >> 20} MB, as no file of strokes is; expected "
                "the strokes.json that the page saved"
            )
        try:
            document = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(
                f"{path} is damaged: it is no JSON, {first_line(error)}; {_REMEDY}"
            ) from None
        return cls.from_document(document, name=str(path))

    @classmethod
    def from_document(cls, document: Any, *, name: str = "the strokes") -> Self:
        """Return the strokes of a parsed file, see :meth:`read`.

        Args:
            document: what :meth:`to_document` returns.
            name: what messages call it.

        Raises:
            DataError: as :meth:`read`.
        """
        _check_format(document, name)
        try:
            file = msgspec.convert(document, _File)
        except msgspec.ValidationError as error:
            raise DataError(f"{name}: {first_line(error)}; {_REMEDY}") from None
        _check_classes(file.classes, name)
        num_points = 0
        images = []
        for entry in file.images:
            for stroke in entry.strokes:
                num_points += len(stroke.points)
            if num_points > MOST_POINTS:
                raise DataError(
                    f"{name} holds more than {MOST_POINTS} points of strokes; paint fewer or shorter "
                    "strokes"
                )
            images.append(_image_of(entry, file.classes, name))
        _check_distinct(images, name)
        return cls(tuple(file.classes), tuple(images))

    def to_document(self) -> dict[str, Any]:
        """Return what the file holds, as plain values for ``json.dumps``."""
        images = []
        for image in self.images:
            strokes = []
            for stroke in image.strokes:
                points = [list(point) for point in stroke.points]
                strokes.append({"class": stroke.label, "radius": stroke.radius, "points": points})
            images.append(
                {
                    "name": image.name,
                    "sha256": image.sha256,
                    "width": image.width,
                    "height": image.height,
                    "strokes": strokes,
                }
            )
        return {
            "format": FORMAT,
            "version": VERSION,
            "classes": list(self.classes),
            "images": images,
        }

    def with_classes(self, classes: Sequence[str]) -> Strokes:
        """Return these strokes with another list of classes: in another order, or with others added.

        Raises:
            DataError: if a class of a stroke is not in it.
        """
        for image in self.images:
            for stroke in image.strokes:
                if stroke.label is not None and stroke.label not in classes:
                    raise _unknown_class(image.name, stroke.label, classes)
        return Strokes(tuple(classes), self.images)


def check_mask_names(names: Sequence[str]) -> None:
    """Raise a DataError if two photos would have one mask, whose name has no suffix of the photo."""
    name_of: dict[str, str] = {}
    for name in names:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        if stem in name_of:
            raise DataError(
                f"the photos {name_of[stem]!r} and {name!r} would have one mask, {stem}.png; rename "
                "one of them"
            )
        name_of[stem] = name


# the form of the file
# ----------------------------------------------------------------------------------------------------

_Number = Annotated[float, Meta(ge=-_LARGEST_LENGTH, le=_LARGEST_LENGTH)]
_Side = Annotated[int, Meta(ge=1, le=_LARGEST_LENGTH)]


class _StrokeEntry(Struct):
    """A stroke as the file has it."""

    radius: Annotated[float, Meta(gt=0, le=_LARGEST_LENGTH)]
    points: Annotated[list[tuple[_Number, _Number]], Meta(min_length=1)]
    label: str | None = msgspec.field(name="class")


class _ImageEntry(Struct):
    """A photo as the file has it."""

    name: Annotated[str, Meta(min_length=1, max_length=_LONGEST_NAME)]
    sha256: str
    width: _Side
    height: _Side
    strokes: list[_StrokeEntry]


class _File(Struct):
    """The file."""

    classes: list[str]
    images: Annotated[list[_ImageEntry], Meta(max_length=MOST_IMAGES)]


def _check_format(document: Any, name: str) -> None:
    """Raise a DataError for what is no file of strokes, or one of another version."""
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise DataError(
            f"{name} is no file of strokes: it does not begin with the format {FORMAT!r}; expected "
            "the strokes.json that the page saved"
        )
    version = document.get("version")
    if version != VERSION or isinstance(version, bool):
        raise DataError(
            f"{name} has the version {shorten(version)}, and this dinoneck reads version {VERSION}; "
            "use the dinoneck that made the page, or a newer one"
        )


def _check_classes(classes: Sequence[str], name: str) -> None:
    """Raise a DataError for a list of classes that no page has."""
    problem = problem_of_classes(classes)
    if problem:
        raise DataError(f"{name}: {problem}; {_REMEDY}")


def problem_of_classes(classes: Sequence[str]) -> str:
    """Return in words what is wrong with a list of classes to paint; empty if nothing is."""
    if not 2 <= len(classes) <= UNPAINTED:
        shown = shorten(list(classes))
        return f"classes are {shown}; expected 2 ... {UNPAINTED} names"
    if len(set(classes)) < len(classes):
        return f"classes are {shorten(list(classes))}; expected each name once"
    for label in classes:
        if not label.strip() or not label.isprintable():
            return f"a class is called {shorten(label)}; expected printable characters"
    return ""


def _image_of(entry: _ImageEntry, classes: Sequence[str], name: str) -> PaintedImage:
    """The photo of an entry, whose values are checked."""
    where = f"{name}: the photo {shorten(entry.name)}"
    if not _HASH.fullmatch(entry.sha256):
        raise DataError(
            f"{where} has the sha256 {shorten(entry.sha256)}; expected 64 hexadecimal digits in "
            f"lower case; {_REMEDY}"
        )
    if entry.width * entry.height > _MOST_PIXELS:
        raise DataError(
            f"{where} has {entry.width}x{entry.height} pixels; expected {_MOST_PIXELS} at most; "
            f"{_REMEDY}"
        )
    strokes = []
    for stroke in entry.strokes:
        if stroke.label is not None and stroke.label not in classes:
            raise _unknown_class(entry.name, stroke.label, classes)
        if not all(math.isfinite(value) for point in stroke.points for value in point):
            raise DataError(f"{where} has a point that is not finite; {_REMEDY}")
        if not math.isfinite(stroke.radius):
            raise DataError(f"{where} has a radius that is not finite; {_REMEDY}")
        strokes.append(Stroke(stroke.label, stroke.radius, tuple(stroke.points)))
    return PaintedImage(
        entry.name, entry.sha256, height=entry.height, width=entry.width, strokes=tuple(strokes)
    )


def _check_distinct(images: Sequence[PaintedImage], name: str) -> None:
    """Raise a DataError if a photo is listed twice."""
    names = set()
    repeated = set()
    for image in images:
        if image.name in names:
            repeated.add(shorten(image.name))
        names.add(image.name)
    if repeated:
        raise DataError(
            f"{name} lists {counted(len(repeated), 'photo')} twice: {some_of(repeated, _SHOWN)}; "
            f"{_REMEDY}"
        )


def _unknown_class(image_name: str, label: str, classes: Sequence[str]) -> DataError:
    """The error for a stroke of a class that is not listed."""
    hint = did_you_mean(label, classes)
    return DataError(
        f"a stroke on {shorten(image_name)} is of the class {shorten(label)}, which is not among "
        f"{', '.join(classes)}.{hint} Name all classes that were painted (--classes), or erase the "
        "stroke in the page"
    )


# pixels
# ----------------------------------------------------------------------------------------------------


def _paint(mask: Mask, stroke: Stroke, value: int) -> None:
    """Write a value into the pixels (height, width) that a stroke covers."""
    points = stroke.points
    if len(points) == 1:
        _paint_segment(mask, points[0], points[0], stroke.radius, value)
    for start, end in itertools.pairwise(points):
        _paint_segment(mask, start, end, stroke.radius, value)


def _paint_segment(
    mask: Mask,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
    value: int,
) -> None:
    """Write a value into the pixels whose centre lies within a radius of a line segment."""
    height, width = mask.shape
    for window in windows_of_segment(start, end, radius, height=height, width=width):
        _paint_window(mask[window.rows, window.cols], window, start, end, radius, value)


class Window(NamedTuple):
    """A rectangle of a photo.

    Attributes:
        top: the first row.
        left: the first column.
        bottom: the row after the last one.
        right: the column after the last one.
    """

    top: int
    left: int
    bottom: int
    right: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.top, self.bottom)

    @property
    def cols(self) -> slice:
        """Its columns."""
        return slice(self.left, self.right)


def windows_of_segment(
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
    *,
    height: int,
    width: int,
) -> Iterator[Window]:
    """Yield windows of a photo that hold all pixels which a line segment covers.

    The part of the segment that is near the photo is cut into pieces, each of which has a window.
    So their area grows with the length inside the photo and not with its square, nor with what is
    outside.

    Args:
        start: (x, y) of the segment in pixels.
        end: (x, y) of its other end.
        radius: within which of the segment the pixels lie.
        height: of the photo.
        width: of the photo.
    """
    shares = _shares_near_photo(start, end, radius + 1, height=height, width=width)
    if shares is None:
        return
    first_share, last_share = shares
    along_x = end[0] - start[0]
    along_y = end[1] - start[1]
    length = (last_share - first_share) * math.hypot(along_x, along_y)
    num_pieces = math.ceil(length / max(2 * radius, _SHORTEST_PIECE)) or 1
    for piece in range(num_pieces):
        begin_share = first_share + (last_share - first_share) * piece / num_pieces
        end_share = first_share + (last_share - first_share) * (piece + 1) / num_pieces
        x = (start[0] + begin_share * along_x, start[0] + end_share * along_x)
        y = (start[1] + begin_share * along_y, start[1] + end_share * along_y)
        # a pixel more on each side, as shares are rounded
        window = Window(
            top=max(0, math.floor(min(y) - radius) - 1),
            left=max(0, math.floor(min(x) - radius) - 1),
            bottom=min(height, math.ceil(max(y) + radius) + 2),
            right=min(width, math.ceil(max(x) + radius) + 2),
        )
        if window.top < window.bottom and window.left < window.right:
            yield window


def _shares_near_photo(
    start: tuple[float, float],
    end: tuple[float, float],
    margin: float,
    *,
    height: int,
    width: int,
) -> tuple[float, float] | None:
    """The part of a segment, as shares of its length, that lies within a margin around a photo; None: no part does."""
    first_share = 0.0
    last_share = 1.0
    for axis, side in enumerate((width, height)):
        along = end[axis] - start[axis]
        low = -margin - start[axis]
        high = side + margin - start[axis]
        if along == 0:
            if not low <= 0 <= high:
                return None
            continue
        first_share = max(first_share, min(low / along, high / along))
        last_share = min(last_share, max(low / along, high / along))
    if first_share > last_share:
        return None
    return first_share, last_share


def _paint_window(
    pixels: Mask,
    window: Window,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
    value: int,
) -> None:
    """Write a value into the pixels of a window whose centre lies within a radius of a line segment."""
    start_x, start_y = start
    end_x, end_y = end
    x = np.arange(window.left, window.right) + 0.5
    y = (np.arange(window.top, window.bottom) + 0.5)[:, None]

    # the nearest point of the segment, as a share of its length
    along_x = end_x - start_x
    along_y = end_y - start_y
    squared_length = along_x**2 + along_y**2
    share: np.ndarray[Any, np.dtype[np.float64]] | float = 0.0
    if squared_length > 0:
        share = ((x - start_x) * along_x + (y - start_y) * along_y) / squared_length
        share = np.clip(share, 0.0, 1.0)
    squared_distance = (x - (start_x + share * along_x)) ** 2 + (
        y - (start_y + share * along_y)
    ) ** 2
    pixels[squared_distance <= radius**2] = value
