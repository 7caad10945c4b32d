"""Options, their pairs, and the verdict on one case."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tests import kit
from tests.faults.judge import HARMLESS, REFUSED

from dinoneck import DinoneckError

FEWEST = 3  # cases of a sample
WRONG_USAGE = 2  # the exit code
FRAME = "│╭╮╰╯─"  # characters of the box around a usage error
Settings = dict[str, Any]
Groups = Mapping[str, Mapping[str, Any]]
"""Group -> key -> value, of a training file."""


class Option(NamedTuple):
    """An option: what it is without it, and the values that are tried."""

    name: str
    neutral: Any
    values: Sequence[Any]


class Differs(Exception):
    """A result is another one than the reference, and nothing was reported."""


def pairs(options: Sequence[Option]) -> Iterator[Settings]:
    """Yield every pair of values of every two options; all others are neutral."""
    neutral = {option.name: option.neutral for option in options}
    for one, other in itertools.combinations(options, 2):
        for values in itertools.product(one.values, other.values):
            yield {**neutral, one.name: values[0], other.name: values[1]}


def sampled(cases: Sequence[Any], share: float) -> list[Any]:
    """Draw a share of the cases, always the same ones, in their order."""
    count = min(len(cases), max(FEWEST, round(share * len(cases))))
    rows = random.Random(0).sample(range(len(cases)), count)
    return [cases[row] for row in sorted(rows)]


def name_of(settings: Settings, options: Sequence[Option]) -> str:
    """Name a case by the options that are not neutral."""
    neutral = {option.name: option.neutral for option in options}
    changed = [f"{name}={value}" for name, value in settings.items() if value != neutral[name]]
    return ", ".join(changed)


def training_file(
    path: Path, files: Mapping[str, Mapping[Any, Groups]], settings: Settings
) -> list[Path]:
    """Write the options of a case that stand in training files alone; return the file, or nothing without any.

    Args:
        path: the file.
        files: name of an option -> value -> groups of the file.
        settings: the case.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, values in files.items():
        for group, keys in values.get(settings[name], {}).items():
            groups.setdefault(group, {}).update(keys)
    if not groups:
        return []
    path.write_text(json.dumps(groups))  # JSON is YAML
    return [path]


def check_same(found: Any, right: Any, what: str, tolerance: float = 1e-5) -> None:
    """Raise Differs unless numbers, texts and containers are equal; numbers up to a share of the largest one.

    Raises:
        Differs: naming the first place that differs.
    """
    if isinstance(right, Mapping):
        if not isinstance(found, Mapping) or found.keys() != right.keys():
            raise Differs(f"{what} has {_keys(found)}, not {_keys(right)}")
        for key, value in right.items():
            check_same(found[key], value, f"{what}[{key!r}]", tolerance)
    elif isinstance(right, str | None):
        if found != right:
            raise Differs(f"{what} is {found!r}, not {right!r}")
    elif isinstance(right, list | tuple) and not all(
        isinstance(each, int | float) for each in right
    ):
        if len(found) != len(right):
            raise Differs(f"{what} has {len(found)} entries, not {len(right)}")
        for number, pair in enumerate(zip(found, right, strict=True)):
            check_same(*pair, f"{what}[{number}]", tolerance)
    else:
        _check_numbers(np.asarray(found, float), np.asarray(right, float), what, tolerance)


def _keys(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__


def _check_numbers(found: Any, right: Any, what: str, tolerance: float) -> None:
    if found.shape != right.shape:
        raise Differs(f"{what} has shape {found.shape}, not {right.shape}")
    if not np.array_equal(np.isnan(found), np.isnan(right)):
        raise Differs(f"{what} is unknown at other places")
    if right.size == 0:
        return
    scale = max(1e-3, float(np.nanmax(np.abs(right), initial=0.0)))
    difference = float(np.nanmax(np.abs(found - right), initial=0.0))
    if not math.isfinite(difference) or difference > tolerance * scale:
        raise Differs(f"{what} differs by {difference:.3g} of {scale:.3g}")


def raise_refusal(ran: kit.Ran) -> None:
    """Raise the error that a command line ended with, if it did.

    Raises:
        DinoneckError: it was refused.
        AssertionError: it crashed, or failed without a word.
    """
    if ran.code == 0:
        return
    if ran.code == WRONG_USAGE:
        raise DinoneckError(in_box(ran.err))
    lines = [line for line in ran.err.splitlines() if "error: " in line]
    if not lines:
        raise AssertionError(f"exit code {ran.code} without an error: {ran.err[-200:]}")
    if lines[-1].startswith("error: unexpected "):
        raise AssertionError(lines[-1])
    raise DinoneckError(lines[-1])


def in_box(printed: str) -> str:
    """Return the words of the box that says which usage is wrong, on one line.

    The box has a frame where the terminal has its characters, and else a title and dashes.

    Raises:
        AssertionError: there is no such box.
    """
    lines = []
    for printed_line in printed.splitlines():
        line = printed_line.strip(FRAME + " ")
        is_rule = set(line) == {"-"}
        if line and not is_rule:
            lines.append(line)
    if not lines or not re.search(r"\b(error|options?|arguments?)$", lines[0], re.IGNORECASE):
        raise AssertionError(f"exit code {WRONG_USAGE} without an error: {printed[-200:]}")
    return " ".join(lines[1:])


def verdict(name: str, check: Callable[[], object]) -> str:
    """Run a check: harmless if it passes, refused for an error of dinoneck, else what happened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    except DinoneckError as error:
        lines = str(error).splitlines()
        return REFUSED if len(lines) == 1 and lines[0].isprintable() else f"{name}: unclear error"
    except Differs as found:
        return f"{name}: {found}"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return HARMLESS


def judged(
    cases: Sequence[Settings], options: Sequence[Option], check: Callable[[Settings], object]
) -> Iterator[str]:
    """Yield the verdict on every case, with the options that are not neutral as its name."""
    for settings in cases:
        yield verdict(name_of(settings, options), functools.partial(check, settings))


class Trainings:
    """What settings train to, each trained once; None where they are refused.

    Args:
        train: returns what is compared of a training.
    """

    def __init__(self, train: Callable[[Settings], Any]) -> None:
        self._train = train
        self._results: dict[str, Any] = {}

    def result_of(self, settings: Settings) -> Any:
        """Return what a training with these settings gives."""
        key = json.dumps(settings)
        if key not in self._results:
            try:
                self._results[key] = self._train(settings)
            except DinoneckError:
                self._results[key] = None
        return self._results[key]
