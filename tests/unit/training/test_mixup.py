"""Mixup and CutMix: what becomes of tokens, images and targets, and that mixed losses are the same for linear ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dinoneck import PatchMeanHead, Task, Tokens
from dinoneck.losses import TaskLoss
from dinoneck.training import MemoryTokens, Recipe, cutmix, manifold_mixup
from dinoneck.training.fitting import Objective

B = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(dtype: torch.dtype = torch.float64) -> Tokens:
    layers = [torch.randn(B, 1 + 6, 4, generator=seeded(i)).to(dtype) for i in range(2)]
    return Tokens.from_sequence(layers, image_size=(32, 48), patch_size=16, num_prefix_tokens=1)


def targets() -> dict[str, Tensor]:
    return {"x": torch.arange(B, dtype=torch.float64)[:, None], "kind": torch.eye(B, dtype=torch.float64)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_layer_token_and_target_keeps_the_same_share_of_itself(dtype: torch.dtype) -> None:
    before = tokens(dtype)
    mixed, wanted = manifold_mixup(before, targets(), 1.0, generator=seeded())
    kept = float(wanted["kind"][0, 0])
    assert 0 < kept < 1
    for x, y in zip(before.sequence, mixed.sequence, strict=True):
        partner = torch.cat((x[-1:], x[:-1])).double()
        assert torch.allclose(
            y.double(), kept * x.double() + (1 - kept) * partner, atol=2e-2 if dtype == torch.bfloat16 else 1e-6
        )
        assert y.dtype == dtype
    x = targets()["x"]
    assert torch.allclose(wanted["x"], kept * x + (1 - kept) * torch.cat((x[-1:], x[:-1])))
    assert torch.equal(before.sequence[0], tokens(dtype).sequence[0]), "the input is not changed"


def test_draws_repeat_and_what_is_missing_stays_missing() -> None:
    mixed = [manifold_mixup(tokens(), targets(), 0.4, generator=seeded(seed))[0].sequence[0] for seed in (0, 0, 1)]
    assert torch.equal(mixed[0], mixed[1]) and not torch.equal(mixed[0], mixed[2])
    x = torch.tensor([[1.0], [torch.nan], [2.0], [3.0], [4.0]])
    _, wanted = manifold_mixup(tokens(), {"x": x}, 1.0, generator=seeded())
    assert wanted["x"].isnan()[:, 0].tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("patch_size", [None, 16, (8, 16)])
def test_a_rectangle_of_the_partner_is_pasted_and_targets_follow_its_area(patch_size: Any) -> None:
    images = torch.arange(B, dtype=torch.float64)[:, None, None, None].expand(B, 3, 32, 48).clone()
    for seed in range(10):
        mixed, wanted = cutmix(images, targets(), 1.0, patch_size=patch_size, generator=seeded(seed))
        pasted = mixed != images
        share = pasted[0, 0].double().mean()
        assert torch.allclose(wanted["kind"].diagonal(), 1 - share.expand(B))
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), wanted["x"][:, 0])
        rows, cols = pasted[0, 0].any(dim=1), pasted[0, 0].any(dim=0)
        assert torch.equal(pasted[0, 0], rows[:, None] & cols), "a rectangle"
        height, width = (1, 1) if patch_size is None else (16, 16) if patch_size == 16 else patch_size
        for inside, unit in ((rows, height), (cols, width)):
            assert all(len(set(cell.tolist())) == 1 for cell in inside.split(unit)), "whole patches"


def test_mixed_losses_follow_the_targets_of_both_samples() -> None:
    """Class indices, missing values and masks need no rules: the loss of the partner's targets counts by its share."""
    tasks = [Task("x"), Task("kind", dim=3, kind="classification")]
    head, loss = PatchMeanHead(4, tasks).double(), TaskLoss(tasks)
    values = {"x": targets()["x"], "kind": torch.tensor([0, 1, -1, 2, 1])}
    values["x"][1] = torch.nan
    masks = {"x": values["x"].isfinite(), "kind": values["kind"] >= 0}
    source = MemoryTokens([*map(str, range(5))], tokens())
    own = Objective(head, source, loss, Recipe(mixup_alpha=1.0))
    torch.manual_seed(3)
    found = own(tokens(), values, mixes=True)
    torch.manual_seed(3)
    mixed, wanted = manifold_mixup(tokens(), targets(), 1.0)
    kept, outputs = float(wanted["kind"][0, 0]), head(mixed)
    rolled = ({name: x.roll(1, 0) for name, x in table.items()} for table in (values, masks))
    (first, parts), (second, others) = loss(outputs, values, masks), loss(outputs, *rolled)
    assert torch.allclose(found["loss"], kept * first + (1 - kept) * second)
    assert torch.allclose(found["loss/kind"], kept * parts["kind"] + (1 - kept) * others["kind"])
    plain = own(tokens(), values, mixes=False)
    assert torch.equal(plain["loss"], loss(head(tokens()), values, masks)[0])
