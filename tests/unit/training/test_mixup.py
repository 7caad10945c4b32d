"""Blended samples: who is blended with whom is read back from the tokens, and everything else must agree."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.unit.training.blends import (
    HALVES,
    PARTS,
    RATIO,
    STATE,
    blended,
    marked,
    mix,
    ratio_targets,
    read_back,
    seeded,
    swap,
)
from torch import Tensor

from dinoneck import (
    ConfigError,
    DataError,
    FeaturePyramid,
    GridSize,
    ShapeError,
    TargetTransform,
    Task,
    Tokens,
)
from dinoneck.losses import masked_cross_entropy
from dinoneck.training import cutmix, manifold_mixup


def test_one_partner_and_one_share_for_every_layer_token_and_target() -> None:
    torch.manual_seed(0)
    first, second = (torch.randn(8, 3 + 6, 5, dtype=torch.float64) for _ in range(2))
    eye = torch.eye(8, dtype=torch.float64)[:, None].expand(8, 9, 8)
    tokens = Tokens.from_sequence(
        [torch.cat((x, eye), dim=2) for x in (first, second)],
        image_size=(32, 48),
        patch_size=16,
        num_prefix_tokens=3,
        layers=(3, 11),
        normed=True,
    )
    before = [x.clone() for x in tokens.sequence]
    height = torch.randn(8, dtype=torch.float64)
    mixed, targets = manifold_mixup(tokens, {"height": height}, 1.0, generator=seeded())
    partner, kept = read_back(mixed.sequence[0][:, 0, 5:])
    assert sorted(partner.tolist()) == list(range(8))
    met = partner != torch.arange(8)
    assert len(set(kept[met].tolist())) == met.sum() >= 5  # lambda is per sample
    for x, own in zip(mixed.sequence, (first, second), strict=True):
        assert torch.allclose(x[..., :5], blended(own, partner, kept), rtol=0, atol=1e-14)
    assert torch.allclose(targets["height"], blended(height, partner, kept), rtol=0, atol=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(before, tokens.sequence, strict=True))
    described = ("grid", "patch_size", "num_cls", "num_registers", "layers", "normed")
    assert all(getattr(mixed, name) == getattr(tokens, name) for name in described)
    assert mixed.grid == GridSize(2, 3)
    assert mixed.layers == (3, 11)


def test_levels_of_a_pyramid_share_the_blend_and_keep_their_memory_format() -> None:
    torch.manual_seed(1)
    eye = torch.eye(4)[:, :, None, None]
    maps = [(eye * torch.randn(4, 1, r, c)).contiguous(memory_format=torch.channels_last) for r, c in ((4, 6), (2, 3))]
    mixed, targets = manifold_mixup(FeaturePyramid(maps, (8.0, 16.0)), {"own": torch.eye(4)}, 1.0, generator=seeded())  # type: ignore[arg-type]
    partner, kept = read_back(targets["own"])
    assert mixed.strides == (8.0, 16.0)
    for level, x in zip(mixed.maps, maps, strict=True):
        assert torch.allclose(level.double(), blended(x, partner, kept), atol=1e-6)
        assert level.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("alpha", "middle"), [(0.2, 0.17), (2.5, 0.75)])
def test_lambda_is_beta_distributed_and_partners_are_uniform(alpha: float, middle: float) -> None:
    """Moments and P(1/4 < lambda < 3/4), the latter from an integration of the density in this test."""
    generator, draws, met = seeded(3), [], torch.zeros(64, 64)
    for _ in range(300):
        tokens, _ = manifold_mixup(marked(64), {}, alpha, generator=generator)
        partner, kept = read_back(tokens.sequence[0][:, 0])
        draws.append(kept[partner != torch.arange(64)])
        met[torch.arange(64), partner] += 1
    kept = torch.cat(draws)
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 * variance**2 * (2 * alpha + 1) / (2 * alpha + 3)
    count = len(kept)
    assert count > 18000
    assert abs(kept.mean().item() - 0.5) < 5 * math.sqrt(variance / count)
    assert abs((kept - 0.5).square().mean().item() - variance) < 5 * math.sqrt((fourth - variance**2) / count)
    inner = (torch.arange(100000, dtype=torch.float64) + 0.5) / 200000 + 0.25
    density = (inner * (1 - inner)) ** (alpha - 1) * math.gamma(2 * alpha) / math.gamma(alpha) ** 2
    share = density.mean().item() / 2
    assert abs(share - middle) < 5e-3
    assert abs(((kept > 0.25) & (kept < 0.75)).double().mean().item() - share) < 5 * 0.5 / math.sqrt(count)
    assert (met.sum(dim=0) - 300).abs().max() < 5  # a lambda of 1 to the last digit hides its partner
    assert met.max() < 25  # 4.7 expected


@pytest.mark.parametrize("kind", ["regression", "density"])
def test_masses_add_in_grams(kind: Any) -> None:
    transform = TargetTransform(area=0.25, log1p=kind == "regression", mean=1.5, std=0.7)
    task = Task("mass", kind=kind, transform=transform, unit="g")
    grams = torch.tensor([[20.0], [100.0]], dtype=torch.float64)
    model = transform.forward(grams)
    mixed, partner, kept = mix({"mass": model}, HALVES, swap(HALVES), tasks=[task])
    assert torch.allclose(transform.inverse(mixed["mass"]), torch.full((2, 1), 60.0).double(), atol=1e-4)
    torch.manual_seed(4)
    grams = torch.rand(9, 1, dtype=torch.float64) * 500
    mixed, partner, kept = mix({"mass": transform.forward(grams)}, tasks=[task])
    assert torch.allclose(transform.inverse(mixed["mass"]), blended(grams, partner, kept), rtol=1e-12)
    single = mix({"mass": transform.forward(grams).float()}, tasks=[task])[0]["mass"]
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), mixed["mass"], rtol=1e-5, atol=1e-6)


def test_part_masses_are_conserved() -> None:
    torch.manual_seed(6)
    grams, shares = torch.rand(12) * 300, torch.randn(12, 3).softmax(dim=1)
    targets = ratio_targets(grams.tolist(), shares.tolist())
    mixed, partner, kept = mix(targets, tasks=RATIO, compositions=[PARTS])
    transform = RATIO[0].transform
    assert transform is not None
    parts = blended(grams.double()[:, None] * targets["ratio"], partner, kept)
    assert torch.allclose(transform.inverse(mixed["total"]) * mixed["ratio"], parts, rtol=1e-6)
    assert torch.allclose(mixed["ratio"].sum(dim=1), torch.ones(12).double(), rtol=1e-6)


def test_shares_of_nothing_mix_linearly_and_of_an_unknown_mass_are_unknown() -> None:
    rows = [[1.0, 0, 0], [0, 0, 1.0]]
    options: dict[str, Any] = {"tasks": [Task("total"), RATIO[1]], "compositions": [PARTS], "seed": swap()}

    def of(*grams: float) -> tuple[Tensor, Tensor]:
        targets = {"total": torch.tensor(grams)[:, None].requires_grad_(), "ratio": torch.tensor(rows)}
        mixed, _, kept = mix(targets, **options)
        if not any(map(math.isnan, grams)):
            mixed["ratio"].square().sum().backward()
            assert targets["total"].grad is not None
            assert targets["total"].grad.isfinite().all()
        return mixed["ratio"].detach(), kept.float()

    mixed, kept = of(0.0, 0.0)
    assert torch.allclose(mixed[:, 0], torch.stack((kept[0], 1 - kept[1])))
    assert torch.equal(of(0.0, 50.0)[0], torch.tensor([rows[1]] * 2))
    assert torch.equal(of(-3.0, 50.0)[0], torch.tensor([rows[1]] * 2))  # a mass below 0 counts as 0
    assert of(math.nan, 50.0)[0].isnan().all()


@pytest.mark.parametrize("missing", [-1, 255])
def test_a_missing_label_on_either_side_makes_the_row_nan(missing: int) -> None:
    task = Task("state", dim=4, kind="classification", ignore_index=None if missing == -1 else missing)
    labels = torch.tensor([0, missing, 2, 1, 0, 2])
    mixed, partner, _ = mix({"state": labels}, tasks=[task])
    gone = (labels == missing) | (labels[partner] == missing)
    assert torch.equal(mixed["state"].isnan(), gone[:, None].expand(6, 4))
    hidden = torch.tensor([0, 99, 2, 1, 0, 2])
    result, masks, partner, _ = mix({"state": hidden}, tasks=[STATE], masks={"state": hidden < 4})
    gone = (hidden == 99) | (hidden[partner] == 99)
    assert torch.equal(result["state"].isnan().all(dim=1), gone)
    assert torch.equal(masks["state"], ~gone)
    logits = torch.randn(6, 4, requires_grad=True)
    loss = masked_cross_entropy(logits, result["state"], masks["state"])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_segmentation_becomes_probabilities_per_pixel() -> None:
    torch.manual_seed(8)
    labels = torch.randint(-1, 3, (5, 4, 6))
    task = Task("cover", dim=3, kind="segmentation", ignore_index=2)
    mixed, partner, kept = mix({"cover": labels.to(torch.int32)}, tasks=[task])
    for b in range(5):
        for y in range(4):
            for x in range(6):
                sides = int(labels[b, y, x]), int(labels[partner[b], y, x])
                if {-1, 2} & set(sides):
                    assert mixed["cover"][b, :, y, x].isnan().all()
                    continue
                expected = [kept[b] * (sides[0] == k) + (1 - kept[b]) * (sides[1] == k) for k in range(3)]
                assert torch.allclose(mixed["cover"][b, :, y, x].double(), torch.stack(expected), atol=1e-6)


def test_missing_values_stay_missing_and_masks_intersect() -> None:
    torch.manual_seed(9)
    values, weight = torch.randn(6, 2), torch.rand(6, 3, 4) * (torch.rand(6, 3, 4) > 0.3)
    values[1, 0] = math.nan
    targets = {"x": values, "cover": torch.randn(6, 1, 3, 4), "whole": torch.randn(6)}
    keep = torch.tensor([1, 1, 0, 1, 1, 1])
    mixed, masks, partner, kept = mix(targets, masks={"x": values.isfinite(), "cover": weight, "whole": keep})
    assert torch.equal(mixed["x"].isnan(), values.isnan() | values[partner].isnan())
    assert torch.equal(masks["x"], mixed["x"].isfinite())
    assert torch.equal(masks["whole"], (keep & keep[partner]).bool())
    both = (weight > 0) & (weight[partner] > 0)
    assert torch.allclose(masks["cover"].double(), blended(weight, partner, kept) * both, atol=1e-7)


def test_what_a_mask_hides_reaches_neither_the_log_nor_the_shares() -> None:
    """Garbage under a mask, here a model value whose mass is -1, is NaN in the mix instead of an error."""
    targets = ratio_targets([20.0, 50.0, 70.0, 10.0], [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, 0.5, 0]])
    known = torch.tensor([True, False, True, True])
    targets["total"][1] = -1e9
    options: dict[str, Any] = {"tasks": RATIO, "compositions": [PARTS]}
    for keep in (known, known[:, None], known.float()):
        mixed, masks, partner, _ = mix(targets, masks={"total": keep}, seed=2, **options)
        both = known & known[partner]
        assert torch.equal(mixed["total"][:, 0].isfinite(), both)
        assert torch.equal(mixed["ratio"].isfinite().all(dim=1), both)
        assert torch.equal(masks["total"].reshape(-1).bool(), both)


def test_alpha_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="alpha is"):
        manifold_mixup(marked(2), {}, 0)
    with pytest.raises(ConfigError, match="alpha is"):
        cutmix(torch.zeros(2, 3, 4, 4), {}, 0)


@pytest.mark.parametrize(
    ("targets", "options", "error", "message"),
    [
        ({"x": torch.zeros(2, dtype=torch.long)}, {}, ShapeError, "int64; .*declare classes with tasks="),
        ({"x": torch.zeros(3, 1)}, {}, ShapeError, r"'x' are \(3, 1\) .*expected a tensor of 2 samples"),
        ({"x": torch.zeros(2, 1)}, {"tasks": [STATE]}, ShapeError, r"targets name 'x'.*'state'"),
        ({"state": torch.tensor([0, 4])}, {"tasks": [STATE]}, DataError, r"class index 4; expected 0 \.\.\. 3"),
        ({"state": torch.zeros(2, 3)}, {"tasks": [STATE]}, ShapeError, r"\(batch, 4\)"),
        ({"x": torch.zeros(2)}, {"tasks": [Task("x")]}, ShapeError, r"floating point \(batch, 1\)"),
        ({}, {"tasks": RATIO[:1], "compositions": [PARTS]}, ConfigError, "needs task 'ratio'"),
        ({"ratio": torch.ones(2, 3)}, {"tasks": RATIO, "compositions": [PARTS]}, ShapeError, "lack 'total'"),
        ({"x": torch.zeros(2, 1)}, {"masks": {"x": torch.ones(2, 2)}}, ShapeError, r"mask has shape \(2, 2\)"),
    ],
)
def test_misfits_are_refused(targets: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        manifold_mixup(marked(2), targets, 1.0, **options)
    with pytest.raises(error, match=message):
        cutmix(torch.zeros(2, 3, 4, 4), targets, 1.0, **options)


def test_inputs_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"tokens are \(2, 3\) torch.float32; expected Tokens"):
        manifold_mixup(torch.zeros(2, 3), {}, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="expected floating point"):
        cutmix(torch.zeros(3, 4, 4), {}, 1.0)
