"""Arguments of the wrong kind and edited files of a store are refused by name, and nothing is written elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.store.store_samples import make, write_images

from dinoneck import Backbone, ConfigError, DataError, FeatureStore, GridError, StoreError, load_backbone
from dinoneck.store import MemoryStore
from dinoneck.store.index import checked_line


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("dinoneck_tiny")


@pytest.fixture
def filled(tmp_path: Path, backbone: Backbone) -> FeatureStore:
    write_images(tmp_path / "images", ["a.png", "b.png"])
    store = make(tmp_path / "store", backbone)
    store.extract(tmp_path / "images")
    return store


def edited(store: FeatureStore, **changes: object) -> Path:
    """Change the store's first image in the index, and its line's checksum with it."""
    [index] = (Path(store.path) / "index").iterdir()
    root, first, *rest = index.read_text().splitlines()
    content = json.loads(first)
    del content["line_crc32"]
    index.write_text("\n".join([root, checked_line({**content, **changes}), *rest]) + "\n")
    return Path(store.path)


@pytest.mark.parametrize("image_id", ["../../evil", "/tmp/evil", "a\0"])
def test_an_id_that_leaves_the_folder_is_no_id(filled: FeatureStore, image_id: str) -> None:
    with pytest.raises(StoreError, match=r"line 2 is damaged .*relative paths without '\.\.'"):
        FeatureStore.open(edited(filled, id=image_id))


@pytest.mark.parametrize("change", [{"length": 10**15}, {"grid": [1, 1]}, {"length": 0}])
def test_verify_names_entries_that_cannot_be_read(filled: FeatureStore, change: dict[str, object]) -> None:
    assert FeatureStore.open(edited(filled, **change)).verify() == ["a"]


def test_a_pattern_of_another_kind_is_refused(filled: FeatureStore) -> None:
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


def test_a_store_made_before_backbones_recorded_their_normalisation_is_the_same(
    filled: FeatureStore, tmp_path: Path
) -> None:
    """A run begun on such a store goes on where the store has been made again; the inputs' normalisation counts."""
    text = filled.description
    older = replace(text, backbone={key: value for key, value in text.backbone.items() if key not in ("mean", "std")})
    assert older.backbone != text.backbone
    (tmp_path / "store" / "store.json").write_bytes(older.to_bytes())
    assert FeatureStore.open(tmp_path / "store").record() == filled.record()
    other = replace(older, preprocess=text.preprocess.changed(mean=(0.1, 0.2, 0.3)))
    (tmp_path / "store" / "store.json").write_bytes(other.to_bytes())
    assert FeatureStore.open(tmp_path / "store").record()["made"] != filled.record()["made"]


def test_two_images_under_one_id_are_listed_and_refused(tmp_path: Path, backbone: Backbone) -> None:
    """Two extracts of different folders at once: neither sees the other's image when it starts."""
    for name, seed in (("A", 0), ("B", 9), ("C", 0)):
        write_images(tmp_path / name, ["p0.png", "p1.png"], seed)
        make(tmp_path / f"store{name}", backbone).extract(tmp_path / name)
    assert merged(tmp_path / "storeA", tmp_path / "storeC").verify() == []  # equal images
    store = merged(tmp_path / "storeA", tmp_path / "storeB")
    assert store.verify() == ["p0", "p1"]
    with pytest.raises(StoreError, match=r"2 ids \(p0, p1\).*shard_of"):
        store.batch(["p0"])
    for _ in range(4):  # as many as there are shards of one of the images at most
        for shard in {store.shard_of(image_id) for image_id in store.verify()}:
            (tmp_path / "storeA" / shard).unlink()
        store.refresh()
    assert store.verify() == []
    assert store.batch(["p0", "p1"]).sequence[0].isfinite().all()


def merged(into: Path, other: Path) -> FeatureStore:
    for folder in ("data", "index"):
        for file in (other / folder).iterdir():
            shutil.copy(file, into / folder)
    return FeatureStore.open(into)
