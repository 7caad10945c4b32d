"""Arguments of the wrong kind and edited files of a store are refused by name, and nothing is written elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.unit.store.store_samples import make, write_images

from dinoneck import Backbone, ConfigError, DataError, FeatureStore, GridError, StoreError, load_backbone
from dinoneck.store import MemoryStore


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("dinoneck_tiny")


@pytest.fixture
def filled(tmp_path: Path, backbone: Backbone) -> FeatureStore:
    write_images(tmp_path / "images", ["a.png", "b.png"])
    store = make(tmp_path / "store", backbone)
    store.extract(tmp_path / "images")
    return store


def test_a_view_of_another_kind_is_refused(filled: FeatureStore) -> None:
    with pytest.raises(DataError, match="expected whole numbers"):
        filled.batch(["a"], 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "text"),
    [({"shard": 5}, "shard is 5"), ({"batch_size": 1.5}, "batch_size is 1.5"), ({"workers": 1.5}, "workers is 1.5")],
)
def test_options_of_another_kind_are_refused(
    tmp_path: Path, backbone: Backbone, options: dict[str, object], text: str
) -> None:
    write_images(tmp_path / "images", ["a.png"])
    with pytest.raises(ConfigError, match=text):
        make(tmp_path / "store", backbone).extract(tmp_path / "images", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("dinoneck_tiny", r"backbone is 'dinoneck_tiny'; expected a Backbone: pass load_backbone\(name\)"),
        (torch.nn.Linear(1, 1), r"backbone is Linear; expected a Backbone: pass wrap_backbone\(model\)"),
    ],
)
def test_what_is_no_backbone_leaves_no_store(tmp_path: Path, given: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        FeatureStore.create(tmp_path / "store", backbone=given, image_size=(32, 64))  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


def test_a_size_without_a_whole_patch_leaves_no_store(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(GridError, match="10 px"):
        make(tmp_path / "store", backbone, image_size=(10, 80), resize="crop")
    assert not (tmp_path / "store").exists()
    make(tmp_path / "store", backbone, image_size=(10, 80))


def test_records_differ_between_stores_and_not_between_copies(
    filled: FeatureStore, tmp_path: Path, backbone: Backbone
) -> None:
    again = make(tmp_path / "again", backbone)
    again.extract(tmp_path / "images", shard_bytes=1)
    assert again.record() == filled.record() == MemoryStore(filled).record()
    other = make(tmp_path / "other", backbone, image_size=(32, 32))
    other.extract(tmp_path / "images")
    assert other.record()["made"] != filled.record()["made"]
    assert filled.record(["a"])["records"] != filled.record(["b"])["records"]


def test_two_images_under_one_id_are_listed_and_refused(tmp_path: Path, backbone: Backbone) -> None:
    """Two extracts of different folders at once: neither sees the other's image when it starts."""
    for name, seed in (("A", 0), ("B", 9), ("C", 0)):
        write_images(tmp_path / name, ["p0.png", "p1.png"], seed)
        make(tmp_path / f"store{name}", backbone).extract(tmp_path / name)
    equal = merged(tmp_path / "storeA", tmp_path / "storeC")  # the same images: one record each
    assert (equal.verify(), len(equal), equal.ids) == ([], 2, ("p0", "p1"))
    store = merged(tmp_path / "storeA", tmp_path / "storeB")
    assert store.verify() == ["p0", "p1"]
    with pytest.raises(StoreError, match=r"different images under the id 'p0', in .*/A\).*/B\)|/B\).*/A\)"):
        store.batch(["p0"])
    for _ in range(4):  # as many as there are shards of one of the images at most
        for shard in {store.shard_of(image_id) for image_id in store.verify()}:
            (tmp_path / "storeA" / shard).unlink()
        store.refresh()
    assert store.verify() == []
    assert store.batch(["p0", "p1"]).sequence[0].isfinite().all()


def merged(into: Path, other: Path) -> FeatureStore:
    for file in (other / "data").iterdir():
        shutil.copy(file, into / "data")
    return FeatureStore.open(into)
