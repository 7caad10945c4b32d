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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from dinoneck import detection, training

Groups = Mapping[str, Any]
"""A training file: group of settings -> settings."""


def train(settings: Groups, out: Path, table: Any = None) -> Mapping[str, Any]:
    """Train heads of images; return the report."""
    config = training.TrainConfig.from_dict(settings)
    return training.train(config, out, table=table)


def train_instances(settings: Groups, out: Path) -> Mapping[str, Any]:
    """Train heads of objects with masks; return the report."""
    return detection.train_instances(training.TrainConfig.from_dict(settings), out)


def train_detector(settings: Groups, out: Path) -> Mapping[str, Any]:
    """Train a detector of boxes; return the report."""
    return detection.train_detector(training.TrainConfig.from_dict(settings), out)


def run_command(words: Sequence[str]) -> tuple[int, str]:
    """Run ``python -m dinoneck WORDS`` in this process; return the exit code and its output."""
    output = io.StringIO()
    code = 0
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(io.StringIO()),
        mock.patch.object(sys, "argv", ["dinoneck", *words]),
    ):
        try:
            runpy.run_module("dinoneck", run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    return code, output.getvalue()
