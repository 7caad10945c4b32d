"""Transforms of live images, callbacks and loggers."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from dinoneck import Backbone, PatchMeanHead, Task, load_backbone
from dinoneck.training import LiveTokens, LoggingConfig, MemoryTokens, engine, fit
from dinoneck.training.folder import loggers_of

IDS = ("a", "b", "c", "d")
JITTER = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5)])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("dinoneck_tiny")


def images() -> Tensor:
    return torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def noisy(image: Tensor) -> Tensor:
    """Draw from all three generators."""
    level = random.random() + np.random.rand() + torch.rand(()).item()
    return (image * (level / 3)).to(torch.uint8)


def learn(source: Any, **options: Any) -> PatchMeanHead:
    torch.manual_seed(0)
    head = PatchMeanHead(64, [Task("x")], hidden_dim=4)
    targets = {"x": dict(zip(IDS, (0.0, 1.0, 2.0, 4.0), strict=True))}
    fit(head, source, targets=targets, epochs=3, batch_size=2, lr=1e-2, **options)
    return head


def weights(head: PatchMeanHead) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])


@pytest.mark.parametrize("transform", [JITTER, noisy])
def test_training_transforms_images_and_resumes_bit_for_bit(
    transform: Any, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transforms draw from the generators of Python, NumPy and torch; the caller's are left alone."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    live, plain = (LiveTokens(backbone, images(), IDS, transform=own) for own in (transform, None))
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    whole = learn(live, out=tmp_path / "whole")
    torch.manual_seed(0)
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert not torch.equal(weights(whole), weights(learn(plain)))
    assert torch.equal(live.batch(IDS).sequence[0], plain.batch(IDS).sequence[0])

    class Stopped(Exception):
        pass

    def stop(epoch: int, row: dict[str, float]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        learn(live, out=tmp_path / "parts", callbacks=[stop])
    assert torch.equal(weights(learn(live, out=tmp_path / "parts")), weights(whole))


def test_one_row_per_epoch_reaches_the_callbacks(backbone: Backbone, tmp_path: Path) -> None:
    source, rows = MemoryTokens.extract(backbone, images(), IDS), []
    learn(source, out=tmp_path, callbacks=[lambda epoch, row: rows.append((epoch, row))], val_ids=["d"], ids=IDS[:3])
    assert [epoch for epoch, _ in rows] == [0, 1, 2]
    assert set(rows[0][1]) >= {"loss", "val_loss"}
    learn(source, out=tmp_path, callbacks=[lambda epoch, row: rows.append((epoch, row))], val_ids=["d"], ids=IDS[:3])
    assert len(rows) == 3  # the resumed run had no new epoch


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def test_loggers_call_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Writer:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            calls.append((arguments, options))

        def add_scalar(self, *arguments: Any) -> None:
            calls.append(arguments)

        def flush(self) -> None:
            calls.append("flush")

        def log(self, row: dict[str, float], step: int) -> None:
            calls.append((row, step))

    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=Writer)
    stand_in(monkeypatch, "wandb", init=Writer)
    tensorboard, wandb = loggers_of(LoggingConfig(tensorboard=True, wandb="cover"), Path("runs"), "first")
    assert calls == []  # nothing is opened before the first epoch: other processes never write
    tensorboard(0, {"loss": 0.5, "val_loss": 0.25})
    wandb(3, {"loss": 0.5})
    wandb(4, {"loss": 0.25})
    assert calls == [
        (("runs/tensorboard/first",), {}),
        ("loss", 0.5, 0),
        ("val_loss", 0.25, 0),
        "flush",
        ((), {"project": "cover", "name": "runs-first"}),
        ({"loss": 0.5}, 3),
        ({"loss": 0.25}, 4),
    ]
    for name, config in (
        ("torch.utils.tensorboard", LoggingConfig(tensorboard=True)),
        ("wandb", LoggingConfig(wandb="cover")),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"pip install {name.split('.')[-1]}"):
            loggers_of(config, Path("runs"))
