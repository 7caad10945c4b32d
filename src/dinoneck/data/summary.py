"""What was read of a data set, so that a person can check it: some lines of text, and a picture.

Nothing here is judged, and the lines are the same for every data set of a kind. A folder that is
taken for a class, a comma read as thousands, masks that are shifted or objects marked as crowds show
in counts, quartiles and drawings.
"""

from __future__ import annotations

import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dinoneck.data.boxes import BoxImages
from dinoneck.data.fact_words import (
    MOST_VALUES,
    counts_in_words,
    in_digits,
    quartiles,
    quartiles_in_words,
)
from dinoneck.data.labels import DenseLabels
from dinoneck.data.listed_images import ListedImages, parts_of
from dinoneck.data.mask_facts import (
    MaskFacts,
    class_masks,
    mask_lines,
    normal_masks,
    number_masks,
)
from dinoneck.data.masks import ClassOptions, mask_classes, survey_masks
from dinoneck.data.normals import NormalLabels
from dinoneck.data.object_facts import left_out_of, object_facts, object_lines, object_samples
from dinoneck.data.sheet import Colour, Sample, choose_rows, draw_sheet
from dinoneck.data.table import Classes, Column, LabelSets, Numbers, Table
from dinoneck.errors import DataError
from dinoneck.images.content import cached_hash_of
from dinoneck.images.decoding import read_image_size
from dinoneck.images.orientation import upright
from dinoneck.images.pixels import in_threads, read_header
from dinoneck.text import counted, counted_first, printable

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, Any]
Facts = dict[str, Any]

MOST_LINES = 15
_MOST_SETS = 3  # of identical images in a line
_JPEG_QUALITY = 85
_BITS = 8  # of a byte
_PIECE = 64  # headers that a thread reads at once


@dataclass(frozen=True)
class DataSummary:
    """What was read of a data set; made by :func:`summarise`.

    Attributes:
        facts: plain values, as JSON has them.
        samples: the images of the sheet, at most sixteen, with their labels; none if the images
            are not at hand.
        title: of the sheet.
        legend: class -> its colour in the sheet.
        bits: how many bits images of 16 bits use; None = all.
    """

    facts: Mapping[str, Any]
    samples: Sequence[Sample] = ()
    title: str = ""
    legend: Mapping[str, Colour] | None = None
    bits: int | None = None

    def lines(self) -> list[str]:
        """Return the facts in words, at most fifteen lines for a table, masks or objects."""
        facts = self.facts
        first = image_lines(facts["images"]) + _part_lines(facts)
        last: list[str] = []
        if "masks" in facts:
            last += mask_lines(facts["masks"], facts["images"]["count"])
        if "objects" in facts:
            last += object_lines(facts["objects"])
        if facts["left_out"]:
            reasons = [counted_first(count, words) for words, count in facts["left_out"].items()]
            last.append(f"left out: {', '.join(reasons)}")
        last.append(_identical_line(facts["identical"]))
        targets = [_target_line(name, values) for name, values in facts["targets"].items()]
        room = MOST_LINES - len(first) - len(last)
        if len(targets) > room:
            names = list(facts["targets"])[room - 1 :]
            rest = f"{len(names)} more targets: {', '.join(names[:MOST_VALUES])}"
            targets = [*targets[: room - 1], rest + (", …" if len(names) > MOST_VALUES else "")]
        return [printable(line) for line in [*first, *targets, *last]]

    def to_dict(self) -> dict[str, Any]:
        """Return the lines and the facts as plain values: ``lines``, ``images``, ``targets`` and others."""
        return {"lines": self.lines(), **self.facts}

    def picture(self) -> Image.Image:
        """Return the sheet: up to sixteen images with their labels drawn as they were read.

        Raises:
            DataError: if no image is at hand, or a label cannot be read.
        """
        if not self.samples:
            raise DataError("no image is at hand, as with the tokens of a store; name their folder")
        return draw_sheet(self.samples, title=self.title, legend=self.legend or {}, bits=self.bits)

    def sheet(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`picture` to a file, whose suffix tells the format."""
        self.picture().save(path, quality=_JPEG_QUALITY)

    def draw(self) -> None:
        """Draw the sheet that :attr:`jpeg` returns, if it is not drawn yet."""
        _ = self.jpeg

    @cached_property
    def jpeg(self) -> bytes | None:
        """The content of ``data.jpg``; None if no image is at hand."""
        if not self.samples:
            return None
        buffer = io.BytesIO()
        self.picture().save(buffer, "JPEG", quality=_JPEG_QUALITY)
        return buffer.getvalue()


def summarise(
    source: pd.DataFrame | Table | ListedImages | Mapping[str, ListedImages],
    *,
    labels: DenseLabels | NormalLabels | None = None,
    bits: int | None = None,
) -> DataSummary:
    """Return what was read of a data set: counts, ranges and sizes in words, and a picture of some images.

    Headers of the images are read, the bytes of those whose files have equal sizes, and their masks.

    Args:
        source: what :func:`dinoneck.data.read_table`, :func:`dinoneck.data.read_folders` or
            :func:`dinoneck.data.read_masks` returned; a :class:`dinoneck.data.BoxImages` or
            :class:`dinoneck.data.PanopticImages`, or several by the names of their parts.
        labels: how masks are read; None = as classes.
        bits: how many bits images of 16 bits use, for the picture; None = all.

    Raises:
        DataError: if a mask cannot be read as the labels say.

    Examples:
        >>> from dinoneck.data import Pasture
        >>> summary = summarise(Pasture(seed=0).table(range(4)))
        >>> summary.lines()[0]
        '4 images: in memory, uint8 4'
    """
    if isinstance(source, ListedImages):
        return summarise_objects({"": source}, bits=bits)
    if isinstance(source, Mapping):
        return summarise_objects(source, bits=bits)
    table = source if isinstance(source, Table) else Table.from_frame(source)
    return summarise_table(table, masks=_read_masks(table, labels), bits=bits)


def _read_masks(table: Table, labels: DenseLabels | NormalLabels | None) -> MaskFacts | None:
    rows = [row for row in range(len(table)) if table.has_mask(row)]
    if not rows or table.masks is None:
        return None
    if isinstance(labels, NormalLabels):
        return normal_masks(table)
    if isinstance(labels, DenseLabels) and labels.classes is None:
        return number_masks(table, labels)
    files = [table.masks[row] for row in rows]
    sizes = [read_image_size(table.images[row]) for row in rows]
    options = ClassOptions() if labels is None else labels.class_options
    survey = survey_masks(files, options, sizes)
    return class_masks(table, survey, mask_classes(survey, options))


def summarise_table(
    table: Table,
    *,
    label_columns: Mapping[str, Sequence[str]] | None = None,
    masks: MaskFacts | None = None,
    bits: int | None = None,
) -> DataSummary:
    """Summarise a table of images.

    Args:
        table: the images and what is known of them.
        label_columns: name of several labels -> their columns of 0 and 1.
        masks: what its masks hold; None = they are not read.
        bits: of images of 16 bits.
    """
    columns = _shown_columns(table, label_columns or {})
    headers = _kinds_of(table.images)
    shown: dict[str, Mapping[int, int]] = {}
    extremes: list[int] = []
    for name, column in columns.items():
        shown |= _rows_of_classes(name, column)
        extremes += _rows_of_extremes(column)
    if masks is not None:
        shown |= masks.shown
    rows = choose_rows(len(table), shown, extremes)
    facts: Facts = {"images": _image_facts(table.images, headers, rows)}
    if table.has_groups:
        sizes = Counter(map(str, table.groups)).values()
        facts["groups"] = {"count": len(sizes), "smallest": min(sizes), "largest": max(sizes)}
    if table.folds is not None:
        facts["parts" if table.has_parts else "folds"] = dict(Counter(map(str, table.folds)))
    facts["targets"] = {name: _target_facts(column) for name, column in columns.items()}
    if masks is not None:
        facts["masks"] = masks.facts
    facts["left_out"] = dict(table.left_out)
    facts["identical"] = _identical(
        table.images, table.ids, lambda row: _known_of_row(table, columns, row)
    )
    samples = [_table_sample(table, columns, masks, row) for row in rows]
    return DataSummary(
        facts,
        samples if _are_at_hand(table.images) else (),
        title=_title(len(table), rows, shown),
        legend=None if masks is None else masks.legend,
        bits=bits,
    )


def summarise_objects(parts: Mapping[str, ListedImages], *, bits: int | None = None) -> DataSummary:
    """Summarise images with boxes, masks of objects or panoptic segments.

    Args:
        parts: name of a part, such as train -> its images; a single one has no name.
        bits: of images of 16 bits; None = those of the images.
    """
    places = [(part, i) for part, images in parts.items() for i in range(len(images))]
    paths = [parts[part].paths[i] for part, i in places]
    first = next(iter(parts.values()))
    shown: dict[str, dict[int, int]] = {name: {} for name in first.classes}
    for row, (part, i) in enumerate(places):
        labels = parts[part].labels_of(i)
        for name, count in Counter(first.classes[label] for label in labels).items():
            shown[name][row] = count
    rows = choose_rows(len(places), shown, ())
    facts: Facts = {"images": _image_facts(paths, _kinds_of(paths), rows)}
    stated = parts_of(first.file)
    if len(parts) > 1 or stated:
        facts["parts"] = {
            part or images.part or "all": len(images) for part, images in parts.items()
        }
        read = {images.part for images in parts.values()}
        facts["parts_not_read"] = [part for part in stated if part not in read]
    facts["targets"] = {}
    facts["objects"] = object_facts(list(parts.values()))
    facts["left_out"] = left_out_of(list(parts.values()))

    def known_of(row: int) -> dict[str, str]:
        part, i = places[row]
        return {"part": f"part {part}", "number": counted(len(parts[part].labels_of(i)), "object")}

    facts["identical"] = _identical(paths, [path.name for path in paths], known_of)
    samples, legend = object_samples(parts, [places[row] for row in rows])
    if bits is None and isinstance(first, BoxImages):
        bits = first.bits
    return DataSummary(
        facts, samples, title=_title(len(places), rows, shown), legend=legend, bits=bits
    )


def _title(count: int, rows: Sequence[int], shown: Mapping[str, Mapping[int, int]]) -> str:
    text = f"{len(rows)} of {counted(count, 'image')} drawn"
    if shown:
        num_drawn = sum(not amounts.keys().isdisjoint(rows) for amounts in shown.values())
        text += f", with {num_drawn} of {len(shown)} class{'es' if len(shown) > 1 else ''}"
    return text


def _are_at_hand(images: Sequence[Any]) -> bool:
    """Whether images are in memory, or files; with a store they may be names alone."""
    first = images[0]
    return not isinstance(first, str | os.PathLike) or Path(first).is_file()


# Images
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ImageKind:
    """What is known of an image before it is decoded.

    Attributes:
        name: its format and mode, or that it is in memory, and its dtype.
        bits: of each number as it is stored.
        size: (width, height) of the upright image.
        is_turned: whether EXIF turns it.
    """

    name: str
    bits: int
    size: tuple[int, int]
    is_turned: bool


def _kinds_of(images: Sequence[Any]) -> list[_ImageKind | None]:
    pieces = [images[first : first + _PIECE] for first in range(0, len(images), _PIECE)]
    kinds: list[_ImageKind | None] = []
    for kinds_of_piece in in_threads(lambda piece: list(map(_kind_of, piece)), pieces):
        kinds += kinds_of_piece
    return kinds


def _kind_of(image: Any) -> _ImageKind | None:
    """The kind of an image; None of a name without a file, and of what is not an image."""
    if isinstance(image, str | os.PathLike):
        try:
            header = read_header(image)
        except DataError:
            return None
        height, width = header.size
        name = f"{header.format} {header.mode}"
        return _ImageKind(name, header.bits, (width, height), header.is_turned)
    if isinstance(image, Image.Image):
        return _ImageKind(f"in memory, {image.mode}", _BITS, upright(image).size, is_turned=False)
    array = np.asarray(image)
    height, width = array.shape[:2] if isinstance(image, np.ndarray) else array.shape[-2:]
    bits = _BITS * array.itemsize
    return _ImageKind(f"in memory, {array.dtype}", bits, (width, height), is_turned=False)


def _image_facts(
    images: Sequence[Any], headers: Sequence[_ImageKind | None], rows: Sequence[int]
) -> Facts:
    read = [header for header in headers if header is not None]
    facts: Facts = {
        "count": len(images),
        "kinds": dict(Counter(header.name for header in read).most_common()),
        "without_header": [],
        "turned": sum(header.is_turned for header in read),
    }
    if _are_at_hand(images):
        nameless = [row for row, header in enumerate(headers) if header is None]
        facts["without_header"] = [str(images[row]) for row in nameless]
    sizes = {header.size for header in read}
    if sizes:
        facts["sizes"] = len(sizes)
        facts["width"] = [min(width for width, _ in sizes), max(width for width, _ in sizes)]
        facts["height"] = [min(height for _, height in sizes), max(height for _, height in sizes)]
    of_16_bits = [row for row in rows if (header := headers[row]) and header.bits == 16]
    if of_16_bits:
        largest = [_largest_value(images[row]) for row in of_16_bits]
        facts["largest_of_16_bits"] = {"value": max(largest), "images": len(of_16_bits)}
    return facts


def _largest_value(image: Any) -> int:
    """The largest value of an image of 16 bits; of colours in a file Pillow gives the high byte."""
    if not isinstance(image, str | os.PathLike):
        return int(np.asarray(image).max())
    with Image.open(image) as opened:
        values = np.asarray(opened)
    return int(values.max()) * (257 if values.dtype == np.uint8 else 1)


def image_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines of the images of :func:`image_facts`: formats and modes, sizes, bits."""
    kinds = [f"{kind} {count}" for kind, count in facts["kinds"].items()]
    if facts["without_header"]:
        first = facts["without_header"][0]
        number = len(facts["without_header"])
        kinds.append(f"{number} without a header that Pillow reads (the first: {first})")
    text = counted(facts["count"], "image")
    if kinds:
        text += f": {', '.join(kinds)}"
    if facts["turned"]:
        text += f"; {facts['turned']} turned by EXIF"
    lines = [text]
    if "sizes" in facts:
        low_width, high_width = facts["width"]
        low_height, high_height = facts["height"]
        if facts["sizes"] == 1:
            lines.append(f"size (width x height): {low_width}x{low_height} px")
        else:
            lines.append(
                f"sizes: width {low_width} ... {high_width}, height {low_height} ... {high_height} px, "
                f"{facts['sizes']} distinct"
            )
    if "largest_of_16_bits" in facts:
        largest = facts["largest_of_16_bits"]
        lines.append(
            f"16 bits, values to {largest['value']} of 65535 in {counted(largest['images'], 'image')} drawn"
        )
    return lines


def image_line(images: Sequence[Any]) -> str:
    """Return what images are in one line: how many, formats, modes and sizes."""
    rows = choose_rows(len(images), {}, ())
    return printable("; ".join(image_lines(_image_facts(images, _kinds_of(images), rows))))


# Groups, folds and targets
# ----------------------------------------------------------------------------------------------------


def _part_lines(facts: Mapping[str, Any]) -> list[str]:
    lines = []
    if "groups" in facts:
        groups = facts["groups"]
        lines.append(
            f"groups: {groups['count']}, of {groups['smallest']} to {counted(groups['largest'], 'image')}"
        )
    for name in ("folds", "parts"):
        if name in facts:
            lines.append(f"{name}: {counts_in_words(facts[name])}")
    if facts.get("parts_not_read"):
        lines[-1] += f"; not read: {', '.join(facts['parts_not_read'])}"
    return lines


@dataclass(frozen=True)
class _Labels:
    """Several labels: their names, and (n, K) 1 where a row has one, 0 where not, NaN where it is unknown."""

    names: Sequence[str]
    indicators: Array

    def of_row(self, row: int) -> list[str]:
        """The labels that a row has."""
        return [
            name for name, value in zip(self.names, self.indicators[row], strict=True) if value == 1
        ]


_ShownColumn = Column | _Labels


def _shown_columns(
    table: Table, label_columns: Mapping[str, Sequence[str]]
) -> dict[str, _ShownColumn]:
    """The columns of a table, those of several labels as one."""
    columns: dict[str, _ShownColumn] = {}
    for name, column in table.columns.items():
        if isinstance(column, LabelSets):
            columns[name] = _Labels(column.names, column.indicators())
        else:
            columns[name] = column
    for name, labels in label_columns.items():
        if len(labels) < 2 or not columns.keys() >= {*labels}:
            continue
        indicators = np.stack([table.numbers(label) for label in labels], axis=1)
        for label in labels:
            del columns[label]
        columns[name] = _Labels(labels, indicators)
    return columns


def _target_facts(column: _ShownColumn) -> Facts:
    if isinstance(column, Numbers):
        known = column.values[~np.isnan(column.values)]
        facts: Facts = {
            "kind": "numbers",
            "known": len(known),
            "missing": len(column.values) - len(known),
        }
        values, counts = np.unique(known, return_counts=True)
        if len(values) <= MOST_VALUES:
            facts["values"] = {
                f"{value:.10g}": int(count) for value, count in zip(values, counts, strict=True)
            }
        else:
            facts["quartiles"] = quartiles(known)
        return facts
    if isinstance(column, Classes):
        num_images = np.bincount(column.codes[column.codes >= 0], minlength=len(column.names))
        counts_of_names = {
            str(name): int(count) for name, count in zip(column.names, num_images, strict=True)
        }
        num_known = int(num_images.sum())
        return {
            "kind": "classes",
            "known": num_known,
            "missing": len(column.codes) - num_known,
            "counts": counts_of_names,
        }
    if isinstance(column, _Labels):
        num_images = (column.indicators == 1).sum(axis=0).tolist()
        return {
            "kind": "labels",
            "counts": dict(zip(column.names, num_images, strict=True)),
            "none": int((column.indicators == 0).all(axis=1).sum()),
            "unknown": int(np.isnan(column.indicators).any(axis=1).sum()),
        }
    return {"kind": "unreadable"}


def _target_line(name: str, facts: Mapping[str, Any]) -> str:
    kind = facts["kind"]
    if kind == "unreadable":
        return f"{name}: neither numbers nor classes"
    if kind == "labels":
        counts = f"{counted(len(facts['counts']), 'label')}: {counts_in_words(facts['counts'])}"
        return (
            f"{name}: {counts}; {counted(facts['none'], 'image')} with none, "
            f"{facts['unknown']} with an unknown one"
        )
    known = f"{facts['known']} known, {facts['missing']} missing"
    if kind == "classes":
        number = len(facts["counts"])
        words = "1 class" if number == 1 else f"{number} classes"
        return f"{name}: {words}: {counts_in_words(facts['counts'])}; {known}"
    if "values" in facts:
        values = " ".join(facts["values"])
        counts = " ".join(map(str, facts["values"].values()))
        return f"{name}: numbers {values}, in {counts} images; {known}"
    return f"{name}: numbers, {quartiles_in_words(facts['quartiles'])}; {known}"


# The images of the sheet
# ----------------------------------------------------------------------------------------------------


def _rows_of_classes(target: str, column: _ShownColumn) -> dict[str, dict[int, int]]:
    """Class or label -> the rows that have it."""
    rows: dict[str, dict[int, int]] = {}
    if isinstance(column, Classes | _Labels):
        rows = {f"{target} {name}": {} for name in column.names}
    if isinstance(column, Classes):
        for row, code in enumerate(column.codes.tolist()):
            if code >= 0:
                rows[f"{target} {column.names[code]}"][row] = 1
    if isinstance(column, _Labels):
        for row in range(len(column.indicators)):
            for name in column.of_row(row):
                rows[f"{target} {name}"][row] = 1
    return rows


def _rows_of_extremes(column: _ShownColumn) -> list[int]:
    if not isinstance(column, Numbers) or np.isnan(column.values).all():
        return []
    return [int(np.nanargmin(column.values)), int(np.nanargmax(column.values))]


def _table_sample(
    table: Table, columns: Mapping[str, _ShownColumn], masks: MaskFacts | None, row: int
) -> Sample:
    texts = []
    for name, column in columns.items():
        value = _value(column, row)
        texts.append(f"{name} {'unknown' if value is None else value}")
    overlay = None
    if masks is not None and table.has_mask(row):
        read = masks.overlay

        def overlay() -> Any:
            return read(row)

    elif masks is not None:
        texts.append("no mask")
    return Sample(table.images[row], str(table.ids[row]), texts, overlay=overlay)


def _value(column: _ShownColumn, row: int) -> str | None:
    """What is known of an image in a column, in words."""
    if isinstance(column, Numbers):
        value = float(column.values[row])
        return None if np.isnan(value) else in_digits(value)
    if isinstance(column, Classes):
        code = column.codes[row]
        return str(column.names[code]) if code >= 0 else None
    if isinstance(column, _Labels):
        is_unknown = np.isnan(column.indicators[row])
        words = column.of_row(row)
        words += [f"{column.names[label]} unknown" for label in np.flatnonzero(is_unknown).tolist()]
        return None if is_unknown.all() else ", ".join(words) or "none"
    return None


# Identical images
# ----------------------------------------------------------------------------------------------------


def _known_of_row(table: Table, columns: Mapping[str, _ShownColumn], row: int) -> dict[str, str]:
    """What is known of an image: fact -> it in words, by which identical images are compared."""
    facts = {}
    for name, column in columns.items():
        value = _value(column, row)
        if value is not None and isinstance(column, Numbers):
            value = f"{name} {value}"
        facts[name] = value or f"{name} unknown"
    if table.has_groups:
        facts["the group"] = f"group {table.groups[row]}"
    if table.folds is not None:
        facts["the fold"] = f"{'part' if table.has_parts else 'fold'} {table.folds[row]}"
    return facts


def _identical(
    images: Sequence[Any], names: Sequence[Any], known_of: Callable[[int], Mapping[str, str]]
) -> Facts:
    """The images whose files have the same bytes; only files of equal sizes are read.

    Returns:
        ``images`` and ``sets``, how many there are; ``differing``: the sets of whose images
        different things are known, each image as its name with what differs.
    """
    sets = _identical_sets(images)
    differing = []
    for rows in sets:
        known = [known_of(row) for row in rows]
        facts = [name for name in known[0] if len({facts[name] for facts in known}) > 1]
        if facts:
            texts = []
            for row, known_of_row in zip(rows, known, strict=True):
                what_differs = ", ".join(known_of_row[name] for name in facts)
                texts.append(f"{names[row]} ({what_differs})")
            differing.append(texts)
    return {"images": sum(map(len, sets)), "sets": len(sets), "differing": differing}


def _identical_sets(images: Sequence[Any]) -> list[list[int]]:
    rows_of_size: dict[Hashable, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            try:
                rows_of_size[os.stat(image).st_size].append(row)  # noqa: PTH116 - a Path of each takes time
            except OSError:
                continue  # a name alone, of a store
    rows_of_content: dict[str, list[int]] = defaultdict(list)
    for rows in rows_of_size.values():
        if len(rows) > 1:
            for row in rows:
                rows_of_content[cached_hash_of(Path(images[row]))].append(row)
    return _longer_than_one(rows_of_content.values())


def _longer_than_one(lists: Iterable[list[int]]) -> list[list[int]]:
    return [rows for rows in lists if len(rows) > 1]


def _identical_line(facts: Mapping[str, Any]) -> str:
    if not facts["sets"]:
        return "no two images have the same bytes"
    line = f"{facts['images']} images have the bytes of another"
    if facts["sets"] > 1:
        line += f", in {facts['sets']} sets"
    sets = facts["differing"]
    if not sets:
        return f"{line}, and in all that is known of them"
    texts = [" = ".join(names[:MOST_VALUES]) for names in sets[:_MOST_SETS]]
    if len(sets) > _MOST_SETS:
        texts.append(f"{counted(len(sets) - _MOST_SETS, 'set')} more")
    return f"{line}: {'; '.join(texts)}"
