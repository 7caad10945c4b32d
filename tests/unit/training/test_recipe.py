"""Every field of a recipe changes what comes out, and a run is the plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.noisy_head import WIDTH
from tests.unit.training.small_fit import flat
from torch import Tensor
from torch.nn import functional as F

from dinoneck import PatchMeanHead, Task, Tokens
from dinoneck.losses import TaskLoss, UncertaintyWeighting
from dinoneck.training import MemoryTokens, Recipe, fit, r2

Y = np.linspace(-1, 3, 12)
CHANGES = {
    "optimizer": {"optimizer": "sam"},
    "rho": {"optimizer": "sam", "rho": 0.5},
    "weight_decay": {"weight_decay": 0.5},
    "warmup": {"warmup": 0.5},
    "ema_decay": {"ema_decay": 0.5},
    "ema_start": {"ema_decay": 0.5, "ema_start": 0.4},
    "amp": {"amp": "bf16"},
    "clip_norm": {"clip_norm": 0.01},
    "standardise_tokens": {"standardise_tokens": False},
    "mixup_alpha": {"mixup_alpha": 1.0},
    "mixup_per_sample": {"mixup_alpha": 1.0, "mixup_per_sample": True},
    "mixup_off_last": {"mixup_alpha": 1.0, "mixup_off_last": 0.9},
}


def source_of(images: int = 12) -> MemoryTokens:
    patches = torch.randn(images, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    tokens = Tokens.from_patches(patches, grid=(2, 3), patch_size=16)
    return MemoryTokens([str(image) for image in range(images)], tokens)


SOURCE = source_of()
TRAINED_IDS = SOURCE.ids[:8]
HELD_OUT_IDS = SOURCE.ids[8:]


def head_of(*tasks: Task) -> PatchMeanHead:
    torch.manual_seed(0)
    return PatchMeanHead(WIDTH, tasks or [Task("x")], hidden_dim=4)


def trained(recipe: Recipe, **changes: Any) -> PatchMeanHead:
    """A head that learned Y in four epochs, if nothing else is given."""
    options = {
        "targets": {"x": Y},
        "target_ids": SOURCE.ids,
        "epochs": 4,
        "batch_size": 4,
        "lr": 1e-2,
        **changes,
    }
    head = head_of()
    fit(head, SOURCE, recipe=recipe, **options)
    return head


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_result(name: str) -> None:
    options = CHANGES[name]
    other_options = {key: value for key, value in options.items() if key != name}
    without = flat(trained(Recipe(**other_options)))

    changed = flat(trained(Recipe(**options)))

    assert changed.isfinite().all()
    assert not torch.equal(changed, without)


def test_all_fields_are_tested() -> None:
    """The rest are tested where they act: CutMix and rates of a backbone on live images, patience in runs.

    Parts of a batch change no result: test_accumulate.py.
    """
    tested_elsewhere = {
        "cutmix_alpha",
        "backbone_lr",
        "layer_decay",
        "freeze",
        "patience",
        "accumulate",
        "epochs",
        "batch_size",
        "lr",
        "seed",
    }

    assert set(Recipe.__struct_fields__) == {*CHANGES, *tested_elsewhere}


@pytest.mark.parametrize(
    ("name", "of_recipe", "of_call"),
    [
        pytest.param("lr", 1e-4, 2e-3, id="lr"),
        pytest.param("seed", 5, 7, id="seed"),
    ],
)
def test_what_fit_is_given_replaces_the_recipes(
    name: str, of_recipe: float, of_call: float
) -> None:
    by_call = flat(trained(Recipe(), **{name: of_call}))

    by_both = flat(trained(Recipe(**{name: of_recipe}), **{name: of_call}))

    assert torch.equal(by_both, by_call)
    assert not torch.equal(flat(trained(Recipe())), by_call)


def test_fp16_steps_that_overflow_are_left_out() -> None:
    """The first scale of 65536 overflows for large gradients; training goes on after it was lowered."""
    large = np.linspace(-1e3, 3e3, 12)

    head = trained(Recipe(amp="fp16"), targets={"x": large})

    assert flat(head).isfinite().all()


# The loop, written out


class DoubleTokens(MemoryTokens):
    def batch(self, ids: Any, views: Any = None) -> Tokens:
        return self.tokens[self.rows(ids)].to(dtype=torch.float64)


LOOP_IMAGES = 10
LOOP_EPOCHS = 4
LOOP_BATCH = 4
LOOP_SEED = 7
LOOP_LR = 1e-2
STEPS = LOOP_EPOCHS * 3
Weights = dict[str, Tensor]


def plain_forward(weights: Weights, patches: Tensor) -> Tensor:
    first, first_bias, last, last_bias = weights.values()
    hidden = F.leaky_relu(patches @ first.T + first_bias, 0.01)
    return (hidden @ last.T + last_bias).mean(dim=1)[:, 0]


def plain_batches() -> Iterator[np.ndarray]:
    """The rows of every step: a permutation per epoch, in batches."""
    for epoch in range(LOOP_EPOCHS):
        rows = np.random.default_rng([LOOP_SEED, epoch]).permutation(LOOP_IMAGES)
        for begin in range(0, LOOP_IMAGES, LOOP_BATCH):
            yield rows[begin : begin + LOOP_BATCH]


def plain_gradients(weights: Weights, patches: Tensor, y: Tensor) -> Weights:
    """The gradients of the squared error, scaled to a norm of at most 0.5."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    loss = (plain_forward(leaves, patches) - y).square().mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    shrink = min(1.0, 0.5 / (norm.item() + 1e-6))
    return {name: shrink * gradient for name, gradient in zip(leaves, gradients, strict=True)}


def plain_lr(step: int) -> float:
    """A rise over a fifth of the steps, then a cosine."""
    rising = round(0.2 * STEPS)
    if step < rising:
        return LOOP_LR * (step + 1) / rising
    progress = (step - rising) / (STEPS - rising)
    return LOOP_LR * 0.5 * (1 + np.cos(np.pi * progress))


@dataclass
class PlainAdamW:
    """One weight and its moments; matrices decay, biases do not."""

    weight: Tensor
    first: Tensor
    second: Tensor

    def step(self, number: int, gradient: Tensor) -> None:
        lr = plain_lr(number)
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient.square()
        if self.weight.ndim > 1:
            self.weight = self.weight * (1 - lr * 1e-2)
        unbiased_first = self.first / (1 - 0.9 ** (number + 1))
        unbiased_second = self.second / (1 - 0.999 ** (number + 1))
        self.weight = self.weight - lr * unbiased_first / (unbiased_second.sqrt() + 1e-8)


def plain_loop(weights: Weights, all_patches: Tensor, all_y: np.ndarray) -> Weights:
    """The moving average of the weights after all steps."""
    optimizers = {}
    for name, weight in weights.items():
        zeros = torch.zeros_like(weight)
        optimizers[name] = PlainAdamW(weight=weight, first=zeros, second=zeros)
    average = dict(weights)
    for step, rows in enumerate(plain_batches()):
        present = {name: optimizer.weight for name, optimizer in optimizers.items()}
        y = torch.tensor(all_y[rows], dtype=torch.float32)
        gradients = plain_gradients(present, all_patches[rows], y)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, optimizer in optimizers.items():
            optimizer.step(step, gradients[name])
            average[name] = decay * average[name] + (1 - decay) * optimizer.weight
    return average


def test_several_steps_are_the_plain_loop() -> None:
    """AdamW with decay of matrices only, warm-up and cosine, clipping and the average, written out in float64."""
    small = source_of(LOOP_IMAGES)
    source = DoubleTokens(small.ids, small.tokens)
    y = np.linspace(-1, 3, LOOP_IMAGES)
    head = head_of().double()
    initial = {name: weight.detach().clone() for name, weight in head.named_parameters()}
    expected = plain_loop(initial, source.tokens.patches[0].double(), y)

    fit(
        head,
        source,
        {"x": y},
        target_ids=source.ids,
        epochs=LOOP_EPOCHS,
        batch_size=LOOP_BATCH,
        lr=LOOP_LR,
        seed=LOOP_SEED,
        recipe=Recipe(standardise_tokens=False, ema_decay=0.9, warmup=0.2, clip_norm=0.5),
    )

    for name, weight in head.named_parameters():
        assert torch.allclose(weight, expected[name], rtol=1e-9, atol=1e-12), name


# The loss's parameters, and validation


class Watched(UncertaintyWeighting):
    """Notes the learned weight of its task at every call in training."""

    def __init__(self, tasks: list[str]) -> None:
        super().__init__(tasks)
        self.seen: list[Tensor] = []

    def forward(self, *arguments: Any, **more: Any) -> Tensor:
        if self.training:
            self.seen.append(self.log_variance.detach().clone())
        return super().forward(*arguments, **more)


@pytest.fixture(scope="module")
def watched() -> Watched:
    """The weighting of a training by SAM, whose decay would pull every parameter to 0."""
    weighting = Watched(["x"])
    recipe = Recipe(optimizer="sam", rho=0.5, weight_decay=10.0)
    trained(recipe, loss=TaskLoss([Task("x")], (), weighting), epochs=2)
    return weighting


def test_the_losss_own_parameters_do_not_walk(watched: Watched) -> None:
    """Both passes of a step of SAM see the same. The first loss of all sets where they start."""
    first_passes = watched.seen[2::2]
    second_passes = watched.seen[3::2]

    assert len(first_passes) >= 2
    for first, second in zip(first_passes, second_passes, strict=True):
        assert torch.equal(first, second)


def test_the_losss_own_parameters_learn(watched: Watched) -> None:
    assert not torch.equal(watched.seen[0], watched.seen[-1])


@dataclass
class StoppedRun:
    """A head that learned noise until the held-out loss fell no further for three epochs."""

    head: PatchMeanHead
    held_out: np.ndarray
    losses: list[float]

    @property
    def best(self) -> int:
        return int(np.argmin(self.losses))


@pytest.fixture(scope="module")
def stopped_run() -> StoppedRun:
    noise = np.random.RandomState(0).randn(12)
    head = head_of()
    history = fit(
        head,
        SOURCE,
        {"x": noise},
        target_ids=SOURCE.ids,
        ids=TRAINED_IDS,
        val_ids=HELD_OUT_IDS,
        epochs=60,
        batch_size=4,
        lr=3e-2,
        patience=3,
    )
    losses = [row["val_loss"] for row in history]
    return StoppedRun(head=head, held_out=noise[8:], losses=losses)


def test_patience_stops(stopped_run: StoppedRun) -> None:
    epochs = len(stopped_run.losses)

    assert epochs == stopped_run.best + 1 + 3
    assert epochs < 60


def test_patience_keeps_the_best_weights(stopped_run: StoppedRun) -> None:
    predictions = stopped_run.head.predict(SOURCE.batch(HELD_OUT_IDS))["x"][:, 0].numpy()

    loss = ((predictions - stopped_run.held_out) ** 2).mean()
    assert loss == pytest.approx(stopped_run.losses[stopped_run.best], rel=1e-4)


KINDS = np.arange(12) % 2


@dataclass
class ValidatedRun:
    """A head of a value and a class, what it predicts of held-out images, and the last row of its history."""

    head: PatchMeanHead
    row: dict[str, float]
    predictions: dict[str, Tensor]


def fit_value_and_class(**options: Any) -> tuple[PatchMeanHead, dict[str, float]]:
    head = head_of(Task("x"), Task("kind", dim=2, kind="classification"))
    history = fit(
        head,
        SOURCE,
        {"x": Y, "kind": KINDS},
        target_ids=SOURCE.ids,
        ids=TRAINED_IDS,
        epochs=3,
        batch_size=4,
        lr=1e-2,
        ema_decay=0.9,
        **options,
    )
    return head, history[-1]


@pytest.fixture(scope="module")
def validated_run() -> ValidatedRun:
    head, row = fit_value_and_class(val_ids=HELD_OUT_IDS)
    predictions = head.predict(SOURCE.batch(HELD_OUT_IDS))
    return ValidatedRun(head=head, row=row, predictions=predictions)


def test_r2_is_that_of_the_averaged_weights(validated_run: ValidatedRun) -> None:
    expected = r2(Y[8:], validated_run.predictions["x"][:, 0].numpy())

    assert validated_run.row["val_r2/x"] == pytest.approx(expected, rel=1e-4)


def test_r2_of_all_is_that_of_the_only_value(validated_run: ValidatedRun) -> None:
    assert validated_run.row["val_r2"] == validated_run.row["val_r2/x"]


def test_accuracy_is_that_of_the_averaged_weights(validated_run: ValidatedRun) -> None:
    classes = validated_run.predictions["kind"].argmax(dim=1).numpy()

    assert validated_run.row["val_accuracy/kind"] == (classes == KINDS[8:]).mean()


def test_the_validation_loss_is_the_sum_of_those_of_the_tasks(validated_run: ValidatedRun) -> None:
    row = validated_run.row

    assert row["val_loss"] == pytest.approx(row["val_loss/x"] + row["val_loss/kind"])


def test_validation_does_not_change_what_is_learnt(validated_run: ValidatedRun) -> None:
    without_validation, _ = fit_value_and_class()

    assert torch.equal(flat(validated_run.head), flat(without_validation))
