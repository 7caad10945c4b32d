"""The benchmarks' paths for a GPU, on the pretend one with tiny sizes."""

from __future__ import annotations

import argparse

import pytest
import torch
from benchmarks import measure
from benchmarks.speed import run
from benchmarks.speed.rows import Row
from tests.pretend_device import NAME, Graph, graph, pretend_device
from tests.unit.test_benchmarks import HEAVY, tiny

ROWS = [row for row in run.ROWS if not row.name.startswith("terratorch")]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "FLUSH_BYTES", 1 << 10)
    monkeypatch.setattr(measure, "GPU_WARMUP", 1)
    monkeypatch.setattr(run, "GPU_COPY_BYTES", 1 << 12)
    monkeypatch.setattr(run, "GPU_SIDE", 8)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.name in HEAVY else [])
        for row in ROWS
    ],
)
def test_forwards_are_captured(row: Row) -> None:
    with pretend_device(), torch.no_grad():
        variants = row.build(tiny(row).changed(device=NAME))
        own = [variant.capturable for variant in variants.values() if variant.form == "ours"]
        assert all(own) or row.group in ("points", "backbones")
        for variant in variants.values():
            if variant.capturable:
                variant.module.eval()
                variant.call()
                with graph(Graph()):
                    variant.call()


@pytest.mark.parametrize("name", ["points: lift", "STA simple", "backbone of timm"])
def test_a_row_is_measured_on_the_device(name: str) -> None:
    [row] = [row for row in ROWS if row.name == name]
    options = argparse.Namespace(steps=run.STEPS, graphs=False, rounds=2)
    with pretend_device():
        limits = run.ceilings(NAME, ["float32"], rounds=1)
        table = run.measure_setting(row, tiny(row).changed(device=NAME), options, limits)
    assert all(
        numbers["forward, ms"] > 0 and "forward, peak MiB" in numbers for numbers in table.values()
    )
    assert any(title.startswith("ours") for title in table)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(SystemExit, match="torch .* sees no xpu device here"):
        measure.gpu("xpu")
