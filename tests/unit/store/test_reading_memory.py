"""Memory of batches is used again only when nobody holds it; mapped reads give the same bits and leave files alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from store_samples import make, write_photos

from dinoneck import FeatureStore, StoreError, load_backbone
from dinoneck.store import buffers


def test_memory_is_used_again_only_when_nobody_holds_it() -> None:
    shape = (3, 1 << 19)
    first = buffers.empty(shape, torch.float32)
    place = first.data_ptr()
    assert first.shape == shape and first.dtype == torch.float32 and place % 64 == 0
    row = first.fill_(1)[1]
    del first
    other = buffers.empty(shape, torch.float32).fill_(2)
    assert other.data_ptr() != place
    assert (row == 1).all()
    del row
    assert buffers.empty(shape, torch.float32).data_ptr() == place
    assert (other == 2).all()


def test_memory_of_another_size_is_not_taken() -> None:
    small = buffers.empty((1 << 20,), torch.float16)
    place = small.data_ptr()
    del small
    assert buffers.empty((1 << 20,), torch.float32).data_ptr() != place


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_mapped_reads_give_the_same_bits(tmp_path: Path, dtype: str) -> None:
    write_photos(tmp_path / "photos", ["a.png", "b.png"])
    store = make(tmp_path / "s", load_backbone("dinoneck_tiny", layers=[0, -1]), dtype=dtype)
    store.extract(tmp_path / "photos")
    mapped = pickle.loads(pickle.dumps(FeatureStore.open(tmp_path / "s", mapped=True, check=True)))
    for key in [("a", 0), ("b", 3)]:
        given, expected = (s.reader.columns([key[0]], [key[1]])[0] for s in (mapped, store))
        for name in expected:
            assert len(given[name]) == len(expected[name])
            assert all(torch.equal(x, y) for x, y in zip(given[name], expected[name], strict=True))
        assert all(torch.equal(x, y) for x, y in zip(mapped[key].sequence, store[key].sequence, strict=True))
    assert torch.equal(mapped.batch(["b", "a"], [1, 2]).sequence[0], store.batch(["b", "a"], [1, 2]).sequence[0])


def test_writing_into_a_mapped_read_stays_in_the_process(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", ["a.png"])
    make(tmp_path / "s", load_backbone("dinoneck_tiny")).extract(tmp_path / "photos")
    store = FeatureStore.open(tmp_path / "s", mapped=True)
    before = store["a"].sequence[0].clone()
    store.batch(["a"], dtype=None).sequence[0].zero_()
    assert torch.equal(store["a"].sequence[0], before)
    assert store.verify() == []


def test_a_shard_that_is_cut_short_is_told_not_mapped(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", ["a.png"])
    make(tmp_path / "s", load_backbone("dinoneck_tiny")).extract(tmp_path / "photos")
    store = FeatureStore.open(tmp_path / "s", mapped=True)
    shard = tmp_path / "s" / store.shard_of("a")
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(StoreError, match="cut short"):
        store["a", 3]
