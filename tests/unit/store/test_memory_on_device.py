"""A store that is kept on a device gives its batches there."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from store_samples import make, write_images
from tests.pretend_device import NAME, pretend_device

from dinoneck import load_backbone
from dinoneck.store import MemoryStore
from dinoneck.store.encoding import StoreDtype


@pytest.mark.parametrize("dtype", get_args(StoreDtype))
def test_batches_are_made_where_the_records_are(dtype: str, tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a.png", "b.png"])
    store = make(tmp_path / "store", load_backbone("dinoneck_tiny"), dtype=dtype)
    store.extract(tmp_path / "images")
    expected = store.batch(["b", "a"], [1, 2])
    with pretend_device() as device:
        kept = MemoryStore(store, device=NAME)
        for kind in (torch.float32, torch.float16, None):
            batch = kept.batch(["b", "a"], [1, 2], dtype=kind)
            assert {x.device.type for x in batch.sequence} == {NAME}
        device.events.clear()
        batch = kept.batch(["b", "a"], [1, 2])
        assert device.events["to host"] == device.events["read"] == 0
        values = [x.cpu() for x in batch.sequence]
    assert all(torch.equal(x, y) for x, y in zip(values, expected.sequence, strict=True))


def test_a_training_reads_rows_of_the_records_on_the_device(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a.png", "b.png"])
    store = make(tmp_path / "store", load_backbone("dinoneck_tiny"))
    store.extract(tmp_path / "images")
    expected = store.batch(["b", "a"], [1, 2])
    with pretend_device():
        kept = MemoryStore(store, device=NAME)
        tensors, make_tokens = kept.stored(["b", "a"], [1, 2])
        tokens = make_tokens(tensors)
        assert {x.device.type for x in tokens.sequence} == {NAME}
        values = [x.cpu() for x in tokens.sequence]
    assert sum(x.numel() for x in tensors) == 2, "the numbers of the rows alone"
    for x, y in zip(values, expected.sequence, strict=True):
        assert torch.equal(x, y)


def test_a_pass_of_extraction_goes_to_the_device_once(tmp_path: Path) -> None:
    """Into it and out of it once for all its images, and one value is read: whether they are normalised."""
    images = write_images(tmp_path / "images", [f"{i:02}.png" for i in range(40)])
    expected = make(tmp_path / "expected", load_backbone("dinoneck_tiny"), views="none")
    expected.extract(images)
    counts = {}
    with pretend_device() as device:
        backbone = load_backbone("dinoneck_tiny").to(NAME)
        for number in (32, 40):
            store = make(tmp_path / str(number), backbone, views="none")
            device.events.clear()
            store.extract(images[:number], batch_size=32)
            counts[number] = dict(device.events)
    per_pass = {
        name: counts[40][name] - counts[32][name] for name in ("to device", "to host", "read")
    }
    assert per_pass == {"to device": 1, "to host": 1, "read": 1}
    tokens, others = (one.batch(store.ids).sequence[0] for one in (store, expected))
    assert torch.allclose(tokens, others, atol=4e-3)  # other kernels


def test_int8_tokens_stay_int8_on_another_device(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", ["a.png", "b.png"])
    store = make(tmp_path / "store", load_backbone("dinoneck_tiny"), dtype="int8")
    store.extract(images)
    packed = store.quantised(["a", "b"], 0)
    expected = packed.pool()
    with pretend_device():
        moved = packed.to(NAME)
        assert {x.dtype for x in moved.q} == {torch.int8}
        parts = (moved.q, moved.scale, moved.prefix, moved.channel_scale)
        assert {x.device.type for part in parts for x in part} == {NAME}
        pooled = [x.cpu() for x in moved.pool()]
    for x, y in zip(pooled, expected, strict=True):
        torch.testing.assert_close(x, y)
