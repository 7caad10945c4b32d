"""Names of exported files and of what runs them, checked before NumPy and Pillow are imported."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any, Literal, get_args

from dinoneck.errors import ConfigError
from dinoneck.kinds import FILE_RUNTIMES, RUNTIMES, AnyRuntime, FileRuntime, Runtime
from dinoneck.text import did_you_mean

Maps = Literal["patch", "image"]
"""Which maps a row holds: those per patch, or those in the pixels of the image."""
SUFFIX = ".onnx"
IMAGE = "image"
"""The key of the path of an image, in the rows of a folder."""
MOST_BOXES = 100
"""How many boxes a detector gives for an image, as many as COCO's average precision counts."""


def is_exported(source: Any) -> bool:
    """Return whether heads are named by the path of an exported file."""
    return isinstance(source, str | os.PathLike) and str(source).lower().endswith(SUFFIX)


def check_runtime(runtime: Any, name: str) -> FileRuntime:
    """Return what runs an exported file; None: ONNX Runtime.

    Raises:
        ConfigError: for another word, also for one that computes the tokens of a backbone.
    """
    if runtime is None:
        return "onnxruntime"
    for known in FILE_RUNTIMES:
        if runtime == known:
            return known
    expected = " or ".join(map(repr, FILE_RUNTIMES))
    if runtime in RUNTIMES:
        raise ConfigError(
            f"runtime is {runtime!r}, which computes the tokens of a backbone, and {name} is an "
            f"exported file; expected {expected}"
        )
    hint = did_you_mean(str(runtime), FILE_RUNTIMES)
    raise ConfigError(
        f"runtime is {runtime!r}; {name} is an exported file: expected {expected}.{hint}"
    )


def check_backbone_runtime(runtime: AnyRuntime) -> Runtime:
    """Return what computes the tokens of a backbone.

    Raises:
        ConfigError: for a word that is of exported files alone.
    """
    if runtime == "onnxruntime":
        raise ConfigError(
            "runtime is 'onnxruntime', which runs an exported file (.onnx), and the heads are none; "
            f"expected {' or '.join(map(repr, RUNTIMES))}, which compute the tokens of a backbone"
        )
    return runtime


def check_maps(maps: Any, probabilities: bool) -> None:
    """Refuse other maps than those per patch or image, and probabilities of other maps than the image's.

    Raises:
        ConfigError: naming them.
    """
    if maps not in (None, *get_args(Maps)):
        raise ConfigError(f"maps is {maps!r}; expected None, 'patch' or 'image'")
    if probabilities and maps != "image":
        raise ConfigError(
            f"probabilities are of maps='image', and maps is {maps!r}; pass maps='image', or "
            "leave probabilities out"
        )


def check_row_names(folder: Any, names: Collection[str]) -> None:
    """Refuse a folder whose rows would hold two entries called ``"image"``.

    Args:
        folder: whose images are predicted.
        names: what else a row holds, keys or tasks.

    Raises:
        ConfigError: naming the folder.
    """
    if IMAGE in names:
        raise ConfigError(
            f"a head or task is called {IMAGE!r}, as is the path of the image in the rows of a "
            f"folder; pass the images of {folder} as a list"
        )
