"""Limits of numbers that a call, a configuration or a file gives, and names of classes and keywords."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from dinoneck.errors import ConfigError
from dinoneck.text import did_you_mean

LARGEST_SIDE = 8192  # pixels of an image that a file or a call asks for
LARGEST_FLOAT = 3.4028234663852886e38  # of float32, as which labels are read

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def check_minimum(minimum: int, **values: int) -> None:
    """Check that every named number is ``minimum`` or more.

    Raises:
        ConfigError: naming the first that is not.
    """
    for name, value in values.items():
        if value < minimum:
            raise ConfigError(f"{name} is {value}; expected {minimum} or more")


def check_class_names(classes: Sequence[str]) -> None:
    """Check that there is a class, and that no two of them have one name.

    Raises:
        ConfigError: naming all of them.
    """
    if not classes or len(set(classes)) < len(classes):
        raise ConfigError(f"classes are {classes}; expected one name or more, each once")


def with_named_keywords(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """Have a function name the nearest of its keywords when it is called with an unknown one.

    Python does so from version 3.13 on.

    Raises:
        TypeError: by the function that is returned, for an unknown keyword.
    """
    parameters = inspect.signature(function).parameters.values()
    keywords = [
        parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
    ]
    known = {parameter.name for parameter in parameters}

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Returned:
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{function.__name__}() has no argument {name!r}.{did_you_mean(name, keywords)} "
                    f"It takes: {', '.join(keywords)}"
                )
        return function(*args, **kwargs)

    return call
