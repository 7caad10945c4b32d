"""A MemoryStore checks before it reads that its tokens fit into the memory that is free."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.store.store_samples import make, write_images

from dinoneck import FeatureStore, StoreError, load_backbone
from dinoneck.store import MemoryStore, memory

# float16, CLS and 2 registers and 2 x 3 patches of 64 channels, 4 views
IMAGE_BYTES = 2 * (3 + 6) * 64 * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("store")
    write_images(folder / "images", ["a.png", "b.png", "c.png"])
    store = make(folder / "s", load_backbone("dinoneck_tiny"))
    store.extract(folder / "images")
    return store


def test_tokens_that_do_not_fit_into_free_memory_are_refused(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * IMAGE_BYTES)

    with pytest.raises(StoreError, match=r"3 images x 4 views need 13.8kB .* 13.8kB are free"):
        MemoryStore(store)


def test_fewer_images_fit(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 3 * IMAGE_BYTES)

    kept = MemoryStore(store, ["a", "c"])

    assert list(kept) == ["a", "c"]


def test_where_the_system_does_not_tell_what_is_free_nothing_is_refused(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: None)

    kept = MemoryStore(store)

    assert len(kept) == 3


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux alone has /proc/meminfo")
def test_free_memory_is_in_bytes() -> None:
    free = memory.free_memory()

    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free is not None
    # kilobytes or pages would be less than a thousandth of it
    assert installed / 500 < free <= installed


def test_free_memory_is_unknown_where_no_file_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", refuse)

    assert memory.free_memory() is None


@pytest.mark.parametrize(
    ("text", "free"),
    [
        pytest.param("MemTotal: 8 kB\nMemAvailable:   5 kB\n", 5 * 1024, id="available"),
        pytest.param("MemTotal: 8 kB\nMemFree:        5 kB\n", None, id="an old kernel"),
    ],
)
def test_free_memory_is_what_the_kernel_calls_available(
    monkeypatch: pytest.MonkeyPatch, text: str, free: int | None
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: text)

    assert memory.free_memory() == free
