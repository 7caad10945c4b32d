"""Image -> grams with ONNX Runtime: a model of ``dinoneck export --with-backbone``, without torch and dinoneck.

    python examples/onnx_runtime/predict.py model.onnx image.jpg more.jpg --csv predictions.csv

Needs numpy, pillow and onnxruntime. Exit code 0: all images answered; 1: some could not be read
(they are named on stderr, the others are answered), the model is none or fails, or the CSV cannot
be written.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from images import Array, ImageFileError, prepare, read

FORMAT = 1
Prepared = tuple[Path, Array, Array]


class Model:
    """An exported model, and what it says of itself."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what fails is raised
        self.session = onnxruntime.InferenceSession(
            path, options, providers=onnxruntime.get_available_providers()
        )
        texts = self.session.get_modelmeta().custom_metadata_map
        if "dinoneck_export" not in texts:
            raise ValueError(f"{path} was not written by 'dinoneck export --with-backbone'")
        self.about: dict[str, Any] = json.loads(texts["dinoneck_export"])
        if self.about["format"] != FORMAT:
            raise ValueError(
                f"{path} has format {self.about['format']}; this example reads {FORMAT}"
            )
        self.tasks = [output for output in self.about["outputs"] if output["of"] == "task"]

    def check_size(self, image: Array) -> None:
        """Refuse an image that the model does not take."""
        taken, seen = self.about["input"], list(image.shape[1:])
        if taken["size"] is not None and seen != taken["size"]:
            raise ImageFileError(
                f"the image comes to {_size(seen)} px; this model takes {_size(taken['size'])} only"
            )
        if taken["size"] is None and any(
            side < least for side, least in zip(seen, taken["smallest"], strict=True)
        ):
            raise ImageFileError(
                f"the image comes to {_size(seen)} px; this model takes "
                f"{_size(taken['smallest'])} or more"
            )

    def answers(
        self, images: Sequence[Array], shown: Sequence[Array]
    ) -> list[dict[str, list[float]]]:
        """Answer for images of one size: a dict per image, task -> its numbers."""
        names = [task["name"] for task in self.tasks]
        found = self.session.run(names, {self.about["input"]["name"]: np.stack(images)})
        rows: list[dict[str, list[float]]] = [{} for _ in images]
        for name, values in zip(names, found, strict=True):
            if values.ndim == 4:  # an answer per cell: the mean over the cells that show the image
                values = np.stack(
                    [_mean_of_cells(x, cells) for x, cells in zip(values, shown, strict=True)]
                )
            for row, numbers in zip(rows, values, strict=True):
                row[name] = [float(number) for number in numbers]
        return rows

    def columns(self) -> list[str]:
        """Names of all numbers that it gives per image."""
        found = []
        for task in self.tasks:
            dim = task["shape"][1]
            parts = task["labels"] or [str(i) for i in range(dim)]
            found += [task["name"]] if dim == 1 else [f"{task['name']}:{part}" for part in parts]
        return found


def batches(
    model: Model, paths: Sequence[Path], size: int, bad: list[str]
) -> Iterator[list[Prepared]]:
    """Prepare images one by one; give up to ``size`` at a time that came to one size.

    Bad ones go to ``bad``.
    """
    waiting: dict[tuple[int, ...], list[Prepared]] = {}
    for path in paths:
        try:
            recipe = model.about["preprocess"]
            image, shown = prepare(read(path, recipe.get("bits")), recipe)
            model.check_size(image)
        except ImageFileError as error:
            bad.append(f"{path}: {error}" if str(path) not in str(error) else str(error))
            continue
        alike = waiting.setdefault(image.shape, [])
        alike.append((path, image, shown))
        if len(alike) == size:
            yield waiting.pop(image.shape)
    yield from waiting.values()


def predict(
    model: Model, paths: Sequence[Path], batch_size: int = 4
) -> tuple[dict[Path, dict[str, list[float]]], list[str]]:
    """Return the answers of all images that can be read, in their order, and what is wrong with the others."""
    bad: list[str] = []
    found: dict[Path, dict[str, list[float]]] = {}
    for batch in batches(model, paths, batch_size, bad):
        rows = model.answers([image for _, image, _ in batch], [shown for _, _, shown in batch])
        for (path, _, _), row in zip(batch, rows, strict=True):
            if unfit := [name for name, numbers in row.items() if not np.isfinite(numbers).all()]:
                bad.append(f"{path}: the model's answer for {unfit[0]!r} is not finite")
            else:
                found[path] = row
    return {path: found[path] for path in paths if path in found}, bad


def write_csv(
    path: Path, model: Model, found: Mapping[Path, Mapping[str, Sequence[float]]]
) -> None:
    """Write a row per image."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", *model.columns()])
        for image, row in found.items():
            table.writerow([image, *(f"{x:.6g}" for numbers in row.values() for x in numbers)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "model", type=Path, help="an ONNX model of 'dinoneck export --with-backbone'"
    )
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--csv", type=Path, help="also write the answers to this file")
    parser.add_argument("--batch-size", type=int, default=4, help="images at once (default 4)")
    parser.add_argument(
        "--threads", type=int, default=0, help="of ONNX Runtime (default: one per core)"
    )
    options = parser.parse_args(arguments)
    try:
        model = Model(options.model, options.threads)
    except Exception as error:  # of ONNX Runtime: several types
        print(f"error: {options.model} cannot be used: {error}", file=sys.stderr)
        return 1
    try:
        found, bad = predict(model, list(dict.fromkeys(options.images)), max(1, options.batch_size))
    except Exception as error:  # such as too little memory
        print(
            f"error: {options.model} failed: {error}; try a smaller --batch-size", file=sys.stderr
        )
        return 1
    units = {task["name"]: task["unit"] for task in model.tasks}
    for path, row in found.items():
        print(
            f"{path}: "
            f"{', '.join(_told(name, numbers, units[name]) for name, numbers in row.items())}"
        )
    if options.csv is not None:
        try:
            write_csv(options.csv, model, found)
        except OSError as error:
            bad.append(f"{options.csv} cannot be written: {error}")
    for message in bad:
        print(f"error: {message}", file=sys.stderr)
    return 1 if bad else 0


def _mean_of_cells(values: Array, shown: Array) -> Array:
    """(dim,): means of maps (dim, rows, cols) over the cells that show the image and no padding."""
    rows = np.arange(values.shape[1]) * shown.shape[0] // values.shape[1]
    cols = np.arange(values.shape[2]) * shown.shape[1] // values.shape[2]
    mean: Array = values[:, shown[rows][:, cols]].mean(axis=1)
    return mean


def _told(name: str, numbers: Sequence[float], unit: str) -> str:
    return f"{name} {' '.join(f'{x:.4g}' for x in numbers)}{f' {unit}' if unit else ''}"


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


if __name__ == "__main__":
    sys.exit(main())
