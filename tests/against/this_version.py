"""How the dinoneck of this process, 0.3.0 or this checkout, says what both can do.

The cases call these functions with the words of 0.3.0. Where a function, key or flag is renamed on
purpose, translate it here and only here, by looking which of the two names is there: then the
numbers are still compared, and the list of differences has no entry for a mere name.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from dinoneck import detection, training

Groups = Mapping[str, Any]
"""A training file: group of settings -> settings."""


def train(settings: Groups, out: Path, table: Any = None) -> Mapping[str, Any]:
    """Train heads of images that predict with the head, unless the settings say otherwise; return the report."""
    if hasattr(training.TrainConfig(), "predict_with") and "with_ridge" not in settings:
        settings = {**settings, "predict_with": "head"}  # in 0.3 always; now of a named head
    config = training.TrainConfig.from_dict(settings)
    return training.train(config, out, table=table)


def with_present_names(plain: Any) -> Any:
    """Return the plain form of a run with the present name of the average of head and linear baseline."""
    if isinstance(plain, dict):
        present = {}
        for key, value in plain.items():
            name = "average" if key == "head + linear" else key
            present[name] = with_present_names(value)
        return present
    if isinstance(plain, list):
        return [with_present_names(value) for value in plain]
    if isinstance(plain, str):
        return plain.replace("(head + linear)", "(average)")
    return plain


def train_instances(settings: Groups, out: Path) -> Mapping[str, Any]:
    """Train heads of objects with masks; return the report."""
    config_class = getattr(training, "TrainInstancesConfig", training.TrainConfig)
    return detection.train_instances(config_class.from_dict(settings), out)


def train_detector(settings: Groups, out: Path) -> Mapping[str, Any]:
    """Train a detector of boxes; return the report."""
    config_class = getattr(training, "TrainDetectorConfig", training.TrainConfig)
    return detection.train_detector(config_class.from_dict(settings), out)


KINDS_OF_LINES = ("Traceback", "error:", "interrupted")


@dataclass(frozen=True)
class Ran:
    """What a command line gave.

    Attributes:
        code: the exit code.
        output: what it printed.
        stderr: what kinds of lines it printed on stderr, see :func:`kinds_of_lines`.
        warnings: the categories of its warnings, which are not printed.
    """

    code: int
    output: str
    stderr: list[str]
    warnings: list[str]


def run_command(words: Sequence[str]) -> Ran:
    """Run ``python -m dinoneck WORDS`` in this process."""
    output = io.StringIO()
    errors = io.StringIO()
    code = 0
    with (
        warning_categories() as categories,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", ["dinoneck", *words]),
    ):
        try:
            runpy.run_module("dinoneck", run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    return Ran(code, output.getvalue(), kinds_of_lines(errors.getvalue()), categories)


def kinds_of_lines(text: str) -> list[str]:
    """Return which kinds of lines a text on stderr has; none if it is empty. The words are prose.

    With ``--json`` a verb prints there what it else prints on stdout: that is ``text``.
    """
    kinds = set()
    for line in text.splitlines():
        beginning = line.split(" ")[0]
        kinds.add(beginning if beginning in KINDS_OF_LINES else "text")
    return sorted(kinds)


@contextlib.contextmanager
def warning_categories() -> Iterator[list[str]]:
    """Give a list to which the categories of the warnings inside are added at the end, sorted.

    How often a category came is not told: libraries warn at every call, or once in a process.
    """
    categories: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield categories
        finally:
            categories += sorted({warning.category.__name__ for warning in caught})


def image_maps(predictor: Any, images: Sequence[Any], has_keys: bool) -> list[dict[str, Any]]:
    """Predict all images, then make the maps of each in its own pixels: key of a head -> maps."""
    if hasattr(predictor, "predictions"):
        maps_of_images = []
        for prediction in predictor.predictions(images):
            by_key = prediction if has_keys else {"": prediction}
            maps_of_images.append({key: one.image_maps() for key, one in by_key.items()})
        return maps_of_images
    maps_of_images = []
    for image, row in zip(images, predictor(images, maps="patch"), strict=True):
        by_key = row if has_keys else {"": row}
        maps = {}
        for key, row_of_key in by_key.items():
            maps[key] = predictor.image_maps(image, row_of_key, key=key)
        maps_of_images.append(maps)
    return maps_of_images
