"""A step whose batch is computed in parts is the step of the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.small_fit import flat
from torch import Tensor

from dinoneck import PatchMeanHead, Task, Tokens, load_backbone
from dinoneck.errors import ConfigError
from dinoneck.losses import (
    Composition,
    CompositionLoss,
    DensityRegulariser,
    TaskLoss,
    UncertaintyWeighting,
)
from dinoneck.losses.masked import MicroBatch
from dinoneck.training import LiveTokens, Recipe, fit
from dinoneck.training.engine import Engine
from dinoneck.training.objective import Objective
from dinoneck.training.samples import Targets

IMAGES = 7
IDS = [str(i) for i in range(IMAGES)]
NAN = float("nan")


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_missing(values: Tensor) -> Tensor:
    """The first three samples, and some more values, are missing: parts have other counts."""
    values = values.clone()
    values[:3] = NAN
    values[5, ..., 0] = NAN
    return values


def object_ids() -> Tensor:
    """Two objects in the first image, one in the third, none in the second and last, the rest unknown."""
    ids = torch.zeros(IMAGES, 4, 6, dtype=torch.long)
    ids[0, :2, :2] = 1001
    ids[0, 2:, 3:] = 2001
    ids[2, 1:3, 1:4] = 1001
    ids[3:6] = -1
    return ids


def labels(*size: int) -> Tensor:
    classes = torch.randint(0, 3, (IMAGES, *size), generator=torch.Generator().manual_seed(1))
    classes[:2] = -1
    classes[4, ...] = 2
    return classes


SEGMENTATION = Task("s", dim=3, kind="segmentation")
INSTANCES = Task("o", dim=2, kind="instances")
PARTS = Composition(("leaf", "stem"), {"both": ("leaf", "stem")}, "plant", "mass", "ratio")
# loss, outputs, targets, masks
CASES: dict[str, Any] = {
    "numbers": (TaskLoss([Task("x", dim=2)]), {"x": (2,)}, {"x": with_missing(random(IMAGES, 2))}),
    "a weight per output": (
        TaskLoss([Task("x", dim=2, weight=(0.3, 2.0))]),
        {"x": (2,)},
        {"x": with_missing(random(IMAGES, 2))},
    ),
    "smooth l1 and a ratio": (
        TaskLoss([Task("x", loss="smooth_l1", weight=0.2), Task("r", dim=3, kind="ratio")]),
        {"x": (1,), "r": (3,)},
        {"x": with_missing(random(IMAGES, 1)), "r": random(IMAGES, 3).softmax(1)},
    ),
    "classes": (
        TaskLoss([Task("c", dim=3, kind="classification")]),
        {"c": (3,)},
        {"c": labels()},
    ),
    "pixels": (TaskLoss([SEGMENTATION]), {"s": (3, 2, 3)}, {"s": labels(4, 6)}),
    "cells": (
        TaskLoss([Task("d", dim=2, kind="dense")]),
        {"d": (2, 2, 3)},
        {"d": with_missing(random(IMAGES, 2, 2, 3))},
        {"d": random(IMAGES, 2, 3).abs()},
    ),
    "density": (
        TaskLoss(
            [Task("m", kind="density")], regularisers=[DensityRegulariser("m", 0.3, 0.2, 0.1)]
        ),
        {"m": (1,), "m.map": (1, 2, 3)},
        {"m": with_missing(random(IMAGES, 1))},
    ),
    "a composition": (
        TaskLoss(
            [Task("mass"), Task("ratio", dim=2, kind="ratio")],
            [CompositionLoss(PARTS, weights=(0.2, 0.3, 0.5))],
        ),
        {"mass": (1,), "ratio": (2,)},
        {"mass": with_missing(random(IMAGES, 1)), "ratio": random(IMAGES, 2).softmax(1)},
    ),
    "objects by queries": (
        TaskLoss([INSTANCES]),
        {"o.classes": (4, 3), "o.masks": (4, 2, 3)},
        {"o": object_ids()},
    ),
    "objects by centres": (TaskLoss([INSTANCES]), {"o.map": (6, 2, 3)}, {"o": object_ids()}),
    "pixels by queries": (
        TaskLoss([SEGMENTATION]),
        {"s": (3, 2, 3), "s.classes": (4, 4), "s.masks": (4, 2, 3)},
        {"s": labels(4, 6)},
    ),
}


def gradients(
    case: str, rows: list[list[int]], sample_weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total, and the gradients of the outputs, of the parts of these rows; one part is a plain call."""
    loss, shapes, targets, *further = CASES[case]
    masks = {name: x >= 0 for name, x in targets.items() if not x.is_floating_point()}
    for mask in further:
        masks |= mask
    outputs = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        outputs[name] = random(IMAGES, *shape, seed=seed + 5).requires_grad_()
    counts = loss.counts(outputs, targets, masks)
    total = torch.zeros((), dtype=torch.float64)
    for part_rows in rows:
        micro_batch = None
        if len(rows) > 1 or sample_weights is not None:
            weights = None if sample_weights is None else sample_weights[part_rows]
            micro_batch = MicroBatch(counts, len(part_rows), IMAGES, weights)
        tables = []
        for table in (outputs, targets, masks):
            tables.append({name: x[part_rows] for name, x in table.items()})
        value, _ = loss(*tables, micro_batch)
        value.backward()
        total += value.detach()
    return total, {name: x.grad for name, x in outputs.items() if x.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_the_losses_of_uneven_parts_add_up_to_that_of_the_batch(case: str) -> None:
    whole, expected = gradients(case, [[*range(IMAGES)]])
    total, added = gradients(case, [[0, 1, 2], [3, 4], [5, 6]])
    assert torch.allclose(total, whole, rtol=1e-6)
    assert {*added} == {*expected}
    for name, gradient in expected.items():
        assert torch.allclose(added[name], gradient, rtol=1e-5, atol=1e-8), name
        assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize("case", CASES)
def test_weights_of_samples_multiply_their_errors(case: str) -> None:
    """One weight for all is that factor of the loss; weights w and 1 - w add up to it."""
    whole, expected = gradients(case, [[*range(IMAGES)]])
    halved, half = gradients(case, [[*range(IMAGES)]], torch.full((IMAGES,), 0.5))
    assert torch.allclose(halved, 0.5 * whole, rtol=1e-6)
    weights = torch.linspace(0, 1, IMAGES)
    first, of_first = gradients(case, [[0, 1], [2, 3, 4], [5, 6]], weights)
    second, of_second = gradients(case, [[*range(IMAGES)]], 1 - weights)
    assert torch.allclose(first + second, whole, rtol=1e-6)
    for name, gradient in expected.items():
        assert torch.allclose(half[name], 0.5 * gradient, rtol=1e-5, atol=1e-8)
        assert torch.allclose(of_first[name] + of_second[name], gradient, rtol=1e-5, atol=1e-8)


def test_the_mean_over_known_values_is_that_of_the_batch() -> None:
    """Errors 1, 3 and 5 of which one part has the first: (1 + 9 + 25) / 3, not the mean of 1 and 17."""
    loss = TaskLoss([Task("x")])
    outputs = torch.zeros(4, 1)
    targets = torch.tensor([[1.0], [NAN], [3.0], [5.0]])
    counts = loss.counts(["x"], {"x": targets})
    total = 0.0
    for rows in (slice(0, 2), slice(2, 4)):
        micro_batch = MicroBatch(counts, num_samples=2, num_in_batch=4)
        total += float(loss({"x": outputs[rows]}, {"x": targets[rows]}, None, micro_batch)[0])
    assert total == pytest.approx(35 / 3)


class DoubleTokens:
    """Tokens in float64, so that rounding stays far below what a wrong weight would change."""

    ids = IDS

    def batch(self, ids: list[str], views: Any = None) -> Tokens:
        patches = random(IMAGES, 6, 8)[[int(name) for name in ids]]
        return Tokens.from_patches(patches, grid=(2, 3), patch_size=16)


def trained(recipe: Recipe, *, learned: bool = False, **options: Any) -> Tensor:
    """The weights after two epochs of batches of 4 and 3 of which many values are missing."""
    tasks = [Task("x"), Task("kind", dim=3, kind="classification")]
    torch.manual_seed(0)
    head = PatchMeanHead(8, tasks, hidden_dim=4).double()
    weighting = UncertaintyWeighting(["x", "kind"]) if learned else None
    values = np.array([NAN, 1, 2, NAN, -1, NAN, 3.0])
    fit(
        head,
        DoubleTokens(),
        {"x": values, "kind": np.array([0, 1, -1, -1, 2, 1, -1])},
        target_ids=IDS,
        ids=IDS,
        loss=TaskLoss(tasks, (), weighting),
        recipe=recipe,
        lr=1e-3,
        batch_size=4,
        **{"epochs": 2, **options},
    )
    if weighting is not None:
        return torch.cat([flat(head), flat(weighting).double()])
    return flat(head)


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"clip_norm": 0.05},
    "sam": {"optimizer": "sam", "rho": 0.5},
    "mixup": {"mixup_alpha": 1.0, "mixup_off_last": 0.0},
    "mixup per sample": {
        "mixup_alpha": 1.0,
        "mixup_off_last": 0.0,
        "mixup_per_sample": True,
    },
    "average": {"ema_decay": 0.5},
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_in_parts_is_the_run_of_whole_batches(
    name: str, learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plain gradient descent: AdamW moves a weight by lr where rounding is all of its gradient."""

    def descent(groups: Any, lr: float, **_: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([{**group, "weight_decay": 0.0} for group in groups], lr=10 * lr)

    monkeypatch.setattr(torch.optim, "AdamW", descent)
    whole = trained(Recipe(**RECIPES[name]), learned=learned)
    for parts in (2, 3, 4):
        in_parts = trained(Recipe(**RECIPES[name], accumulate=parts), learned=learned)
        assert torch.allclose(in_parts, whole, rtol=0, atol=2e-6)
    if name != "plain":
        assert not torch.allclose(trained(Recipe(), learned=learned), whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixup_alpha": 1.0, "mixup_off_last": 0.0},
        {"mixup_alpha": 1.0, "mixup_off_last": 0.0, "mixup_per_sample": True},
        {"mixup_alpha": 1.0, "mixup_off_last": 0.0, "cutmix_alpha": 1.0},
    ],
)
def test_a_backbone_that_is_trained_along_gets_the_gradient_of_the_batch(
    options: dict[str, Any],
) -> None:
    """Partners may be in other parts: their tokens are computed in both."""
    images = np.random.RandomState(0).randint(0, 255, (6, 32, 32, 3), np.uint8)
    weights = []
    for accumulate in (1, 2, 4):
        backbone = load_backbone("dinoneck_tiny").unfreeze_last(1)
        torch.manual_seed(0)
        head = PatchMeanHead(64, [Task("x")], hidden_dim=4)
        recipe = Recipe(**options, accumulate=accumulate, backbone_lr=1e-3)
        fit(
            head,
            LiveTokens(backbone, list(images), IDS[:6]),
            {"x": np.array([0.0, NAN, 2, 3, NAN, 9])},
            target_ids=IDS[:6],
            ids=IDS[:6],
            recipe=recipe,
            epochs=1,
            batch_size=6,
            lr=1e-3,
        )
        tuned = [p.detach().flatten() for p in backbone.parameters() if p.requires_grad]
        weights.append(torch.cat([flat(head), *tuned]))
    # one AdamW step moves a weight by lr times the sign of its gradient: those of almost 0 may turn
    for in_parts in weights[1:]:
        is_equal = torch.isclose(in_parts, weights[0], rtol=0, atol=1e-5)
        assert is_equal.double().mean() > 0.999


def test_a_run_in_parts_resumes_bit_for_bit(tmp_path: Path) -> None:
    recipe = Recipe(
        accumulate=2, ema_decay=0.9, ema_start=0.4, mixup_alpha=1.0, mixup_per_sample=True
    )
    straight = trained(recipe, epochs=4)

    def stop(epoch: int, row: dict[str, Any]) -> None:
        if epoch == stopped_after:
            raise KeyboardInterrupt

    for stopped_after in (0, 1, 2):
        out = tmp_path / str(stopped_after)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dinoneck.training.engine.SAVE_EVERY_S", 0.0)
            with pytest.raises(KeyboardInterrupt):
                trained(recipe, epochs=4, out=out, callbacks=[stop])
        assert torch.equal(trained(recipe, epochs=4, out=out), straight)


def test_an_average_begins_after_its_share_of_the_steps() -> None:
    """Of 8 steps the average begins after the fourth; decays warm up from then: 0.1, 2 / 11, 3 / 12, 4 / 13."""
    steps: list[Tensor] = []

    def kept(engine: Engine) -> None:
        step(engine)
        steps.append(flat(engine.trained))

    step = Engine.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", kept)
        result = trained(Recipe(ema_decay=0.997, ema_start=0.5), epochs=4)
    assert len(steps) == 8
    average = steps[3]
    for updates, present in enumerate(steps[4:]):
        decay = (1 + updates) / (10 + updates)
        average = decay * average + (1 - decay) * present
    assert torch.allclose(result, average, rtol=0, atol=1e-9)
    assert torch.equal(
        trained(Recipe(ema_decay=0.9, ema_start=0.99), epochs=4), trained(Recipe(), epochs=4)
    )


def test_mixup_per_sample_weighs_the_errors_of_every_image_by_its_share() -> None:
    torch.manual_seed(0)
    head = PatchMeanHead(8, [Task("x")], hidden_dim=4).double()
    recipe = Recipe(mixup_alpha=1.0, mixup_per_sample=True)
    objective = Objective(head, DoubleTokens(), TaskLoss([Task("x")]), recipe)
    x = random(IMAGES, 1)
    x[2] = NAN
    tokens = DoubleTokens().batch(IDS)
    [samples] = objective.micro_batches(tokens, Targets({"x": x}), mixes=True)
    mixup = samples.mixup
    shares = mixup.share
    partners = mixup.partners
    assert sorted(partners) == [*range(IMAGES)]
    assert partners != [*np.roll(range(IMAGES), 1)]
    assert len(set(shares.tolist())) == IMAGES
    expected = 0.0
    for i, partner in enumerate(partners):
        [layer] = tokens.sequence
        blended = shares[i].double() * layer[i] + (1 - shares[i].double()) * layer[partner]
        output = head(Tokens.from_patches(blended[None], grid=(2, 3), patch_size=16))["x"].detach()
        for share, target in ((shares[i], x[i]), (1 - shares[i], x[partner])):
            if not target.isnan():
                expected += float(share * (output - target).square()) / (IMAGES - 1)
    assert float(objective(samples)["loss"].detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 5, "batch_size": 4}, "accumulate is 5, and batch_size 4"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"ema_start": 0.1}, "needs ema_decay"),
        ({"ema_start": 1.0, "ema_decay": 0.9}, "ema_start is 1.0"),
        ({"mixup_per_sample": True}, "needs mixup_alpha"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**options)


def test_a_record_holds_the_options_only_where_they_are_set() -> None:
    assert not {"accumulate", "ema_start", "mixup_per_sample"} & {*Recipe().to_dict()}
    recipe = Recipe(accumulate=2, ema_decay=0.9, ema_start=0.1)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.to_dict()["accumulate"] == 2
