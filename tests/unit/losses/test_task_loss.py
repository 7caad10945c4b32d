"""TaskLoss over every kind of task, compositions, learned weights and regularisers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck import Composition, ShapeError, TargetTransform, Task
from dinoneck.kinds import Kind
from dinoneck.losses import CompositionLoss, DensityRegulariser, TaskLoss, UncertaintyWeighting

TASKS = (
    Task(
        "total",
        loss="smooth_l1",
        beta=0.5,
        transform=TargetTransform(area=0.21, mean=200.0, std=130.0),
    ),
    Task("mass", dim=3, kind="density", weight=(1.0, 0.5, 0.0)),
    Task("ratio", dim=3, kind="ratio"),
    Task("state", dim=4, kind="classification", ignore_index=9),
    Task("ndvi", dim=2, kind="dense"),
    Task("cover", dim=3, kind="segmentation", ignore_index=255),
)
BIOMASS = Composition(
    ("clover", "dead", "green"),
    (("GDM", ("clover", "green")), ("total", ("clover", "dead", "green"))),
    name="five",
    total="total",
    ratio="ratio",
)
FIVE = CompositionLoss(BIOMASS)
NAMES = [task.name for task in TASKS] + ["five"]
HELD = DensityRegulariser("mass", smoothness=0.3, sparsity=0.2, negativity=0.7)
SHAPES = {
    "total": (4, 1),
    "mass": (4, 3),
    "ratio": (4, 3),
    "state": (4, 4),
    "ndvi": (4, 2, 2, 3),
    "cover": (4, 3, 2, 3),
}


def a_batch(
    dtype: torch.dtype = torch.float64,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)
    outputs = {name: torch.randn(shape, dtype=dtype) for name, shape in SHAPES.items()}
    outputs["mass.map"] = torch.randn(4, 3, 2, 3, dtype=dtype)
    targets = {name: torch.randn(SHAPES[name], dtype=dtype) for name in ("total", "mass", "ndvi")}
    targets["ratio"] = torch.randn(4, 3, dtype=dtype).softmax(dim=1)
    targets["state"] = torch.tensor([0, 3, 9, 1])
    targets["cover"] = torch.randint(0, 3, (4, 4, 6))
    targets["cover"][0, 0, 0] = 255
    masks = {
        "total": torch.tensor([True, True, False, True]),
        "mass": torch.rand(4, 3) > 0.3,
        "ndvi": (torch.rand(4, 2, 3) * 3 - 1).clamp_min(0),
        "cover": torch.rand(4, 4, 6) > 0.3,
    }
    return outputs, targets, masks


def test_every_kind_has_its_loss() -> None:
    outputs, targets, masks = a_batch()

    _, parts = TaskLoss(TASKS, [FIVE])(outputs, targets, masks)

    of_smooth_l1 = F.smooth_l1_loss(
        outputs["total"][masks["total"]], targets["total"][masks["total"]], beta=0.5
    )
    assert torch.allclose(parts["total"], of_smooth_l1)
    of_mass = torch.zeros((), dtype=torch.float64)
    for k, weight in enumerate((1.0, 0.5)):  # the third output has the weight 0
        keep = masks["mass"][:, k]
        of_mass += weight * F.mse_loss(outputs["mass"][keep, k], targets["mass"][keep, k])
    assert torch.allclose(parts["mass"], of_mass)
    of_ratio = F.mse_loss(outputs["ratio"].softmax(1), targets["ratio"])
    assert torch.allclose(parts["ratio"], of_ratio)
    of_state = F.cross_entropy(outputs["state"], targets["state"], ignore_index=9)
    assert torch.allclose(parts["state"], of_state)
    weight_of_cells = masks["ndvi"].double()
    squares = (outputs["ndvi"] - targets["ndvi"]) ** 2
    of_ndvi = (weight_of_cells[:, None] * squares).sum() / (2 * weight_of_cells.sum())
    assert torch.allclose(parts["ndvi"], of_ndvi)
    fine = F.interpolate(outputs["cover"], scale_factor=2, mode="bilinear")
    of_pixels = F.cross_entropy(fine, targets["cover"], ignore_index=255, reduction="none")
    counts = masks["cover"] & (targets["cover"] != 255)
    assert torch.allclose(parts["cover"], of_pixels[counts].mean())


def test_the_total_is_the_sum_of_the_parts_in_the_order_of_the_tasks() -> None:
    outputs, targets, masks = a_batch()

    total, parts = TaskLoss(TASKS, [FIVE])(outputs, targets, masks)

    assert list(parts) == NAMES
    assert torch.allclose(total, torch.stack([*parts.values()]).sum())


def mask_out(name: str) -> Callable[[dict[str, Tensor], dict[str, Tensor]], None]:
    """A change after which nothing of a part counts."""

    def change(targets: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
        masks[name] = torch.zeros_like(masks[name])

    return change


def mask_out_five(targets: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    masks["five"] = torch.zeros(4)


def leave_mass_without_weight(targets: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    masks["mass"] = torch.tensor([[False, False, True]]).expand(4, 3)


def ignore_all_states(targets: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    targets["state"] = torch.full((4,), 9)


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        # the composition is made of the total
        pytest.param(mask_out("total"), {"total", "five"}, id="total"),
        pytest.param(mask_out("ndvi"), {"ndvi"}, id="ndvi"),
        pytest.param(mask_out("cover"), {"cover"}, id="cover"),
        pytest.param(mask_out_five, {"five"}, id="five"),
        pytest.param(leave_mass_without_weight, {"mass"}, id="mass of no weight"),
        pytest.param(ignore_all_states, {"state"}, id="ignored"),
    ],
)
def test_a_part_in_which_nothing_counts_leaves_its_weight_alone(
    change: Callable[[dict[str, Tensor], dict[str, Tensor]], None], left_out: set[str]
) -> None:
    outputs, targets, masks = a_batch()
    change(targets, masks)
    weighting = UncertaintyWeighting(NAMES)
    weighting.is_set.fill_(True)  # log variances stay at 0

    total, parts = TaskLoss(TASKS, [FIVE], weighting)(outputs, targets, masks)
    total.backward()

    assert weighting.log_variance.grad is not None
    gradients = dict(zip(NAMES, weighting.log_variance.grad.tolist(), strict=True))
    assert {name for name, gradient in gradients.items() if gradient == 0} == left_out
    counting = [part for name, part in parts.items() if name not in left_out]
    assert torch.allclose(total, 0.5 * torch.stack(counting).sum())


def test_regularisers_come_on_top() -> None:
    outputs, targets, masks = a_batch()
    bare, _ = TaskLoss(TASKS, [FIVE])(outputs, targets, masks)

    total, _ = TaskLoss(TASKS, [FIVE], None, [HELD])(outputs, targets, masks)

    regularisers = torch.stack([*HELD.parts(outputs["mass.map"]).values()])
    assert torch.allclose(total, bare + regularisers.sum())


def test_a_regulariser_without_weights_needs_no_map() -> None:
    outputs, targets, masks = a_batch()
    del outputs["mass.map"]
    bare, _ = TaskLoss(TASKS, [FIVE])(outputs, targets, masks)

    total, _ = TaskLoss(TASKS, [FIVE], None, [DensityRegulariser("mass")])(outputs, targets, masks)

    assert torch.equal(total, bare)


def test_a_regulariser_without_its_map_is_refused() -> None:
    outputs, targets, masks = a_batch()
    del outputs["mass.map"]

    with pytest.raises(ShapeError, match=r"lack 'mass.map'"):
        TaskLoss(TASKS, [FIVE], None, [HELD])(outputs, targets, masks)


@pytest.mark.parametrize("kind", ["regression", "ratio", "dense"])
@pytest.mark.parametrize("has_mask", [False, True], ids=["no mask", "mask"])
def test_a_target_that_is_nan_is_missing_with_and_without_a_mask(
    kind: Kind, has_mask: bool
) -> None:
    task = Task("a", dim=2, kind=kind)
    shape = (3, 2, 2, 2) if kind == "dense" else (3, 2)
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.full(shape, 0.5)
    target[1] = torch.nan
    masks = None
    if has_mask:
        mask = torch.ones(3, 2, 2) if kind == "dense" else torch.ones(3, dtype=torch.bool)
        masks = {"a": mask}

    total, _ = TaskLoss([task])({"a": output}, {"a": target}, masks)

    of_others, _ = TaskLoss([task])({"a": output[[0, 2]]}, {"a": target[[0, 2]]})
    assert torch.allclose(total, of_others)
    [gradient] = torch.autograd.grad(total, output)
    assert gradient.isfinite().all()
    assert gradient[1].abs().max() == 0


@pytest.mark.slow
def test_it_compiles_whole_with_everything() -> None:
    outputs, targets, masks = a_batch(torch.float32)
    loss = TaskLoss(TASKS, [FIVE], UncertaintyWeighting(NAMES), [HELD])
    plain = copy.deepcopy(loss)
    leaves = {name: x.requires_grad_() for name, x in outputs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(loss, backend="eager", fullgraph=True, dynamic=True)
        total, parts = compiled(leaves, targets, masks)
        grads = torch.autograd.grad(total, [*leaves.values(), *loss.parameters()])
    expected, expected_parts = plain(leaves, targets, masks)
    expected_grads = torch.autograd.grad(expected, [*leaves.values(), *plain.parameters()])
    assert torch.allclose(total, expected)
    assert all(torch.allclose(parts[name], part) for name, part in expected_parts.items())
    assert all(torch.allclose(*pair, atol=1e-7) for pair in zip(grads, expected_grads, strict=True))
