"""Terms of one loss begin on one scale, so that none of them drowns another."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from dinoneck import Composition, FPNHead, TargetTransform, Task, load_backbone
from dinoneck.data import Pasture
from dinoneck.losses import CompositionLoss, TaskLoss, UncertaintyWeighting
from dinoneck.training import MemoryTokens, Recipe, fit, r2

IMAGES, AREA = 48, 0.21
PARTS, SUMS = ("clover", "dead", "green"), {"GDM": ("clover", "green"), "all": ("clover", "dead", "green")}
BIOMASS = Composition(PARTS, SUMS, "biomass", "total", "shares")  # type: ignore[arg-type]


@pytest.mark.parametrize("log1p", [False, True])
def test_an_index_learns_next_to_five_composed_masses(log1p: bool) -> None:
    samples = [Pasture(seed=0, size=(32, 64)).sample(i) for i in range(IMAGES)]
    backbone = load_backbone("dinoneck_tiny", layers=(1, 2, 3))
    images = [torch.as_tensor(sample.image).permute(2, 0, 1) for sample in samples]
    source = MemoryTokens.extract(backbone, images, [f"{i:02d}" for i in range(IMAGES)])
    grams = np.array([[sample.grams[f"Dry_{part.title()}_g"] for part in PARTS] for sample in samples])
    targets = {"total": grams.sum(1), "shares": grams / grams.sum(1, keepdims=True)}
    targets["ndvi"] = np.array([sample.ndvi.mean() for sample in samples], dtype=np.float64)
    tasks = [
        Task("total", unit="g", minimum=0, transform=TargetTransform(area=AREA, log1p=log1p).fit(targets["total"])),
        Task("shares", dim=3, kind="ratio"),
        Task("ndvi", transform=TargetTransform().fit(targets["ndvi"])),
    ]
    torch.manual_seed(0)
    head = FPNHead(64, tasks, 3, (1, 2, 3), fpn_dim=16, compositions=[BIOMASS])
    parts = TaskLoss(head.tasks, head.compositions)(head(source.batch(source.ids)), _model_space(tasks, targets))[1]
    sizes = [part.item() for part in parts.values()]
    assert max(sizes) < 100 * min(sizes), {name: round(part.item(), 3) for name, part in parts.items()}
    history = fit(head, source, targets=targets, target_ids=source.ids, ids=source.ids, epochs=20, batch_size=16,
                  lr=3e-3, recipe=Recipe(ema_decay=None),
                  loss=TaskLoss(tasks, head.compositions, UncertaintyWeighting(list(parts))))  # fmt: skip
    assert history[-1]["loss/biomass"] < history[0]["loss/biomass"]
    assert r2(head.predict(source.batch(source.ids))["ndvi"][:, 0].numpy(), targets["ndvi"]) > 0.9


def test_a_part_that_drowns_another_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    tasks = (Task("total"), Task("shares", dim=3, kind="ratio"))
    outputs = {"total": torch.zeros(4, 1), "shares": torch.zeros(4, 3)}
    targets = {"total": torch.full((4, 1), 60.0), "shares": torch.eye(3)[[0, 1, 2, 0]]}
    with caplog.at_level(logging.WARNING):
        loss = TaskLoss(tasks, [CompositionLoss(BIOMASS, scale=None)])
        for _ in range(2):
            loss(outputs, targets)
        TaskLoss(tasks).eval()(outputs, targets)
        TaskLoss(tasks, (), UncertaintyWeighting(["total", "shares"]))(outputs, targets)
        TaskLoss((Task("total", transform=TargetTransform(mean=50.0, std=20.0)), tasks[1]))(
            outputs, targets | {"total": torch.ones(4, 1)}
        )
    [record] = caplog.records
    assert "the loss of 'total' is 3.6e+03 and that of 'shares' is" in record.getMessage()


def _model_space(tasks: list[Task], targets: dict[str, np.ndarray]) -> dict[str, Tensor]:
    values = {task.name: torch.as_tensor(targets[task.name]).reshape(IMAGES, -1) for task in tasks}
    return {
        task.name: (values[task.name] if task.transform is None else task.transform.forward(values[task.name])).float()
        for task in tasks
    }
