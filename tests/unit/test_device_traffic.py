"""What training and prediction copy between host and device, and how often the host waits, on the pretend device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from tests.pretend_device import NAME, PretendDevice, pretend_device

from dinoneck import Backbone, FPNHead, PatchMeanHead, Predictor, Task, load_backbone
from dinoneck.heads.head import Head
from dinoneck.losses import Composition, TaskLoss, UncertaintyWeighting
from dinoneck.store import FeatureStore, MemoryStore
from dinoneck.store.encoding import StoreDtype
from dinoneck.tasks import TargetTransform
from dinoneck.tokens import Tokens
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, fit

IDS = [f"image{i:02d}" for i in range(12)]
BATCHES = 4
MASS = Task("mass", transform=TargetTransform(mean=5.0, std=2.0), minimum=0)
STATE = Task("state", dim=3, kind="classification")
SHARES = Task("shares", dim=2, kind="ratio", labels=("leaf", "stem"))
CELLS = Task("cells", dim=2, kind="dense", weight=(1.0, 0.5))
SEGMENTS = Task("segments", dim=3, kind="segmentation")
PARTS = Composition(("leaf", "stem"), {"all": ("leaf", "stem")}, "parts", total="mass", ratio="shares")


def targets_of(tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(0)
    values: dict[str, Callable[[int], Any]] = {
        "mass": lambda i: 3.0 + i % 5,
        "state": lambda i: i % 3,
        "shares": lambda i: np.array([i / 12, 1 - i / 12]),
        "cells": lambda i: rng.normal(size=(2, 2, 3)),
        "segments": lambda i: rng.integers(-1, 3, (2, 3)),
    }
    return {task.name: {name: values[task.name](i) for i, name in enumerate(IDS)} for task in tasks}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(IDS):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def stores(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    backbone, folder = load_backbone("dinoneck_tiny"), tmp_path_factory.mktemp("stores")
    made = {}
    for dtype in get_args(StoreDtype):
        made[dtype] = FeatureStore.create(
            folder / dtype, backbone=backbone, patterns="flips4", image_size=None, dtype=dtype
        )
        made[dtype].extract(photos)
    return made


def per_step(train: Callable[[int], PretendDevice]) -> Counter[str]:
    """The events of one more epoch, without those of its begin and end, which do not depend on its length."""
    short, long = train(1), train(2)
    return Counter({name: (long.events[name] - short.events[name]) for name in long.events})


def trained(source: Any, make: Callable[[], Head], recipe: dict[str, Any], epochs: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    head = make()
    loss = options.pop("loss", lambda head: None)(head)
    recipe = {"batch_size": len(IDS) // BATCHES, **recipe}
    history = fit(
        head.to(options.pop("device", "cpu")), source, targets=targets_of(head.tasks), loss=loss,
        recipe=Recipe(epochs=epochs, **recipe), **options,
    )  # fmt: skip
    return head, history
