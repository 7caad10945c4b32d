"""A store that is kept on a device gives its batches there."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from store_samples import make, write_photos
from tests.pretend_device import NAME, pretend_device

from dinoneck import load_backbone
from dinoneck.store import MemoryStore
from dinoneck.store.encoding import StoreDtype


@pytest.mark.parametrize("dtype", get_args(StoreDtype))
def test_batches_are_made_where_the_records_are(dtype: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", ["a.png", "b.png"])
    store = make(tmp_path / "store", load_backbone("dinoneck_tiny"), dtype=dtype)
    store.extract(tmp_path / "photos")
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
