"""Image -> grams by ONNX Runtime and a model of ``dinoneck export --with-backbone``, without torch.

    python examples/onnx_runtime/predict.py model.onnx image.jpg more.jpg --csv predictions.csv

Needs numpy, pillow and onnxruntime, but neither torch nor dinoneck. Exit code 0: all images were
predicted; 1: some could not be read (they are named on stderr, the others are predicted), the model
is not one or fails, or the CSV cannot be written.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from images import Array, ImageFileError, prepare, read

FORMAT = 1
Values = dict[str, list[float]]  # task -> its numbers


class PreparedImage(NamedTuple):
    """An image as the model takes it.

    Attributes:
        path: the file.
        pixels: (3, H, W).
        valid: bool (rows, cols), which patches show the image and no padding.
    """

    path: Path
    pixels: Array
    valid: Array


class Model:
    """An exported model and its description.

    Attributes:
        about: the metadata that the export wrote.
        tasks: the outputs that are predictions.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # no log: failures are raised
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

    def check_size(self, pixels: Array) -> None:
        """Reject an image of a size that the model does not take.

        Raises:
            ImageFileError: naming the size that it takes.
        """
        size = list(pixels.shape[1:])
        required = self.about["input"]["size"]
        smallest = self.about["input"]["smallest"]
        if required is not None:
            if size != required:
                raise ImageFileError(
                    f"the image comes to {_size(size)} px; this model takes {_size(required)} only"
                )
        elif size[0] < smallest[0] or size[1] < smallest[1]:
            raise ImageFileError(
                f"the image comes to {_size(size)} px; this model takes {_size(smallest)} or more"
            )

    def predict(self, images: Sequence[PreparedImage]) -> list[Values]:
        """Return the values of images of one size, a dictionary per image."""
        names = [task["name"] for task in self.tasks]
        pixels = np.stack([image.pixels for image in images])
        outputs = self.session.run(names, {self.about["input"]["name"]: pixels})
        rows: list[Values] = [{} for _ in images]
        for name, output in zip(names, outputs, strict=True):
            for row, image, values in zip(rows, images, output, strict=True):
                if values.ndim == 3:  # a map
                    values = _mean_of_valid(values, image.valid)
                row[name] = [float(value) for value in values]
        return rows

    def columns(self) -> list[str]:
        """Return the names of all numbers of an image."""
        names = []
        for task in self.tasks:
            dim = task["shape"][1]
            if dim == 1:
                names.append(task["name"])
                continue
            labels = task["labels"] or range(dim)
            names += [f"{task['name']}:{label}" for label in labels]
        return names


def batches(
    model: Model, paths: Sequence[Path], size: int, bad: list[str]
) -> Iterator[list[PreparedImage]]:
    """Prepare images one by one and yield up to ``size`` of one size at a time.

    Messages about images that cannot be prepared are appended to ``bad``.
    """
    recipe = model.about["preprocess"]
    incomplete: dict[tuple[int, ...], list[PreparedImage]] = {}  # size -> images
    for path in paths:
        try:
            pixels, valid = prepare(read(path, recipe.get("bits")), recipe)
            model.check_size(pixels)
        except ImageFileError as error:
            message = str(error)
            if str(path) not in message:
                message = f"{path}: {message}"
            bad.append(message)
            continue
        batch = incomplete.setdefault(pixels.shape, [])
        batch.append(PreparedImage(path, pixels, valid))
        if len(batch) == size:
            yield incomplete.pop(pixels.shape)
    yield from incomplete.values()


def predict(
    model: Model, paths: Sequence[Path], batch_size: int = 4
) -> tuple[dict[Path, Values], list[str]]:
    """Return the values of all images that can be read, in their order, and the errors of the others."""
    bad: list[str] = []
    predicted: dict[Path, Values] = {}
    for batch in batches(model, paths, batch_size, bad):
        for image, values in zip(batch, model.predict(batch), strict=True):
            not_finite = _first_not_finite(values)
            if not_finite is None:
                predicted[image.path] = values
            else:
                bad.append(f"{image.path}: the model's answer for {not_finite!r} is not finite")
    return {path: predicted[path] for path in paths if path in predicted}, bad


def _first_not_finite(values: Values) -> str | None:
    """Return the name of the first task with infinity or NaN."""
    for name, numbers in values.items():
        if not np.isfinite(numbers).all():
            return name
    return None


def write_csv(path: Path, model: Model, predicted: Mapping[Path, Values]) -> None:
    """Write a row per image."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", *model.columns()])
        for image, values in predicted.items():
            cells = []
            for numbers in values.values():
                cells += [f"{number:.6g}" for number in numbers]
            table.writerow([image, *cells])


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
    paths = list(dict.fromkeys(options.images))  # each once
    try:
        predicted, bad = predict(model, paths, max(1, options.batch_size))
    except Exception as error:  # such as too little memory
        print(
            f"error: {options.model} failed: {error}; try a smaller --batch-size", file=sys.stderr
        )
        return 1
    for path, values in predicted.items():
        parts = [_text(task, values[task["name"]]) for task in model.tasks]
        print(f"{path}: {', '.join(parts)}")
    if options.csv is not None:
        try:
            write_csv(options.csv, model, predicted)
        except OSError as error:
            bad.append(f"{options.csv} cannot be written: {error}")
    for message in bad:
        print(f"error: {message}", file=sys.stderr)
    return 1 if bad else 0


def _mean_of_valid(values: Array, valid: Array) -> Array:
    """Return means (dim,) of maps (dim, rows, cols) over the cells whose patches show the image."""
    _, map_rows, map_cols = values.shape
    rows, cols = valid.shape
    patch_row = np.arange(map_rows) * rows // map_rows
    patch_col = np.arange(map_cols) * cols // map_cols
    valid_cells = valid[patch_row][:, patch_col]
    mean: Array = values[:, valid_cells].mean(axis=1)
    return mean


def _text(task: Mapping[str, Any], numbers: Sequence[float]) -> str:
    """Return the name of a task, its numbers and their unit."""
    text = " ".join([task["name"], *(f"{number:.4g}" for number in numbers)])
    if task["unit"]:
        text = f"{text} {task['unit']}"
    return text


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


if __name__ == "__main__":
    sys.exit(main())
