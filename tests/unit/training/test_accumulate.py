"""A step whose batch is computed in parts is the step of the whole batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
ALL_IMAGES = [*range(IMAGES)]
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


@dataclass(frozen=True)
class Case:
    """A loss, and what it compares for seven images.

    Attributes:
        loss: the loss.
        output_shapes: output of a head -> its shape for one image.
        targets: of all images.
        masks: by which cells count; whole numbers below 0 are ignored.
    """

    loss: TaskLoss
    output_shapes: dict[str, tuple[int, ...]]
    targets: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)

    def all_masks(self) -> dict[str, Tensor]:
        """The masks, with those of classes and ids."""
        masks = dict(self.masks)
        for name, target in self.targets.items():
            if not target.is_floating_point():
                masks[name] = target >= 0
        return masks

    def outputs(self) -> dict[str, Tensor]:
        """Random outputs, which take gradients."""
        outputs = {}
        for seed, (name, shape) in enumerate(self.output_shapes.items(), start=5):
            outputs[name] = random(IMAGES, *shape, seed=seed).requires_grad_()
        return outputs


CASES = {
    "numbers": Case(
        loss=TaskLoss([Task("x", dim=2)]),
        output_shapes={"x": (2,)},
        targets={"x": with_missing(random(IMAGES, 2))},
    ),
    "a weight per output": Case(
        loss=TaskLoss([Task("x", dim=2, weight=(0.3, 2.0))]),
        output_shapes={"x": (2,)},
        targets={"x": with_missing(random(IMAGES, 2))},
    ),
    "smooth l1 and a ratio": Case(
        loss=TaskLoss([Task("x", loss="smooth_l1", weight=0.2), Task("r", dim=3, kind="ratio")]),
        output_shapes={"x": (1,), "r": (3,)},
        targets={
            "x": with_missing(random(IMAGES, 1)),
            "r": random(IMAGES, 3).softmax(dim=1),
        },
    ),
    "classes": Case(
        loss=TaskLoss([Task("c", dim=3, kind="classification")]),
        output_shapes={"c": (3,)},
        targets={"c": labels()},
    ),
    "pixels": Case(
        loss=TaskLoss([SEGMENTATION]),
        output_shapes={"s": (3, 2, 3)},
        targets={"s": labels(4, 6)},
    ),
    "cells": Case(
        loss=TaskLoss([Task("d", dim=2, kind="dense")]),
        output_shapes={"d": (2, 2, 3)},
        targets={"d": with_missing(random(IMAGES, 2, 2, 3))},
        masks={"d": random(IMAGES, 2, 3).abs()},
    ),
    "density": Case(
        loss=TaskLoss(
            [Task("m", kind="density")], regularisers=[DensityRegulariser("m", 0.3, 0.2, 0.1)]
        ),
        output_shapes={"m": (1,), "m.map": (1, 2, 3)},
        targets={"m": with_missing(random(IMAGES, 1))},
    ),
    "a composition": Case(
        loss=TaskLoss(
            [Task("mass"), Task("ratio", dim=2, kind="ratio")],
            [CompositionLoss(PARTS, weights=(0.2, 0.3, 0.5))],
        ),
        output_shapes={"mass": (1,), "ratio": (2,)},
        targets={
            "mass": with_missing(random(IMAGES, 1)),
            "ratio": random(IMAGES, 2).softmax(dim=1),
        },
    ),
    "objects by queries": Case(
        loss=TaskLoss([INSTANCES]),
        output_shapes={"o.classes": (4, 3), "o.masks": (4, 2, 3)},
        targets={"o": object_ids()},
    ),
    "objects by centres": Case(
        loss=TaskLoss([INSTANCES]),
        output_shapes={"o.map": (6, 2, 3)},
        targets={"o": object_ids()},
    ),
    "pixels by queries": Case(
        loss=TaskLoss([SEGMENTATION]),
        output_shapes={"s": (3, 2, 3), "s.classes": (4, 4), "s.masks": (4, 2, 3)},
        targets={"s": labels(4, 6)},
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def gradients(
    case: Case, rows_of_parts: list[list[int]], sample_weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total, and the gradients of the outputs, of parts of the images.

    Args:
        case: what is compared.
        rows_of_parts: the images of each part; one part without sample weights is a plain call.
        sample_weights: of all images.
    """
    outputs = case.outputs()
    masks = case.all_masks()
    counts = case.loss.counts(outputs, case.targets, masks)
    is_plain = len(rows_of_parts) == 1 and sample_weights is None
    total = torch.zeros((), dtype=torch.float64)
    for rows in rows_of_parts:
        micro_batch = None
        if not is_plain:
            weights = None if sample_weights is None else sample_weights[rows]
            micro_batch = MicroBatch(counts, len(rows), IMAGES, weights)
        value, _ = case.loss(
            {name: output[rows] for name, output in outputs.items()},
            {name: target[rows] for name, target in case.targets.items()},
            {name: mask[rows] for name, mask in masks.items()},
            micro_batch,
        )
        value.backward()
        total += value.detach()
    return total, {name: x.grad for name, x in outputs.items() if x.grad is not None}


@each_case
def test_the_losses_of_uneven_parts_add_up_to_that_of_the_batch(case: Case) -> None:
    whole, expected = gradients(case, [ALL_IMAGES])

    total, added = gradients(case, [[0, 1, 2], [3, 4], [5, 6]])

    assert torch.allclose(total, whole, rtol=1e-6)
    assert {*added} == {*expected}
    for name, gradient in expected.items():
        assert torch.allclose(added[name], gradient, rtol=1e-5, atol=1e-8), name
        assert gradient.abs().max() > 1e-4


@each_case
def test_weights_of_samples_multiply_their_errors(case: Case) -> None:
    """One weight for all is that factor of the loss; weights w and 1 - w add up to it."""
    whole, expected = gradients(case, [ALL_IMAGES])
    weights = torch.linspace(0, 1, IMAGES)

    halved, half = gradients(case, [ALL_IMAGES], torch.full((IMAGES,), 0.5))
    first, of_first = gradients(case, [[0, 1], [2, 3, 4], [5, 6]], weights)
    second, of_second = gradients(case, [ALL_IMAGES], 1 - weights)

    assert torch.allclose(halved, 0.5 * whole, rtol=1e-6)
    assert torch.allclose(first + second, whole, rtol=1e-6)
    for name, gradient in expected.items():
        assert torch.allclose(half[name], 0.5 * gradient, rtol=1e-5, atol=1e-8)
        assert torch.allclose(of_first[name] + of_second[name], gradient, rtol=1e-5, atol=1e-8)


@each_case
def test_what_counts_in_parts_counts_in_the_batch(case: Case) -> None:
    """Also where nothing is known, or only values of an output with weight 0."""
    has_two_outputs = case.output_shapes.get("x") == (2,) and "x" in case.targets
    tasks = []
    for task in case.loss.tasks:
        ignores_second = has_two_outputs and task.name == "x"
        tasks.append(replace(task, weight=(1.0, 0.0) if ignores_second else 1.0))
    names = [task.name for task in tasks]
    names += [composition.name for composition in case.loss.compositions]
    for rows in (ALL_IMAGES, [0, 1, 2], [5], [6]):
        loss = TaskLoss(tasks, case.loss.compositions, UncertaintyWeighting(names))
        outputs = {name: output[rows].detach() for name, output in case.outputs().items()}
        targets = {name: target[rows].clone() for name, target in case.targets.items()}
        masks = {name: mask[rows] for name, mask in case.all_masks().items()}
        if has_two_outputs:
            targets["x"][:, 0] = NAN  # the second output, whose weight is 0, is the known one
        loss(outputs, targets, masks)

        counted = loss.counted(loss.counts(outputs, targets, masks))

        assert loss.weighting is not None
        assert [bool(counted[name]) for name in names] == loss.weighting.is_set.tolist()


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


@pytest.mark.slow
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
