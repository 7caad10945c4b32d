"""Every field of a recipe changes what comes out, and a run is the plain loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.noisy_head import WIDTH
from tests.unit.training.small_fit import flat

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
    return MemoryTokens(
        [str(i) for i in range(images)], Tokens.from_patches(patches, grid=(2, 3), patch_size=16)
    )


SOURCE = source_of()


def head_of(*tasks: Task) -> PatchMeanHead:
    torch.manual_seed(0)
    return PatchMeanHead(WIDTH, tasks or [Task("x")], hidden_dim=4)


def trained(recipe: Recipe, **arguments: Any) -> PatchMeanHead:
    given = {
        "targets": {"x": Y},
        "target_ids": SOURCE.ids,
        "epochs": 4,
        "batch_size": 4,
        "lr": 1e-2,
    }
    head = head_of()
    fit(head, SOURCE, recipe=recipe, **{**given, **arguments})
    return head


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_result(name: str) -> None:
    without = {key: value for key, value in CHANGES[name].items() if key != name}
    changed, before = flat(trained(Recipe(**CHANGES[name]))), flat(trained(Recipe(**without)))
    assert changed.isfinite().all()
    assert not torch.equal(changed, before)


def test_all_fields_are_tested() -> None:
    """The rest are tested where they act: CutMix and rates of a backbone on live images, patience in runs.

    Parts of a batch change no result: test_accumulate.py.
    """
    elsewhere = {"cutmix_alpha", "backbone_lr", "layer_decay", "freeze", "patience", "accumulate"}
    elsewhere |= {"epochs", "batch_size", "lr", "seed"}
    assert {*Recipe.__struct_fields__} == {*CHANGES, *elsewhere}


def test_what_fit_is_given_replaces_the_recipes() -> None:
    for name, other, value in (("lr", 1e-4, 2e-3), ("seed", 5, 7)):
        by_recipe = flat(trained(Recipe(), **{name: value}))
        assert torch.equal(flat(trained(Recipe(**{name: other}), **{name: value})), by_recipe)
        assert not torch.equal(flat(trained(Recipe())), by_recipe)


def test_fp16_steps_that_overflow_are_left_out() -> None:
    """The first scale of 65536 overflows for large gradients; training goes on after it was lowered."""
    head = trained(Recipe(amp="fp16"), targets={"x": np.linspace(-1e3, 3e3, 12)})
    assert flat(head).isfinite().all()


class Wide(MemoryTokens):
    def batch(self, ids: Any, views: Any = None) -> Tokens:
        return self.tokens[self.rows(ids)].to(dtype=torch.float64)


def test_several_steps_are_the_plain_loop() -> None:
    """AdamW with decay of matrices only, warm-up and cosine, clipping and the average, written out in float64."""
    recipe = Recipe(standardise_tokens=False, ema_decay=0.9, warmup=0.2, clip_norm=0.5)
    source, y, epochs, size, lr = (
        Wide(source_of(10).ids, source_of(10).tokens),
        np.linspace(-1, 3, 10),
        4,
        4,
        1e-2,
    )
    torch.manual_seed(0)
    head = PatchMeanHead(WIDTH, [Task("x")], hidden_dim=4).double()
    weights = {name: p.detach().clone() for name, p in head.named_parameters()}
    fit(
        head,
        source,
        {"x": y},
        target_ids=source.ids,
        epochs=epochs,
        batch_size=size,
        lr=lr,
        seed=7,
        recipe=recipe,
    )

    def forward(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        names = list(w)
        hidden = torch.nn.functional.leaky_relu(x @ w[names[0]].T + w[names[1]], 0.01)
        return (hidden @ w[names[2]].T + w[names[3]]).mean(dim=1)[:, 0]

    steps, step, average, updates = epochs * 3, 0, dict(weights), 0
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    for epoch in range(epochs):
        rows = np.random.default_rng([7, epoch]).permutation(10)
        for begin in range(0, 10, size):
            chosen = rows[begin : begin + size]
            leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
            out = forward(leaves, source.tokens.patches[0][chosen].double())
            ((out - torch.tensor(y[chosen], dtype=torch.float32)) ** 2).mean().backward()
            norm = torch.cat([w.grad.flatten() for w in leaves.values()]).norm()
            shrink = min(1.0, 0.5 / (norm.item() + 1e-6))
            rising = round(0.2 * steps)
            factor = (
                (step + 1) / rising
                if step < rising
                else 0.5 * (1 + np.cos(np.pi * (step - rising) / (steps - rising)))
            )
            for name, w in weights.items():
                g = leaves[name].grad * shrink
                m, v = 0.9 * moments[name][0] + 0.1 * g, 0.999 * moments[name][1] + 0.001 * g * g
                moments[name] = m, v
                decayed = w * (1 - lr * factor * 1e-2) if w.ndim > 1 else w
                m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                weights[name] = decayed - lr * factor * m_hat / (v_hat.sqrt() + 1e-8)
            decay = min(0.9, (1 + updates) / (10 + updates))
            updates += 1
            average = {
                name: decay * average[name] + (1 - decay) * weights[name] for name in weights
            }
            step += 1
    for name, parameter in head.named_parameters():
        assert torch.allclose(parameter, average[name], rtol=1e-9, atol=1e-12), name


def test_the_losss_own_parameters_learn_without_decay_and_do_not_walk() -> None:
    seen = []

    class Watched(UncertaintyWeighting):
        def forward(self, *arguments: Any, **more: Any) -> torch.Tensor:
            seen.extend([self.log_variance.detach().clone()] if self.training else [])
            return super().forward(*arguments, **more)

    loss = TaskLoss([Task("x")], (), Watched(["x"]))
    trained(Recipe(optimizer="sam", rho=0.5, weight_decay=10.0), loss=loss, epochs=2)
    # the first loss of all sets where they start
    for first, second in zip(seen[2::2], seen[3::2], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], seen[-1])


def test_patience_keeps_the_best_weights_and_stops() -> None:
    head, y = head_of(), np.random.RandomState(0).randn(12)
    options = {"target_ids": SOURCE.ids, "epochs": 60, "batch_size": 4, "lr": 3e-2, "patience": 3}
    history = fit(head, SOURCE, {"x": y}, ids=SOURCE.ids[:8], val_ids=SOURCE.ids[8:], **options)
    losses = [row["val_loss"] for row in history]
    best = int(np.argmin(losses))
    assert len(history) == best + 1 + 3 < 60
    predicted = head.predict(SOURCE.batch(SOURCE.ids[8:]))["x"][:, 0].numpy()
    assert ((predicted - y[8:]) ** 2).mean() == pytest.approx(losses[best], rel=1e-4)


def test_validation_is_of_the_averaged_weights_and_kept_apart() -> None:
    kinds = np.arange(12) % 2
    heads = [head_of(Task("x"), Task("kind", dim=2, kind="classification")) for _ in range(2)]
    options = {"target_ids": SOURCE.ids, "epochs": 3, "batch_size": 4, "lr": 1e-2, "ema_decay": 0.9}
    given = {"targets": {"x": Y, "kind": kinds}, "ids": SOURCE.ids[:8], **options}
    row = fit(heads[0], SOURCE, val_ids=SOURCE.ids[8:], **given)[-1]
    predicted = heads[0].predict(SOURCE.batch(SOURCE.ids[8:]))
    assert (
        row["val_r2"]
        == row["val_r2/x"]
        == pytest.approx(r2(Y[8:], predicted["x"][:, 0].numpy()), rel=1e-4)
    )
    assert row["val_accuracy/kind"] == (predicted["kind"].argmax(dim=1).numpy() == kinds[8:]).mean()
    assert row["val_loss"] == pytest.approx(row["val_loss/x"] + row["val_loss/kind"])
    fit(heads[1], SOURCE, **given)
    assert torch.equal(flat(heads[0]), flat(heads[1])), "looking does not change what is learnt"
