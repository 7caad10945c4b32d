"""The photos of a report: each as the model saw it, with its maps, their colours shared over all photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from dinoneck.data.photos import Photo
from dinoneck.errors import DataError
from dinoneck.viz.arrays import clip_note, clipped, numbers
from dinoneck.viz.report.markup import Markup, element, joined, named
from dinoneck.viz.report.numbers import Output, number
from dinoneck.viz.report.pictures import Shown, cells_svg, map_svg, overlay_svg, photo_svg, scale_bar

_Array = np.ndarray[Any, Any]
_SIDES = (0.7, 0.5, 0.35)  # of the photos, tried one after the other until all fit


@dataclass(frozen=True, eq=False)
class ReportEntry:
    """One photo of a report.

    Attributes:
        name: the file, or whatever tells the photo from the others.
        result: what the Predictor says of it; with ``maps=True`` for a photo that is drawn.
        photo: as the model saw it (``Predictor.picture``), so that maps lie where they belong, or a function that gives
            it, so that many need not be in memory at once; None = the photo stands in the table only.
        tokens: (rows, cols, 3) colours in 0 ... 1 of its patches, see :func:`dinoneck.viz.pca_rgb`; None = not shown.
        known: column -> known value, where there is one; columns are those of ``dinoneck predict``: the task's name,
            or ``task:label``.
    """

    name: str
    result: Mapping[str, Any]
    photo: Photo | Callable[[], Photo] | None = None
    tokens: _Array | None = None
    known: Mapping[str, float] = field(default_factory=dict)


class Drawn:
    """The photos that are drawn, in order, and what their colours span."""

    def __init__(self, places: Sequence[int], entries: Sequence[ReportEntry], outputs: Sequence[Output]) -> None:
        self.entries = {place: entries[place] for place in places}
        self.outputs = [output for output in outputs if any(_has(output, entry) for entry in self.entries.values())]
        self.values = outputs
        maps = {output.key: [output.map(entry.result) for entry in self.entries.values()] for output in self.outputs}
        self.spans, self.notes = {}, {}
        for output in self.outputs:
            known = [values for values in maps[output.key] if values is not None]
            self.spans[output.key] = _span([clipped(values, output.task.minimum) for values in known])
            self.notes[output.key] = clip_note(known, output.task.minimum)
        self.gate_span = _span([gate_of(entry) for entry in self.entries.values()])

    @property
    def has_maps(self) -> bool:
        """Whether any photo has a map or a gate."""
        return bool(self.outputs) or any(gate_of(entry) is not None for entry in self.entries.values())

    def articles(self, largest_side: int, max_bytes: int) -> list[Markup]:
        """One article per photo: smaller pictures where they would be too many bytes, then fewer photos."""
        found, shown = self._articles(largest_side), 1.0
        for share in _SIDES:
            total = sum(map(len, found))
            if total <= max_bytes:
                break
            if share == _SIDES[-1] or total * (share / shown) ** 2 <= max_bytes:  # no smaller: it cannot be enough
                found, shown = self._articles(max(64, round(largest_side * share))), share
        while len(found) > 1 and sum(map(len, found)) > max_bytes:
            found.pop()
        return found

    def _articles(self, side: int) -> list[Markup]:
        return [self._article(place, entry, side) for place, entry in self.entries.items()]

    def _article(self, place: int, entry: ReportEntry, side: int) -> Markup:
        if entry.photo is None:
            raise DataError(f"{entry.name} has no picture, so it cannot be drawn")
        id_ = f"photo-{place}"
        pixels = entry.photo() if callable(entry.photo) else entry.photo
        shown, photo = photo_svg(pixels, f"{id_}-pixels", f"{entry.name}, as the model saw it", side)
        figures = [_photo_figure(shown, photo, entry)]
        gate = gate_of(entry)
        if gate is not None:
            caption = joined([element("b", "Gate"), ": what was looked at, on average over heads and views"])
            unit = "times a plain mean"
            figures.append(_map_figure(gate, self.gate_span, shown, f"{id_}-gate", "gate", caption, unit))
        for i, output in enumerate(self.outputs):
            values = output.map(entry.result)
            if values is not None:
                values = clipped(values, output.task.minimum)
                caption = _value(output, entry)
                span, unit = self.spans[output.key], output.task.unit + self.notes[output.key]
                figures.append(_map_figure(values, span, shown, f"{id_}-map-{i}", output.key, caption, unit))
        plain = [output for output in self.values if output not in self.outputs]
        pooled = [part for output in plain for part in (" · ", _value(output, entry))][1:]
        title = element("h3", named(entry.name))
        rest = element("p", *pooled) if pooled else None
        return element("article", title, rest, element("div", *figures, class_="figures"), id=id_)


def gate_of(entry: ReportEntry) -> _Array | None:
    """The gate as how many times more a patch counts than in a plain mean; None without one.

    Raises:
        ShapeError: if it is not (rows, cols).
        DataError: if it is not finite.
    """
    gate = entry.result.get("gate")
    weights = None if gate is None else numbers(gate, f"the gate of {entry.name}", "rows, cols")
    return None if weights is None else weights * weights.size


def _photo_figure(shown: Shown, photo: Markup, entry: ReportEntry) -> Markup:
    told = [element("b", "Photo"), f" as the model saw it, {shown.height} × {shown.width} px"]
    pictures = [photo]
    if entry.tokens is not None:
        shares = np.clip(numbers(entry.tokens, f"the tokens of {entry.name}", "rows, cols, 3"), 0.0, 1.0)
        colours = Image.fromarray((shares * 255.0).round().astype(np.uint8))
        pictures.append(cells_svg(colours, shown, f"{shown.id}-tokens", f"tokens of {entry.name} as colours"))
        told.append("; below it its tokens: alike colours are alike features, in all photos")
    return element("figure", *pictures, element("figcaption", *told))


def _map_figure(
    values: _Array, span: tuple[float, float], shown: Shown, id_: str, key: str, caption: Markup, unit: str
) -> Markup:
    low, high = (number(value, 3) for value in span)
    told = f"{key}, {values.shape[0]} × {values.shape[1]} cells: "
    told += f"{number(float(values.min()), 3)} to {number(float(values.max()), 3)} {unit}".rstrip()
    ends = [element("span", f"one cell: {low}"), scale_bar(), element("span", f"{high} {unit}".rstrip())]
    return element(
        "figure",
        map_svg(values, span, shown, id_, f"Heat map of {told}"),
        overlay_svg(shown, id_, f"The same map over the photo, {key}"),
        element("figcaption", caption, element("div", *ends, class_="range")),
    )


def _value(output: Output, entry: ReportEntry) -> Markup:
    value, known = output.value(entry.result), entry.known.get(output.key)
    unit = f" {output.task.unit}" if output.task.unit else ""
    told = f"{number(value, 4)}{unit}"
    if known is not None:
        told += f" (known {number(known, 4)}, off by {number(value - known, 3)})"
    return joined([element("b", output.key), f": {told}"])


def _has(output: Output, entry: ReportEntry) -> bool:
    return output.map(entry.result) is not None


def _span(maps: Sequence[_Array | None]) -> tuple[float, float]:
    found = [values for values in maps if values is not None]
    return (min(float(v.min()) for v in found), max(float(v.max()) for v in found)) if found else (0.0, 0.0)
