"""What a head derives from its tasks is predicted everywhere: compositions, sums, and the means of maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from torch import Tensor

from dinoneck import (
    Backbone,
    Composition,
    DenseHead,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
)
from dinoneck.export import export_head
from dinoneck.heads import Head

PARTS = ("leaf", "stem", "root")
PLANT = Composition(PARTS, {"above": PARTS[:2], "plant": PARTS}, "masses", "total", "shares")
TOTAL = Task(
    "total",
    unit="g",
    minimum=0.0,
    transform=TargetTransform(area=0.21, log1p=True, mean=4.0, std=0.7),
)
SHARES = Task("shares", dim=3, kind="ratio")
TASKS = (SHARES, TOTAL)
DENSITY = Task("total", kind="density", unit="g", activation="softplus")
ADDED = Composition(PARTS, {"above": PARTS[:2], "plant (g)": PARTS}, "sums")
CELLS = Task(
    "cells",
    dim=3,
    kind="dense",
    labels=("soil", "crop", "weed"),
    transform=TargetTransform(mean=0.1, std=0.3),
)
WEED = Task("weed", from_map="cells", minimum=0.0, transform=TargetTransform(mean=0.02, std=0.03))
CROP = Task("crop", from_map="cells")
TOKENS = kit.tokens(3, 3, 5, width=64)


def head_of(kind: str, seed: int = 1, tasks: Any = TASKS, compositions: Any = (PLANT,)) -> Head:
    torch.manual_seed(seed)
    own: dict[str, Any] = {"compositions": list(compositions)}
    if kind == "dense":
        return DenseHead(
            64, [SHARES, DENSITY] if tasks is TASKS else tasks, hidden_dim=8, depth=0, **own
        ).eval()
    if kind == "fpn":
        return FPNHead(64, tasks, 1, fpn_dim=8, num_levels=2, **own).eval()
    return PatchMeanHead(64, tasks, hidden_dim=8, **own).eval()


def summing(kind: str, seed: int = 0) -> Head:
    """Parts of different scales, about half of which are below the minimum before it."""
    if kind == "dense":
        given: Any = {"kind": "density", "transform": TargetTransform(mean=0.0, std=1e5)}
        return head_of(
            kind, seed, [Task(name, unit="g", minimum=0.0, **given) for name in PARTS], [ADDED]
        )
    scales = [TargetTransform(mean=i, std=40.0 + i) for i in range(3)]
    tasks = [
        Task(name, unit="g", minimum=0.0, transform=scale)
        for name, scale in zip(PARTS, scales, strict=True)
    ]
    return head_of(kind, seed, tasks, [ADDED])


def columns(values: Any, width: int) -> Any:
    return torch.as_tensor(values).detach().double().numpy().reshape(-1, width).T


def check(values: Any) -> None:
    """Leaf, stem, root, above, plant that add up to a total; or above and plant that add up the parts."""
    if "sums" in values:
        (leaf, stem, root), (above, plant) = (
            (columns(values[name], 1)[0] for name in PARTS),
            columns(values["sums"], 2),
        )
        assert min(leaf.min(), stem.min(), root.min()) >= 0
    else:
        leaf, stem, root, above, plant = columns(values["masses"], 5)
        assert plant == pytest.approx(columns(values["total"], 1)[0], rel=1e-5)
    assert above == pytest.approx(leaf + stem, rel=1e-5)
    assert plant == pytest.approx(leaf + stem + root, rel=1e-5)


@pytest.mark.parametrize("kind", ["dense", "fpn", "patch_mean"])
@pytest.mark.parametrize("added", [False, True])
def test_every_head_predicts_its_composition_and_stores_it(
    kind: str, added: bool, tmp_path: Path
) -> None:
    head = summing(kind) if added else head_of(kind)
    values, name = head.predict(TOKENS), "sums" if added else "masses"
    assert list(values) == ([*PARTS, "sums"] if added else ["shares", "total", "masses"])
    check(values)
    if added:
        assert any((values[part] == 0).any() for part in PARTS), (
            "sums follow the minimum: a part is clipped"
        )
        assert list(head.predicted[-1].columns) == ["above", "plant (g)"]
    else:
        assert torch.allclose(values["masses"][:, :3], values["total"] * values["shares"])
    assert list(head(TOKENS)) != list(values), "forward returns what is trained"
    HeadCheckpoint.from_module(head).save(tmp_path / "h.safetensors")
    again: Any = HeadCheckpoint.load(tmp_path / "h.safetensors").build()
    assert again.compositions == head.compositions and torch.equal(
        again.predict(TOKENS)[name], values[name]
    )


@pytest.mark.parametrize("kind", ["fpn", "patch_mean"])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0]])
def test_ensembles_average_in_original_units(kind: str, weights: Any) -> None:
    heads = [kit.randomised(head_of(kind, seed), seed=seed) for seed in range(3)]
    ensemble = HeadEnsemble.from_heads(heads, weights)
    values = ensemble.predict(TOKENS)
    check(values)
    each = torch.stack([head.predict(TOKENS)["masses"] for head in heads])
    assert torch.allclose(ensemble.members_predict(TOKENS)["masses"], each)
    shares = torch.tensor(weights or [1.0] * 3)[:, None, None]
    assert torch.allclose(values["masses"], (each * shares).sum(0) / shares.sum(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "patch_mean"])
@pytest.mark.parametrize("tta", ["none", "d6"])
def test_parts_of_a_tiled_image_add_up_to_its_total(kind: str, tta: Any, blind: Backbone) -> None:
    image = kit.patchwork(7, 5)
    [whole] = Predictor([head_of(kind), head_of(kind, 2)], blind, tta)(image)
    [tiled] = Predictor([head_of(kind), head_of(kind, 2)], blind, tta, tile=(48, 64), overlap=16)(
        image
    )
    check(whole)
    check(tiled)
    if kind == "dense":
        assert tiled["total"] == pytest.approx(whole["total"], rel=1e-5)
        assert tiled["masses"] == pytest.approx(whole["masses"], rel=0.05), (
            "shares of tiles are weighed by mass"
        )


@pytest.mark.slow
def test_an_exported_program_predicts_the_same(tmp_path: Path, tiny: Backbone) -> None:
    head = head_of("dense", tasks=[SHARES, DENSITY, WEED, CELLS])
    export_head(
        HeadCheckpoint.from_module(head, backbone=tiny.record() | {"layers": [3]}),
        tmp_path / "h.pt2",
        format="pt2",
    )
    x = kit.tokens_from(torch.randn(2, 3 + 20, 64), 4, 5, 3, layers=(3,), normed=True)
    found, wanted = torch.export.load(tmp_path / "h.pt2").module()(x), head.predict(x)
    assert list(found) == list(wanted) == ["shares", "total", "weed", "cells", "masses"]
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


# One image, one number: the mean over the cells of a map
# -------------------------------------------------------


def means(maps: Any) -> dict[str, Tensor]:
    cells = torch.as_tensor(maps).double().mean(dim=(-1, -2)).reshape(-1, 3)
    return {"weed": cells[:, 2:].clamp_min(0.0), "crop": cells[:, 1:2]}


def mapped(kind: str, *tasks: Task) -> Head:
    return head_of(kind, tasks=tasks or (WEED, CELLS, CROP), compositions=())


@pytest.mark.parametrize("kind", ["dense", "fpn"])
@pytest.mark.parametrize("segments", [False, True])
def test_the_number_is_the_mean_of_the_maps_cells(kind: str, segments: bool) -> None:
    cells = Task("cells", dim=3, kind="segmentation", labels=CELLS.labels) if segments else CELLS
    head: Any = mapped(kind, WEED, cells, CROP)
    assert not any("weed" in name for name, _ in head.named_parameters())
    assert sum(len(list(own.out.parameters())) for own in head.towers) == 2, (
        "one readout, the map's"
    )
    values = head.predict(TOKENS)
    for name, value in means(head.predict_maps(TOKENS)["cells"]).items():
        torch.testing.assert_close(values[name].double(), value, rtol=1e-5, atol=1e-6)
    assert list(values) == ["weed", "cells", "crop"]


@pytest.mark.parametrize("tta", ["none", "d6"])
def test_the_mean_over_views_and_tiles(blind: Backbone, tta: Any) -> None:
    heads = [mapped("dense"), kit.randomised(mapped("dense", CROP, CELLS, WEED))]
    image, both = kit.patchwork(7, 5), HeadEnsemble(heads)
    [whole] = Predictor(both, blind, tta)(image, maps="patch")
    [tiled] = Predictor(both, blind, tta, tile=(48, 64), overlap=16, batch_size=3)(
        image, maps="patch"
    )
    for result in (whole, tiled):
        for name, value in means(result["maps"]["cells"]).items():
            assert result[name] == pytest.approx(value.item(), rel=1e-5, abs=1e-6)
    assert tiled["crop"] == pytest.approx(whole["crop"], rel=1e-5)
