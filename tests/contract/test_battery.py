"""The contract every registered module keeps (DESIGN: how a module is written)."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from dinoneck import ConfigError, ShapeError, load_head, registry, save_head
from dinoneck.heads import Head
from dinoneck.necks import Neck
from tests.contract.cases import CASES, Case
from tests.kit import leaves as outputs
from tests.kit import same

GRIDS = [(1, 1), (1, 7), (2, 2), (3, 5), (15, 31), (9, 16)]
each = pytest.mark.parametrize("case", CASES, ids=str)


def built(case: Case, **factory: object) -> nn.Module:
    torch.manual_seed(0)
    return case.build(**factory).eval()


def test_every_registered_class_has_a_case() -> None:
    # no parameters: tests/unit/heads; images: tests/unit/detection
    own = {"bins", "detector", "rf_detr"}
    assert {registry.name_of(type(case.build())) for case in CASES} == set(registry.HOMES) - own


@each
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("registers", [0, 4])
def test_any_grid_gives_finite_outputs(case: Case, grid: tuple[int, int], registers: int) -> None:
    module = built(case)
    for tensor in outputs(
        module(*case.args(case.inputs(rows=grid[0], cols=grid[1], registers=registers)))
    ):
        assert tensor.shape[0] == 2
        assert tensor.isfinite().all()


@pytest.mark.parametrize(
    "case", [case for case in CASES if isinstance(case.build(), Neck)], ids=str
)
@pytest.mark.parametrize("grid", GRIDS)
def test_levels_of_a_pyramid_cover_the_image(case: Case, grid: tuple[int, int]) -> None:
    """A level of stride s has ceil(side / s) cells, and its channels lie next to each other."""
    neck = built(case)
    args = case.args(case.inputs(rows=grid[0], cols=grid[1]))
    pyramid = neck(*args)
    assert pyramid.strides == neck.strides
    size = (
        args[1].shape[-2:]
        if getattr(neck, "grid_from", "") == "image"
        else [16 * side for side in grid]
    )
    for level, stride in zip(pyramid.maps, pyramid.strides, strict=True):
        cells = tuple(math.ceil(side / stride) for side in size)
        # as published: even sides
        assert level.shape[2:] == cells or getattr(neck, "upsample", "") == "double"
        assert level.shape[1] == neck.out_channels
        assert level.stride(1) == 1


@each
def test_samples_of_a_batch_do_not_see_each_other(case: Case) -> None:
    module, inputs = built(case), case.inputs(batch=4)
    together = outputs(module(*case.args(inputs)))
    for i in range(4):
        alone = outputs(module(*case.args(case.sample(inputs, i))))
        assert same([x[i : i + 1] for x in together], alone, 1e-5)


@each
def test_config_and_state_rebuild_the_module(case: Case, tmp_path: Path) -> None:
    module, inputs = built(case), case.inputs()
    again = type(module).from_config(json.loads(json.dumps(module.config)))  # type: ignore[attr-defined]
    assert again.config == module.config
    again.load_state_dict(module.state_dict(), strict=True)
    assert same(again.eval()(*case.args(inputs)), module(*case.args(inputs)))
    save_head(tmp_path / "h", module)
    assert same(load_head(tmp_path / "h")(*case.args(inputs)), module(*case.args(inputs)))
    with pytest.raises(ConfigError, match="no argument"):
        type(module).from_config(module.config | {"no_such_argument": 1})  # type: ignore[attr-defined]


@each
def test_gradients_reach_every_parameter(case: Case) -> None:
    module = built(case).train()
    # one cell has no place: x = y = 0
    inputs = case.inputs(rows=max(3, case.smallest), cols=max(5, case.smallest))
    total = sum(
        (tensor * torch.randn_like(tensor)).sum() for tensor in outputs(module(*case.args(inputs)))
    )
    total.backward()  # type: ignore[union-attr]
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@each
def test_gradients_are_right(case: Case) -> None:
    module = built(case).double()
    inputs = case.inputs(rows=2, cols=2, dtype=torch.float64)
    leaves = [p for p in module.parameters() if p.numel() <= 400][:2]

    def run(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(outputs(module(*case.args(inputs))))

    # along random directions
    assert torch.autograd.gradcheck(run, tuple(leaves), atol=1e-4, fast_mode=True)


@each
def test_low_precision_stays_near(case: Case) -> None:
    module, inputs = built(case), case.inputs()
    exact = outputs(module(*case.args(inputs)))
    with torch.autocast("cpu", torch.bfloat16):
        cast = outputs(module(*case.args(inputs)))
    low = outputs(
        copy.deepcopy(module).to(torch.bfloat16)(*case.args(case.cast(inputs, torch.bfloat16)))
    )
    for a, b in zip(exact * 2, cast + low, strict=True):
        assert (a - b.float()).abs().max() <= 0.05 * (1 + a.abs().max())


@each
def test_construction_on_meta_and_in_another_dtype(case: Case) -> None:
    assert all(p.is_meta for p in built(case, device="meta").parameters())
    assert all(p.dtype == torch.float64 for p in built(case, dtype=torch.float64).parameters())
    with torch.device("meta"):
        assert all(p.is_meta for p in case.build().parameters())


@each
def test_copies_are_independent_and_equal(case: Case) -> None:
    module, inputs = built(case), case.inputs()
    before = outputs(module(*case.args(inputs)))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert same(twin(*case.args(inputs)), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        assert same(module(*case.args(inputs)), before)


@each
def test_reset_draws_again_and_the_seed_decides(case: Case) -> None:
    module, inputs = built(case), case.inputs()
    before = outputs(module(*case.args(inputs)))
    assert same(built(case)(*case.args(inputs)), before)
    module.reset_parameters()  # type: ignore[operator]
    assert not same(module(*case.args(inputs)), before)


@each
def test_weights_that_change_change_the_output_at_once(case: Case) -> None:
    """Folded or joined weights must never be stale, in eval mode and without gradients."""
    module, inputs = built(case), case.inputs()
    with torch.no_grad():
        module(*case.args(inputs))
        for parameter in module.parameters():
            parameter.data.mul_(1.5)
        fresh = type(module).from_config(module.config).eval()  # type: ignore[attr-defined]
        fresh.load_state_dict(module.state_dict())
        assert same(module(*case.args(inputs)), fresh(*case.args(inputs)))


@each
def test_another_width_is_refused(case: Case) -> None:
    with pytest.raises(ShapeError, match="25"):
        built(case)(*case.args(case.inputs(width=25)))


@each
def test_no_buffer_is_hidden_from_the_file(case: Case) -> None:
    module = built(case)
    assert {name for name, _ in module.named_buffers()} <= set(module.state_dict())


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.takes.startswith("tokens")], ids=str
)
def test_plain_tensors_give_what_tokens_give(case: Case) -> None:
    module = built(case)
    tokens, *images = case.args(case.inputs())
    expected = module(tokens, *images)
    many = module(list(tokens.sequence), *images, grid=tuple(tokens.grid), num_prefix_tokens=5)
    assert same(many, expected)
    split = module(
        list(tokens.patches), *images, grid=tokens.grid, cls_token=list(tokens.cls_token)
    )
    assert same(split, expected, atol=1e-5) or case.registers
    maps = module(
        [x.contiguous() for x in tokens.maps()], *images, cls_token=list(tokens.cls_token)
    )
    assert same(maps, expected, atol=1e-5) or case.registers
    if case.layers == 1:
        assert same(
            module(tokens.patches[0], *images, grid=tokens.grid, cls_token=tokens.cls_token[0]),
            expected,
            1e-5,
        )
    with pytest.raises(ShapeError, match=r"grid=\(rows, cols\)"):
        module(list(tokens.patches), *images)
    if isinstance(module, Head):
        plain = {"grid": tokens.grid, "num_prefix_tokens": 5}
        values = module.predict(tokens)
        assert same(module.predict(list(tokens.sequence), **plain), values) or not values
        got, expected_maps = (
            module.predict_maps(list(tokens.sequence), **plain),
            module.predict_maps(tokens),
        )
        assert same(got, expected_maps) or not expected_maps
