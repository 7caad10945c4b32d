"""A composition declared in a head is predicted everywhere: tiles, ensembles, tables, cards, files, programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinoneck import (
    Backbone,
    Composition,
    ConfigError,
    DenseHead,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    Tokens,
)
from dinoneck.export import export_head
from dinoneck.heads import Head

SUMS = {"above": ("leaf", "stem"), "plant": ("leaf", "stem", "root")}
PLANT = Composition(("leaf", "stem", "root"), SUMS, "masses", "total", "shares")  # type: ignore[arg-type]
TOTAL = Task("total", unit="g", minimum=0.0, transform=TargetTransform(area=0.21, log1p=True, mean=4.0, std=0.7))
SHARES = Task("shares", dim=3, kind="ratio")
TASKS = (SHARES, TOTAL)
DENSITY = Task("total", kind="density", unit="g", activation="softplus")


def tokens(seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 1 + 15, 64, generator=generator)
    return Tokens.from_sequence(x, image_size=(48, 80), patch_size=16, num_prefix_tokens=1)


def head_of(kind: str, seed: int = 1) -> Head:
    torch.manual_seed(seed)
    if kind == "dense":
        return DenseHead(64, [SHARES, DENSITY], hidden_dim=8, depth=0, compositions=[PLANT])
    if kind == "fpn":
        return FPNHead(64, TASKS, 1, fpn_dim=8, num_levels=2, compositions=[PLANT])
    return PatchMeanHead(64, TASKS, hidden_dim=8, compositions=[PLANT])


def check(values: Any, total: Any) -> None:
    """Leaf, stem, root, above, plant that add up to a total."""
    leaf, stem, root, above, plant = np.asarray(values, np.float64).reshape(-1, 5).T
    assert above == pytest.approx(leaf + stem, rel=1e-5)
    assert plant == pytest.approx(leaf + stem + root, rel=1e-5)
    assert plant == pytest.approx(np.asarray(total, np.float64).reshape(-1), rel=1e-5)


@pytest.mark.parametrize("kind", ["dense", "fpn", "patch_mean"])
def test_every_head_predicts_its_composition(kind: str, tmp_path: Path) -> None:
    head = head_of(kind).eval()
    values = head.predict(tokens())
    assert list(values) == ["shares", "total", "masses"]
    check(values["masses"], values["total"])
    assert torch.allclose(values["masses"][:, :3], values["total"] * values["shares"])
    assert list(head(tokens())) != list(values), "forward returns what is trained"
    HeadCheckpoint.from_module(head).save(tmp_path / "h.safetensors")
    again = HeadCheckpoint.load(tmp_path / "h.safetensors").build()
    assert torch.equal(again.predict(tokens())["masses"], values["masses"])  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["fpn", "patch_mean"])
@pytest.mark.parametrize(("reduce", "weights"), [("mean", None), ("mean", [1.0, 3.0, 2.0]), ("median", None)])
def test_ensembles_average_in_original_units(kind: str, reduce: Any, weights: Any) -> None:
    heads = [head_of(kind, seed).eval() for seed in range(3)]
    for place, head in enumerate(heads):
        for own in head.requires_grad_(False).parameters():
            own.mul_(1.0 + place)
    ensemble = HeadEnsemble.from_heads(heads, weights, reduce)
    values = ensemble.predict(tokens())
    check(values["masses"], values["total"])
    each = torch.stack([head.predict(tokens())["masses"] for head in heads])
    assert torch.allclose(ensemble.members_predict(tokens())["masses"], each)
    if reduce == "mean":
        shares = torch.tensor(weights or [1.0] * 3)[:, None, None]
        assert torch.allclose(values["masses"], (each * shares).sum(0) / shares.sum(), rtol=1e-5)
    other = PatchMeanHead(
        64, TASKS, compositions=[Composition(("leaf", "stem", "root"), (), "masses", "total", "shares")]
    )
    with pytest.raises(ConfigError, match="members disagree about task 'masses'"):
        HeadEnsemble.from_heads([*heads, other])


@pytest.mark.parametrize("kind", ["dense", "patch_mean"])
@pytest.mark.parametrize("tta", ["none", "d6"])
def test_parts_of_a_tiled_image_add_up_to_its_total(
    kind: str, tta: Any, blind: Backbone, patchwork: Callable[[int, int], Tensor]
) -> None:
    image = patchwork(7, 5)
    [whole] = Predictor([head_of(kind), head_of(kind, 2)], blind, tta)(image)
    [tiled] = Predictor([head_of(kind), head_of(kind, 2)], blind, tta, tile=(48, 64), overlap=16)(image)
    for result in (whole, tiled):
        check(result["masses"], result["total"])
    if kind == "dense":
        assert tiled["total"] == pytest.approx(whole["total"], rel=1e-5)
        assert tiled["masses"] == pytest.approx(whole["masses"], rel=0.05), "shares of tiles are weighed by mass"


def test_an_exported_program_predicts_the_same(tmp_path: Path, tiny: Backbone) -> None:
    cells = Task("cells", 2, kind="dense", labels=("soil", "weed"), transform=TargetTransform(mean=0.1, std=0.3))
    tasks = [*TASKS, Task("weed", from_map="cells", minimum=0.0, transform=TargetTransform(std=0.1)), cells]
    torch.manual_seed(1)
    head = FPNHead(64, tasks, 1, fpn_dim=8, num_levels=2, compositions=[PLANT]).eval()
    record = tiny.record() | {"layers": [3]}
    export_head(HeadCheckpoint.from_module(head, backbone=record), tmp_path / "h.pt2", format="pt2")
    x = Tokens.from_sequence(torch.randn(2, 3 + 20, 64), image_size=(64, 80), patch_size=16, num_prefix_tokens=3,
                             layers=(3,), normed=True)  # fmt: skip
    program = torch.export.load(tmp_path / "h.pt2").module()
    found, wanted = program(x), head.predict(x)
    assert list(found) == list(wanted) == ["shares", "total", "weed", "cells", "masses"]
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
