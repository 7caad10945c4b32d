"""The speed benchmark: nothing unequal is timed, goals that are missed are shown, clocks and memory count rightly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from benchmarks.speed.checks import Unequal, check
from benchmarks.speed.rows import Row, Setting, Variant
from benchmarks.speed.run import ROWS

TINY = {"batch": 2, "grid": (4, 6), "channels": 64, "out": 16}  # the width of dinoneck_tiny
HEAVY = ("DPT", "STA, aligned", "25 heads × 6 views")


def tiny(row: Row, **changes: Any) -> Setting:
    points = {"points": 300} if row.group == "points" else {}
    return row.settings[0].of(**{**TINY, **points, **changes})


def parametrized(rows: list[Row]) -> Any:
    marks = {row.name: [pytest.mark.slow] if row.name in HEAVY else [] for row in rows}
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=marks[row.name]) for row in rows])


@parametrized(ROWS)
def test_variants_of_a_row_are_equal_in_float64(row: Row) -> None:
    if row.name.startswith("terratorch"):
        pytest.importorskip("terratorch")
    check(row, tiny(row))


def doubled(setting: Setting, change: Callable[[nn.Linear, Tensor], Any] | None = None) -> dict[str, Variant]:
    """Twice a linear layer, as published and otherwise."""
    torch.manual_seed(0)
    first = nn.Linear(setting.channels, 3).to(**setting.like)
    second = copy.deepcopy(first)
    x = setting.tokens().sequence[0]
    other = change or (lambda module, x: module(x) + module(x))
    return {
        "written": Variant("published", lambda: 2 * first(x), first, [x]),
        "otherwise": Variant("ours", lambda: other(second, x), second, [x]),
    }


SMALL = Setting(1, (2, 3), 8)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda module, x: 2.00001 * module(x), "results"),
        (lambda module, x: module(x) + module(x.detach()), "gradients of tokens"),
        (lambda module, x: module(x) * (3 if module.training else 2), "results in training"),
    ],
)
def test_a_wrong_peer_is_noticed(change: Callable[[nn.Linear, Tensor], Any], what: str) -> None:
    with pytest.raises(Unequal, match=f"otherwise: .*{what}"):
        check(Row("doubled", lambda setting: doubled(setting, change), [SMALL]), SMALL)
