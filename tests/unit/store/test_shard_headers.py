"""Headers of shards that no extraction writes: their images are left out, and verify names the shard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.store.store_samples import make, write_images

from dinoneck import Backbone, DataError, FeatureStore
from dinoneck.store.shards import facts_of


@pytest.fixture
def shard(tiny: Backbone, tmp_path: Path) -> Path:
    """The shard of a store of one image, a."""
    images = write_images(tmp_path / "images", ["a.png"])
    store = make(tmp_path / "s", tiny, views="none")
    store.extract(images)
    (tmp_path / "s" / "index.sqlite").unlink()  # what a reader knows, it reads from the shard
    return tmp_path / "s" / store.shard_of("a")


def rewrite(shard: Path, change: Callable[[dict[str, Any]], None], padding: int = 0) -> None:
    """Write a shard again with a changed header that has the checksum of what it states."""
    content = shard.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    if "__metadata__" in header:
        header["__metadata__"]["facts"] = facts_of(header["__metadata__"])
    text = json.dumps(header).encode() + b" " * padding
    shard.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def with_another_shape(header: dict[str, Any]) -> None:
    header["a/tokens"]["shape"][-1] += 1


def with_another_tensor(header: dict[str, Any]) -> None:
    header["b/tokens"] = header["a/tokens"]


def without_images(header: dict[str, Any]) -> None:
    header["__metadata__"]["images"] = "[]"
    del header["a/tokens"]


def of_another_store(header: dict[str, Any]) -> None:
    header["__metadata__"]["made"] = "0" * 32


def without_metadata(header: dict[str, Any]) -> None:
    del header["__metadata__"]


CHANGES = pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(with_another_shape, "a/tokens has the shape", id="shape"),
        pytest.param(with_another_tensor, "1 tensors that its list of images lacks", id="tensor"),
        pytest.param(without_images, "it lists no images", id="no images"),
        pytest.param(of_another_store, "made with other values than store.json", id="other store"),
        pytest.param(without_metadata, "__metadata__", id="no metadata"),
    ],
)


@CHANGES
def test_images_of_a_changed_header_are_left_out_with_a_warning(
    shard: Path,
    change: Callable[[dict[str, Any]], None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rewrite(shard, change)

    store = FeatureStore.open(shard.parents[1])

    assert store.ids == ()
    assert "is not a whole shard of this store" in caplog.text
    assert reason in caplog.text


@CHANGES
def test_verify_names_a_shard_with_a_changed_header(
    shard: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    rewrite(shard, change)
    name = f"data/{shard.name}"

    damaged = FeatureStore.open(shard.parents[1]).verify()

    assert damaged == [name]


def test_a_header_that_would_end_after_its_file_is_left_out(
    shard: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = shard.read_bytes()
    shard.write_bytes((10**9).to_bytes(8, "little") + content[8:])

    store = FeatureStore.open(shard.parents[1])

    assert store.ids == ()
    assert "its header would have 1000000000 bytes" in caplog.text


def test_a_header_that_is_written_as_it_was_is_read(shard: Path) -> None:
    rewrite(shard, lambda header: None)

    store = FeatureStore.open(shard.parents[1])

    assert store.ids == ("a",)
    assert store.verify() == []


def test_a_header_longer_than_the_first_read_is_read_whole(shard: Path) -> None:
    rewrite(shard, lambda header: None, padding=2**20)

    store = FeatureStore.open(shard.parents[1])

    assert store.ids == ("a",)
    assert store.verify() == []


def test_the_shard_of_a_name_that_verify_gives_is_the_name(shard: Path) -> None:
    rewrite(shard, without_images)
    store = FeatureStore.open(shard.parents[1])
    [name] = store.verify()

    assert store.shard_of(name) == name


def test_the_shard_of_an_id_that_is_not_stored_is_refused(shard: Path) -> None:
    store = FeatureStore.open(shard.parents[1])

    with pytest.raises(DataError, match="'b' is not among"):
        store.shard_of("b")
