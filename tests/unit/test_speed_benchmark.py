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

from benchmarks.speed import results
from benchmarks.speed.checks import Unequal, check
from benchmarks.speed.clocks import compared, gpu_turns
from benchmarks.speed.measure import measured, memory_of
from benchmarks.speed.rows import Row, Setting, Variant, tensors_of
from benchmarks.speed.summary import missed, summary
from benchmarks.speed.table import markdown
from benchmarks.speed.table_rows import ROWS
from torch.utils.flop_counter import FlopCounterMode

TINY = {"batch": 2, "grid": (4, 6), "channels": 64, "out": 16}
HEAVY = ("DPT", "STA, DEIMv2's weights", "STA, aligned (other function)", "25 heads × 6 views")
COUNTED = [row for row in ROWS if row.work is not None and not row.name.startswith(("LayerNorm", "backbone"))]


def tiny(row: Row, **changes: Any) -> Setting:
    return row.settings[0].of(**{**TINY, **changes})


def parametrized(rows: list[Row]) -> Any:
    marks = {row.name: [pytest.mark.slow] if row.name in HEAVY else [] for row in rows}
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=marks[row.name]) for row in rows])


@parametrized(ROWS)
def test_variants_of_a_row_are_equal_in_float64(row: Row) -> None:
    check(row, tiny(row))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_every_row_can_be_measured(row: Row, dtype: torch.dtype) -> None:
    found = measured(row, tiny(row, dtype=dtype), rounds=2)
    assert list(found) == list(row.steps)
    for step, variants in found.items():
        forms = [numbers["form"] for numbers in variants.values()]
        assert {"published", "fixed", "ours"} == set(forms) - {"option"}
        for numbers in variants.values():
            assert numbers["peak_mib"] > 0
            assert (step != "forward") == ("saved_mib" in numbers)


def counted(variant: Variant) -> int:
    """FLOPs of the matrix products and convolutions of one forward."""
    variant.module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        variant.call()
    return int(counter.get_total_flops())


@parametrized(COUNTED)
def test_the_formulas_are_of_the_size_of_what_is_counted(row: Row) -> None:
    """Products in place and weighted sums are not counted, so the variant that counts most stands for all."""
    setting = tiny(row, channels=128)
    most = max(counted(variant) for variant in row.build(setting).values())
    assert row.work is not None
    flops, moved = row.work(setting)
    assert 0.35 * most <= flops <= 1.001 * most
    assert moved >= 4 * setting.patches * setting.channels


@parametrized([row for row in ROWS if not row.name.startswith("backbone")])
def test_layout_fixed_peers_hand_on_no_nchw_map(row: Row) -> None:
    """At every number of layers: what a hidden copy costs would count as a gain of ours."""

    def seen(module: nn.Module, given: Any, found: Any) -> None:
        for x in tensors_of([y for y in (*given, found) if isinstance(y, Tensor | list | tuple)]):
            assert x.ndim != 4 or x.stride(1) == 1, f"{type(module).__name__}: {tuple(x.shape)}, {x.stride()}"

    for setting in row.settings:
        variants = row.build(tiny(row, layers=setting.layers))
        for variant in (variant for variant in variants.values() if variant.form == "fixed"):
            for module in variant.module.modules():
                module.register_forward_hook(seen)
            with torch.no_grad():
                seen(variant.module, (), variant.call())


@pytest.mark.parametrize("name", ["LayerGrouper, mean", "ViT-FPN, linear as in the design source"])
def test_formulas_that_need_no_trick_are_exact(name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    setting = tiny(row, batch=1, grid=(5, 6))
    assert row.work is not None
    assert row.work(setting)[0] == counted(next(iter(row.build(setting).values())))


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


def test_the_peak_of_a_step_holds_its_gradients() -> None:
    """What an earlier call left behind must not be set off against it."""
    x = torch.randn(1024, 256, requires_grad=True)
    module = nn.Linear(256, 1)
    variant = Variant("ours", lambda: module(x), module, [x])
    assert 1 <= memory_of(variant, "step, tokens learn", "cpu")["peak_mib"] < 1.1


SECONDS = {"a": [2.0, 4.0, 2.0], "a, compiled": [1.0, 1.0, 1.0], "b": [1.0, 2.0, 4.0], "ours": [0.5, 1.0, 0.5]}
FORMS = {"a": "published", "a, compiled": "published", "b": "fixed", "ours": "ours"}


def test_ratios_are_to_both_forms_of_the_peer_and_to_its_fastest() -> None:
    rows = compared(SECONDS, FORMS)
    assert rows["ours"]["ratio"] == 4 and rows["ours"]["fixed_ratio"] == 2
    assert rows["ours"]["best_ratio"] == 2  # the compiled peer takes 1 s
    assert rows["a"]["ratio"] == 1 and rows["b"]["fixed_ratio"] == 1
    with pytest.raises(ValueError, match="as published"):
        compared({"ours": [1.0, 1.0]}, {"ours": "ours"})


class FakeGpu:
    """Counts time in calls: a run takes as long as it states, flushing takes a hundred."""

    def __init__(self) -> None:
        self.now, self.log, self.graphs = 0.0, [], 0

    def run(self, name: str, takes: float) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += takes

        return call

    def flush(self) -> None:
        self.log.append("flush")
        self.now += 100

    def mark(self) -> float:
        return self.now

    def seconds(self, begin: float, end: float) -> float:
        return round(end - begin, 9)

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        self.graphs += 1
        return run


@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpus_turns_alternate_and_leave_flushing_out(graphs: bool) -> None:
    gpu = FakeGpu()
    runs = {"a": gpu.run("a", 0.03), "b": gpu.run("b", 0.02)}
    seconds = gpu_turns(runs, gpu, rounds=20, warmup=2, graphs=["b"] if graphs else [])
    assert seconds == {"a": [0.03] * 20, "b": [0.02] * 20}
    assert gpu.log[:4] == ["a"] * 2 + ["b"] * 2
    rounds = [tuple(gpu.log[at : at + 4]) for at in range(4, len(gpu.log), 4)]
    assert set(rounds) == {("flush", "a", "flush", "b"), ("flush", "b", "flush", "a")}
    assert gpu.graphs == (1 if graphs else 0)


def numbers(form: str, ratio: float, **more: Any) -> dict[str, Any]:
    fixed = {"fixed_ratio": ratio, "best_ratio": ratio, "ratio_q1": ratio, "ratio_q3": ratio}
    return {"ms": 10.0 / ratio, "ratio": ratio, **fixed, "form": form, "same": True, "rounds": 3, **more}


def report(ratio: float, saved: float = 1.0, goals: dict[str, float] | None = None) -> dict[str, Any]:
    steps = {
        "forward": {"peer": numbers("published", 1.0), "own": numbers("ours", ratio)},
        "step": {"peer": numbers("published", 1.0, saved_mib=6.0), "own": numbers("ours", ratio, saved_mib=saved)},
    }
    row = {
        "goals": {"forward float32": 1.3, "saved float32": 6.0} if goals is None else goals,
        "why": "So it is.",
        "results": {"B1 2×3 C8, float32": steps},
        "floors": {"B1 2×3 C8, float32": {"ms": 2.5, "bound": "memory", "flops": 1.0, "bytes": 1.0}},
    }
    machine = {"cpu": "a machine", "cores": 1, "system": "Linux", "versions": {"torch": "2"}}
    return {"machine": machine, "threads": 1, "device": "cpu", "ceilings": {"copy": 1e9, "float32": 1e9},
            "rows": {"a row": row}}  # fmt: skip


def test_a_missed_goal_stays_and_is_bold() -> None:
    bad, good = (report(ratio)["rows"]["a row"] for ratio in (1.29, 1.3))
    assert "**1.29**" in markdown("a row", bad) and "≥ 1.3" in markdown("a row", bad)
    assert "**" not in markdown("a row", good)
    assert missed(bad) == ["forward fp32 1.29"] and missed(good) == []
    assert "**no**: forward fp32 1.29" in summary(report(1.29))
    assert "| yes |" in summary(report(1.3))
    assert "32 % (memory)" in markdown("a row", good)


def test_bytes_saved_and_the_layout_fixed_peer_are_goals_too() -> None:
    assert missed(report(1.5, saved=2.0)["rows"]["a row"]) == ["fewer bytes saved for backward fp32 3.00"]
    slower = report(0.9, goals={"forward float32": 0.5})["rows"]["a row"]
    assert missed(slower) == ["0.90 × the layout-fixed peer"]
    assert missed(report(1.0, goals={"forward bfloat16": 1.0})["rows"]["a row"]) == ["forward bf16 not measured"]
    assert missed(report(0.5, goals={})["rows"]["a row"]) == []
    trained = report(0.9, goals={"step float32": 0.5})["rows"]["a row"]
    words = "0.90 × the layout-fixed peer"
    assert missed(trained) == [words, f"{words}, forward + backward"]


def test_results_merge_setting_by_setting_on_one_machine_only() -> None:
    old, new = report(1.5), report(2.0)
    row = new["rows"]["a row"]
    row["results"] = {"another": row["results"].pop("B1 2×3 C8, float32")}
    new["machine"]["versions"] = {"torch": "2", "a peer": "1"}
    whole = results.merged(old, new)
    assert list(whole["rows"]["a row"]["results"]) == ["B1 2×3 C8, float32", "another"]
    assert whole["machine"]["versions"] == {"torch": "2", "a peer": "1"}
    for wrong in ({"cpu": "another"}, {"versions": {"torch": "3"}}):
        with pytest.raises(SystemExit, match="of another|another"):
            results.merged({**old, "machine": {**old["machine"], **wrong}}, report(1.0))
