"""Only regular files are opened: a pipe, a device, a socket or a folder in the place of a file is refused at once.

Every call runs in a thread with a limit of time, so that one that waits fails its test and does not hold up the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinoneck import (
    BackboneError,
    CheckpointError,
    ConfigError,
    DataError,
    DinoneckError,
    FeatureStore,
    HeadCheckpoint,
    Predictor,
    load_backbone,
)
from dinoneck.data import BoxImages, DenseLabels, Preprocessing, read_image_size, read_table
from dinoneck.training import TrainConfig

LIMIT_S = 20


def make(path: Path, kind: str) -> list[int]:
    """Make what is not a regular file; return what is held open for it."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):  # a socket's name is short
            made.bind(path.name)
    else:  # a terminal: reading from it waits for what is typed
        ends = list(os.openpty())
        path.symlink_to(os.ttyname(ends[1]))
        return ends
    return []


def bounded(action: Callable[[], Any]) -> Any:
    """Return what ``action`` returns or raises; fail if it takes longer than the limit."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(action())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert outcome, f"the call did not end within {LIMIT_S} s"
    return outcome[0]


def extract(path: Path) -> None:
    store = FeatureStore.create(path.parent / "store", backbone=load_backbone("dinoneck_tiny"), image_size=(32, 32))
    store.extract([path])


ENTRANCES: dict[str, tuple[str, Callable[[Path], object], type[DinoneckError]]] = {
    "image": ("a.png", lambda path: Preprocessing(16)(path), DataError),
    "size of an image": ("a.tif", read_image_size, DataError),
    "image to extract": ("a.png", extract, DataError),
    "label": ("a.png", lambda path: DenseLabels().read(path), DataError),
    "table": ("a.csv", lambda path: read_table(path, None, ["x"]), DataError),
    "boxes": ("a.json", BoxImages, DataError),
    "settings": ("a.yaml", TrainConfig.read, ConfigError),
    "weights": ("a.safetensors", lambda path: load_backbone("dinoneck_tiny", checkpoint=path), BackboneError),
    "pickled weights": ("a.pth", lambda path: load_backbone("dinoneck_tiny", checkpoint=path), BackboneError),
    "head": ("a.safetensors", HeadCheckpoint.load, CheckpointError),
    "predictor": ("a.safetensors", Predictor, CheckpointError),
}
WITHOUT_FOLDERS = ("image to extract",)  # it is searched for images


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_what_is_not_a_regular_file_is_refused_at_once(entrance: str, kind: str, tmp_path: Path) -> None:
    if kind == "folder" and entrance in WITHOUT_FOLDERS:
        pytest.skip("a folder is expected too")
    name, action, error = ENTRANCES[entrance]
    ends = make(tmp_path / name, kind)
    found = bounded(lambda: action(tmp_path / name))
    for end in ends:
        os.close(end)
    assert isinstance(found, error), found
    assert name in str(found)
    assert "\n" not in str(found)
