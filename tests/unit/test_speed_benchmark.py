"""The speed benchmark: nothing unequal is timed, goals that are missed are shown, clocks and memory count rightly."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")
pytest.importorskip("torchvision")

from benchmarks.speed import elsewhere, results, share
from benchmarks.speed.checks import Unequal, check
from benchmarks.speed.clocks import compared, gpu_turns
from benchmarks.speed.measure import measured, memory_of, prepared
from benchmarks.speed.memory import peak_mib, saved_mib
from benchmarks.speed.roofline import floor_ms
from benchmarks.speed.rows import Row, Setting, Variant, tensors_of
from benchmarks.speed.share import backbone_ms
from benchmarks.speed.summary import missed, summary, verdict
from benchmarks.speed.table import markdown, repeated, reproduced
from benchmarks.speed.table_rows import ROWS, goals_of
from benchmarks.timing import turns
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


def test_names_of_rows_are_unique_and_goals_have_reasons() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.why for row in ROWS if row.goals)


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


def test_an_equal_peer_passes() -> None:
    check(Row("doubled", doubled, [SMALL]), SMALL)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda module, x: 2.00001 * module(x), "results"),
        (lambda module, x: 2 * module(x)[:, 1:], "results"),
        (lambda module, x: module(x) + module(x.detach()), "gradients of tokens"),
        (lambda module, x: module(x) + torch.nn.functional.linear(x, module.weight.detach(), module.bias), "weights"),
        (lambda module, x: (2 * module(x)).detach() + 0 * module(x), "gradients"),
        (lambda module, x: module(x) * (3 if module.training else 2), "results in training"),
    ],
)
def test_a_wrong_peer_is_noticed(change: Callable[[nn.Linear, Tensor], Any], what: str) -> None:
    with pytest.raises(Unequal, match=f"otherwise: .*{what}"):
        check(Row("doubled", lambda setting: doubled(setting, change), [SMALL]), SMALL)


def test_another_functions_result_is_not_compared() -> None:
    def build(setting: Setting) -> dict[str, Variant]:
        variants = doubled(setting, lambda module, x: 5 * module(x))
        variants["otherwise"].same = False
        return variants

    check(Row("doubled", build, [SMALL]), SMALL)


def test_tokens_and_weights_do_not_count_as_saved() -> None:
    x = torch.randn(1024, 256, requires_grad=True)  # 1 MiB
    module = nn.Linear(256, 256)
    assert saved_mib(Variant("ours", lambda: module(x), module, [x])) == 0
    assert saved_mib(Variant("ours", lambda: module(x), module)) == 1
    assert saved_mib(Variant("ours", lambda: module(x.exp()), module, [x])) == 1  # the power is kept twice, held once


def test_the_peak_holds_what_a_call_adds(capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.ones(1024, 256)
    assert peak_mib(lambda: [(x + 1).sum()], "cpu") == pytest.approx(1, abs=0.01)
    assert "USDT" not in capfd.readouterr().err


def test_a_step_leaves_the_gradients_of_one_call() -> None:
    variant = doubled(SMALL.of(learns=True))["otherwise"]
    run = prepared(variant, "step, tokens learn")
    run()
    once = variant.inputs[0].grad
    assert once is not None
    run()
    again = variant.inputs[0].grad
    assert again is not None
    assert torch.equal(once, again)
    assert torch.is_inference(prepared(variant, "forward")())


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
    """Counts time in calls: a run takes as long as it says, flushing takes a hundred."""

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


def test_slow_work_is_warmed_up_less() -> None:
    gpu = FakeGpu()
    gpu_turns({"a": gpu.run("a", 3.0)}, gpu, rounds=1, warmup=9)
    assert gpu.log == ["a", "flush", "a"]


def test_who_runs_before_whom_changes_from_round_to_round() -> None:
    log: list[str] = []
    runs = {name: partial(log.append, name) for name in "abc"}
    seconds = turns(runs, rounds=30, warmup=0, seed=1)
    assert all(sorted(log[at : at + 3]) == ["a", "b", "c"] for at in range(0, 90, 3))
    before_c = {log[at - 1] for at in range(1, 90) if log[at] == "c"}
    assert before_c == {"a", "b", "c"} and list(seconds) == ["a", "b", "c"]
    log.clear()
    turns(runs, rounds=2, warmup=1)
    assert log == ["a", "b", "c"] * 3


def test_the_floor_is_what_binds() -> None:
    limits = {"copy": 1e9, "float32": 1e10}
    assert floor_ms((1e9, 1e6), "float32", limits) == {"flops": 1e9, "bytes": 1e6, "ms": 100.0, "bound": "arithmetic"}
    assert floor_ms((1e6, 1e9), "float32", limits)["bound"] == "memory"


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


def test_what_was_not_measured_is_open_and_what_was_missed_is_not() -> None:
    unknown = {"forward float32": 1.3, "forward bfloat16": 1.8}
    assert verdict(report(1.5, goals=unknown)["rows"]["a row"]) == "open: forward bf16 not measured"
    assert verdict(report(1.2, goals=unknown)["rows"]["a row"]).startswith("**no**: forward fp32 1.20")


def test_a_replayed_graph_is_named() -> None:
    row = report(1.5)["rows"]["a row"]
    row["results"]["B1 2×3 C8, float32"]["forward"]["own"]["replayed"] = True
    assert markdown("a row", row).count("own (launches replayed as a CUDA graph)") == 1


def test_memory_bound_rows_have_a_goal_on_a_gpu() -> None:
    row = report(1.0, goals={"copy float32": 0.7})["rows"]["a row"]
    assert missed(row) == ["of the copy bandwidth where memory binds fp32 0.25"]
    row["floors"]["B1 2×3 C8, float32"]["ms"] = 7.1
    assert missed(row) == []
    row["floors"]["B1 2×3 C8, float32"] = {"ms": 1.0, "bound": "arithmetic"}
    assert missed(row) == []
    gate = next(row for row in ROWS if row.name == "25 heads × 6 views")
    assert goals_of(gate, cuda=True) == {"forward float32": 5.0, "copy float32": 0.7, "copy bfloat16": 0.7}
    assert goals_of(gate, cuda=False) == {"forward float32": 1.1}


def test_a_neck_beside_its_backbone_on_a_gpu() -> None:
    row = {**report(1.0, goals={})["rows"]["a row"], "backbones": {"B1 2×3 C8, float32": 250.0}}
    assert missed(row) == [] and verdict(row) == "yes, 4.0 % of its backbone's time"
    row["backbones"] = {"B1 2×3 C8, float32": 100.0}
    assert missed(row) == ["10.0 % of its backbone's time, at most 5 % is due"]
    row["backbones"] = {"B1 2×3 C8, float32": None}  # no ViT of that width
    assert verdict(row) == "–"
    assert backbone_ms(Setting(1, (2, 2), 100), 3, FakeGpu()) is None


def test_one_backbone_is_timed_once_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(share, "load_backbone", lambda name, **_: made.append(name) or nn.Identity())
    gpu = FakeGpu()
    times = [backbone_ms(Setting(1, (2, 2), 384, layers, out=out), 31, gpu) for layers, out in ((1, 256), (6, 128))]
    assert times == [0.0, 0.0] and made == ["vit_small_patch16_dinov3"]
    assert gpu.log == ["flush"] * share.TURNS


def test_a_gpu_gets_larger_batches_each_setting_once() -> None:
    adapter = next(row for row in ROWS if row.name == "STA, DEIMv2's weights")
    assert [setting.batch for setting in adapter.settings_on("cpu")] == [1, 4]
    assert [(setting.batch, setting.device) for setting in adapter.settings_on("cuda")] == [(32, "cuda")]
    heads = next(row for row in ROWS if row.name == "25 heads × 6 views")
    assert [setting.batch for setting in heads.settings_on("cuda")] == [6]


def test_a_second_run_stands_beside_the_first() -> None:
    whole = results.merged(report(1.5), report(1.64), second=True)
    own = whole["rows"]["a row"]["results"]["B1 2×3 C8, float32"]["forward"]["own"]
    assert own["ratio"] == 1.5 and own["second"]["ratio"] == 1.64 and reproduced(own)
    assert "reproduced 2 of 2" in repeated(whole)
    assert "reproduced 0 of 2" in repeated(results.merged(report(1.5), report(1.7), second=True))
    assert repeated(report(1.5)) == "No second run is stored."
    with pytest.raises(SystemExit, match="nothing is stored"):
        results.merged(None, report(1.0), second=True)


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


def test_a_run_of_some_steps_leaves_the_others() -> None:
    old, new, title = report(1.5), report(2.0), "B1 2×3 C8, float32"
    del new["rows"]["a row"]["results"][title]["step"]
    found = results.merged(old, new)["rows"]["a row"]["results"][title]
    assert found["forward"]["own"]["ratio"] == 2.0 and found["step"]["own"]["ratio"] == 1.5
    row = next(row for row in ROWS if row.name == "CLS gate pool")
    assert list(measured(row, tiny(row), rounds=2, steps=["step"])) == ["step"]


def test_goals_measured_elsewhere_are_read(tmp_path: Path) -> None:
    assert elsewhere.lines(tmp_path) == []
    machine = {"machine": {"cpu": "a machine"}}
    points = {**machine, "points": {"lift": {"lift": {"ratio": 9.0}}, "keys": {"distinct keys": {"ratio": 21.0}}}}
    store = {**machine, "goals": [{"what": "error", "goal": 0.1, "value": 0.05, "most": True, "met": True}]}
    (tmp_path / "points.json").write_text(json.dumps(points))
    (tmp_path / "feature_store.json").write_text(json.dumps(store))
    found = {line[0]: line[3] for line in elsewhere.lines(tmp_path)}
    assert found == {"points, lift": "**no**", "points, keys": "yes", "feature store, error": "yes"}


@pytest.mark.slow
def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.speed.picture import bars, draw

    assert bars(report(1.5), "forward", "float32")[0] == {
        "name": "a row\nB1 2×3 C8", "goal": 1.3, "fixed": None, "ours": 1.5}  # fmt: skip
    draw(report(1.5), tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 10_000
