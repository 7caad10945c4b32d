"""The benchmarks' paths for a GPU, on the pretend one with tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import devices, points
from benchmarks.speed import clocks, roofline
from benchmarks.speed.rows import Row
from benchmarks.speed.table_rows import ROWS
from tests.pretend_device import NAME, Graph, graph, pretend_device
from tests.unit.test_speed_benchmark import HEAVY, tiny


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(clocks, "FLUSH_BYTES", 1 << 10)
    patch.setattr(roofline, "GPU_COPY", 1 << 12)
    patch.setattr(roofline, "GPU_SIDE", 8)


def on_device(out: Path, *words: str) -> list[str]:
    return [*words, "--device", NAME, "--out", str(out)]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[pytest.mark.slow] if row.name in HEAVY else []) for row in ROWS]
)
def test_forwards_are_captured(row: Row) -> None:
    with pretend_device(), torch.no_grad():
        variants = row.build(tiny(row).of(device=NAME))
        assert all(variant.capturable for variant in variants.values() if variant.form == "ours")
        for variant in variants.values():
            if variant.capturable:
                variant.module.eval()
                variant.call()
                with graph(Graph()):
                    variant.call()


def test_points(tmp_path: Path) -> None:
    with pretend_device():
        points.main(on_device(tmp_path, "--points", "200", "--views", "2", "--channels", "8", "--rounds", "2"))
    report = json.loads((tmp_path / f"points_{NAME}.json").read_text())
    assert report["machine"]["gpu"] and set(report["points"]) >= {"lift", "keys", "look-up"}


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(SystemExit, match="torch .* sees no xpu device here"):
        devices.gpu("xpu")
    assert devices.stem("speed", "cuda:0") == "speed_cuda" and devices.stem("speed", "cpu") == "speed"
