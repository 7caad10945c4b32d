"""Augmented views by transforms of other libraries, for tokens in memory and live ones."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from dinoneck import Backbone, ConfigError, DataError, DenseHead, PatchMeanHead, Task, load_backbone
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, engine, fit

IDS = ("a", "b", "c", "d")
JITTER = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5)])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("dinoneck_tiny")


def images() -> Tensor:
    return torch.rand(4, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def flipped(image: Tensor) -> Tensor:
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 48)
    return image.flip(-1)


def noisy(image: Tensor) -> Tensor:
    """Draw from all three generators."""
    level = random.random() + np.random.rand() + torch.rand(()).item()
    return (image * (level / 3)).to(torch.uint8)


def albumentation(change: Callable[..., Any]) -> Any:
    """A stand-in for a Compose of albumentations: called with an array by keyword, and seeded by a method."""

    class Compose:
        seeds: list[int] = []  # noqa: RUF012

        def set_random_seed(self, seed: int) -> None:
            self.seeds.append(seed)

        def __call__(self, *, image: Any) -> dict[str, Any]:
            assert isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (32, 48, 3)
            return {"image": change(image)}

    Compose.__module__ = "albumentations.core.composition"
    return Compose()


def test_a_view_is_the_image_transformed(backbone: Backbone) -> None:
    whole = (images() * 255).round() / 255
    mirror = albumentation(lambda image: image[:, ::-1])
    source = MemoryTokens.extract(backbone, whole, IDS, transforms=[flipped, mirror], dtype=torch.float32)
    turned = MemoryTokens.extract(backbone, whole.flip(-1), IDS, dtype=torch.float32)
    assert source.views is not None and len(source.views) == 3
    mixed = source.batch(["c", "a", "b"], [1, 0, 2]).sequence[0]
    assert torch.allclose(mixed[[0, 2]], turned.batch(["c", "b"]).sequence[0], atol=1e-5)
    assert torch.equal(mixed[1:2], source.batch(["a"]).sequence[0])
    assert len(set(mirror.seeds)) == 4
    with pytest.raises(DataError, match=r"view 0 \.\.\. 2; asked for \[3\]"):
        source.batch(["a"], [3])


@pytest.mark.parametrize("transform", [JITTER, noisy])
def test_draws_repeat_and_leave_the_callers_generators_alone(transform: Any, backbone: Backbone) -> None:
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    first = MemoryTokens.extract(backbone, images(), IDS, transforms=[transform, transform])
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.manual_seed(5)
    again = MemoryTokens.extract(backbone, images()[[1, 0]], ["b", "a"], transforms=[transform, transform])
    for view in (0, 1, 2):
        one, two = (source.batch(["a", "b"], [view] * 2).sequence[0] for source in (first, again))
        assert torch.equal(one, two)
    drawn = [first.batch(first.ids, [view] * len(first.ids)).sequence[0] for view in (1, 2)]
    assert not torch.equal(*drawn)


def learn(source: Any, **options: Any) -> PatchMeanHead:
    torch.manual_seed(0)
    head = PatchMeanHead(64, [Task("x")], hidden_dim=4)
    targets = {"x": dict(zip(IDS, (0.0, 1.0, 2.0, 4.0), strict=True))}
    fit(head, source, targets=targets, epochs=3, batch_size=2, lr=1e-2, **options)
    return head


def weights(head: PatchMeanHead) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in head.parameters()])


def test_training_draws_views_and_resumes_with_them(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)

    def live() -> LiveTokens:
        return LiveTokens(backbone, images(), IDS, transform=JITTER)

    plain, stored = (MemoryTokens.extract(backbone, images(), IDS, transforms=t) for t in ((), [JITTER]))
    assert not torch.equal(weights(learn(plain)), weights(learn(stored)))
    whole = learn(live(), out=tmp_path / "whole")
    assert not torch.equal(weights(whole), weights(learn(LiveTokens(backbone, images(), IDS))))
    assert torch.equal(live().batch(IDS).sequence[0], LiveTokens(backbone, images(), IDS).batch(IDS).sequence[0])

    class Stopped(Exception):
        pass

    def stop(epoch: int, row: dict[str, float]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        learn(live(), out=tmp_path / "parts", callbacks=[stop])
    assert torch.equal(weights(learn(live(), out=tmp_path / "parts")), weights(whole))


def test_maps_are_refused_where_transforms_may_move_pixels(backbone: Backbone) -> None:
    head = DenseHead(64, [Task("map", kind="dense")], hidden_dim=4, depth=1)
    targets = {"map": torch.rand(4, 1, 2, 3)}
    for source in (
        MemoryTokens.extract(backbone, images(), IDS, transforms=[flipped]),
        LiveTokens(backbone, images(), IDS, transform=flipped),
    ):
        with pytest.raises(ConfigError, match="maps cannot be trained on views made by transforms"):
            fit(head, source, targets=targets, target_ids=IDS, recipe=Recipe(epochs=1))


def test_a_transform_must_return_an_image(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="a transform returned int; expected an image"):
        MemoryTokens.extract(backbone, images(), IDS, transforms=[lambda image: 3])


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
    from dinoneck.training import TensorBoardLogger, WandbLogger

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
    tensorboard, wandb = TensorBoardLogger("runs"), WandbLogger(project="cover", name="first")
    assert calls == []  # nothing is opened before the first epoch: other processes never write
    tensorboard(0, {"loss": 0.5, "val_loss": 0.25})
    wandb(3, {"loss": 0.5})
    wandb(4, {"loss": 0.25})
    assert calls == [
        (("runs",), {}),
        ("loss", 0.5, 0),
        ("val_loss", 0.25, 0),
        "flush",
        ((), {"project": "cover", "name": "first"}),
        ({"loss": 0.5}, 3),
        ({"loss": 0.25}, 4),
    ]
    for name, logger in (("torch.utils.tensorboard", lambda: TensorBoardLogger("runs")), ("wandb", WandbLogger)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"pip install {name.split('.')[-1]}"):
            logger()
