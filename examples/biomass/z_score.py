"""Target statistics of an earlier training run, from its ``z_score.json``, as transforms."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dinoneck.errors import DataError
from dinoneck.tasks import TargetTransform
from dinoneck.text import did_you_mean, some_of

FLAT_NAME = "target"
_STATISTICS = ("mean", "std")
_SHOWN = 5


def read_z_score(
    path: str | os.PathLike[str],
    *,
    area: float | Mapping[str, float] | None = None,
    log1p: Collection[str] = (),
) -> dict[str, TargetTransform]:
    """Read ``{"reg3": {"mean": ..., "std": ...}, ...}``, or one flat ``{"mean": ..., "std": ...}``.

    The file holds the statistics alone; state what was done to the values before by ``area`` and
    ``log1p``.

    Args:
        path: the JSON file. A mean and its std are one number each, or lists of equal length with
            one per output.
        area: what values were divided by before: one number for every entry, or ``{name: number}``
            for some.
        log1p: names of the entries whose values went through log(1 + x) before.

    Returns:
        ``{name: transform}`` in the file's order; a flat file has the name ``"target"``.

    Raises:
        DataError: if there is no such file, it is not JSON of that form, a key is given twice, a
            value is not a finite number, a std is not positive, or ``area`` or ``log1p`` name an
            entry that is not there.
        ConfigError: if an area is not positive.
    """
    content = _json(path)
    if any(key in content for key in _STATISTICS):
        content = {FLAT_NAME: content}
    if not content:
        raise DataError(f"{path} holds no entry; expected {{name: {{'mean': ..., 'std': ...}}}}")
    if isinstance(log1p, str):
        raise DataError(f"log1p is {log1p!r}; expected a list of names, such as [{log1p!r}]")
    _check_names(path, content, log1p, "log1p")
    if isinstance(area, Mapping):
        _check_names(path, content, area, "area")
    transforms = {}
    for name, entry in content.items():
        mean, std = _statistics(entry, f"{path}: {name!r}")
        area_of_name = area.get(name) if isinstance(area, Mapping) else area
        transforms[name] = TargetTransform(
            area=area_of_name, log1p=name in log1p, mean=mean, std=std
        )
    return transforms


def _check_names(
    path: str | os.PathLike[str],
    content: Mapping[str, Any],
    names: Collection[str],
    argument: str,
) -> None:
    """Raise DataError if an argument names an entry that the file does not have."""
    for name in names:
        if name not in content:
            hint = did_you_mean(name, content)
            raise DataError(
                f"{path} has no entry {name!r} (in {argument}=); it has "
                f"{some_of(content, _SHOWN)}.{hint}"
            )


def _json(path: str | os.PathLike[str]) -> dict[str, Any]:
    def refusing_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise DataError(f"{path}: the key {key!r} is given twice; keep one of them")
        return dict(pairs)

    try:
        content = json.loads(
            Path(path).read_text(encoding="utf-8"), object_pairs_hook=refusing_repeats
        )
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}; expected {{name: {{'mean': ..., 'std': "
            "...}}"
        )
    return content


def _statistics(
    entry: Any, where: str
) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
    """Mean and std of one entry, checked against each other."""
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {entry!r}; expected {{'mean': ..., 'std': ...}}")
    for key in _STATISTICS:
        if key not in entry:
            raise DataError(
                f"{where} lacks {key!r}; it holds {some_of(entry, _SHOWN) or 'nothing'}"
            )
    if others := [key for key in entry if key not in _STATISTICS]:
        raise DataError(
            f"{where} holds {some_of(others, _SHOWN)} next to mean and std; what else was done to "
            "the values goes into area= and log1p=: remove it from the file"
        )
    mean = _numbers(entry["mean"], f"{where} 'mean'")
    std = _numbers(entry["std"], f"{where} 'std'")
    if _length(mean) != _length(std):
        raise DataError(
            f"{where} has mean {entry['mean']!r} and std {entry['std']!r}; expected equally many "
            "numbers"
        )
    deviations = std if isinstance(std, tuple) else (std,)
    if any(deviation <= 0 for deviation in deviations):
        raise DataError(f"{where} 'std' is {entry['std']!r}; expected positive numbers")
    return mean, std


def _length(values: float | tuple[float, ...]) -> int | None:
    """How many outputs a list has numbers for; None for a single number."""
    return len(values) if isinstance(values, tuple) else None


def _numbers(value: Any, where: str) -> float | tuple[float, ...]:
    if isinstance(value, list) and value:
        return tuple(_number(item, where) for item in value)
    return _number(value, where)


def _number(value: Any, where: str) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        raise DataError(
            f"{where} is {str(value)[:80]}; expected a finite number, or a list of them"
        )
    return number
