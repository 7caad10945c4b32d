"""The contract every registered module keeps (DESIGN: how a module is written)."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
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
    rows, cols = grid
    inputs = case.inputs(rows=rows, cols=cols, registers=registers)

    results = outputs(module(*case.args(inputs)))

    for tensor in results:
        assert tensor.shape[0] == 2
        assert tensor.isfinite().all()


@pytest.mark.parametrize(
    "case", [case for case in CASES if isinstance(case.build(), Neck)], ids=str
)
@pytest.mark.parametrize("grid", GRIDS)
def test_levels_of_a_pyramid_cover_the_image(case: Case, grid: tuple[int, int]) -> None:
    """A level of stride s has ceil(side / s) cells, and its channels lie next to each other."""
    neck = built(case)
    rows, cols = grid
    arguments = case.args(case.inputs(rows=rows, cols=cols))

    pyramid = neck(*arguments)

    height, width = 16 * rows, 16 * cols
    if getattr(neck, "grid_from", "") == "image":
        height, width = arguments[1].shape[-2:]
    doubles = getattr(neck, "upsample", "") == "double"  # as published: even sides
    assert pyramid.strides == neck.strides
    for level, stride in zip(pyramid.maps, pyramid.strides, strict=True):
        cells = (math.ceil(height / stride), math.ceil(width / stride))
        assert level.shape[2:] == cells or doubles
        assert level.shape[1] == neck.out_channels
        assert level.stride(1) == 1


@each
def test_samples_of_a_batch_do_not_see_each_other(case: Case) -> None:
    module = built(case)
    inputs = case.inputs(batch=4)

    together = outputs(module(*case.args(inputs)))

    for i in range(4):
        alone = outputs(module(*case.args(case.sample(inputs, i))))
        assert same([x[i : i + 1] for x in together], alone, 1e-5)


@each
def test_config_and_state_rebuild_the_module(case: Case) -> None:
    module = built(case)
    config = json.loads(json.dumps(module.config))

    again = type(module).from_config(config)  # type: ignore[attr-defined]
    again.load_state_dict(module.state_dict(), strict=True)

    inputs = case.inputs()
    assert again.config == module.config
    assert same(again.eval()(*case.args(inputs)), module(*case.args(inputs)))


@each
def test_a_file_keeps_the_module(case: Case, tmp_path: Path) -> None:
    module = built(case)

    save_head(tmp_path / "h", module)

    inputs = case.inputs()
    loaded = load_head(tmp_path / "h")
    assert same(loaded(*case.args(inputs)), module(*case.args(inputs)))


@each
def test_an_unknown_argument_is_refused(case: Case) -> None:
    module = built(case)
    config = module.config | {"no_such_argument": 1}

    with pytest.raises(ConfigError, match="no argument"):
        type(module).from_config(config)  # type: ignore[attr-defined]


@each
def test_gradients_reach_every_parameter(case: Case) -> None:
    module = built(case).train()
    # one cell has no place: x = y = 0
    inputs = case.inputs(rows=max(3, case.smallest), cols=max(5, case.smallest))
    total = torch.zeros(())
    for tensor in outputs(module(*case.args(inputs))):
        total = total + (tensor * torch.randn_like(tensor)).sum()

    total.backward()

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


def is_near(results: list[torch.Tensor], exact: list[torch.Tensor]) -> bool:
    """Whether outputs of bfloat16 are within 5 % of the largest exact one."""
    for x, y in zip(results, exact, strict=True):
        if (x.float() - y).abs().max() > 0.05 * (1 + y.abs().max()):
            return False
    return True


@each
def test_autocast_stays_near(case: Case) -> None:
    module = built(case)
    inputs = case.inputs()
    exact = outputs(module(*case.args(inputs)))

    with torch.autocast("cpu", torch.bfloat16):
        cast = outputs(module(*case.args(inputs)))

    assert is_near(cast, exact)


@each
def test_low_precision_stays_near(case: Case) -> None:
    module = built(case)
    inputs = case.inputs()
    exact = outputs(module(*case.args(inputs)))

    low_inputs = case.cast(inputs, torch.bfloat16)
    low = outputs(module.to(torch.bfloat16)(*case.args(low_inputs)))

    assert is_near(low, exact)


@each
def test_construction_on_meta(case: Case) -> None:
    module = built(case, device="meta")

    assert all(parameter.is_meta for parameter in module.parameters())


@each
def test_construction_in_another_dtype(case: Case) -> None:
    module = built(case, dtype=torch.float64)

    assert all(parameter.dtype == torch.float64 for parameter in module.parameters())


@each
def test_construction_where_meta_is_the_default_device(case: Case) -> None:
    with torch.device("meta"):
        module = case.build()

    assert all(parameter.is_meta for parameter in module.parameters())


@each
@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda module: pickle.loads(pickle.dumps(module)), id="pickle"),
    ],
)
def test_copies_are_independent_and_equal(
    case: Case, copied: Callable[[nn.Module], nn.Module]
) -> None:
    module = built(case)
    inputs = case.inputs()
    before = outputs(module(*case.args(inputs)))

    twin = copied(module)

    assert same(twin(*case.args(inputs)), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert same(module(*case.args(inputs)), before)


@each
def test_a_seed_gives_the_same_module(case: Case) -> None:
    inputs = case.inputs()

    module = built(case)

    assert same(built(case)(*case.args(inputs)), module(*case.args(inputs)))


@each
def test_a_reset_draws_again(case: Case) -> None:
    module = built(case)
    inputs = case.inputs()
    before = outputs(module(*case.args(inputs)))

    module.reset_parameters()  # type: ignore[operator]

    assert not same(module(*case.args(inputs)), before)


@each
@torch.no_grad()
def test_weights_that_change_change_the_output_at_once(case: Case) -> None:
    """Folded or joined weights must never be stale, in eval mode and without gradients."""
    module = built(case)
    inputs = case.inputs()
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


# plain tensors in the place of Tokens

of_tokens = pytest.mark.parametrize(
    "case", [case for case in CASES if case.takes.startswith("tokens")], ids=str
)
PREFIX = 5  # tokens in front of the patches


@of_tokens
def test_whole_sequences_give_what_tokens_give(case: Case) -> None:
    module = built(case)
    tokens, *images = case.args(case.inputs())

    results = module(
        list(tokens.sequence), *images, grid=tuple(tokens.grid), num_prefix_tokens=PREFIX
    )

    assert same(results, module(tokens, *images))


of_tokens_without_registers = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.takes.startswith("tokens") and not case.registers],
    ids=str,
)


@of_tokens_without_registers
def test_patches_and_cls_tokens_give_what_tokens_give(case: Case) -> None:
    module = built(case)
    tokens, *images = case.args(case.inputs())

    results = module(
        list(tokens.patches), *images, grid=tokens.grid, cls_token=list(tokens.cls_token)
    )

    assert same(results, module(tokens, *images), atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.takes.startswith("tokens") and case.registers],
    ids=str,
)
def test_modules_that_read_registers_run_without_them(case: Case) -> None:
    module = built(case)
    tokens, *images = case.args(case.inputs())

    results = module(
        list(tokens.patches), *images, grid=tokens.grid, cls_token=list(tokens.cls_token)
    )

    assert all(tensor.isfinite().all() for tensor in outputs(results))


@of_tokens_without_registers
def test_maps_and_cls_tokens_give_what_tokens_give(case: Case) -> None:
    module = built(case)
    tokens, *images = case.args(case.inputs())
    maps = [x.contiguous() for x in tokens.maps()]

    results = module(maps, *images, cls_token=list(tokens.cls_token))

    assert same(results, module(tokens, *images), atol=1e-5)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.takes.startswith("tokens") and case.layers == 1],
    ids=str,
)
def test_one_tensor_is_a_list_of_one_layer(case: Case) -> None:
    module = built(case)
    tokens, *images = case.args(case.inputs())

    results = module(tokens.patches[0], *images, grid=tokens.grid, cls_token=tokens.cls_token[0])

    assert same(results, module(tokens, *images), 1e-5)


@of_tokens
def test_patches_without_a_grid_are_refused(case: Case) -> None:
    module = built(case)
    tokens, *images = case.args(case.inputs())

    with pytest.raises(ShapeError, match=r"grid=\(rows, cols\)"):
        module(list(tokens.patches), *images)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.takes.startswith("tokens") and isinstance(case.build(), Head)],
    ids=str,
)
def test_heads_predict_from_whole_sequences_what_they_predict_from_tokens(case: Case) -> None:
    head = built(case)
    assert isinstance(head, Head)
    tokens, *_ = case.args(case.inputs())
    sequences = list(tokens.sequence)

    values = head.predict(sequences, grid=tokens.grid, num_prefix_tokens=PREFIX)
    maps = head.predict_maps(sequences, grid=tokens.grid, num_prefix_tokens=PREFIX)

    expected_values = head.predict(tokens)
    expected_maps = head.predict_maps(tokens)
    assert values.keys() == expected_values.keys()
    assert maps.keys() == expected_maps.keys()
    assert not expected_values or same(values, expected_values)
    assert not expected_maps or same(maps, expected_maps)
