"""A store is a container of image ids: ``in``, ``len`` and iteration, on disk and in memory."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.store.store_samples import make, write_images

from dinoneck import FeatureStore, load_backbone
from dinoneck.store import MemoryStore
from dinoneck.store.files import LocalFiles

IDS = ["0", "1", "x/2"]  # an id may look like a number, or lie in a folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("store")
    write_images(folder / "images", [f"{image_id}.png" for image_id in IDS])
    store = make(folder / "s", load_backbone("dinoneck_tiny"))
    store.extract(folder / "images")
    return store


@pytest.fixture(params=["on disk", "in memory"])
def container(request: pytest.FixtureRequest, store: FeatureStore) -> FeatureStore | MemoryStore:
    return MemoryStore(store) if request.param == "in memory" else store


@pytest.mark.parametrize("image_id", IDS)
def test_every_extracted_id_is_in_its_container(
    container: FeatureStore | MemoryStore, image_id: str
) -> None:
    assert image_id in container


@pytest.mark.parametrize(
    "other",
    ["nope", "", "x", "0\0", "\ud800", 0, 5, None, ["0"], ("0", 0)],
    ids=["name", "empty", "folder", "nul", "surrogate", "0", "5", "None", "list", "id and view"],
)
def test_anything_else_is_not_in_the_store_and_no_error(
    container: FeatureStore | MemoryStore, other: Any
) -> None:
    assert other not in container


def test_iterating_a_store_yields_its_ids(container: FeatureStore | MemoryStore) -> None:
    assert list(container) == IDS
    assert list(container) == list(container.ids)


def test_the_length_of_a_store_is_its_number_of_images(
    container: FeatureStore | MemoryStore,
) -> None:
    assert len(container) == 3


def test_a_store_in_memory_contains_the_ids_that_it_was_given_only(store: FeatureStore) -> None:
    kept = MemoryStore(store, ["x/2", "0"])
    assert list(kept) == ["x/2", "0"]
    assert len(kept) == 2
    assert "1" not in kept


def test_in_reads_no_shards(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = FeatureStore.open(store.path)
    monkeypatch.setattr(LocalFiles, "fill", None)
    monkeypatch.setattr(LocalFiles, "read", None)
    assert "0" in opened
    assert "nope" not in opened


def test_in_does_not_load_the_list_of_all_ids(store: FeatureStore) -> None:
    opened = FeatureStore.open(store.path)
    assert "0" in opened
    assert "ids" not in vars(opened.entries)  # where a cached property is kept
