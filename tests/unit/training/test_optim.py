"""EMA, SAM, mixup and groups of parameters against their formulas."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
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


@pytest.mark.parametrize("warmup", [True, False])
def test_it_follows_its_recursion(warmup: bool) -> None:
    model = nn.Linear(3, 2).double()
    average = EMA(model, decay=0.6, warmup=warmup)
    expected = model.weight.detach().clone()
    for t in range(20):
        walk(model)
        average.update(model)
        decay = min(0.6, (1 + t) / (10 + t)) if warmup else 0.6
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert torch.allclose(average.values["weight"], expected, rtol=1e-12)
    assert average.updates == 20


def test_averages_are_float32_and_hold_changes_that_bfloat16_cannot() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = EMA(model, decay=0.997, warmup=False)
    nn.init.constant_(model.weight, 1.5)
    average.update(model)
    assert average.values["weight"].dtype == torch.float32
    assert average.values["weight"].item() == pytest.approx(1.0 + 0.003 * 0.5, rel=1e-6)
    average.copy_to(model)
    assert model.weight.dtype == torch.bfloat16


def test_buffers_are_copied_and_frozen_weights_join_when_they_are_unfrozen() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    average = EMA(model, decay=0.5, warmup=False)
    model(torch.randn(8, 2) + 3)
    average.update(model)
    assert "0.weight" not in average.values
    assert torch.equal(average.values["1.running_mean"], model[1].running_mean)
    model[0].requires_grad_(True)
    average.update(model)
    start = model[0].weight.detach().clone()
    walk(model)
    average.update(model)
    own = model[0].weight.detach().clone()
    assert torch.allclose(average.values["0.weight"], (start + own) / 2)
    with average.applied(model):
        assert torch.equal(model[0].weight, average.values["0.weight"])
    assert torch.equal(model[0].weight, own)
    other = EMA(model, decay=0.5, warmup=False)
    other.load_state_dict(average.state_dict())
    walk(model)
    for one in (average, other):
        one.update(model)
    assert all(torch.equal(value, other.values[name]) for name, value in average.values.items())


def closure_of(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def published(
    weights: list[Tensor], loss: Callable[[list[Tensor]], Tensor], rho: float, lr: float
) -> list[Tensor]:
    """The rule of the paper in plain float64: one norm over all weights, gradient descent by the second gradient."""
    first = torch.autograd.grad(loss(weights), weights)
    norm = torch.cat([g.flatten() for g in first]).norm()
    moved = [
        (w + rho * g / (norm + 1e-12)).detach().requires_grad_()
        for w, g in zip(weights, first, strict=True)
    ]
    second = torch.autograd.grad(loss(moved), moved)
    return [(w - lr * g).detach().requires_grad_() for w, g in zip(weights, second, strict=True)]


def test_it_follows_the_published_rule_over_many_steps() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.05), rho=0.3)
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def plain(w: list[Tensor]) -> Tensor:
        return ((x @ w[0].T + w[1]).tanh() @ w[2].T + w[3] - y).square().mean()

    for _ in range(10):
        sam.step(closure_of(sam, lambda: (model(x) - y).square().mean()))
        weights = published(weights, plain, 0.3, 0.05)
    for own, wanted in zip(model.parameters(), weights, strict=True):
        assert torch.allclose(own, wanted, rtol=1e-10, atol=1e-12)


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
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(8, 3)
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
    sam.step(closure_of(sam, lambda: (model(x) - 1).square().mean()))
    twin(x)
    for name, buffer in twin.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    model, masks = nn.Linear(4, 64), []
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def loss() -> Tensor:
        masks.append(nn.functional.dropout(torch.ones(64)))
        return (model(torch.ones(1, 4)) * masks[-1]).square().mean()

    for _ in range(2):
        sam.step(closure_of(sam, loss))
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_a_gradient_that_is_not_finite_is_refused_and_moves_nothing() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(DataError, match="nan"):
        sam.step(closure_of(sam, lambda: (model(torch.zeros(1, 2)) * torch.nan).sum()))
    assert torch.equal(model.weight, before)


B = 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(dtype: torch.dtype = torch.float64) -> Tokens:
    layers = [torch.randn(B, 1 + 6, 4, generator=seeded(i)).to(dtype) for i in range(2)]
    return Tokens.from_sequence(layers, image_size=(32, 48), patch_size=16, num_prefix_tokens=1)


def targets() -> dict[str, Tensor]:
    return {
        "x": torch.arange(B, dtype=torch.float64)[:, None],
        "kind": torch.eye(B, dtype=torch.float64),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_layer_token_and_target_keeps_the_same_share_of_itself(dtype: torch.dtype) -> None:
    before = tokens(dtype)
    mixed, wanted = manifold_mixup(before, targets(), 1.0, generator=seeded())
    kept = float(wanted["kind"][0, 0])
    assert 0 < kept < 1
    for x, y in zip(before.sequence, mixed.sequence, strict=True):
        partner = torch.cat((x[-1:], x[:-1])).double()
        assert torch.allclose(
            y.double(),
            kept * x.double() + (1 - kept) * partner,
            atol=2e-2 if dtype == torch.bfloat16 else 1e-6,
        )
        assert y.dtype == dtype
    x = targets()["x"]
    assert torch.allclose(wanted["x"], kept * x + (1 - kept) * torch.cat((x[-1:], x[:-1])))
    assert torch.equal(before.sequence[0], tokens(dtype).sequence[0]), "the input is not changed"


def test_draws_repeat_and_what_is_missing_stays_missing() -> None:
    mixed = [
        manifold_mixup(tokens(), targets(), 0.4, generator=seeded(seed))[0].sequence[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(mixed[0], mixed[1]) and not torch.equal(mixed[0], mixed[2])
    x = torch.tensor([[1.0], [torch.nan], [2.0], [3.0], [4.0]])
    _, wanted = manifold_mixup(tokens(), {"x": x}, 1.0, generator=seeded())
    assert wanted["x"].isnan()[:, 0].tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("patch_size", [None, 16, (8, 16)])
def test_a_rectangle_of_the_partner_is_pasted_and_targets_follow_its_area(patch_size: Any) -> None:
    images = torch.arange(B, dtype=torch.float64)[:, None, None, None].expand(B, 3, 32, 48).clone()
    for seed in range(10):
        mixed, wanted = cutmix(
            images, targets(), 1.0, patch_size=patch_size, generator=seeded(seed)
        )
        pasted = mixed != images
        share = pasted[0, 0].double().mean()
        assert torch.allclose(wanted["kind"].diagonal(), 1 - share.expand(B))
        assert torch.allclose(mixed.mean(dim=(1, 2, 3)), wanted["x"][:, 0])
        rows, cols = pasted[0, 0].any(dim=1), pasted[0, 0].any(dim=0)
        assert torch.equal(pasted[0, 0], rows[:, None] & cols), "a rectangle"
        height, width = (
            (1, 1) if patch_size is None else (16, 16) if patch_size == 16 else patch_size
        )
        for inside, unit in ((rows, height), (cols, width)):
            assert all(len(set(cell.tolist())) == 1 for cell in inside.split(unit)), "whole patches"


def test_mixed_losses_follow_the_targets_of_both_samples() -> None:
    """Class indices, missing values and masks need no rules: the loss of the partner's targets counts by its share."""
    tasks = [Task("x"), Task("kind", dim=3, kind="classification")]
    head = PatchMeanHead(4, tasks).double()
    loss = TaskLoss(tasks)
    values = {"x": targets()["x"], "kind": torch.tensor([0, 1, -1, 2, 1])}
    values["x"][1] = torch.nan
    masks = {"x": values["x"].isfinite(), "kind": values["kind"] >= 0}
    source = MemoryTokens([*map(str, range(5))], tokens())
    objective = Objective(head, source, loss, Recipe(mixup_alpha=1.0))
    torch.manual_seed(3)
    [samples] = objective.micro_batches(tokens(), Targets(values), mixes=True)
    losses = objective(samples)

    torch.manual_seed(3)
    mixed, mixed_targets = manifold_mixup(tokens(), targets(), 1.0)
    share = float(mixed_targets["kind"][0, 0])  # of each sample; its partner has the rest
    outputs = head(mixed)
    values_of_partners = {name: x.roll(1, 0) for name, x in values.items()}
    masks_of_partners = {name: x.roll(1, 0) for name, x in masks.items()}
    of_samples, parts_of_samples = loss(outputs, values, masks)
    of_partners, parts_of_partners = loss(outputs, values_of_partners, masks_of_partners)
    expected = share * of_samples + (1 - share) * of_partners
    expected_kind = share * parts_of_samples["kind"] + (1 - share) * parts_of_partners["kind"]
    assert torch.allclose(losses["loss"], expected)
    assert torch.allclose(losses["loss/kind"], expected_kind)
    [samples] = objective.micro_batches(tokens(), Targets(values), mixes=False)
    plain = objective(samples)
    assert torch.equal(plain["loss"], loss(head(tokens()), values, masks)[0])


todays_timm = pytest.mark.skipif(
    tuple(int(part) for part in timm.__version__.split(".")[:3] if part.isdigit()) < (1, 0, 31),
    reason="an older timm takes register tokens for the last layer and lets them decay",
)


def model_of(frozen: bool = False) -> nn.ModuleDict:
    """A model whose neck is called like the backbone."""
    backbone = load_backbone("dinoneck_tiny")
    neck = nn.Sequential(nn.Conv2d(64, 8, 1), nn.BatchNorm2d(8), nn.LayerNorm((8, 4, 4)))
    backbone = backbone if frozen else backbone.unfreeze()
    return nn.ModuleDict({"backbone": backbone, "backbone_neck": neck, "head": nn.Linear(64, 1)})


def members(groups: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The group of each parameter; fails if one is in two."""
    found: dict[int, dict[str, Any]] = {}
    for group in groups:
        assert set(group) == {"params", "lr", "weight_decay", "name"}
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = group
    return found


def ids(module: nn.Module, trainable: bool | None = None) -> set[int]:
    return {id(p) for p in module.parameters() if trainable is None or p.requires_grad == trainable}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_parameter_is_in_one_group_and_frozen_ones_only_on_request(
    layer_decay: float | None,
) -> None:
    model = model_of(frozen=True)
    model.backbone.unfreeze_last(2)
    given = {"lr": 1.0, "layer_decay": layer_decay}
    assert members(param_groups(model, **given)).keys() == ids(model, trainable=True)
    assert members(param_groups(model, **given, include_frozen=True)).keys() == ids(model)
    # refuses a parameter that comes twice
    torch.optim.AdamW(param_groups(model, **given, include_frozen=True))


def test_what_weight_decay_leaves_alone() -> None:
    """Outside the blocks; those are compared with timm."""
    model = model_of()
    found = members(param_groups(model, lr=1.0, weight_decay=0.3, include_frozen=True))
    exempt = {name for name, p in model.named_parameters() if found[id(p)]["weight_decay"] == 0.0}
    outside = {
        name.removeprefix("backbone.adapter.model.") for name in exempt if "blocks." not in name
    }
    assert outside == {
        *(
            "cls_token",
            "reg_token",
            "patch_embed.proj.bias",
            "norm.weight",
            "norm.bias",
            "head.bias",
        ),
        *("backbone_neck.0.bias", "backbone_neck.1.weight", "backbone_neck.1.bias"),
        *("backbone_neck.2.weight", "backbone_neck.2.bias"),  # three-dimensional, but a norm's
    }
    assert all(
        found[id(p)]["weight_decay"] == 0.3
        for name, p in model.named_parameters()
        if name not in exempt
    )
    # (1, 64): one output, still a matrix
    assert found[id(model.head.weight)]["weight_decay"] == 0.3


def test_a_module_may_name_its_own() -> None:
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.queries = (nn.Parameter(torch.zeros(4, 8)) for _ in range(2))

        def no_weight_decay(self) -> set[str]:
            return {"positions"}

    model = model_of()
    neck = model.head = Neck()
    found = members(param_groups(model, lr=1.0))
    assert found[id(neck.positions)]["weight_decay"] == 0.0
    assert found[id(neck.queries)]["weight_decay"] == 0.05


def scales_of_timm(
    model: nn.Module, decay: float, weight_decay: float = 0.05
) -> dict[int, tuple[float, float]]:
    exempt = model.no_weight_decay()  # type: ignore[operator]
    groups = param_groups_layer_decay(
        model, weight_decay, no_weight_decay_list=exempt, layer_decay=decay
    )
    return {
        id(p): (group["lr_scale"], group["weight_decay"])
        for group in groups
        for p in group["params"]
    }


def build_tiny() -> nn.Module:
    return load_backbone("dinoneck_tiny").adapter.model.requires_grad_(True)


def build_vit(**options: object) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        depth=3,
        reg_tokens=2,
        pre_norm=True,
        dynamic_img_size=True,
        **options,
    )


@todays_timm
@pytest.mark.parametrize(
    "build", [build_tiny, lambda: build_vit(num_classes=0)], ids=["eva", "vit"]
)
def test_layer_decay_gives_timms_numbers(build: Callable[[], nn.Module]) -> None:
    vit = build()
    expected = scales_of_timm(vit, 0.7)
    found = members(
        param_groups(
            wrap_backbone(vit), lr=9.0, backbone_lr=2.0, layer_decay=0.7, include_frozen=True
        )
    )
    assert found.keys() == expected.keys()
    for key, (scale, decay) in expected.items():
        assert found[key]["lr"] == pytest.approx(2.0 * scale, rel=1e-12)
        assert found[key]["weight_decay"] == decay


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="no peft")
def test_lora_weights_are_the_backbones() -> None:
    model = model_of(frozen=True)
    backbone = model.backbone
    backbone.add_lora(2, targets="all")
    groups = param_groups(model, lr=1.0, backbone_lr=0.25, layer_decay=0.5)
    found = members(groups)
    lora = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    assert lora
    assert found.keys() == {id(p) for p in lora.values()} | ids(model.head) | ids(
        model.backbone_neck
    )
    for name, p in lora.items():
        number = int(name.split("blocks.")[1].split(".")[0])
        assert found[id(p)]["name"] == f"backbone.block{number}.decay"
        assert found[id(p)]["lr"] == 0.25 * 0.5 ** (5 - number)


def test_a_restored_sam_follows_the_rates_of_its_groups() -> None:
    """A schedule that is made on it after a resume must reach the optimizer that steps."""
    model = nn.Linear(2, 1)
    sam = SAM(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    sam.step(closure_of(sam, lambda: model(torch.ones(1, 2)).square().sum()))
    again = SAM(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    again.load_state_dict(sam.state_dict())
    before = model.weight.detach().clone()

    again.param_groups[0]["lr"] = 0.0
    again.step(closure_of(again, lambda: model(torch.ones(1, 2)).square().sum()))

    assert torch.equal(model.weight, before)


def test_a_restored_sam_has_the_moments_of_the_one_before() -> None:
    model = nn.Linear(2, 1)
    sam = SAM(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    sam.step(closure_of(sam, lambda: model(torch.ones(1, 2)).square().sum()))
    again = SAM(model, torch.optim.AdamW(model.parameters(), lr=0.1))

    again.load_state_dict(sam.state_dict())

    assert again.state is again.base_optimizer.state
    assert torch.equal(again.state[model.weight]["exp_avg"], sam.state[model.weight]["exp_avg"])
