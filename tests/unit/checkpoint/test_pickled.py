"""Tasks and tokens in checkpoints of other programs come back, and forged ones are refused."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit

import dinoneck
from dinoneck import (
    BackboneError,
    Composition,
    DinoneckError,
    GridSize,
    TargetTransform,
    Task,
    TokenGrid,
    Tokens,
)
from dinoneck.weight_files import read_state

TRANSFORM = TargetTransform(area=0.5, mean=2.0, std=3.0)
TASK = Task("mass", unit="g", minimum=0.0, transform=TRANSFORM)
COMPOSITION = Composition(("leaf", "stem"), {"both": ("leaf", "stem")}, "plant", "mass", "shares")
TOKENS = Tokens.from_sequence(
    torch.arange(2 * 7 * 3.0).reshape(2, 7, 3),
    image_size=(32, 48),
    patch_size=16,
    num_prefix_tokens=1,
    layers=[4],
    normed=True,
    source="abc",
)


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    with torch.serialization.safe_globals(dinoneck.safe_globals()):
        return torch.load(file, weights_only=True)


def forged(value: Any, **changes: Any) -> Any:
    """Return an object of the same class with another state, which its constructor never saw."""
    other = object.__new__(type(value))
    other.__dict__.update({**vars(value), **changes})
    return other


@pytest.mark.parametrize(
    "value", [TASK, TRANSFORM, COMPOSITION, GridSize(2, 3)], ids=lambda value: type(value).__name__
)
def test_a_plain_value_comes_back(value: Any) -> None:
    assert through_a_file({"value": value})["value"] == value


def test_tokens_come_back() -> None:
    again = through_a_file(TOKENS)
    assert torch.equal(again.sequence[0], TOKENS.sequence[0])
    assert (again.grid, again.layers, again.normed, again.source) == ((2, 3), (4,), True, "abc")
    assert isinstance(again.grid, GridSize)


def test_nothing_is_registered_at_import() -> None:
    file = io.BytesIO()
    torch.save(TASK, file)
    file.seek(0)
    with pytest.raises(Exception, match=r"dinoneck\.tasks\.Task"):
        torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("value", "changes", "says"),
    [
        (TASK, {"dim": "many"}, "dim"),
        (TASK, {"dim": -(10**30)}, "dim"),
        (TASK, {"dim": 10**30}, "dim"),
        (TASK, {"name": "a" * 10**6}, "name"),
        (TASK, {"labels": ("x",) * 3}, "labels"),
        (TASK, {"transform": {"mean": 1.0}}, "transform"),
        (TASK, {"kind": "code"}, "kind"),
        (TASK, {"more": 1}, "more"),
        (TRANSFORM, {"std": 0.0}, "std"),
        (TRANSFORM, {"std": "wide"}, "std"),
        (TRANSFORM, {"mean": float("nan")}, "mean"),
        (TRANSFORM, {"mean": (1.0,) * 3, "std": (1.0,) * 2}, "length"),
        (COMPOSITION, {"parts": 3}, "parts"),
        (COMPOSITION, {"parts": ("leaf", "leaf")}, "leaf"),
        (COMPOSITION, {"sums": (("both", ("root",)),)}, "root"),
        (TOKENS, {"sequence": TOKENS.sequence[0]}, "Tensor"),
        (TOKENS, {"sequence": ("x",)}, "str"),
        (TOKENS, {"grid": GridSize(10**9, 10**9)}, "1000000000"),
        (TOKENS, {"grid": GridSize(-2, -3)}, "-2"),
        (TOKENS, {"grid": GridSize("2", 3)}, "GridSize"),  # type: ignore[arg-type]
        (TOKENS, {"grid": (2, 3)}, "GridSize"),
        (TOKENS, {"patch_size": 1.5}, "patch_size"),
        (TOKENS, {"num_registers": 10**12}, "do not fit"),
        (TOKENS, {"num_cls": "1"}, "num_cls"),
        (TOKENS, {"layers": (1, 2)}, "2 layers"),
        (TOKENS, {"layers": ("a",)}, "layers"),
        (TOKENS, {"layers": 7}, "layers"),
        (TOKENS, {"normed": 3}, "normed"),
        (TOKENS, {"source": 3}, "source"),
        (
            TOKENS,
            {"sequence": (torch.zeros(1).expand(2, 7, 2**30),)},
            "bytes of memory",
        ),
    ],
)
def test_a_forged_state_is_refused(value: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DinoneckError, match=says):
        through_a_file(forged(value, **changes))


@pytest.mark.parametrize(
    "grid", [GridSize("2", 3), GridSize(10**30, 1), GridSize(0, 6), GridSize(2.0, 3)]
)  # type: ignore[arg-type]
def test_a_forged_grid_is_refused_where_it_is_used(grid: GridSize) -> None:
    again = through_a_file(grid)
    with pytest.raises(DinoneckError):
        Tokens.from_patches(torch.zeros(1, 6, 4), grid=again, patch_size=16)


def test_a_state_that_is_no_dict_is_refused() -> None:
    for cls in (Task, TargetTransform, Composition, Tokens):
        with pytest.raises(DinoneckError, match="int"):
            object.__new__(cls).__setstate__(3)


def test_copies_of_expanded_tokens_are_taken() -> None:
    tokens = Tokens.from_patches(torch.zeros(1, 6, 4).expand(8, 6, 4), grid=(2, 3), patch_size=16)
    assert len(copy.deepcopy(tokens)) == 8
    assert TokenGrid(16).size((32, 48)) == tokens.grid


def test_weights_next_to_a_task_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    content = {"state_dict": kit.head().state_dict(), "hyper_parameters": {"task": TASK}}
    torch.save(content, path)
    with pytest.raises(BackboneError, match=r"dinoneck\.safe_globals\(\)"):
        read_state(path)
