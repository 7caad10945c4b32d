"""Weights of targets in the overall score: read from pairs or a CSV file, and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dinoneck.data.cells import cell_text
from dinoneck.data.csv_files import read_csv_file
from dinoneck.errors import ConfigError, DataError
from dinoneck.text import did_you_mean, some_of

TargetWeights = Mapping[str, float] | str | os.PathLike[str]
"""Target -> its weight, or a CSV file of them with the columns ``target`` and ``weight``."""

_TARGET = "target"
_WEIGHT = "weight"
_MOST_NAMES = 8  # in a message


def read_target_weights(weights: TargetWeights) -> dict[str, float]:
    """Return target -> its weight in the overall score; empty = all count alike.

    Args:
        weights: the weights, or the CSV file that holds them.

    Raises:
        ConfigError: if a weight is no number of 0 or more, or all are 0.
        DataError: if the file cannot be read, lacks a column, or names a target twice.
    """
    if isinstance(weights, Mapping):
        stated: Mapping[str, Any] = weights
    else:
        stated = _read_file(weights)
    numbers = {}
    for target, weight in stated.items():
        numbers[str(target)] = _checked_weight(target, weight)
    if numbers and not any(numbers.values()):
        raise ConfigError(
            f"the weights of the targets {some_of(numbers, _MOST_NAMES)} are all 0; expected one "
            "above 0"
        )
    return numbers


def read_words(words: Sequence[str]) -> dict[str, float]:
    """Return the weights of a command line: ``TARGET=WEIGHT ...``, or one CSV file.

    Raises:
        ConfigError, DataError: as :func:`read_target_weights`, and for a word of another form.
    """
    if len(words) == 1 and "=" not in words[0]:
        return read_target_weights(words[0])
    weights: dict[str, str] = {}
    for word in words:
        target, separator, weight = word.rpartition("=")
        if not separator or not target:
            raise ConfigError(
                f"target_weights has {word!r}; expected TARGET=WEIGHT, such as crop=0.3, or one "
                "CSV file with the columns target and weight"
            )
        if target in weights:
            raise ConfigError(f"target_weights names {target!r} twice; give it one weight")
        weights[target] = weight
    return read_target_weights(_numbers_of(weights))


def check_target_weights(weights: Mapping[str, float], targets: Collection[str]) -> None:
    """Check that each target of the overall score has a weight, and nothing else has one.

    Args:
        weights: as they are stated.
        targets: the numbers of images that count in the overall score.

    Raises:
        ConfigError: naming the target.
    """
    for name in weights:
        if name not in targets:
            raise ConfigError(
                f"target_weights names {name!r}, which is none of the numbers in the overall "
                f"score, {some_of(targets, _MOST_NAMES) or 'of which there are none'}."
                f"{did_you_mean(name, targets)}"
            )
    missing = [name for name in targets if name not in weights]
    if missing:
        raise ConfigError(
            f"target_weights has no weight of {some_of(missing, _MOST_NAMES)}; give each target of "
            "the overall score one, 0 for one that does not count"
        )


def _read_file(path: str | os.PathLike[str]) -> dict[str, float]:
    """The weights of a CSV file."""
    table = read_csv_file(path, (_TARGET, _WEIGHT))
    weights: dict[str, str] = {}
    for target, weight in zip(table.column(_TARGET), table.column(_WEIGHT), strict=True):
        name = cell_text(target)
        if name in weights:
            raise DataError(f"{path} names the target {name!r} twice; give it one weight")
        weights[name] = cell_text(weight)
    return _numbers_of(weights)


def _numbers_of(weights: Mapping[str, str]) -> dict[str, float]:
    """The weights as numbers, of words of a command line or cells of a file."""
    numbers = {}
    for target, weight in weights.items():
        try:
            numbers[target] = float(weight)
        except ValueError:
            raise _not_a_weight(target, weight) from None
    return numbers


def _checked_weight(target: object, weight: Any) -> float:
    """A weight as a number."""
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not math.isfinite(weight) or weight < 0:
        raise _not_a_weight(target, weight)
    return float(weight)


def _not_a_weight(target: object, weight: object) -> ConfigError:
    return ConfigError(
        f"the weight of the target {target} is {weight}; expected a number, 0 or more"
    )
