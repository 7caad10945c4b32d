"""Terms of one loss begin on one scale, so that none of them drowns another."""

from __future__ import annotations

import logging

import pytest
import torch

from dinoneck import Composition, TargetTransform, Task
from dinoneck.losses import CompositionLoss, TaskLoss, UncertaintyWeighting

IMAGES, AREA = 48, 0.21
PARTS, SUMS = ("clover", "dead", "green"), {"GDM": ("clover", "green"), "all": ("clover", "dead", "green")}
BIOMASS = Composition(PARTS, SUMS, "biomass", "total", "shares")  # type: ignore[arg-type]


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


def test_a_ratio_that_only_the_weights_make_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    """Losses of 16 and 1 with weights of 2 and 0.1: 320 to 1."""
    tasks = [Task("mass", dim=2, weight=(1.9, 0.1)), Task("state", weight=0.1)]
    outputs = {"mass": torch.zeros(4, 2), "state": torch.zeros(4, 1)}
    with caplog.at_level(logging.WARNING):
        TaskLoss(tasks)(outputs, {"mass": torch.full((4, 2), 4.0), "state": torch.ones(4, 1)})
    assert not caplog.records
