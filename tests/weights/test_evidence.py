"""Every step of ``evidence``: with random weights, and with published ones where DINONECK_WEIGHTS is set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence.run import STEPS, push
from benchmarks.results import read
from tests.conftest import DATA, ROOT
from tests.hub_server import Hub
from tests.unit.backbones.test_known import cached

from dinoneck import HeadCheckpoint, PatchMeanHead, Predictor, STAPyramid, Task, load_backbone
from dinoneck.detection import DetectionHead, Detector

WEIGHTS = os.environ.get("DINONECK_WEIGHTS", "")
with_data = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not DATA.is_dir(), reason=f"the data sets are not in {DATA}; set DINONECK_DATA"
    ),
]


def run(out: Path, weights: str, *words: str) -> dict[str, Any]:
    """In a process of its own, as huggingface_hub reads its variables once."""
    env = {**os.environ, "DINONECK_WEIGHTS": weights, "DINONECK_DATA": str(DATA)}
    if weights == "hub":
        del env["HF_HUB_OFFLINE"]
    options = ["--short", "--out", str(out), "--runs", str(out / "runs")]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "evidence", *options, *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    [file] = out.glob("*.json")
    return {title: table["rows"] for title, table in read(file).items()}


class TestWithRandomWeights:
    pytestmark = with_data

    def test_all_steps(self, tmp_path: Path) -> None:
        tables = run(tmp_path, "", "--random", "--backbone", "dinoneck_tiny")
        assert {*tables} == {*STEPS, "minutes"} - {"published"}
        [points] = tables["points"].values()
        assert points["found"] > 2 * points["by chance"]
        assert all(row.keys() >= {"AP", "AP50", "AP75"} for row in tables["boxes"].values())
        image = DATA / "crop_cover" / "images" / "0001.jpg"
        # what --push sends
        [prediction] = Predictor(tmp_path / "runs" / "cover" / "0" / "head.safetensors")([image])
        assert prediction.keys() >= {"soil", "crop", "weed"}

    def test_a_folder_of_weights_is_read_without_a_network(self, tmp_path: Path) -> None:
        name = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"
        cached(tmp_path / "cache", name)
        [points] = run(tmp_path, str(tmp_path / "cache"), "--only", "points", "--backbone", name)[
            "points"
        ].values()
        assert points["found"] > points["by chance"]


@pytest.mark.skipif(
    not WEIGHTS, reason="set DINONECK_WEIGHTS to hub, or to a folder of published weights"
)
class TestWithPublishedWeights:
    pytestmark = with_data

    @pytest.mark.parametrize("step", ["parity", "published", "points", "cover", "cells", "boxes"])
    def test_step(self, step: str, tmp_path: Path) -> None:
        rows = run(tmp_path, WEIGHTS, "--only", step)[step]
        assert rows and not any({"not compared", "not run"} & row.keys() for row in rows.values())


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's client
def test_push_sends_what_was_trained(writer: Hub, tmp_path: Path) -> None:
    head = HeadCheckpoint.from_module(PatchMeanHead(8, [Task("crop"), Task("weed")]))
    for folder in ("cover/0", "boxes/FCOS-adapter-0"):
        (tmp_path / folder).mkdir(parents=True)
    head.save(tmp_path / "cover" / "0" / "head.safetensors")
    detector = Detector(
        DetectionHead("fcos", ("a",), STAPyramid(64, 32)), load_backbone("dinoneck_tiny"), (64, 96)
    )
    detector.save(tmp_path / "boxes" / "FCOS-adapter-0" / "detector.safetensors")
    push(tmp_path, "me")
    assert writer.repos.keys() == {"me/dinoneck-crop-cover", "me/dinoneck-blood-cells"}
