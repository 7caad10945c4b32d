"""Stores behind a URL whose files vanish, are cut short or cannot be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.unit.store.store_samples import make, write_images

from dinoneck import Backbone, FeatureStore, StoreError
from dinoneck.store.files import RemoteFiles


@pytest.fixture
def root(tiny: Backbone, tmp_path: Path) -> Path:
    """The folder of a store of two images, in a shard each."""
    images = write_images(tmp_path / "images", ["a.png", "b.png"])
    store = make(tmp_path / "s", tiny, views="none")
    store.extract(images, shard_bytes=1)
    return tmp_path / "s"


@pytest.fixture
def remote(root: Path) -> FeatureStore:
    return FeatureStore.open(f"local://{root}")


def test_a_folder_that_is_not_there_has_no_files(root: Path) -> None:
    assert RemoteFiles(f"local://{root}").sizes("nowhere") == {}


def test_hidden_files_are_not_listed(root: Path) -> None:
    (root / "data" / ".w-1.dinoneck-tmp").write_text("half")
    shards = {path.name: path.stat().st_size for path in (root / "data").glob("w-*")}

    assert RemoteFiles(f"local://{root}").sizes("data") == shards


def test_the_state_of_a_missing_file_is_refused(root: Path) -> None:
    with pytest.raises(StoreError, match="nothing is missing"):
        RemoteFiles(f"local://{root}").state("nothing")


def test_the_size_of_a_file_is_its_state(root: Path) -> None:
    state = RemoteFiles(f"local://{root}").state("store.json")

    assert state.size == (root / "store.json").stat().st_size


def test_a_shard_that_vanishes_behind_a_url_is_named(remote: FeatureStore, root: Path) -> None:
    shard = remote.shard_of("a")
    (root / shard).unlink()

    with pytest.raises(StoreError, match=f"{shard} is missing"):
        remote["a"]


def failing(*arguments: Any, **options: Any) -> Any:
    raise ConnectionError("the line is down")


def test_a_lost_connection_while_tokens_are_read_is_a_store_error(
    remote: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remote.ids  # the index is read before
    # by which fsspec fetches the ranges of a file
    monkeypatch.setattr(fsspec.get_filesystem_class("local"), "cat_file", failing)

    with pytest.raises(StoreError, match="cannot be read.*the line is down"):
        remote["a"]


def test_a_lost_connection_while_a_size_is_asked_for_is_a_store_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RemoteFiles(f"local://{root}")
    monkeypatch.setattr(fsspec.get_filesystem_class("local"), "size", failing)

    with pytest.raises(StoreError, match="cannot be read.*the line is down"):
        files.state("store.json")


def test_what_was_listed_is_forgotten_on_a_refresh(
    remote: FeatureStore, root: Path, tiny: Backbone, tmp_path: Path
) -> None:
    assert remote.ids == ("a", "b")
    more = write_images(tmp_path / "images", ["c.png"])
    make(root, tiny, views="none").extract(more, root=tmp_path / "images")

    remote.refresh()

    assert remote.ids == ("a", "b", "c")
