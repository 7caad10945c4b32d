"""What was read, as a user can check it at a glance: some lines of text, and a picture of twelve images.

Nothing here is judged. A folder taken for a class, a comma read as thousands, masks that are shifted
or objects marked as crowds show in the counts, the quantiles and the drawings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.data.boxes import BoxImages
from dinoneck.data.listed_images import ListedImages
from dinoneck.data.masks import MaskClasses
from dinoneck.data.table import Classes, LabelSets, Numbers, Table
from dinoneck.images.decoding import read_pixels, to_uint8
from dinoneck.text import counted

_MOST_LINES = 15
_MOST_NAMES = 8  # classes in a line
_SHOWN = 12  # images of the picture
_COLUMNS = 4
_SIDE = 256  # px of a tile of the picture
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6", "#bcf60c")
_QUANTILES = (0, 25, 50, 75, 100)


@dataclass(frozen=True)
class Sample:
    """One image with its labels, to be drawn.

    Attributes:
        image: a file or an image.
        text: what is known of it, in a few words.
        mask: (H, W), the index of each pixel's class, -1 = unlabelled; None = there is none.
        boxes: (left, top, right, bottom) in pixels, and the index of its class.
    """

    image: Any
    text: str
    mask: np.ndarray[Any, Any] | None = None
    boxes: Sequence[tuple[Sequence[float], int]] = ()


@dataclass(frozen=True)
class DataSummary:
    """What was read of a data set.

    Attributes:
        lines: at most fifteen.
        samples: at most twelve.
    """

    lines: Sequence[str]
    samples: Sequence[Sample]

    @classmethod
    def of_table(
        cls, table: Table, masks: MaskClasses | None = None, read_mask: Any = None
    ) -> DataSummary:
        """Summarise a table.

        Args:
            table: the images and what is known of them.
            masks: the classes of its masks; None = they are not of classes, or there are none.
            read_mask: returns the indices (H, W) of a mask file, to draw them.
        """
        lines = [*_image_lines(table.images), *_group_lines(table)]
        lines += [_column_line(name, column) for name, column in table.columns.items()]
        if masks is not None:
            lines.append(_mask_line(masks))
        samples = []
        for row in _spread(len(table)):
            values = [f"{name} {_value(column, row)}" for name, column in table.columns.items()]
            has_mask = read_mask is not None and table.has_mask(row)
            mask = read_mask((table.masks or [])[row]) if has_mask else None
            samples.append(
                Sample(table.images[row], f"{table.ids[row]}: {', '.join(values[:3])}", mask)
            )
        return cls(_cut(lines), samples)

    @classmethod
    def of_objects(cls, dataset: ListedImages) -> DataSummary:
        """Summarise images with boxes or segments."""
        lines = list(_image_lines(dataset.paths))
        numbers = np.array(list(dataset.numbers.values()))
        lines.append(
            f"objects: {numbers.sum()}, per image {_quantiles(numbers)}; "
            f"{counted(int((numbers == 0).sum()), 'image')} without"
        )
        lines.append(f"classes: {_counts(dataset.class_counts)}")
        if dataset.skipped:
            lines.append(f"left out: {_counts(dataset.skipped)}")
        samples = []
        if isinstance(dataset, BoxImages):
            corners = np.concatenate([dataset.corners(i).numpy() for i in range(len(dataset))])
            lines.append(f"widths of boxes in px: {_quantiles(corners[:, 2] - corners[:, 0])}")
            lines.append(f"heights of boxes in px: {_quantiles(corners[:, 3] - corners[:, 1])}")
            for i in _spread(len(dataset)):
                labels = dataset.labels(i).tolist()
                boxes = list(zip(dataset.corners(i).tolist(), labels, strict=True))
                samples.append(Sample(dataset.paths[i], str(dataset.ids[i]), boxes=boxes))
        return cls(_cut(lines), samples)

    def picture(self) -> Image.Image:
        """Return the samples side by side, each with its labels drawn on it."""
        rows = -(-len(self.samples) // _COLUMNS)
        sheet = Image.new("RGB", (_COLUMNS * _SIDE, rows * _SIDE), "white")
        for number, sample in enumerate(self.samples):
            place = (number % _COLUMNS * _SIDE, number // _COLUMNS * _SIDE)
            sheet.paste(_drawn(sample), place)
        return sheet

    def write(self, folder: Path) -> None:
        """Write ``data.txt`` and ``data.jpg``."""
        (folder / "data.txt").write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        self.picture().save(folder / "data.jpg", quality=85)


# Lines
# ----------------------------------------------------------------------------------------------------


def _image_lines(images: Sequence[Any]) -> Iterator[str]:
    """How many images there are, and what their headers say."""
    sizes = Counter[str]()
    modes = Counter[str]()
    turned = 0
    for image in images:
        if isinstance(image, Path):
            with Image.open(image) as opened:
                sizes[f"{opened.width}x{opened.height}"] += 1
                modes[f"{opened.format} {opened.mode}"] += 1
                turned += opened.getexif().get(0x0112, 1) != 1
    note = f"; {turned} turned by EXIF" if turned else ""
    yield f"{counted(len(images), 'image')}: {_counts(modes)}{note}"
    if sizes:
        yield f"sizes (width x height): {_counts(sizes)}"


def _group_lines(table: Table) -> Iterator[str]:
    if table.has_groups:
        counts = Counter(map(str, table.groups))
        yield f"groups: {len(counts)}, of {min(counts.values())} to {max(counts.values())} images"
    if table.folds is not None:
        yield f"folds: {_counts(Counter(map(str, table.folds)))}"
    if table.masks is not None:
        yield f"masks: {sum(mask is not None for mask in table.masks)} of {len(table)} images"


def _column_line(name: str, column: Any) -> str:
    if isinstance(column, Numbers):
        known = column.values[~np.isnan(column.values)]
        missing = len(column.values) - len(known)
        zeros = int((known == 0).sum())
        return (
            f"{name}: numbers, {_quantiles(known)}; {zeros} are 0, {missing} missing, "
            f"{len(np.unique(known))} distinct"
        )
    if isinstance(column, Classes):
        counts = {str(key): int((column.codes == i).sum()) for i, key in enumerate(column.names)}
        return f"{name}: {len(counts)} classes: {_counts(counts)}"
    if isinstance(column, LabelSets):
        words = Counter(word for row in column.words for word in row or ())
        return f"{name}: {len(column.names)} labels: {_counts(words)}"
    return f"{name}: neither numbers nor classes"


def _mask_line(masks: MaskClasses) -> str:
    total = sum(masks.pixels.values())
    shares = [f"{name} {pixels / total:.1%}" for name, pixels in masks.pixels.items()]
    unlabelled = masks.unlabelled / (total + masks.unlabelled)
    return f"pixels of masks: {', '.join(shares[:_MOST_NAMES])}; unlabelled {unlabelled:.1%} of all"


def _counts(counts: Mapping[str, int]) -> str:
    """The largest counts first: ``wheat 40, rye 12, 3 more``."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{name} {count}" for name, count in ordered[:_MOST_NAMES]]
    rest = len(ordered) - len(shown)
    return ", ".join(shown) + (f", {rest} more" if rest else "")


def _quantiles(values: np.ndarray[Any, Any]) -> str:
    if not len(values):
        return "none"
    numbers = np.percentile(values, _QUANTILES)
    return "min {:.4g}, 25 % {:.4g}, median {:.4g}, 75 % {:.4g}, max {:.4g}".format(*numbers)


def _value(column: Any, row: int) -> str:
    if isinstance(column, Numbers):
        return f"{column.values[row]:.4g}"
    if isinstance(column, Classes):
        return str(column.names[column.codes[row]]) if column.codes[row] >= 0 else "missing"
    return "+".join(column.words[row] or ()) if isinstance(column, LabelSets) else "?"


def _cut(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    rest = len(lines) - _MOST_LINES
    return [*lines[: _MOST_LINES - 1], f"... and {rest + 1} more lines"] if rest > 0 else lines


def _spread(number: int) -> list[int]:
    """Up to twelve rows, spread over all."""
    return sorted({int(row) for row in np.linspace(0, number - 1, min(number, _SHOWN))})


# The picture
# ----------------------------------------------------------------------------------------------------


def _drawn(sample: Sample) -> Image.Image:
    pixels = to_uint8(read_pixels(sample.image, bits=16)).numpy().transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size)
    if sample.mask is not None:
        picture = _with_mask(picture, sample.mask)
    draw = ImageDraw.Draw(picture)
    for corners, label in sample.boxes:
        draw.rectangle([side * scale for side in corners], outline=_COLOURS[label % len(_COLOURS)])
    tile = Image.new("RGB", (_SIDE, _SIDE), "white")
    tile.paste(picture)
    ImageDraw.Draw(tile).text(
        (2, _SIDE - 12), sample.text[:42], fill="black", stroke_fill="white", stroke_width=1
    )
    return tile


def _with_mask(picture: Image.Image, mask: np.ndarray[Any, Any]) -> Image.Image:
    """The picture half covered by the colours of its classes; unlabelled pixels stay."""
    colours = np.zeros((*mask.shape, 3), np.uint8)
    for label in np.unique(mask):
        if label >= 0:
            colour = _COLOURS[label % len(_COLOURS)]
            colours[mask == label] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    shown = Image.fromarray(colours).resize(picture.size, Image.Resampling.NEAREST)
    alpha = Image.fromarray(np.where(mask >= 0, 110, 0).astype(np.uint8)).resize(picture.size, 0)
    return Image.composite(shown, picture, alpha.point(lambda value: value))
