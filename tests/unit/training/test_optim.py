"""EMA, SAM, mixup and groups of parameters against their formulas."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from dinoneck import DataError, PatchMeanHead, Task, Tokens, load_backbone, wrap_backbone
from dinoneck.losses import TaskLoss
from dinoneck.training import EMA, SAM, MemoryTokens, Recipe, cutmix, manifold_mixup, param_groups
from dinoneck.training.objective import Objective
from dinoneck.training.samples import Targets


def walk(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


# The moving average


@pytest.mark.parametrize("warmup", [True, False])
def test_it_follows_its_recursion(warmup: bool) -> None:
    model = nn.Linear(3, 2).double()
    average = EMA(model, decay=0.6, warmup=warmup)

    expected = model.weight.detach().clone()
    for step in range(20):
        walk(model)
        average.update(model)
        decay = 0.6
        if warmup:
            decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()

    assert torch.allclose(average.values["weight"], expected, rtol=1e-12)
    assert average.updates == 20


def bfloat16_average() -> tuple[nn.Module, EMA]:
    """A weight in bfloat16 that went from 1 to 1.5, and its average."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = EMA(model, decay=0.997, warmup=False)
    nn.init.constant_(model.weight, 1.5)
    average.update(model)
    return model, average


def test_averages_are_float32_and_hold_changes_that_bfloat16_cannot() -> None:
    _, average = bfloat16_average()

    assert average.values["weight"].dtype == torch.float32
    assert average.values["weight"].item() == pytest.approx(1.0 + 0.003 * 0.5, rel=1e-6)


def test_a_model_that_gets_the_average_keeps_its_dtype() -> None:
    model, average = bfloat16_average()

    average.copy_to(model)

    assert model.weight.dtype == torch.bfloat16


@dataclass
class HalfFrozenModel:
    """A frozen linear layer, a batch norm, and the average of both."""

    linear: nn.Linear
    norm: nn.BatchNorm1d
    model: nn.Sequential
    average: EMA


@pytest.fixture
def half_frozen() -> HalfFrozenModel:
    linear = nn.Linear(2, 2).requires_grad_(False)
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(linear, norm)
    average = EMA(model, decay=0.5, warmup=False)
    return HalfFrozenModel(linear=linear, norm=norm, model=model, average=average)


@pytest.fixture
def unfrozen(half_frozen: HalfFrozenModel) -> HalfFrozenModel:
    """The same, whose linear layer joined the average and went on by a step."""
    half_frozen.linear.requires_grad_(True)
    half_frozen.average.update(half_frozen.model)
    walk(half_frozen.model)
    half_frozen.average.update(half_frozen.model)
    return half_frozen


def test_buffers_are_copied(half_frozen: HalfFrozenModel) -> None:
    half_frozen.model(torch.randn(8, 2) + 3)

    half_frozen.average.update(half_frozen.model)

    averaged = half_frozen.average.values["1.running_mean"]
    assert torch.equal(averaged, half_frozen.norm.running_mean)
    assert (averaged != 0).all(), "the batch has moved it"


def test_frozen_weights_are_not_averaged(half_frozen: HalfFrozenModel) -> None:
    half_frozen.average.update(half_frozen.model)

    assert "0.weight" not in half_frozen.average.values


def test_weights_join_when_they_are_unfrozen(half_frozen: HalfFrozenModel) -> None:
    weight = half_frozen.linear.weight.requires_grad_(True)
    half_frozen.average.update(half_frozen.model)
    at_join = weight.detach().clone()
    walk(half_frozen.model)

    half_frozen.average.update(half_frozen.model)

    mean = (at_join + weight.detach()) / 2
    assert torch.allclose(half_frozen.average.values["0.weight"], mean)


def test_the_average_is_applied_within_a_block(unfrozen: HalfFrozenModel) -> None:
    before = unfrozen.linear.weight.detach().clone()

    with unfrozen.average.applied(unfrozen.model):
        assert torch.equal(unfrozen.linear.weight, unfrozen.average.values["0.weight"])
        assert not torch.equal(unfrozen.linear.weight, before)

    assert torch.equal(unfrozen.linear.weight, before)


def test_a_restored_average_goes_on_as_the_one_before(unfrozen: HalfFrozenModel) -> None:
    restored = EMA(unfrozen.model, decay=0.5, warmup=False)
    restored.load_state_dict(unfrozen.average.state_dict())
    walk(unfrozen.model)

    unfrozen.average.update(unfrozen.model)
    restored.update(unfrozen.model)

    for name, value in unfrozen.average.values.items():
        assert torch.equal(value, restored.values[name]), name


# SAM


def closure_of(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def as_leaf(weight: Tensor) -> Tensor:
    return weight.detach().clone().requires_grad_()


def published_step(
    weights: list[Tensor], loss: Callable[[list[Tensor]], Tensor], rho: float, lr: float
) -> list[Tensor]:
    """The rule of the paper in plain float64: one norm over all weights, gradient descent by the second gradient."""
    first = torch.autograd.grad(loss(weights), weights)
    norm = torch.cat([gradient.flatten() for gradient in first]).norm()
    moved = []
    for weight, gradient in zip(weights, first, strict=True):
        moved.append(as_leaf(weight + rho * gradient / (norm + 1e-12)))
    second = torch.autograd.grad(loss(moved), moved)
    stepped = []
    for weight, gradient in zip(weights, second, strict=True):
        stepped.append(as_leaf(weight - lr * gradient))
    return stepped


def test_it_follows_the_published_rule_over_many_steps() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(16, 3, dtype=torch.float64)
    y = torch.randn(16, 1, dtype=torch.float64)
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.05), rho=0.3)
    expected = [as_leaf(parameter) for parameter in model.parameters()]

    def plain_loss(weights: list[Tensor]) -> Tensor:
        hidden = (x @ weights[0].T + weights[1]).tanh()
        return (hidden @ weights[2].T + weights[3] - y).square().mean()

    for _ in range(10):
        sam.step(closure_of(sam, lambda: (model(x) - y).square().mean()))
        expected = published_step(expected, plain_loss, rho=0.3, lr=0.05)

    for parameter, weight in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter, weight, rtol=1e-10, atol=1e-12)


def test_weights_come_back_after_an_error_in_the_second_pass() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def loss() -> Tensor:
        if not torch.equal(model.weight, before):
            raise RuntimeError("interrupted")
        return model(torch.ones(1, 2)).square().sum()

    with pytest.raises(RuntimeError, match="interrupted"):
        sam.step(closure_of(sam, loss))

    assert torch.equal(model.weight, before)


def test_batch_statistics_count_once_and_those_of_the_first_pass() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(8, 3)
    twin(x)
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)

    sam.step(closure_of(sam, lambda: (model(x) - 1).square().mean()))

    buffers = dict(model.named_buffers())
    for name, buffer in twin.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    model = nn.Linear(4, 64)
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    masks = []

    def loss() -> Tensor:
        mask = nn.functional.dropout(torch.ones(64))
        masks.append(mask)
        return (model(torch.ones(1, 4)) * mask).square().mean()

    for _ in range(2):
        sam.step(closure_of(sam, loss))

    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_a_gradient_that_is_not_finite_is_refused_and_moves_nothing() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))

    with pytest.raises(DataError, match="nan"):
        sam.step(closure_of(sam, lambda: (model(torch.zeros(1, 2)) * torch.nan).sum()))

    assert torch.equal(model.weight, before)


@dataclass
class RestoredSam:
    """A SAM that made a step, and another one of the same model that got its state."""

    model: nn.Linear
    before: SAM
    restored: SAM


@pytest.fixture
def restored_sam() -> RestoredSam:
    model = nn.Linear(2, 1)
    before = SAM(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    before.step(closure_of(before, lambda: model(torch.ones(1, 2)).square().sum()))
    restored = SAM(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    restored.load_state_dict(before.state_dict())
    return RestoredSam(model=model, before=before, restored=restored)


def test_a_restored_sam_follows_the_rates_of_its_groups(restored_sam: RestoredSam) -> None:
    """A schedule that is made on it after a resume must reach the optimizer that steps."""
    model = restored_sam.model
    sam = restored_sam.restored
    before = model.weight.detach().clone()

    sam.param_groups[0]["lr"] = 0.0
    sam.step(closure_of(sam, lambda: model(torch.ones(1, 2)).square().sum()))

    assert torch.equal(model.weight, before)


def test_a_restored_sam_has_the_moments_of_the_one_before(restored_sam: RestoredSam) -> None:
    weight = restored_sam.model.weight
    moments = restored_sam.before.state[weight]["exp_avg"]

    state = restored_sam.restored.state

    assert state is restored_sam.restored.base_optimizer.state
    assert torch.equal(state[weight]["exp_avg"], moments)


# Mixup and CutMix


BATCH = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(dtype: torch.dtype = torch.float64) -> Tokens:
    layers = []
    for layer in range(2):
        layers.append(torch.randn(BATCH, 1 + 6, 4, generator=seeded(layer)).to(dtype))
    return Tokens.from_sequence(layers, image_size=(32, 48), patch_size=16, num_prefix_tokens=1)


def targets() -> dict[str, Tensor]:
    return {
        "x": torch.arange(BATCH, dtype=torch.float64)[:, None],
        "kind": torch.eye(BATCH, dtype=torch.float64),
    }


def blend(x: Tensor, share: float) -> Tensor:
    """``share`` of every sample, and the rest of the sample before it in the batch."""
    partners = torch.cat((x[-1:], x[:-1]))
    return share * x + (1 - share) * partners


def share_in(mixed_targets: dict[str, Tensor]) -> float:
    """The share of itself that a sample keeps: that of its own class."""
    share = float(mixed_targets["kind"][0, 0])
    assert 0 < share < 1
    return share


# how far the tokens of a type may be from their blend
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_layer_and_token_keeps_the_same_share_of_itself(dtype: torch.dtype) -> None:
    before = tokens(dtype)

    mixed, mixed_targets = manifold_mixup(before, targets(), 1.0, generator=seeded())

    share = share_in(mixed_targets)
    for layer, mixed_layer in zip(before.sequence, mixed.sequence, strict=True):
        expected = blend(layer.double(), share)
        assert torch.allclose(mixed_layer.double(), expected, atol=TOLERANCES[dtype])
        assert mixed_layer.dtype == dtype


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_target_keeps_the_share_that_tokens_keep(dtype: torch.dtype) -> None:
    _, mixed_targets = manifold_mixup(tokens(dtype), targets(), 1.0, generator=seeded())

    expected = blend(targets()["x"], share_in(mixed_targets))
    assert torch.allclose(mixed_targets["x"], expected)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_mixup_leaves_the_tokens_that_it_is_given(dtype: torch.dtype) -> None:
    given = tokens(dtype)

    manifold_mixup(given, targets(), 1.0, generator=seeded())

    assert torch.equal(given.sequence[0], tokens(dtype).sequence[0])


def test_draws_repeat_with_their_seed() -> None:
    mixed = []
    for seed in (0, 0, 1):
        mixed_tokens, _ = manifold_mixup(tokens(), targets(), 0.4, generator=seeded(seed))
        mixed.append(mixed_tokens.sequence[0])

    assert torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[0], mixed[2])


def test_what_is_missing_stays_missing() -> None:
    x = torch.tensor([[1.0], [torch.nan], [2.0], [3.0], [4.0]])

    _, mixed_targets = manifold_mixup(tokens(), {"x": x}, 1.0, generator=seeded())

    is_missing = mixed_targets["x"].isnan()[:, 0]
    assert is_missing.tolist() == [False, True, True, False, False]


@dataclass
class PastedImages:
    """Images of one number each, with a rectangle of the image before them."""

    images: Tensor
    targets: dict[str, Tensor]
    is_pasted: Tensor  # (height, width), the same in all images


def paste(seed: int, patch_size: Any = None) -> PastedImages:
    numbers = torch.arange(BATCH, dtype=torch.float64)
    images = numbers[:, None, None, None].expand(BATCH, 3, 32, 48).clone()
    mixed, mixed_targets = cutmix(
        images, targets(), 1.0, patch_size=patch_size, generator=seeded(seed)
    )
    is_pasted = (mixed != images)[0, 0]
    return PastedImages(images=mixed, targets=mixed_targets, is_pasted=is_pasted)


PATCH_SIZES = [None, 16, (8, 16)]
SEEDS = range(10)


@pytest.mark.parametrize("patch_size", PATCH_SIZES, ids=str)
def test_targets_follow_the_area_that_is_pasted(patch_size: Any) -> None:
    for seed in SEEDS:
        pasted = paste(seed, patch_size)

        area = pasted.is_pasted.double().mean()
        assert torch.allclose(pasted.targets["kind"].diagonal(), 1 - area.expand(BATCH))
        assert torch.allclose(pasted.images.mean(dim=(1, 2, 3)), pasted.targets["x"][:, 0])


@pytest.mark.parametrize("patch_size", PATCH_SIZES, ids=str)
def test_a_rectangle_of_the_partner_is_pasted(patch_size: Any) -> None:
    for seed in SEEDS:
        is_pasted = paste(seed, patch_size).is_pasted

        rows = is_pasted.any(dim=1)
        columns = is_pasted.any(dim=0)
        assert torch.equal(is_pasted, rows[:, None] & columns)


@pytest.mark.parametrize(
    ("patch_size", "height_and_width"),
    [
        pytest.param(None, (1, 1), id="pixels"),
        pytest.param(16, (16, 16), id="square patches"),
        pytest.param((8, 16), (8, 16), id="wide patches"),
    ],
)
def test_whole_patches_are_pasted(patch_size: Any, height_and_width: tuple[int, int]) -> None:
    for seed in SEEDS:
        is_pasted = paste(seed, patch_size).is_pasted

        for dim in (0, 1):
            for patches in is_pasted.split(height_and_width[dim], dim=dim):
                first_line = patches.narrow(dim, 0, 1)
                assert torch.equal(patches, first_line.expand_as(patches))


@dataclass
class MixedLoss:
    """A head with its loss on samples of a value with a gap and of a class with a gap."""

    head: PatchMeanHead
    loss: TaskLoss
    objective: Objective
    values: dict[str, Tensor]
    masks: dict[str, Tensor]

    def of(self, mixed_tokens: Tokens, partners: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of tokens with the targets of their samples, or of the samples before those."""
        shift = 1 if partners else 0
        values = {name: x.roll(shift, 0) for name, x in self.values.items()}
        masks = {name: x.roll(shift, 0) for name, x in self.masks.items()}
        return self.loss(self.head(mixed_tokens), values, masks)


@pytest.fixture
def mixed_loss() -> MixedLoss:
    tasks = [Task("x"), Task("kind", dim=3, kind="classification")]
    head = PatchMeanHead(4, tasks).double()
    loss = TaskLoss(tasks)
    x = targets()["x"]
    x[1] = torch.nan
    kind = torch.tensor([0, 1, -1, 2, 1])
    source = MemoryTokens([str(i) for i in range(BATCH)], tokens())
    return MixedLoss(
        head=head,
        loss=loss,
        objective=Objective(head, source, loss, Recipe(mixup_alpha=1.0)),
        values={"x": x, "kind": kind},
        masks={"x": x.isfinite(), "kind": kind >= 0},
    )


def test_mixed_losses_follow_the_targets_of_both_samples(mixed_loss: MixedLoss) -> None:
    """Class indices, missing values and masks need no rules: the loss of the partner's targets counts by its share."""
    torch.manual_seed(3)
    mixed, mixed_targets = manifold_mixup(tokens(), targets(), 1.0)
    share = share_in(mixed_targets)
    loss_of_samples, parts_of_samples = mixed_loss.of(mixed)
    loss_of_partners, parts_of_partners = mixed_loss.of(mixed, partners=True)

    torch.manual_seed(3)
    objective = mixed_loss.objective
    [samples] = objective.micro_batches(tokens(), Targets(mixed_loss.values), mixes=True)
    losses = objective(samples)

    kind_of_samples = parts_of_samples["kind"]
    kind_of_partners = parts_of_partners["kind"]
    expected = share * loss_of_samples + (1 - share) * loss_of_partners
    expected_kind = share * kind_of_samples + (1 - share) * kind_of_partners
    assert torch.allclose(losses["loss"], expected)
    assert torch.allclose(losses["loss/kind"], expected_kind)


def test_losses_without_mixing_are_those_of_the_samples(mixed_loss: MixedLoss) -> None:
    objective = mixed_loss.objective
    expected, _ = mixed_loss.of(tokens())

    [samples] = objective.micro_batches(tokens(), Targets(mixed_loss.values), mixes=False)

    assert torch.equal(objective(samples)["loss"], expected)


# Groups of parameters


todays_timm = pytest.mark.skipif(
    tuple(int(part) for part in timm.__version__.split(".")[:3] if part.isdigit()) < (1, 0, 31),
    reason="an older timm takes register tokens for the last layer and lets them decay",
)


def model_of(frozen: bool = False) -> nn.ModuleDict:
    """A model whose neck is called like the backbone."""
    backbone = load_backbone("dinoneck_tiny")
    if not frozen:
        backbone = backbone.unfreeze()
    neck = nn.Sequential(
        nn.Conv2d(64, 8, 1),
        nn.BatchNorm2d(8),
        nn.LayerNorm((8, 4, 4)),
    )
    return nn.ModuleDict({"backbone": backbone, "backbone_neck": neck, "head": nn.Linear(64, 1)})


def group_by_parameter(groups: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The group of each parameter; fails if one is in two."""
    group_of: dict[int, dict[str, Any]] = {}
    for group in groups:
        assert set(group) == {"params", "lr", "weight_decay", "name"}
        for parameter in group["params"]:
            assert id(parameter) not in group_of
            group_of[id(parameter)] = group
    return group_of


def parameter_ids(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def trainable_ids(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters() if parameter.requires_grad}


@pytest.fixture
def partly_frozen() -> nn.ModuleDict:
    model = model_of(frozen=True)
    model.backbone.unfreeze_last(2)
    return model


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_trainable_parameter_is_in_one_group(
    layer_decay: float | None, partly_frozen: nn.ModuleDict
) -> None:
    groups = param_groups(partly_frozen, lr=1.0, layer_decay=layer_decay)

    assert group_by_parameter(groups).keys() == trainable_ids(partly_frozen)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_frozen_parameters_are_in_a_group_on_request(
    layer_decay: float | None, partly_frozen: nn.ModuleDict
) -> None:
    groups = param_groups(partly_frozen, lr=1.0, layer_decay=layer_decay, include_frozen=True)

    assert group_by_parameter(groups).keys() == parameter_ids(partly_frozen)


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_an_optimizer_takes_the_groups(
    layer_decay: float | None, partly_frozen: nn.ModuleDict
) -> None:
    groups = param_groups(partly_frozen, lr=1.0, layer_decay=layer_decay, include_frozen=True)

    # refuses a parameter that comes twice
    optimizer = torch.optim.AdamW(groups)

    assert len(optimizer.param_groups) == len(groups)


@pytest.fixture
def decayed() -> dict[str, float]:
    """The weight decay of every parameter by name, where 0.3 is asked for."""
    model = model_of()
    groups = param_groups(model, lr=1.0, weight_decay=0.3, include_frozen=True)
    group_of = group_by_parameter(groups)
    decay_of = {}
    for name, parameter in model.named_parameters():
        decay_of[name] = group_of[id(parameter)]["weight_decay"]
    return decay_of


def test_what_weight_decay_leaves_alone(decayed: dict[str, float]) -> None:
    """Outside the blocks; those are compared with timm."""
    exempt = set()
    for name, decay in decayed.items():
        if decay == 0.0 and "blocks." not in name:
            exempt.add(name)

    assert exempt == {
        "backbone.adapter.model.cls_token",
        "backbone.adapter.model.reg_token",
        "backbone.adapter.model.patch_embed.proj.bias",
        "backbone.adapter.model.norm.weight",
        "backbone.adapter.model.norm.bias",
        "head.bias",
        "backbone_neck.0.bias",
        "backbone_neck.1.weight",
        "backbone_neck.1.bias",
        "backbone_neck.2.weight",  # three-dimensional, but a norm's
        "backbone_neck.2.bias",
    }


def test_other_parameters_decay_as_asked(decayed: dict[str, float]) -> None:
    assert set(decayed.values()) == {0.0, 0.3}


def test_the_weight_of_one_output_decays_as_a_matrix(decayed: dict[str, float]) -> None:
    assert decayed["head.weight"] == 0.3


def test_a_module_may_name_its_own() -> None:
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(4, 8))
            self.queries = nn.Parameter(torch.zeros(4, 8))

        def no_weight_decay(self) -> set[str]:
            return {"positions"}

    neck = Neck()
    model = model_of()
    model.head = neck

    group_of = group_by_parameter(param_groups(model, lr=1.0))

    assert group_of[id(neck.positions)]["weight_decay"] == 0.0
    assert group_of[id(neck.queries)]["weight_decay"] == 0.05


def groups_of_timm(model: nn.Module, layer_decay: float) -> dict[int, dict[str, Any]]:
    groups = param_groups_layer_decay(
        model,
        weight_decay=0.05,
        no_weight_decay_list=model.no_weight_decay(),  # type: ignore[operator]
        layer_decay=layer_decay,
    )
    group_of = {}
    for group in groups:
        for parameter in group["params"]:
            group_of[id(parameter)] = group
    return group_of


def build_tiny() -> nn.Module:
    return load_backbone("dinoneck_tiny").adapter.model.requires_grad_(True)


def build_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        depth=3,
        reg_tokens=2,
        pre_norm=True,
        dynamic_img_size=True,
        num_classes=0,
    )


@todays_timm
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build_tiny, id="eva"),
        pytest.param(build_vit, id="vit"),
    ],
)
def test_layer_decay_gives_timms_numbers(build: Callable[[], nn.Module]) -> None:
    vit = build()
    expected = groups_of_timm(vit, layer_decay=0.7)

    groups = param_groups(
        wrap_backbone(vit), lr=9.0, backbone_lr=2.0, layer_decay=0.7, include_frozen=True
    )

    group_of = group_by_parameter(groups)
    assert group_of.keys() == expected.keys()
    for key, group in expected.items():
        assert group_of[key]["lr"] == pytest.approx(2.0 * group["lr_scale"], rel=1e-12)
        assert group_of[key]["weight_decay"] == group["weight_decay"]


@dataclass
class LoraGroups:
    """The groups of a model whose backbone learns by LoRA."""

    model: nn.ModuleDict
    lora: dict[str, nn.Parameter]
    group_of: dict[int, dict[str, Any]]


@pytest.fixture
def lora_groups() -> LoraGroups:
    pytest.importorskip("peft")
    model = model_of(frozen=True)
    model.backbone.add_lora(2, targets="all")
    lora = {}
    for name, parameter in model.backbone.named_parameters():
        if parameter.requires_grad:
            lora[name] = parameter
    assert lora
    groups = param_groups(model, lr=1.0, backbone_lr=0.25, layer_decay=0.5)
    return LoraGroups(model=model, lora=lora, group_of=group_by_parameter(groups))


def test_lora_weights_are_in_a_group(lora_groups: LoraGroups) -> None:
    of_lora = {id(parameter) for parameter in lora_groups.lora.values()}
    of_head = parameter_ids(lora_groups.model.head)
    of_neck = parameter_ids(lora_groups.model.backbone_neck)

    assert lora_groups.group_of.keys() == of_lora | of_head | of_neck


def test_lora_weights_are_the_backbones(lora_groups: LoraGroups) -> None:
    for name, parameter in lora_groups.lora.items():
        block = int(name.split("blocks.")[1].split(".")[0])
        group = lora_groups.group_of[id(parameter)]
        assert group["name"] == f"backbone.block{block}.decay"
        assert group["lr"] == 0.25 * 0.5 ** (5 - block)
