"""The benchmarks' paths for a GPU, on the pretend one with tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import backbones, detection_necks, devices, feature_files, feature_store, gpu, points
from benchmarks.gpu import Job
from benchmarks.speed import __main__ as speed
from benchmarks.speed import clocks, pipelines, roofline
from benchmarks.speed.pipeline_forms import Work
from benchmarks.speed.rows import Row
from benchmarks.speed.table_rows import ROWS
from tests.conftest import ROOT
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


def speed_with_graphs(folder: Path) -> None:
    row = next(row for row in ROWS if row.name == "CLS gate pool")
    words = ["--no-compile", "--rounds", "2", "--dtypes", "float32", "--graphs", "--steps", "forward"]
    shrink(patch := pytest.MonkeyPatch())
    patch.setattr(speed, "ROWS", [row])
    patch.setattr(type(row), "settings_on", lambda self, device: [tiny(self).of(device=device)])
    with pretend_device():
        speed.main(on_device(folder, *words))


@pytest.mark.slow
def test_speed_with_graphs(tmp_path: Path) -> None:
    # in a process of its own: autograd counts the kinds of devices at the first backward pass of a process
    code = f"from tests.unit.test_gpu_benchmarks import *; speed_with_graphs(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((tmp_path / f"speed_{NAME}_graphs.json").read_text())
    assert report["machine"]["gpu"] == "a pretend GPU" and report["machine"]["versions"]["torch"]
    [steps] = report["rows"]["CLS gate pool"]["results"].values()
    assert all(numbers["replayed"] for numbers in steps["forward"].values())
    assert "images / s" in (tmp_path / f"speed_{NAME}_graphs.md").read_text()


def test_a_row_whose_peer_is_missing_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'a_peer'")

    monkeypatch.setattr(speed, "ROWS", [Row("a row", build, ROWS[0].settings[:1])])
    with pretend_device():
        speed.main(on_device(tmp_path, "--dtypes", "float32"))
    assert "skipped: a row (No module named 'a_peer')" in capsys.readouterr().out


def test_points(tmp_path: Path) -> None:
    with pretend_device():
        points.main(on_device(tmp_path, "--points", "200", "--views", "2", "--channels", "8", "--rounds", "2"))
    report = json.loads((tmp_path / f"points_{NAME}.json").read_text())
    assert report["machine"]["gpu"] and set(report["points"]) >= {"lift", "keys", "look-up"}


@pytest.mark.slow
def test_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work("dinoneck_tiny", 3, (32, 32), folds=1, flips=((),))
    monkeypatch.setattr(pipelines, "SIZE", (32, 32))
    monkeypatch.setattr(pipelines, "SIDES", (32,))
    monkeypatch.setattr(pipelines, "REAL", tmp_path / "none")
    title = "dinoneck_tiny, last block"
    monkeypatch.setattr(pipelines, "SETTINGS", {title: work})
    words = ["--short", "--photos", "1", "--rounds", "2", "--stages", "predictions", "parts"]
    with pretend_device() as device:
        pipelines.main(on_device(tmp_path, *words))
    report = json.loads((tmp_path / f"pipelines_{NAME}.json").read_text())
    assert all(row["per_s"] > 0 for row in report["photo to prediction"][title].values())
    assert device.kernels["_scaled_dot_product_flash_attention_for_cpu"] or device.kernels["convolution"]


@pytest.mark.slow
def test_feature_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "GRID", (2, 2))
    with pretend_device():
        feature_store.main(on_device(tmp_path, "--photos", "1", "--size", "32x32", "--batch", "1"))
    report = json.loads((tmp_path / f"feature_store_{NAME}.json").read_text())
    assert {"loader, 0 workers", "training"} <= set(report) and "CPU of a read" not in report
    assert report["training"]["fp16 store in memory"]["per_s"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "words"),
    [
        (backbones, ["--model", "dinoneck_tiny", "--size", "32x32", "--dtypes", "float32"]),
        (detection_necks, ["--size", "64", "--batches", "1", "--end-rounds", "2"]),
    ],
    ids=["backbones", "detection_necks"],
)
def test_benchmarks_of_their_own(benchmark: Any, words: list[str], tmp_path: Path) -> None:
    with pretend_device():
        benchmark.main(on_device(tmp_path, "--rounds", "2", *words))
    [report] = tmp_path.glob(f"*_{NAME}.json")
    assert json.loads(report.read_text())["machine"]["gpu"] == "a pretend GPU"


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(SystemExit, match="torch .* sees no xpu device here"):
        devices.gpu("xpu")
    assert devices.stem("speed", "cuda:0") == "speed_cuda" and devices.stem("speed", "cpu") == "speed"


def test_the_next_job_runs_when_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job_good.py").write_text("import pathlib, sys; pathlib.Path(sys.argv[-1], 'done').touch()")
    (tmp_path / "job_bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "job_long.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    jobs = [Job("lacking", "x", needs=("no_such_package",)), Job("bad", "job_bad"), Job("good", "job_good")]
    found = gpu.run(jobs, "cuda", tmp_path, 60)
    assert found["lacking"] == "skipped: no_such_package is not installed"
    assert found["bad"].startswith("failed with exit status 3") and found["good"].startswith("ok")
    assert (tmp_path / "done").exists()
    found = gpu.run([Job("long", "job_long"), Job("good", "job_good")], "cuda", tmp_path, 0.5)
    assert found["long"].startswith("failed: stopped") and found["good"] == "not run: the time was up"
