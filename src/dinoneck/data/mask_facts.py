"""What the masks of a table hold: pixels of each class, or numbers; and how masks are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoneck.data.fact_words import (
    AT_ENDS,
    MOST_VALUES,
    in_digits,
    in_percent,
    quartiles,
    quartiles_in_words,
)
from dinoneck.data.labels import ClassLabels, DenseLabels, MaskNumbers
from dinoneck.data.masks import MaskClasses, MaskSurvey
from dinoneck.data.normals import NormalLabels
from dinoneck.data.sheet import Colour, Heat, Painting, Regions
from dinoneck.data.table import Table
from dinoneck.errors import DataError
from dinoneck.images.colours import NODATA, class_colours, heat_colours, normal_colours
from dinoneck.images.pixels import in_threads
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.text import counted

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class MaskFacts:
    """What the masks of a table hold.

    Attributes:
        facts: plain values, as JSON has them.
        overlay: returns what is drawn over the image of a row that has a mask.
        shown: class -> row -> how many pixels of the class its mask has.
        legend: class -> its colour in the sheet.
    """

    facts: dict[str, Any]
    overlay: Callable[[int], Regions | Heat | Painting]
    shown: Mapping[str, Mapping[int, int]]
    legend: Mapping[str, Colour]


def class_masks(
    table: Table,
    survey: MaskSurvey,
    classes: MaskClasses,
    read_stored: Callable[[int], Array] | None = None,
) -> MaskFacts:
    """Return the facts of masks of classes.

    Args:
        table: the images and their masks.
        survey: the values of the masks, in the order of the rows that have one.
        classes: which values they are.
        read_stored: returns the classes (H, W) of the mask of a row, -1 = unlabelled; None = the mask
            is decoded for it.
    """
    coding = classes.coding
    stored = range(coding.count) if coding.stored is None else coding.stored
    shown: dict[str, dict[int, int]] = {name: {} for name in classes.names}
    for row, file in zip(_rows_with_mask(table), survey.files, strict=True):
        for name, value in zip(classes.names, stored, strict=True):
            if value in file.pixels:
                shown[name][row] = file.pixels[value]
    stated = [float(value) for value in coding.options.nodata if np.isfinite(value)]
    facts = {
        "kind": "classes",
        "count": len(survey.files),
        "empty": sum(not file.pixels.keys() - coding.unlabelled for file in survey.files),
        "pixels": dict(classes.pixels),
        "labelled": sum(classes.pixels.values()),
        "unlabelled": classes.unlabelled,
        "unlabelled_values": sorted({*stated, *map(float, classes.unlabelled_values)}),
    }
    colours = class_colours(classes.names)
    legend = dict(zip(classes.names, colours, strict=True))
    if classes.unlabelled:
        legend["unlabelled"] = NODATA

    def overlay(row: int) -> Regions:
        if read_stored is None:
            index = ClassLabels(coding).stored_indices(_mask(table, row))
        else:
            index = read_stored(row)
        return Regions(index, colours, hatched=True)

    return MaskFacts(facts, overlay, shown, legend)


def number_masks(
    table: Table, reader: DenseLabels, masks: Sequence[MaskNumbers] | None = None
) -> MaskFacts:
    """Return the facts of numbers per pixel.

    Minimum and maximum are those of all pixels, quartiles those of a sample of each mask.

    Args:
        table: the images and their masks.
        reader: how the numbers are stored.
        masks: what each mask holds, in the order of the rows that have one; None = they are decoded.

    Raises:
        DataError: if a mask cannot be read.
    """
    rows = _rows_with_mask(table)
    if masks is None:
        masks = [
            *in_threads(lambda row: MaskNumbers.of(reader.stored_numbers(_mask(table, row))), rows)
        ]
    filled = [mask for mask in masks if mask.labelled]
    if not filled:
        raise DataError("all pixels of the masks are unlabelled; expected numbers")
    numbers = quartiles(np.concatenate([mask.sample for mask in filled]))
    numbers |= {"min": min(mask.low for mask in filled), "max": max(mask.high for mask in filled)}
    nodata: Any = reader.nodata
    facts = {
        "kind": "numbers",
        "count": len(rows),
        "empty": len(rows) - len(filled),
        "quartiles": numbers,
        "labelled": sum(mask.labelled for mask in masks),
        "unlabelled": sum(mask.unlabelled for mask in masks),
        "unlabelled_values": [float(value) for value in nodata if np.isfinite(value)],
    }

    def overlay(row: int) -> Heat:
        values = reader.stored_numbers(_mask(table, row))
        return Heat(values[..., 0], numbers["min"], numbers["max"])

    scale = np.linspace(numbers["min"], numbers["max"], 5)
    colours = heat_colours(scale, numbers["min"], numbers["max"]).round().astype(int).tolist()
    legend: dict[str, Colour] = {}
    for value, (red, green, blue) in zip(scale.tolist(), colours, strict=True):
        legend[in_digits(value)] = (red, green, blue)
    return MaskFacts(facts, overlay, shown={}, legend=legend)


def normal_masks(table: Table) -> MaskFacts:
    """Return the facts of files of surface normals; they are read where they are drawn."""
    facts = {"kind": "normals", "count": len(_rows_with_mask(table))}

    def overlay(row: int) -> Painting:
        normals = NormalLabels().pixels(_mask(table, row), Preprocessing(patch_size=1))
        return Painting(normal_colours(normals.numpy()))

    return MaskFacts(facts, overlay, shown={}, legend={})


def _rows_with_mask(table: Table) -> list[int]:
    return [row for row in range(len(table)) if table.has_mask(row)]


def _mask(table: Table, row: int) -> Any:
    return (table.masks or [])[row]


def mask_lines(facts: Mapping[str, Any], num_images: int) -> list[str]:
    """Return the lines of masks: how many there are, and what their pixels hold."""
    line = f"masks: {facts['count']} of {counted(num_images, 'image')}"
    if facts.get("empty"):
        line += f", {facts['empty']} without a labelled pixel"
    if facts["kind"] == "normals":
        return [f"{line}, surface normals"]
    total = max(1, facts["labelled"] + facts["unlabelled"])
    unlabelled = f"unlabelled {in_percent(facts['unlabelled'], total)}"
    if facts["unlabelled_values"]:
        unlabelled += f": {', '.join(map(in_digits, facts['unlabelled_values']))}"
    if facts["kind"] == "numbers":
        numbers = quartiles_in_words(facts["quartiles"])
        return [line, f"numbers per pixel: {numbers}; {unlabelled}"]
    shares = {
        name: in_percent(pixels, max(1, facts["labelled"]))
        for name, pixels in facts["pixels"].items()
    }
    ordered = sorted(shares, key=lambda name: -facts["pixels"][name])
    if len(shares) > MOST_VALUES:
        ends = [*ordered[:AT_ENDS], *ordered[-AT_ENDS:]]
        words = [f"{name} {shares[name]}" for name in ends]
        words.insert(AT_ENDS, f"{len(shares) - 2 * AT_ENDS} more")
    else:
        words = [f"{name} {share}" for name, share in shares.items()]
    return [line, f"{len(shares)} classes of pixels: {', '.join(words)}; {unlabelled}"]
