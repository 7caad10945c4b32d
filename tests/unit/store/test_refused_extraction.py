"""An extraction that is refused before anything is stored leaves no store; what was finished is kept."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tests import kit
from tests.unit.store.store_samples import write_images

from dinoneck import FeatureStore

NAMES = [f"{i}.png" for i in range(3)]
WORDS = ["--backbone", "dinoneck_tiny", "--size", "32x48"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", NAMES)
    return tmp_path / "images"


def extract(images: Path, out: Path, *words: str) -> kit.Ran:
    return kit.cli("extract", images, "--out", out, *WORDS, *words)


def test_a_disk_without_room_leaves_no_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    result = extract(images, tmp_path / "store")
    assert result.code == 1
    assert not (tmp_path / "store").exists()


def test_an_image_that_cannot_be_read_leaves_no_folder(images: Path, tmp_path: Path) -> None:
    for name in NAMES:
        (images / name).write_bytes(b"no image")
    result = extract(images, tmp_path / "store")
    assert result.code == 1
    assert not (tmp_path / "store").exists()


def test_a_store_that_was_there_is_kept(images: Path, tmp_path: Path) -> None:
    assert extract(images, tmp_path / "store").code == 0
    Image.new("RGB", (48, 32)).save(images / "9.png")
    (images / "9.png").write_bytes(b"no image")
    result = extract(images, tmp_path / "store")
    assert result.code == 1
    assert len(FeatureStore.open(tmp_path / "store")) == len(NAMES)


def test_a_part_of_a_shared_store_is_left_to_the_other_processes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    result = extract(images, tmp_path / "store", "--shard", "0/2")
    assert result.code == 1
    assert (tmp_path / "store" / "store.json").is_file()


def test_a_missing_ray_is_named_before_the_backbone_is_loaded(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("dinoneck.training.run_tokens.open_backbone", None)
    result = extract(images, tmp_path / "store", "--engine", "ray")
    assert "ray is not installed" in result.err
