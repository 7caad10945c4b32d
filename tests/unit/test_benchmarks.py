"""The entry of the benchmarks, results that are out of date, and the rows of speed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import results
from benchmarks.__main__ import main
from benchmarks.evidence.intervals import Predicted, quantile_of_quantiles
from benchmarks.measure import ratios, turns
from benchmarks.speed.checks import Unequal, check
from benchmarks.speed.rows import Row, Setting, Variant
from benchmarks.speed.run import ROWS
from torch import Tensor, nn

MACHINE = {"cpu": "a", "cores": 2, "threads": 1, "system": "b", "versions": {"dinoneck": "9.9"}}


def stored(folder: Path, name: str = "store.json", **changes: object) -> Path:
    path = folder / name
    results.write(
        path, "store", "python -m benchmarks store", MACHINE, {"size": {"npz": {"MiB": 1.5}}}
    )
    found = json.loads(path.read_text())
    found["tables"]["size"] |= changes
    path.write_text(json.dumps(found))
    return path


def test_a_table_is_stale_and_shown_as_such_without_the_hash_of_the_present_sources(
    tmp_path: Path,
) -> None:
    stored(tmp_path)
    assert results.stale(tmp_path) == [] and "has changed" not in results.section(
        "store", folder=tmp_path
    )
    stored(tmp_path, sources="0" * 64)
    assert results.stale(tmp_path) == ["store, size"]
    assert "these are numbers of dinoneck 9.9" in results.section("store", folder=tmp_path)


MODULE = '''"""A module."""

LIMIT = 3  # of a loop
"""What a loop does at most."""


def add(a, b):
    """Add two numbers.

    Args:
        a: the first.
    """
    # both are numbers
    return a + b + len("# no comment")
'''


def test_the_hash_of_sources_leaves_out_comments_docstrings_and_empty_lines() -> None:
    code = results.without_words(MODULE)
    assert code.splitlines() == [
        "LIMIT = 3",
        "def add(a, b):",
        '    return a + b + len("# no comment")',
    ]


def test_a_docstring_on_the_line_of_its_function_leaves_the_function() -> None:
    code = results.without_words('def größe(): "die Größe"  # heißt so\n')
    assert code == "def größe():"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("LIMIT = 3", "LIMIT = 4", id="a number"),
        pytest.param("a + b", "b + a", id="an order"),
        pytest.param("# no comment", "# one", id="a text that is used"),
    ],
)
def test_a_change_of_code_changes_what_is_hashed(before: str, after: str) -> None:
    changed = MODULE.replace(before, after)
    assert results.without_words(changed) != results.without_words(MODULE)


@pytest.mark.parametrize(
    ("name", "machine", "shown"),
    [
        pytest.param("store_cuda", {**MACHINE, "gpu": "a GPU"}, "a GPU, commit abc", id="gpu"),
        pytest.param("store", {**MACHINE, "gpu": "a GPU"}, "a GPU, commit abc", id="any name"),
        pytest.param("store_amx", MACHINE, "a, commit abc", id="amx"),
    ],
)
def test_a_table_of_another_machine_states_its_commit_and_is_not_refused(
    tmp_path: Path, name: str, machine: dict[str, object], shown: str
) -> None:
    stored(tmp_path, f"{name}.json", sources="0" * 64, commit="abc", machine=machine)

    assert results.stale(tmp_path) == []
    assert shown in results.section(name, folder=tmp_path)


def test_a_kind_of_cpu_is_refused_with_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["store", "--machine", "amx", "--device", "cuda"])
    assert "--machine is for a CPU" in capsys.readouterr().err


def test_other_tables_of_a_result_stay_and_a_result_that_is_not_stored_is_named(
    tmp_path: Path,
) -> None:
    path = stored(tmp_path)
    results.write(path, "store", "c", MACHINE, {"growth": {"1 id": {"ms": [1, 2.0]}}})
    assert {*results.read(path)} == {"size", "growth"}
    page = results.filled("a <!-- table: store, growth --> b <!-- table: speed_cuda -->", tmp_path)
    assert "| 1 id | 1 … 2.00 |" in page and "`make bench-gpu`" in page


def test_ratios_are_medians_over_rounds_in_which_all_take_turns() -> None:
    ran: list[str] = []
    seconds = turns({name: lambda name=name: ran.append(name) for name in "ab"}, rounds=4, warmup=0)
    assert [{*ran[i : i + 2]} for i in range(0, 8, 2)] == [{"a", "b"}] * 4 and len(
        seconds["a"]
    ) == 4
    rows = ratios({"peer": [2.0, 4.0, 6.0], "own": [1.0, 1.0, 2.0]}, "peer")
    assert rows["own"]["× peer"] == 3.0 and rows["own"]["ms"] == 1000


def test_coverage_of_intervals_is_averaged_over_groups_and_no_width_is_below_0() -> None:
    predicted = Predicted(
        held_out=np.array([1.0, 2.0]),
        truth=np.array([4.0, 1.0]),
        new=np.array([[0.0, 5.0, 5.0, 5.0], [2.0, 5.0, 5.0, 5.0]]),
        new_truth=np.array([3.0, 6.0, 4.0, 9.0]),
        new_groups=np.array([7, 3, 3, 3]),
        large=5.0,
    )
    np.testing.assert_array_equal(predicted.residuals, [3.0, 1.0])
    score = predicted.score(predicted.mean_of_heads, half_width=2.0)
    assert score.coverage == pytest.approx((1 + 2 / 3) / 2)
    assert score.coverage_of_large == 1 / 2
    assert score.width == (3.0 + 4.0 + 4.0 + 4.0) / 4


def test_the_quantile_of_quantiles_needs_all_but_a_tenth_of_a_group() -> None:
    residuals = np.concatenate([np.arange(10.0) + group for group in range(9)])
    groups = np.repeat(np.arange(9), 10).tolist()
    # the ninth of ten images of the last of nine groups
    assert quantile_of_quantiles(residuals, groups) == 8 + 8


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(SystemExit, match="images, reading"):
        main(["pictures"])


pytest.importorskip("transformers")


pytest.importorskip("torchvision")

TINY = {"batch": 2, "grid": (4, 6), "channels": 64, "out": 16}  # the width of dinoneck_tiny


HEAVY = ("DPT", "STA, aligned", "25 heads × 6 views")


def tiny(row: Row, **changes: Any) -> Setting:
    points = {"points": 300} if row.group == "points" else {}
    return row.settings[0].changed(**{**TINY, **points, **changes})


def parametrized(rows: list[Row]) -> Any:
    marks = {row.name: [pytest.mark.slow] if row.name in HEAVY else [] for row in rows}
    return pytest.mark.parametrize(
        "row", [pytest.param(row, id=row.name, marks=marks[row.name]) for row in rows]
    )


@parametrized(ROWS)
def test_variants_of_a_row_are_equal_in_float64(row: Row) -> None:
    if row.name.startswith("terratorch"):
        pytest.importorskip("terratorch")
    check(row, tiny(row))


def doubled(
    setting: Setting, change: Callable[[nn.Linear, Tensor], Any] | None = None
) -> dict[str, Variant]:
    """Twice a linear layer, as published and otherwise."""
    torch.manual_seed(0)
    first = nn.Linear(setting.channels, 3).to(**setting.factory_kwargs)
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


def test_a_column_without_any_value_is_left_out_of_a_table() -> None:
    table = {"a": {"time": 2, "not measured": None}, "b": {"time": None, "not measured": None}}

    shown = results.markdown(table)

    assert shown.splitlines() == ["| | time |", "|---|---|", "| a | 2 |", "| b | – |"]
