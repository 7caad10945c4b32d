"""Losses of values, maps and compositions: their formulas, masks, learned weights; the Gram anchor."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import kit
from torch import Tensor

from dinoneck import Composition, ShapeError, TargetTransform, Task, Tokens
from dinoneck.codec import encode, normal
from dinoneck.losses import (
    CompositionLoss,
    DensityRegulariser,
    GramAnchor,
    TaskLoss,
    UncertaintyWeighting,
    dense_masked_mse,
    map_cross_entropy,
    masked_cross_entropy,
    masked_mse,
    masked_smooth_l1,
    ratio_mse,
    scale_invariant_log,
)

torch.manual_seed(0)
PRED = torch.randn(4, 3, dtype=torch.float64)
TRUE = torch.randn(4, 3, dtype=torch.float64)


Loss = Callable[..., Tensor]
REFERENCES = pytest.mark.parametrize(
    ("loss", "of_torch"),
    [
        pytest.param(masked_mse, F.mse_loss, id="mse"),
        pytest.param(masked_smooth_l1, F.smooth_l1_loss, id="smooth l1"),
    ],
)
MASKS = pytest.mark.parametrize(
    "mask",
    [
        pytest.param(torch.tensor([1, 0, 1, 1]), id="samples"),
        pytest.param(torch.rand(4, 3) > 0.4, id="values"),
        pytest.param(torch.tensor([[1, 0, 1]]), id="outputs"),
    ],
)


def kept_values(mask: Tensor) -> Tensor:
    """The values (4, 3) that count under a mask of samples, values or outputs."""
    of_values = mask if mask.ndim == 2 else mask[:, None]
    return of_values.bool().expand(4, 3)


@MASKS
@REFERENCES
def test_masked_values_count_for_nothing(mask: Tensor, loss: Loss, of_torch: Loss) -> None:
    keep = kept_values(mask)

    total = loss(PRED, torch.where(keep, TRUE, torch.nan), mask)

    assert torch.allclose(total, of_torch(PRED[keep], TRUE[keep]))


@MASKS
@REFERENCES
def test_masked_values_have_no_gradient_and_others_have_one(
    mask: Tensor, loss: Loss, of_torch: Loss
) -> None:
    keep = kept_values(mask)
    pred = PRED.clone().requires_grad_()

    loss(pred, torch.where(keep, TRUE, torch.nan), mask).backward()

    assert pred.grad is not None
    assert (pred.grad[~keep] == 0).all()
    assert pred.grad[keep].abs().min() > 0


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        pytest.param(masked_mse, torch.full((4, 3), torch.nan), id="mse"),
        pytest.param(masked_smooth_l1, torch.full((4, 3), torch.nan), id="smooth l1"),
        pytest.param(ratio_mse, torch.full((4, 3), torch.nan), id="ratio"),
        pytest.param(masked_cross_entropy, torch.full((4,), -1), id="classes"),
        pytest.param(masked_cross_entropy, torch.full((4, 3), torch.nan), id="shares of classes"),
    ],
)
def test_everything_masked_is_zero_with_zero_gradient(loss: Loss, target: Tensor) -> None:
    nothing = torch.zeros(4, dtype=torch.bool)
    pred = PRED.clone().requires_grad_()

    total = loss(pred, target, nothing)
    total.backward()

    assert total.item() == 0
    assert pred.grad is not None
    assert (pred.grad == 0).all()


def test_ignored_classes_alone_are_zero() -> None:
    target = torch.full((4,), 255)

    assert masked_cross_entropy(PRED, target, ignore_index=255).item() == 0


@pytest.mark.parametrize(
    ("target", "named"),
    [
        pytest.param(torch.zeros(4, 2), r"\(4, 3\) and the target \(4, 2\)", id="fewer classes"),
        pytest.param(torch.zeros(5).long(), r"\(4, 3\) and the target \(5,\)", id="more samples"),
    ],
)
def test_classes_that_do_not_fit_the_logits_are_named(target: Tensor, named: str) -> None:
    with pytest.raises(ShapeError, match=named):
        masked_cross_entropy(PRED, target)


def test_a_mask_of_more_axes_than_the_target_is_refused() -> None:
    mask = torch.ones(4, 3, 2, dtype=torch.bool)

    with pytest.raises(ShapeError, match=r"the mask has shape \(4, 3, 2\), the target \(4, 3\)"):
        masked_mse(PRED, TRUE, mask)


class Depths:
    """Predicted and true depths (3, 5, 7); the third image has no depth, others have gaps of any value."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pred = torch.rand(3, 5, 7, generator=generator, dtype=torch.float64) + 0.1
        self.true = torch.rand(3, 5, 7, generator=generator, dtype=torch.float64) + 0.1
        self.keep = torch.rand(3, 5, 7, generator=generator) > 0.3
        self.keep[2] = False
        gaps = torch.tensor([torch.nan, 0.0, -1.0]).repeat(35).reshape(3, 5, 7)
        self.with_gaps = torch.where(self.keep, self.true, gaps)


@pytest.fixture
def depths() -> Depths:
    return Depths()


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_depth_loss_is_equation_4_of_the_paper(depths: Depths, lam: float) -> None:
    total = scale_invariant_log(depths.pred, depths.with_gaps, depths.keep, lam)

    of_images = []
    for i in (0, 1):  # an image without depth does not count
        keep = depths.keep[i]
        d = depths.pred[i][keep].log() - depths.true[i][keep].log()
        of_images.append(d.square().sum() / len(d) - lam * d.sum() ** 2 / len(d) ** 2)
    torch.testing.assert_close(total, torch.stack(of_images).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_pixels_without_depth_have_no_gradient(depths: Depths, lam: float) -> None:
    pred = depths.pred.requires_grad_()

    scale_invariant_log(pred, depths.with_gaps, depths.keep, lam).backward()

    assert pred.grad is not None
    assert (pred.grad[~depths.keep] == 0).all()
    assert pred.grad[depths.keep].abs().min() > 0


@pytest.mark.parametrize(("lam", "is_invariant"), [(0.0, False), (0.5, False), (1.0, True)])
def test_the_depth_loss_is_invariant_to_the_scale_where_lambda_is_one(
    depths: Depths, lam: float, is_invariant: bool
) -> None:
    total = scale_invariant_log(depths.pred, depths.true, depths.keep, lam)

    scaled = scale_invariant_log(7 * depths.pred, depths.true, depths.keep, lam)

    assert torch.allclose(scaled, total) == is_invariant


def test_half_precision_is_compared_in_float32() -> None:
    pred = torch.full((2, 1), 800.0, dtype=torch.float16)
    assert masked_mse(pred, torch.zeros(2, 1, dtype=torch.float16)).item() == 640000.0


LOSSES = {"a": torch.tensor(4.0), "b": torch.tensor(0.25), "c": torch.tensor(1.0)}


def weighting_at(*values: float) -> UncertaintyWeighting:
    weighting = UncertaintyWeighting(["a", "b", "c"])
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor(values))
        weighting.is_set.fill_(True)
    return weighting


def test_uncertainty_weighting_is_the_formula() -> None:
    log_variances = (0.5, -1.5, 2.0)
    in_another_order = {name: LOSSES[name] for name in ("c", "a", "b")}

    total = weighting_at(*log_variances)(in_another_order)

    expected = 0.0
    for s, loss in zip(log_variances, LOSSES.values(), strict=True):
        expected += 0.5 * math.exp(-s) * loss.item() + 0.5 * s
    assert total.item() == pytest.approx(expected, rel=1e-6)


def test_log_variances_are_0_until_training_sets_them() -> None:
    weighting = UncertaintyWeighting(["a"]).eval()

    assert weighting({"a": torch.tensor(3.0)}).item() == 1.5


@pytest.fixture
def begun_without_b() -> UncertaintyWeighting:
    """A weighting after its first step, in which nothing of b counted."""
    weighting = UncertaintyWeighting(["a", "b", "c"])
    weighting(LOSSES, {"a": 1, "b": 0, "c": 1})
    return weighting


def test_a_part_in_which_nothing_counts_is_not_set(begun_without_b: UncertaintyWeighting) -> None:
    assert begun_without_b.log_variance.tolist() == pytest.approx([math.log(4.0), 0.0, 0.0])


def test_a_resumed_weighting_keeps_its_beginning_and_a_late_part_has_its_own(
    begun_without_b: UncertaintyWeighting,
) -> None:
    resumed = UncertaintyWeighting(["a", "b", "c"])
    resumed.load_state_dict(begun_without_b.state_dict())

    # b counts from here on
    resumed({"a": torch.tensor(1.0), "b": torch.tensor(50.0), "c": torch.tensor(3.0)})

    expected = pytest.approx([math.log(4.0), math.log(50.0), 0.0])
    assert resumed.log_variance.tolist() == expected
    resumed(LOSSES)
    assert resumed.log_variance.tolist() == expected


@pytest.fixture(params=[26126.0, 1e-4], ids=["large", "small"])
def unlike(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """Two losses of very different size."""
    return {
        "composed": torch.tensor(request.param, requires_grad=True),
        "index": torch.tensor(0.5, requires_grad=True),
    }


def logarithms(losses: dict[str, Tensor]) -> list[float]:
    return [math.log(loss.item()) for loss in losses.values()]


def test_log_variances_begin_at_the_logarithms_of_the_losses(unlike: dict[str, Tensor]) -> None:
    weighting = UncertaintyWeighting(list(unlike))

    weighting(unlike)

    assert weighting.log_variance.tolist() == pytest.approx(logarithms(unlike), rel=1e-6)


def test_every_loss_begins_with_the_same_part(unlike: dict[str, Tensor]) -> None:
    """A change by one per cent of a loss moves the total by as much."""
    weighting = UncertaintyWeighting(list(unlike))

    weighting(unlike).backward()

    for loss in unlike.values():
        assert loss.grad is not None
        assert (loss * loss.grad).item() == pytest.approx(0.5, rel=1e-5)


def test_log_variances_rest_where_they_begin(unlike: dict[str, Tensor]) -> None:
    weighting = UncertaintyWeighting(list(unlike))

    weighting(unlike).backward()

    assert weighting.log_variance.grad is not None
    assert weighting.log_variance.grad.abs().max() < 1e-6


def test_the_first_losses_alone_set_the_log_variances(unlike: dict[str, Tensor]) -> None:
    weighting = UncertaintyWeighting(list(unlike))
    weighting(unlike)

    weighting({"composed": torch.tensor(7.0), "index": torch.tensor(9.0)})

    assert weighting.log_variance.tolist() == pytest.approx(logarithms(unlike), rel=1e-6)


# of log variances beyond the bounds -12 and 12
AT_THE_BOUNDS = 0.5 * (4 * math.exp(-12) + 0.25 * math.exp(12) + 1)


@pytest.fixture
def beyond() -> UncertaintyWeighting:
    return weighting_at(15.0, -17.0, 0.0)


def test_in_evaluation_log_variances_count_up_to_their_bounds_and_stay(
    beyond: UncertaintyWeighting,
) -> None:
    total = beyond.eval()(LOSSES)

    assert total.item() == pytest.approx(AT_THE_BOUNDS, rel=1e-5)
    assert beyond.log_variance.tolist() == [15.0, -17.0, 0.0]


def test_in_training_log_variances_are_brought_to_their_bounds(
    beyond: UncertaintyWeighting,
) -> None:
    total = beyond.train()(LOSSES)

    assert total.item() == pytest.approx(AT_THE_BOUNDS, rel=1e-5)
    assert beyond.log_variance.tolist() == [12.0, -12.0, 0.0]


def test_a_log_variance_at_its_bound_has_a_gradient(beyond: UncertaintyWeighting) -> None:
    beyond.train()(LOSSES).backward()

    grad = beyond.log_variance.grad
    assert grad is not None
    assert grad[0].item() == pytest.approx(0.5 - 0.5 * 4 * math.exp(-12), rel=1e-5)
    assert grad[1].item() == pytest.approx(0.5 - 0.5 * 0.25 * math.exp(12), rel=1e-5)


OWN = torch.randn(2, 6, 5, dtype=torch.float64)
REFERENCE = torch.randn(2, 6, 5, dtype=torch.float64)


def plain(tokens: torch.Tensor, reference: torch.Tensor) -> float:
    """Entry by entry, in Python."""

    def entry(x: torch.Tensor, b: int, i: int, j: int) -> float:
        u, v = x[b, i].tolist(), x[b, j].tolist()
        value = sum(p * q for p, q in zip(u, v, strict=True))
        return value / (math.sqrt(sum(p * p for p in u)) * math.sqrt(sum(q * q for q in v)))

    batch, count, _ = tokens.shape
    errors = [
        (entry(tokens, b, i, j) - entry(reference, b, i, j)) ** 2
        for b in range(batch)
        for i in range(count)
        for j in range(count)
    ]
    return sum(errors) / len(errors)


def test_it_is_the_plain_formula() -> None:
    assert GramAnchor()(OWN, REFERENCE).item() == pytest.approx(plain(OWN, REFERENCE), rel=1e-12)


def test_it_runs_on_the_meta_device() -> None:
    patches = torch.empty(2, 6, 5, device="meta")

    loss = GramAnchor()(patches, patches)

    assert loss.device.type == "meta"
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        pytest.param(OWN[0], r"tokens: \(6, 5\) torch.float64", id="no batch"),
        pytest.param(OWN.long(), r"tokens: \(2, 6, 5\) torch.int64", id="whole numbers"),
        pytest.param([OWN], "tokens: list", id="a list"),
    ],
)
def test_what_are_no_patch_tokens_is_named(given: Any, named: str) -> None:
    with pytest.raises(ShapeError, match=named):
        GramAnchor()(given, REFERENCE)


def with_prefix(patches: torch.Tensor, grid: tuple[int, int]) -> Tokens:
    others = torch.randn(2, 3, patches.shape[-1], dtype=patches.dtype)
    return kit.tokens_from(torch.cat([others, patches], dim=1), *grid, 3)


GRIDS = pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 2), (5, 7)])


@GRIDS
def test_a_reference_of_another_grid_is_resized(grid: tuple[int, int]) -> None:
    rows, cols = grid
    patches = torch.randn(2, rows * cols, 8, dtype=torch.float64)  # of another width too

    loss = GramAnchor()(with_prefix(OWN, (2, 3)), with_prefix(patches, grid))

    maps = patches.reshape(2, rows, cols, 8).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, size=(2, 3), mode="bicubic", align_corners=False)
    reference = resized.permute(0, 2, 3, 1).reshape(2, 6, 8)
    assert abs(loss.item() - plain(OWN, reference)) < 1e-12


@GRIDS
def test_the_reference_has_no_gradient(grid: tuple[int, int]) -> None:
    rows, cols = grid
    reference = torch.randn(2, rows * cols, 5, dtype=torch.float64, requires_grad=True)
    own = OWN.clone().requires_grad_()

    GramAnchor()(with_prefix(own, (2, 3)), with_prefix(reference, grid)).backward()

    assert own.grad is not None
    assert reference.grad is None


torch.manual_seed(0)


PRED_MAPS = torch.randn(2, 3, 2, 4, dtype=torch.float64)
TRUE_MAPS = torch.randn(2, 3, 2, 4, dtype=torch.float64)
WEIGHT = torch.rand(2, 2, 4, dtype=torch.float64) * 5
WEIGHT[0, 1, 2] = 0.0
WEIGHT[1, 0, 0] = 0.0


def dense_masked_smooth_l1(
    pred: Tensor, target: Tensor, weight: Tensor | None = None, beta: float = 1.0
) -> Tensor:
    task = Task("a", dim=pred.shape[1], kind="dense", loss="smooth_l1", beta=beta)
    return TaskLoss([task])({"a": pred}, {"a": target}, {} if weight is None else {"a": weight})[0]


def plain_mean(weight: Tensor, error: Callable[[float], float]) -> float:
    """Cell by cell, in Python."""
    above = below = 0.0
    for b, k, r, c in itertools.product(range(2), range(3), range(2), range(4)):
        w = float(weight[b, r, c])
        above += w * error(float(PRED_MAPS[b, k, r, c] - TRUE_MAPS[b, k, r, c]))
        below += w
    return above / below


def huber(beta: float) -> Callable[[float], float]:
    return lambda x: 0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta


WEIGHTS_OF_CELLS = pytest.mark.parametrize(
    "weight",
    [
        pytest.param(WEIGHT, id="numbers"),
        pytest.param(WEIGHT > 1.5, id="a mask"),
        pytest.param(None, id="none"),
    ],
)


def as_numbers(weight: Tensor | None) -> Tensor:
    """The weights of cells; all are 1 where none are stated."""
    return torch.ones(2, 2, 4) if weight is None else weight


@WEIGHTS_OF_CELLS
def test_dense_squares_are_their_weighted_mean(weight: Tensor | None) -> None:
    loss = dense_masked_mse(PRED_MAPS, TRUE_MAPS, weight)

    expected = plain_mean(as_numbers(weight), lambda x: x * x)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@WEIGHTS_OF_CELLS
@pytest.mark.parametrize("beta", [0.4, 1.0, 3.0])
def test_dense_smooth_l1_is_its_weighted_mean(weight: Tensor | None, beta: float) -> None:
    loss = dense_masked_smooth_l1(PRED_MAPS, TRUE_MAPS, as_numbers(weight), beta)

    expected = plain_mean(as_numbers(weight), huber(beta))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@WEIGHTS_OF_CELLS
def test_weights_of_cells_count_relative_to_each_other(weight: Tensor | None) -> None:
    loss = dense_masked_mse(PRED_MAPS, TRUE_MAPS, as_numbers(weight))

    scaled = dense_masked_mse(PRED_MAPS, TRUE_MAPS, 7 * as_numbers(weight))

    assert torch.allclose(scaled, loss)


EMPTY_CELLS = (WEIGHT == 0)[:, None].expand_as(PRED_MAPS)
DENSE_LOSSES = pytest.mark.parametrize("loss", [dense_masked_mse, dense_masked_smooth_l1])
NOTHING = pytest.mark.parametrize("nothing", [torch.nan, torch.inf])


@DENSE_LOSSES
@NOTHING
def test_cells_without_weight_count_for_nothing(loss: Loss, nothing: float) -> None:
    pred = torch.where(EMPTY_CELLS, nothing, PRED_MAPS)
    true = torch.where(EMPTY_CELLS, nothing, TRUE_MAPS)

    total = loss(pred, true, WEIGHT)

    assert torch.allclose(total, loss(PRED_MAPS, TRUE_MAPS, WEIGHT))


@DENSE_LOSSES
@NOTHING
def test_cells_without_weight_have_no_gradient_and_others_have_one(
    loss: Loss, nothing: float
) -> None:
    pred = torch.where(EMPTY_CELLS, nothing, PRED_MAPS).requires_grad_()
    true = torch.where(EMPTY_CELLS, nothing, TRUE_MAPS)

    loss(pred, true, WEIGHT).backward()

    assert pred.grad is not None
    assert (pred.grad[EMPTY_CELLS] == 0).all()
    assert pred.grad[~EMPTY_CELLS].abs().min() > 0


@DENSE_LOSSES
@NOTHING
def test_cells_with_weight_that_are_not_finite_are_not_hidden(loss: Loss, nothing: float) -> None:
    pred = torch.where(EMPTY_CELLS, nothing, PRED_MAPS)

    total = loss(pred, TRUE_MAPS, torch.ones(2, 2, 4))

    assert not total.isfinite()


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(torch.randint(0, 3, (2, 2, 4)), id="classes"),
        pytest.param(TRUE_MAPS.softmax(dim=1), id="shares"),
    ],
)
def test_cross_entropy_of_cells_is_torchs(target: Tensor) -> None:
    loss = map_cross_entropy(PRED_MAPS, target)

    assert torch.allclose(loss, F.cross_entropy(PRED_MAPS, target))


def squares_of_neighbours() -> list[float]:
    """The squared differences of all cells to those on their right and below them."""
    squares = []
    for b, k, r, c in itertools.product(range(2), range(3), range(2), range(4)):
        for below, right in ((0, 1), (1, 0)):
            if r + below < 2 and c + right < 4:
                difference = PRED_MAPS[b, k, r, c] - PRED_MAPS[b, k, r + below, c + right]
                squares.append(float(difference) ** 2)
    return squares


@pytest.fixture
def regularised() -> dict[str, float]:
    """The parts of a regulariser with the weights 1, 2 and 3."""
    parts = DensityRegulariser("m", smoothness=1.0, sparsity=2.0, negativity=3.0).parts(PRED_MAPS)
    return {name: part.item() for name, part in parts.items()}


def test_smoothness_is_the_mean_square_of_neighbours_differences(
    regularised: dict[str, float],
) -> None:
    squares = squares_of_neighbours()

    assert regularised["m.smoothness"] == pytest.approx(sum(squares) / len(squares), rel=1e-12)


def test_sparsity_is_the_mean_size_of_cells(regularised: dict[str, float]) -> None:
    sizes = [abs(value) for value in PRED_MAPS.flatten().tolist()]

    assert regularised["m.sparsity"] == pytest.approx(2 * sum(sizes) / len(sizes), rel=1e-12)


def test_negativity_is_the_mean_by_which_cells_are_below_zero(
    regularised: dict[str, float],
) -> None:
    below = [max(-value, 0) for value in PRED_MAPS.flatten().tolist()]

    assert regularised["m.negativity"] == pytest.approx(3 * sum(below) / len(below), rel=1e-12)


def test_a_penalty_without_weight_is_no_part() -> None:
    regulariser = DensityRegulariser("m", sparsity=2.0)

    parts = regulariser.parts(torch.full((2, 3, 1, 4), -2.0))

    assert {name: part.item() for name, part in parts.items()} == {"m.sparsity": 4.0}


def test_a_map_of_one_cell_is_smooth() -> None:
    cell = torch.full((2, 3, 1, 1), -2.0)

    parts = DensityRegulariser("m", 1.0, 1.0, 1.0).parts(cell)

    assert [part.item() for part in parts.values()] == [0, 2, 2]


torch.manual_seed(0)


MEAN = 210.0
STD = 130.0


# the transform, its inverse without the area, and what an error is divided by
UNITS: dict[str, tuple[TargetTransform, Callable[[float], float], float]] = {
    "area": (TargetTransform(area=0.21, mean=MEAN, std=STD), lambda x: x * STD + MEAN, STD),
    "no area": (TargetTransform(mean=MEAN, std=STD), lambda x: x * STD + MEAN, STD),
    "no scale": (TargetTransform(), lambda x: x, 1.0),
    "log": (
        TargetTransform(0.21, True, 5.0, 0.7),
        lambda x: math.expm1(x * 0.7 + 5.0),
        0.7 * math.exp(5.0),
    ),
    "log, no mean": (TargetTransform(0.21, True, None, 0.7), lambda x: math.expm1(x * 0.7), 0.7),
}


OUTPUTS = {
    "total": torch.randn(4, 1, dtype=torch.float64),
    "ratio": torch.randn(4, 3, dtype=torch.float64),
}


TARGETS = {
    "total": torch.randn(4, 1, dtype=torch.float64),
    "ratio": torch.randn(4, 3, dtype=torch.float64).softmax(dim=1),
}


PARTS = ("clover", "dead", "green")
SUMS = {"GDM": ("clover", "green"), "total": ("clover", "dead", "green")}


FIVE = Composition(PARTS, SUMS, "five", "total", "ratio")  # type: ignore[arg-type]


WEIGHTS = (0.1, 0.1, 0.1, 0.2, 0.5)


def five(total: float, shares: list[float]) -> list[float]:
    """Clover, dead, green, GDM, total."""
    clover, dead, green = (total * share for share in shares)
    return [clover, dead, green, clover + green, clover + dead + green]


def plain_composed(
    loss: CompositionLoss, units: str, target: list[list[float]] | None = None
) -> float:
    """Sample by sample, in Python; grams per square metre."""
    _, natural, scale = UNITS[units]
    result = 0.0
    for k in range(5):
        errors = []
        for b in range(4):
            logits = OUTPUTS["ratio"][b].tolist()
            whole = sum(map(math.exp, logits))
            pred = five(natural(OUTPUTS["total"][b].item()), [math.exp(x) / whole for x in logits])
            true = five(natural(TARGETS["total"][b].item()), TARGETS["ratio"][b].tolist())
            x = (pred[k] - (true if target is None else target[b])[k]) / scale
            errors.append(x * x if loss.loss == "mse" else huber(loss.beta)(x))
        result += (loss.weights or (0.2,) * 5)[k] * sum(errors) / len(errors)
    return result


def run(own: CompositionLoss, units: str, **targets: torch.Tensor) -> torch.Tensor:
    tasks = Task("total", transform=UNITS[units][0]), Task("ratio", dim=3, kind="ratio")
    return TaskLoss(tasks, [own])(OUTPUTS, TARGETS | targets)[1][own.name]


@pytest.fixture
def totals() -> Tensor:
    return torch.rand(6, 1, dtype=torch.float64) * 185


@pytest.fixture
def ratio_logits() -> Tensor:
    return torch.randn(6, 3, dtype=torch.float64)


def test_outputs_are_parts_and_then_sums_in_their_order() -> None:
    assert FIVE.names == ("clover", "dead", "green", "GDM", "total")


def test_a_total_is_shared_out_and_added_up() -> None:
    shares_of_6 = torch.tensor([[0.0, math.log(2), math.log(3)]])  # 1, 2 and 3 of 6

    composed = FIVE(torch.tensor([[60.0]]), shares_of_6)

    assert composed.tolist()[0] == pytest.approx([10.0, 20.0, 30.0, 40.0, 60.0])


def test_the_five_outputs_add_up_in_every_sample(totals: Tensor, ratio_logits: Tensor) -> None:
    composed = FIVE(totals, ratio_logits)

    for total, logits, outputs in zip(totals, ratio_logits, composed, strict=True):
        expected = five(total.item(), logits.softmax(0).tolist())
        assert outputs.tolist() == pytest.approx(expected, rel=1e-12)


def test_shares_compose_as_their_logits_do(totals: Tensor, ratio_logits: Tensor) -> None:
    composed = FIVE.of_shares(totals, ratio_logits.softmax(dim=1))

    assert torch.equal(composed, FIVE(totals, ratio_logits))


def test_gradients_of_a_composition_are_right(totals: Tensor, ratio_logits: Tensor) -> None:
    assert torch.autograd.gradcheck(FIVE, (totals.requires_grad_(), ratio_logits.requires_grad_()))


OF_LISTS = Composition(parts=["a", "b"], sums={"both": ["b", "a"], "second": ("b",)})  # type: ignore[arg-type, dict-item]


def test_parts_and_sums_may_be_lists_and_mappings() -> None:
    of_tuples = Composition(parts=("a", "b"), sums=(("both", ("b", "a")), ("second", ("b",))))

    assert of_tuples == OF_LISTS


def test_sums_may_be_of_any_parts() -> None:
    composed = OF_LISTS(torch.tensor([[8.0]]), torch.zeros(1, 2))

    assert composed.tolist() == [[4.0, 4.0, 8.0, 4.0]]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(OF_LISTS, id="a composition of lists"),
        pytest.param(FIVE, id="a composition"),
        pytest.param(CompositionLoss(FIVE, weights=WEIGHTS, loss="smooth_l1"), id="its loss"),
    ],
)
def test_json_keeps_compositions_and_their_losses(value: Composition | CompositionLoss) -> None:
    text = json.dumps(encode(value), sort_keys=True)

    assert normal(type(value), json.loads(text), "value") == value


COMPOSITION_LOSSES = pytest.mark.parametrize(
    "loss",
    [
        pytest.param(CompositionLoss(FIVE), id="plain"),
        pytest.param(CompositionLoss(FIVE, weights=WEIGHTS), id="weights"),
        pytest.param(CompositionLoss(FIVE, loss="smooth_l1"), id="smooth l1"),
        pytest.param(
            CompositionLoss(FIVE, weights=WEIGHTS, loss="smooth_l1", beta=0.3), id="all options"
        ),
    ],
)


@COMPOSITION_LOSSES
@pytest.mark.parametrize("units", UNITS)
def test_the_loss_is_the_plain_formula_in_grams_per_square_metre(
    units: str, loss: CompositionLoss
) -> None:
    total = run(loss, units)

    assert total.item() == pytest.approx(plain_composed(loss, units), rel=1e-10)


@COMPOSITION_LOSSES
@pytest.mark.parametrize("units", UNITS)
def test_a_composition_may_have_targets_of_its_own(units: str, loss: CompositionLoss) -> None:
    targets = torch.rand(4, 5, dtype=torch.float64) * 300

    total = run(loss, units, five=targets)

    expected = plain_composed(loss, units, targets.tolist())
    assert total.item() == pytest.approx(expected, rel=1e-10)


def test_parts_that_match_a_total_keep_their_shares() -> None:
    composed = FIVE.of_shares(torch.tensor([[10.0]]), torch.tensor([[0.2, 0.3, 0.5]]))

    matched = FIVE.rescaled_to(composed, torch.tensor([[40.0]]))

    assert matched.tolist()[0] == pytest.approx([8.0, 12.0, 20.0, 28.0, 40.0])


def test_parts_of_nothing_that_match_nothing_are_nothing() -> None:
    composed = FIVE.of_shares(torch.tensor([[0.0]]), torch.tensor([[0.2, 0.3, 0.5]]))

    matched = FIVE.rescaled_to(composed, torch.tensor([[0.0]]))

    assert matched.tolist() == [[0.0] * 5]
