"""A store written by version 0.1, whose index lines have no checksum, hash and time, is read, checked and extended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.store.store_samples import make

from dinoneck import Backbone, FeatureStore, StoreError
from dinoneck.store.index import checked_line

STORE = Path(__file__).parents[2] / "fixtures" / "store_v1"
OPTIONS = {"patterns": "none", "image_size": (16, 16)}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORE, tmp_path / "s"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The images of the frozen store, and one more."""
    (tmp_path / "images").mkdir()
    for i, name in enumerate("abc"):
        rows = np.arange(16 * 16 * 3).reshape(16, 16, 3) * (i + 1) % 256
        Image.fromarray(rows.astype(np.uint8)).save(tmp_path / "images" / f"{name}.bmp")
    return tmp_path / "images"


def test_it_is_read_and_extended(older: Path, images: Path, tiny: Backbone, tmp_path: Path) -> None:
    store = FeatureStore.open(older)
    assert store.ids == ("a", "b") and store.verify() == []
    fresh = make(tmp_path / "fresh", tiny, **OPTIONS)
    fresh.extract(images)
    done = make(older, tiny, **OPTIONS).extract(images)
    assert (done.written, done.present) == (["c"], 2)
    store = FeatureStore.open(older)
    assert store.verify() == []
    assert torch.allclose(store.batch(["a", "b", "c"]).sequence[0], fresh.batch(["a", "b", "c"]).sequence[0], atol=4e-3)
    assert json.loads((older / "store.json").read_text())["schema"] == 2  # which version 0.1 refuses by name
    for name in ("b.bmp", "c.bmp"):  # 0.1 knew the size alone, for the new image the hash is known
        raw = (images / name).read_bytes()
        (images / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]) + b"\0" * (name == "b.bmp"))
    with pytest.raises(StoreError, match="files of 2 stored images have changed: 'b', 'c'"):
        make(older, tiny, **OPTIONS).extract(images)


def test_what_it_shows_wrongly_is_noticed(older: Path) -> None:
    [index] = (older / "index").iterdir()
    text = index.read_text()
    index.write_text(text.replace('"id":"a"', '"id":"x"').replace('"id":"b"', '"id":"a"').replace('"x"', '"b"'))
    assert FeatureStore.open(older).verify() == ["a", "b"]
    index.write_text(text.splitlines()[0] + "\n")
    assert FeatureStore.open(older).verify() == ["b"]


def test_an_orphan_is_taken_in_unless_its_header_is_damaged(older: Path, images: Path, tiny: Backbone) -> None:
    [index] = (older / "index").iterdir()
    index.unlink()
    shard = sorted((older / "data").iterdir())[1]
    shard.write_bytes(shard.read_bytes().replace(b'\\"id\\":\\"b\\"', b'\\"id\\":\\"a\\"'))
    done = make(older, tiny, **OPTIONS).extract(images)
    assert (done.written, done.present) == (["b", "c"], 1)


def test_what_index_lines_repeat_of_a_store_does_not_change_with_the_version() -> None:
    """Otherwise a later version would refuse all stores that this one wrote."""
    assert FeatureStore.open(STORE).description.made == "8950f3e1-9654b71a-d55bc3ae-18d9537a"


def test_index_lines_that_do_not_name_their_store_are_read(images: Path, tiny: Backbone, tmp_path: Path) -> None:
    store = make(tmp_path / "s", tiny, **OPTIONS)
    store.extract(images)
    expected = store.batch(["a", "b", "c"]).sequence[0]
    [path] = (tmp_path / "s" / "index").iterdir()
    root, *lines = (json.loads(line) for line in path.read_text().splitlines())
    left_out = ("made", "line_crc32")
    lines = [root] + [{key: value for key, value in line.items() if key not in left_out} for line in lines]
    del root["line_crc32"]
    path.write_text("".join(f"{checked_line(line)}\n" for line in lines))
    assert torch.equal(FeatureStore.open(tmp_path / "s").batch(["a", "b", "c"]).sequence[0], expected)
