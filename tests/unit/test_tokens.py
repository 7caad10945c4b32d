"""Tokens and FeaturePyramid: views, order, refusals, pytrees."""

from __future__ import annotations

import pytest
import torch
from tests import kit
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from dinoneck import GridSize, Tokens, collate


def make(batch: int = 2, rows: int = 3, cols: int = 4, registers: int = 4, layers: tuple[int, ...] = (7,)) -> Tokens:
    """Tokens whose values name what they are: CLS -1, registers -2, -3, ..., patch (r, c) = r * cols + c."""
    prefix = torch.tensor([-1.0 - i for i in range(1 + registers)])
    one = torch.cat((prefix, torch.arange(rows * cols).float()))
    sequence = [(one + 1000 * i)[None, :, None].expand(batch, -1, 5).contiguous() for i in range(len(layers))]
    return kit.tokens_from(sequence, rows, cols, 1 + registers, layers=layers, normed=True)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("grid", [(3, 4), (9, 16), (1, 1), (30, 60)])
def test_views_hold_what_their_names_say(registers: int, grid: tuple[int, int]) -> None:
    rows, cols = grid
    tokens = make(rows=rows, cols=cols, registers=registers)
    assert tokens.grid == GridSize(rows, cols)
    assert tokens.num_prefix_tokens == 1 + registers
    assert (tokens.cls_token[0] == -1).all()
    assert tokens.registers[0].shape == (2, registers, 5)
    assert (tokens.registers[0] == torch.tensor([-2.0 - i for i in range(registers)])[None, :, None]).all()
    assert torch.equal(tokens.maps()[0][1, 3], torch.arange(rows * cols).float().reshape(rows, cols))
    assert tokens.patches[0].data_ptr() == tokens.sequence[0].data_ptr() + (1 + registers) * 5 * 4


def test_from_patches_puts_the_others_in_front() -> None:
    tokens = make()
    options = {"grid": (3, 4), "patch_size": 16, "registers": tokens.registers[0]}
    again = Tokens.from_patches(tokens.patches[0], cls_token=tokens.cls_token[0], layers=[7], normed=True, **options)
    assert torch.equal(again.sequence[0], tokens.sequence[0])
    assert again._describe() == tokens._describe()
    plain = Tokens.from_patches(tokens.patches[0], grid=(3, 4), patch_size=16)
    assert plain.sequence[0].data_ptr() == tokens.patches[0].data_ptr()
    only_registers = Tokens.from_patches(tokens.patches[0], **options)
    assert (only_registers.num_cls, only_registers.num_registers) == (0, 4)


def test_layers_keep_order_and_duplicates() -> None:
    tokens = make(layers=(11, 2, 5, 5))
    assert tokens.last.layers == (5,)
    assert torch.equal(tokens.last.sequence[0], tokens.sequence[3])
    chosen = tokens.select([5, 11, 11])
    assert chosen.layers == (5, 11, 11)
    assert torch.equal(chosen.sequence[1], tokens.sequence[0])
    assert tokens.select(2).sequence[0] is tokens.sequence[1]


def test_batches() -> None:
    tokens = make(batch=3)
    lengths = [len(tokens[index]) for index in (1, -1, torch.tensor([2, 0]), slice(1, None))]
    assert (len(tokens), lengths) == (3, [1, 1, 2, 2])
    assert [len(one) for one in tokens] == [1, 1, 1]
    joined = Tokens.cat([tokens[0], tokens[1:]])
    assert torch.equal(joined.sequence[0], tokens.sequence[0])


def test_collate_in_a_data_loader() -> None:
    tokens = make(batch=5)
    samples = [{"tokens": tokens[i], "target": float(i), "name": str(i)} for i in range(5)]
    batches = list(DataLoader(samples, batch_size=2, collate_fn=collate))  # type: ignore[arg-type]
    assert [len(batch["tokens"]) for batch in batches] == [2, 2, 1]
    assert batches[1]["target"].tolist() == [2.0, 3.0]
    pair = collate([(tokens[0], [tokens[1], 1]), (tokens[2], [tokens[3], 2])])
    assert isinstance(pair, tuple) and len(pair[0]) == 2 and pair[1][1].tolist() == [1, 2]
    assert collate([GridSize(1, 2), GridSize(3, 4)]).rows.tolist() == [1, 3]


def test_pytree_leaves_are_tensors_and_grid() -> None:
    tokens = make(layers=(3, 1))
    leaves, spec = pytree.tree_flatten(tokens)
    assert [type(leaf).__name__ for leaf in leaves] == ["Tensor", "Tensor", "int", "int"]
    again = pytree.tree_unflatten(leaves, spec)
    assert again._describe() == tokens._describe()
    stored = pytree.treespec_loads(pytree.treespec_dumps(spec))
    assert stored == spec
    doubled = pytree.tree_map_only(torch.Tensor, lambda x: x * 2, tokens)
    assert torch.equal(doubled.sequence[1], tokens.sequence[1] * 2)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tokens)[0]]
    assert paths == [".layer_0", ".layer_1", ".rows", ".cols"]
