"""A trained PatchMean head holds half of ridge regression on the mean token, exactly, once, and in its file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import HeadEnsemble, PatchMeanHead, TargetTransform, Task, Tokens, load_head, save_head
from dinoneck.heads import DenseHead
from dinoneck.training import LiveTokens, Recipe, fit, ridge_out_of_fold
from dinoneck.training.probes import pooled_tokens
from dinoneck.training.ridge_blend import blend_linear

N, HELD, WIDTH = 40, 8, 12
IDS = [f"i{row}" for row in range(N)]
TRAIN = IDS[HELD:]
OFF = Recipe(ridge_blend=0.0)


class Source:
    """Tokens of random images, in the head's precision."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.ids, self.dtype = tuple(IDS), dtype
        self.tokens = torch.randn(N, 6, WIDTH, generator=torch.Generator().manual_seed(0)) + 3.0

    def batch(self, ids: Sequence[str], patterns: Any = None) -> Tokens:
        rows = [IDS.index(image_id) for image_id in ids]
        return Tokens.from_patches(self.tokens[rows].to(self.dtype), grid=(2, 3), patch_size=16)


def targets() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mean = Source().tokens.mean(dim=1).numpy()
    both = 50 + 20 * mean @ rng.normal(size=(WIDTH, 2)) + rng.normal(size=(N, 2))
    both[HELD : HELD + 10, 1] = np.nan  # missing for some images in one output only
    return {"mass": 30 + 10 * mean @ rng.normal(size=WIDTH) + rng.normal(size=N), "parts": both}


def made(values: dict[str, np.ndarray], **task: Any) -> PatchMeanHead:
    torch.manual_seed(1)
    rows = slice(HELD, None)
    tasks = [Task(name, y[0].size, transform=TargetTransform(**task).fit(y[rows])) for name, y in values.items()]
    return PatchMeanHead(WIDTH, tasks, hidden_dim=16)


def trained(head: Any, values: dict[str, np.ndarray], source: Any = None, **options: Any) -> Any:
    options = {"epochs": 3, "batch_size": 8, "lr": 1e-2, "ids": TRAIN, "target_ids": IDS, **options}
    fit(head, source or Source(), targets=values, **options)
    return head


def predicted(head: Any, name: str, dtype: torch.dtype = torch.float32) -> np.ndarray:
    return head.predict(Source(dtype).batch(IDS[:HELD]))[name].double().numpy()


def ridge(y: np.ndarray, groups: Sequence[str] | None = None) -> np.ndarray:
    """The library's own baseline, trained on the images with a target, for the held-out images."""
    known = np.array([row for row in range(HELD, N) if np.isfinite(y[row])])
    filled = np.nan_to_num(y)[:, None]
    return ridge_out_of_fold(pooled_tokens(Source()), filled, [(known, np.arange(HELD))], groups=groups)[:HELD, 0]


def test_the_head_is_the_trained_one_and_ridge_by_their_shares() -> None:
    values = targets()
    alone = trained(made(values), values, recipe=OFF)
    both = trained(made(values), values, recipe=Recipe(ridge_blend=0.25))
    for name, output in (("mass", 0), ("parts", 0), ("parts", 1)):
        expected = (1 - 0.25) * predicted(alone, name)[:, output] + 0.25 * ridge(values[name].reshape(N, -1)[:, output])
        np.testing.assert_allclose(predicted(both, name)[:, output], expected, rtol=1e-5)


def test_in_float64_the_shares_are_exact() -> None:
    values, source = targets(), Source(torch.float64)
    alone = trained(made(values).double(), values, source, recipe=OFF)
    both = trained(made(values).double(), values, source)
    y = ridge(values["mass"].astype(np.float32).astype(np.float64))
    expected = 0.5 * predicted(alone, "mass", torch.float64)[:, 0] + 0.5 * y
    np.testing.assert_allclose(predicted(both, "mass", torch.float64)[:, 0], expected, rtol=1e-6)
    weight, bias = torch.randn(2, WIDTH).double(), torch.randn(2).double()
    before, x = alone.per_patch(source.batch(IDS)), source.batch(IDS).last.patches[0]
    blend_linear(alone, {"parts": (weight, bias, torch.tensor([0.3, 0.8]).double())})
    after = alone.per_patch(source.batch(IDS))
    share = torch.tensor([0.3, 0.8]).double()
    torch.testing.assert_close(
        after["parts"], (1 - share) * before["parts"] + share * (x @ weight.T + bias), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(after["mass"], before["mass"], rtol=1e-12, atol=1e-12)


def test_a_new_width_is_in_the_configuration_the_file_and_the_ensemble(tmp_path: Path) -> None:
    values = targets()
    head = trained(made(values), values)
    assert head.config["hidden_dim"] == 16 + 2 * 2
    save_head(tmp_path / "head.safetensors", head)
    again = load_head(tmp_path / "head.safetensors")
    assert again.config == head.config
    tokens = Source().batch(IDS)
    for name in values:
        assert torch.equal(again(tokens)[name], head(tokens)[name])
    members = [head, trained(made(values), values, recipe=OFF)]
    mean = torch.stack([member.predict(tokens)["parts"] for member in members]).mean(dim=0)
    torch.testing.assert_close(HeadEnsemble.from_heads(members).predict(tokens)["parts"], mean)


def test_a_run_that_goes_on_blends_once(tmp_path: Path) -> None:
    """Killed after an epoch, finished and called again with a new head or the trained one: always the same bits."""
    values = targets()
    expected = trained(made(values), values, out=tmp_path / "whole").state_dict()

    class Killed(Source):
        reads = 0

        def batch(self, ids: Sequence[str], patterns: Any = None) -> Tokens:
            self.reads += 1
            if self.reads > 16:
                raise KeyboardInterrupt
            return super().batch(ids, patterns)

    with pytest.raises(KeyboardInterrupt):
        trained(made(values), values, Killed(), out=tmp_path / "killed")
    head = trained(made(values), values, out=tmp_path / "killed")
    again = trained(made(values), values, out=tmp_path / "whole")
    for result in (head, again, trained(again, values, out=tmp_path / "whole")):
        assert result.config["hidden_dim"] == 20
        assert all(torch.equal(result.state_dict()[name], value) for name, value in expected.items())


def test_weights_that_changed_after_the_blend_are_trained_as_they_are() -> None:
    """One step of another optimizer, other weights of the same shape: nothing of them is cut off or rescaled."""
    values = targets()
    head, other = trained(made(values), values), trained(made(values), values, seed=7)
    for changed in (head, other):
        if changed is head:
            changed.load_state_dict(other.state_dict())
        else:
            with torch.no_grad():
                changed.mlps[1].out.bias.add_(1.0)
        before = predicted(changed, "mass")
        trained(changed, values, recipe=Recipe(ridge_blend=0.0, standardise_tokens=False), lr=1e-12, epochs=1)
        assert changed.config["hidden_dim"] == 20
        np.testing.assert_allclose(predicted(changed, "mass"), before, rtol=1e-4)


def test_groups_choose_the_strength() -> None:
    values = {"mass": targets()["mass"] + 500 * np.sin(np.arange(N) // 8)}
    groups = dict(zip(IDS, (f"g{row // 8}" for row in range(N)), strict=True))
    by_group = trained(made(values), values, recipe=Recipe(ridge_blend=1.0), groups=groups)
    np.testing.assert_allclose(
        predicted(by_group, "mass")[:, 0], ridge(values["mass"], list(groups.values())), rtol=1e-5
    )


@pytest.mark.parametrize(
    "head",
    [
        PatchMeanHead(WIDTH, [Task("mass", activation="relu")], 16),
        PatchMeanHead(WIDTH, [Task("mass", transform=TargetTransform(log1p=True))], 16),
        DenseHead(WIDTH, [Task("mass", kind="density", aggregate="mean")], 16),
    ],
    ids=["relu", "log1p", "another head"],
)
def test_what_cannot_hold_ridge_is_trained_as_before(head: Any) -> None:

    values = {"mass": np.abs(targets()["mass"]) + 1}
    other = copy.deepcopy(head)
    trained(head, values)
    trained(other, values, recipe=OFF)
    assert head.config == other.config
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in head.state_dict().items())


def test_a_trained_backbone_gives_ridge_its_final_tokens() -> None:
    from dinoneck import load_backbone

    backbone = load_backbone("dinoneck_tiny").unfreeze_last(1)
    images = torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    source, y = LiveTokens(backbone, images), {"mass": np.arange(6.0)}
    head = PatchMeanHead(backbone.embed_dim, [Task("mass")], 16)
    ids = list(source.ids)
    fit(head, source, targets=y, target_ids=ids, ids=ids, epochs=1, batch_size=2, recipe=Recipe(ridge_blend=1.0))
    folds = [(np.arange(6), np.arange(6))]
    expected = ridge_out_of_fold(pooled_tokens(source), y["mass"][:, None], folds)[:, 0]
    np.testing.assert_allclose(head.predict(source.batch(ids))["mass"][:, 0].numpy(), expected, atol=1e-4)
