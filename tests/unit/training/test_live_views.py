"""Transforms of live images, callbacks and loggers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from dinoneck import PatchMeanHead, Task, load_backbone
from dinoneck.training import LiveTokens, MemoryTokens, engine, fit

IDS = ("a", "b", "c", "d")
JITTER = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5)])


IMAGES = torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
BACKBONE = load_backbone("dinoneck_tiny")


class Stopped(Exception):
    pass


def stop(epoch: int, row: dict[str, float]) -> None:
    raise Stopped


def noisy(image: Tensor) -> Tensor:
    """Draw from all three generators."""
    level = random.random() + np.random.rand() + torch.rand(()).item()
    return (image * (level / 3)).to(torch.uint8)


def learn(source: Any, **options: Any) -> Tensor:
    torch.manual_seed(0)
    head = PatchMeanHead(64, [Task("x")], hidden_dim=4)
    targets = {"x": dict(zip(IDS, (0.0, 1.0, 2.0, 4.0), strict=True))}
    fit(head, source, targets=targets, epochs=3, batch_size=2, lr=1e-2, **options)
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])


@pytest.mark.parametrize("transform", [JITTER, noisy])
def test_training_transforms_images_and_resumes_bit_for_bit(
    transform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transforms draw from the generators of Python, NumPy and torch; the caller's are left alone."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    live, plain = (LiveTokens(BACKBONE, IMAGES, IDS, transform=own) for own in (transform, None))
    before: Any = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    whole = learn(live, out=tmp_path / "whole")
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert not torch.equal(whole, learn(plain))
    assert torch.equal(live.batch(IDS).sequence[0], plain.batch(IDS).sequence[0])
    with pytest.raises(Stopped):
        learn(live, out=tmp_path / "parts", callbacks=[stop])
    assert torch.equal(learn(live, out=tmp_path / "parts"), whole)


def test_one_row_per_epoch_reaches_the_callbacks(tmp_path: Path) -> None:
    source, rows = MemoryTokens.extract(BACKBONE, IMAGES, IDS), []
    for _ in range(2):  # the resumed run has no new epoch
        learn(source, out=tmp_path, callbacks=[lambda *row: rows.append(row)], val_ids=["d"], ids=IDS[:3])
    assert [epoch for epoch, _ in rows] == [0, 1, 2]
    assert set(rows[0][1]) >= {"loss", "val_loss"}
