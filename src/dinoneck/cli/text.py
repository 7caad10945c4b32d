"""Plain text for the terminal: documents and tables, and lines that quote files of strangers."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dinoneck.atomic import write_whole
from dinoneck.kinds import METHOD_NAMES, predicting_method
from dinoneck.text import printable

if TYPE_CHECKING:
    from PIL import Image

    from dinoneck.images.preprocessing import Preprocessing

_JPEG_QUALITY = 90


def show(value: str | Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Print a line, or a document as a line per entry that holds something.

    Control characters are escaped, so that no entry can end a line, colour it or wipe it away.
    """
    if isinstance(value, str):
        lines = [value]
    else:
        lines = [f"{key:<10} {in_line(entry)}" for key, entry in _filled(value)]
    for line in lines:
        print(printable(line), file=stream)


def save_picture(out: Path, picture: Image.Image) -> None:
    """Write a picture in the format of its name."""
    from PIL import Image

    picture_format = Image.registered_extensions()[out.suffix.lower()]
    buffer = io.BytesIO()
    picture.save(buffer, picture_format, quality=_JPEG_QUALITY)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, buffer.getvalue())


@contextlib.contextmanager
def whole_folder(folder: Path | None) -> Iterator[Path | None]:
    """Give a temporary folder that becomes ``folder`` at the end, and vanishes with an error or an interruption.

    A symbolic link is followed and stays a link.
    """
    if folder is None:
        yield None
        return
    folder = Path(os.path.realpath(folder))
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        inside = Path(temporary, "new")
        inside.mkdir()
        yield inside
        if folder.exists():
            folder.rmdir()  # it is empty
        inside.rename(folder)


def in_line(value: Any) -> str:
    """Return a value of a document on one line: of a record the entries that hold something."""
    if isinstance(value, Mapping):
        texts = []
        for key, entry in _filled(value):
            text = in_line(entry)
            texts.append(f"{key} ({text})" if isinstance(entry, Mapping) else f"{key} {text}")
        return ", ".join(texts)
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Sequence) and any(isinstance(entry, Mapping) for entry in value):
        return "; ".join(map(in_line, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _filled(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of a record that hold something; 0 and False do."""
    for key, value in record.items():
        if value not in (None, "", [], (), {}):
            yield key, value


def file_size(size: int) -> str:
    """Return the size of a file in the unit that shows it: 27 kB, 1.4 MB."""
    if size >= 1e6:
        return f"{size / 1e6:.1f} MB"
    return f"{max(1, round(size / 1e3))} kB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text, the first column to the left."""
    escaped_rows = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*escaped_rows, strict=True)]
    lines = []
    for first, *others in escaped_rows:
        cells = [first.ljust(widths[0])]
        for cell, width in zip(others, widths[1:], strict=True):
            cells.append(cell.rjust(width))
        lines.append("  ".join(cells))
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:]])


def show_scores(report: Mapping[str, Any], held_out: bool = True) -> None:
    """Print the scores and the verdict of a report of a training or of :func:`dinoneck.evaluate`, and its costs.

    Args:
        report: as they return it.
        held_out: whether the images are known to be held out, which the headings then state.
    """
    from dinoneck.viz.score_tables import all_tables

    for scores in all_tables(report, held_out):
        print(table(scores.header, scores.rows))
        if scores.note:
            show(scores.note)
    costs = report.get("cost", {})
    if costs:
        print(_cost_table(costs))
    for line in (report.get("verdict") or "").splitlines():
        show(line)
    names = no_better_than_mean(report)
    if names:
        method = METHOD_NAMES[predicting_method(report)]
        show(
            f"{', '.join(names)}: R² is not above 0, so {method} is no better than the mean of all "
            "images."
        )


def _cost_table(costs: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per model with its seconds per image and numbers of parameters; exported files have none."""
    keys = max((list(cost) for cost in costs.values()), key=len)
    header = ["cost", *(key.replace("_", " ") for key in keys)]
    rows = []
    for name, cost in costs.items():
        cells = [in_line(cost[key]) if key in cost else "–" for key in keys]
        rows.append([name, *cells])
    return table(header, rows)


def no_better_than_mean(report: Mapping[str, Any]) -> list[str]:
    """Return the targets of a report, without auxiliary ones, of which the R² is not above 0.

    It is that of the method that predicts.
    """
    from dinoneck.viz.score_tables import mean_of

    predicting = predicting_method(report)
    names = []
    mean = mean_of(report)
    for name, methods in report.get("scores", {}).items():
        if name == mean or name in report.get("auxiliary", ()):
            continue
        r2 = methods.get(predicting, {}).get("r2", {}).get("pooled")
        if r2 is not None and r2 <= 0:
            names.append(name)
    return names


def show_remainder(preprocess: Preprocessing, size: tuple[int, int]) -> None:
    """Print what becomes of a size (height, width) in px that the patch does not divide."""
    canvas = preprocess.placement(size).canvas
    if canvas == size:
        return
    height, width = size
    new_height, new_width = canvas
    show(
        f"The patch of {preprocess.patch_size} px does not divide {height}x{width} px, so this "
        f"becomes {new_height}x{new_width} px (--resize {preprocess.resize})."
    )
