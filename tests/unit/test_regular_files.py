"""Files are written whole or not at all; pipes, devices and links are refused."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import kit

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
from dinoneck.atomic import write_text, write_whole
from dinoneck.data import BoxImages, DenseLabels, Preprocessing, read_image_size, read_table
from dinoneck.training import TrainConfig


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a b ü.txt"
    write_text(path, "eins")
    write_whole(path, [b"zw", memoryview(b"ei")])
    assert path.read_text() == "zwei"
    assert os.listdir(tmp_path) == [path.name]


def broken() -> Iterator[bytes]:
    yield b"new"
    raise ValueError("unsound")


def refuse(written: Path) -> None:
    assert written.read_text() == "new"
    raise ValueError("unsound")


@pytest.mark.parametrize("options", [{"chunks": broken()}, {"chunks": b"new", "check": refuse}])
def test_a_failure_keeps_the_old_file_and_leaves_nothing(options: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(ValueError, match="unsound"):
        write_whole(path, **options)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


pytestmark = pytest.mark.timeout(20)  # what waits for the other end of a pipe would wait for ever


def make(path: Path, kind: str) -> list[int]:
    """Make what is not a regular file; return what is held open for it."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        # a socket's name is short
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
            made.bind(path.name)
    else:  # a terminal: reading from it waits for what is typed
        ends = list(os.openpty())
        path.symlink_to(os.ttyname(ends[1]))
        return ends
    return []


def store_in(folder: Path) -> FeatureStore:
    return FeatureStore.create(folder / "store", backbone=kit.backbone(), image_size=(32, 32))


ENTRANCES: dict[str, tuple[str, Callable[[Path], object], type[DinoneckError]]] = {
    "image": ("a.png", lambda path: Preprocessing(16)(path), DataError),
    "size of an image": ("a.tif", read_image_size, DataError),
    "image to extract": ("a.png", lambda path: store_in(path.parent).extract([path]), DataError),
    "label": ("a.png", lambda path: DenseLabels().cells(path, Preprocessing(1)), DataError),
    "table": ("a.csv", lambda path: read_table(path, None, ["x"]), DataError),
    "boxes": ("a.json", BoxImages, DataError),
    "settings": ("a.yaml", TrainConfig.read, ConfigError),
    "weights": (
        "a.safetensors",
        lambda path: load_backbone("dinoneck_tiny", checkpoint=path),
        BackboneError,
    ),
    "pickled weights": (
        "a.pth",
        lambda path: load_backbone("dinoneck_tiny", checkpoint=path),
        BackboneError,
    ),
    "head": ("a.safetensors", HeadCheckpoint.load, CheckpointError),
    "predictor": ("a.safetensors", Predictor, CheckpointError),
}


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_what_is_not_a_regular_file_is_refused_at_once(
    entrance: str, kind: str, tmp_path: Path
) -> None:
    name, action, error = ENTRANCES[entrance]
    ends = make(tmp_path / name, kind)
    with pytest.raises(error, match=name) as found:
        action(tmp_path / name)
    for end in ends:
        os.close(end)
    assert "\n" not in str(found.value)


def test_links_to_regular_files_are_followed(tmp_path: Path) -> None:
    kit.write_images(tmp_path, ["real.png"])
    (tmp_path / "real.csv").write_text("image,x\na.png,1\n")
    for suffix in ("png", "csv"):
        (tmp_path / f"a.{suffix}").symlink_to(f"real.{suffix}")
    assert Preprocessing(16, resize="crop")(tmp_path / "a.png").shape == (1, 3, 32, 48)
    assert read_table(tmp_path / "a.csv", tmp_path, ["x"])["x"].tolist() == [1.0]


# Folders of images, and files of a store
# --------------------------------------------------------------------


def test_a_pipe_among_the_images_of_a_folder_is_an_unusable_image(tmp_path: Path) -> None:
    """It is treated as a damaged image is: refused by name, or left out and listed."""
    kit.write_images(tmp_path, ["images/a.png", "images/c.png"])
    make(tmp_path / "images" / "b.png", "pipe")
    store = store_in(tmp_path)
    with pytest.raises(DataError, match="b.png"):
        store.extract(tmp_path / "images")
    done = store.extract(tmp_path / "images", skip_unusable=True)
    assert (sorted(store.ids), list(done.unusable)) == (["a", "c"], ["b"])


def test_a_file_of_a_store_that_became_a_pipe_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kit.write_images(tmp_path, ["images/a.png"])
    store = store_in(tmp_path)
    store.extract(tmp_path / "images")
    shard = tmp_path / "store" / store.shard_of("a")
    shard.unlink()
    make(shard, "pipe")
    with pytest.raises(DataError, match="'a'"):
        FeatureStore.open(tmp_path / "store").batch(["a"])
    assert shard.name in caplog.text  # the index goes on without it
