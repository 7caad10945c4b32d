"""The freeze plan: stages, what they leave alone, resume; the ranks are in test_freeze_ddp.py."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from tests.unit.training.small_model import Model, batch, learn
from torch import Tensor, nn

from dinoneck import ConfigError
from dinoneck.training import FreezeSchedule, cosine_with_warmup


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The parts that training has changed: block numbers, ``norm``, ``embeddings``, ``head``."""
    found = set()
    for key, value in model.state_dict().items():
        if not torch.equal(value, before[key]):
            name = key.removeprefix("backbone.adapter.model.")
            first = name.split(".")[0]
            found.add(
                name.split(".")[1]
                if first == "blocks"
                else first
                if first in ("norm", "head")
                else "embeddings"
            )
    return found


def test_stages() -> None:
    schedule = FreezeSchedule({10: "last:1", 0: "all", 12: "none", 11: "last:2"})
    assert [schedule.stage(e) for e in (0, 9, 10, 11, 12, 1000)] == [
        "all",
        "all",
        "last:1",
        "last:2",
        "none",
        "none",
    ]
    assert list(schedule.plan) == [0, 10, 11, 12]
    assert FreezeSchedule({3: "last:1"}).stage(2) == "all"
    assert FreezeSchedule({0: "none"}).stage(0) == "none"


def test_each_stage_moves_its_own_parts_and_nothing_else() -> None:
    """Frozen parameters are in the optimizer all along; neither weight decay nor momentum reaches them."""
    model, schedule = (
        Model(),
        FreezeSchedule({0: "all", 1: "last:1", 2: "none", 3: "last:2", 4: "all"}),
    )
    optimizer = torch.optim.SGD(
        schedule.param_groups(model, lr=0.1, weight_decay=0.5), lr=0.1, momentum=0.9
    )
    blocks = {str(i) for i in range(6)}
    expected = [{"head"}, {"head", "5", "norm"}, {"head", "norm", "embeddings"} | blocks]
    expected += [{"head", "4", "5", "norm"}, {"head"}]
    for epoch, parts in enumerate(expected):
        before = state_of(model)
        same_model, same = schedule.start_epoch(epoch, model, optimizer)
        assert same_model is model
        assert same is optimizer
        for step in range(2):
            learn(model, optimizer, 10 * epoch + step)
        assert moved(model, before) == parts
        assert all((p.grad is None) != p.requires_grad for p in model.parameters())


def test_learning_rates() -> None:
    model = Model()

    def rates(
        lr: float = 1.0, layer_decay: float | None = None, **options: Any
    ) -> dict[str, float]:
        groups = FreezeSchedule({0: "all"}, **options).param_groups(
            model, lr=lr, layer_decay=layer_decay
        )
        assert {p for group in groups for p in group["params"]} == {*model.parameters()}
        return {group["name"]: group["lr"] for group in groups}

    assert rates(lr_scale=0.25)["backbone.decay"] == 0.25 and rates()["head.decay"] == 1.0
    assert rates()["backbone.no_decay"] == pytest.approx(0.1)
    assert rates(layer_decay=0.5)["backbone.block4.decay"] == pytest.approx(0.05)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does() -> None:
    schedule = FreezeSchedule({0: "all", 2: "last:1", 3: "last:3", 4: "none"})

    def run(model: Model, epochs: range, saved: Any = None) -> Any:
        optimizer = torch.optim.AdamW(schedule.param_groups(model, lr=1e-2, layer_decay=0.8))
        parts = (model, optimizer, cosine_with_warmup(optimizer, 10))
        for part, state in zip(parts, saved or (), strict=False):
            part.load_state_dict(state)
        for epoch in epochs:
            schedule.start_epoch(epoch, model, parts[1])
            for step in range(2):
                learn(model, parts[1], 10 * epoch + step)
                parts[2].step()
        return copy.deepcopy([part.state_dict() for part in parts])

    whole, resumed = run(Model(), range(5)), run(Model(), range(3, 5), run(Model(), range(3)))
    assert all(torch.equal(value, resumed[0][key]) for key, value in whole[0].items())


def test_parameters_that_the_optimizer_lacks_are_refused() -> None:
    model, schedule = Model(), FreezeSchedule({0: "all", 1: "last:1"})
    optimizer = torch.optim.AdamW(model.head.parameters())
    schedule.start_epoch(0, model, optimizer)
    with pytest.raises(ConfigError, match="lacks 15 weights.*include_frozen=True"):
        schedule.start_epoch(1, model, optimizer)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="no peft")
def test_lora_learns_in_every_stage() -> None:
    model, schedule = Model(), FreezeSchedule({0: "all", 1: "last:1"})
    model.backbone.add_lora(2)
    optimizer = torch.optim.AdamW(schedule.param_groups(model, lr=0.1))
    lora = [p for name, p in model.backbone.named_parameters() if ".lora_" in name]
    schedule.start_epoch(0, model, optimizer)
    assert {id(p) for p in model.backbone.parameters() if p.requires_grad} == {id(p) for p in lora}
    report = schedule.apply(model, 1)
    assert report.trainable_blocks == tuple(range(6))
    assert all(p.requires_grad for p in lora)
    before = state_of(model)
    for step in range(2):
        learn(model, optimizer, step)
    assert moved(model, before) == {"head", "norm", *"012345"}
    assert sum(
        not torch.equal(v, before[k]) for k, v in model.state_dict().items() if ".lora_" in k
    ) == len(lora)


def test_gradients_left_over_from_a_stage_are_dropped_when_its_blocks_freeze() -> None:
    """An optimizer would apply them once more."""
    model = Model()
    schedule = FreezeSchedule({0: "last:2", 1: "all"})
    optimizer = torch.optim.SGD(schedule.param_groups(model, lr=0.1), lr=0.1)
    schedule.start_epoch(0, model, optimizer)
    images, target = batch(0)
    (model(images) - target).square().mean().backward()
    before = state_of(model)

    schedule.start_epoch(1, model, optimizer)
    optimizer.step()

    assert moved(model, before) == {"head"}
