"""Every step of ``benchmarks.evidence``: with random weights, and with published ones where DINONECK_WEIGHTS is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence.page import BEGIN, END, PAGE, RESULTS, filled
from tests.conftest import DATA, ROOT
from tests.hub_server import WRITER, Hub

from dinoneck import HeadCheckpoint, PatchMeanHead, Predictor, STAPyramid, Task, load_backbone
from dinoneck.detection import DetectionHead, Detector

WEIGHTS = os.environ.get("DINONECK_WEIGHTS", "")
STEPS = ("parity", "cover", "cells", "detector", "points")
with_data = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not in {DATA}; set DINONECK_DATA"),
]


def run(out: Path, weights: str, *words: str) -> dict[str, Any]:
    """In a process of its own, as huggingface_hub reads its variables once."""
    env = {**os.environ, "DINONECK_WEIGHTS": weights, "DINONECK_DATA": str(DATA)}
    if weights == "hub":
        del env["HF_HUB_OFFLINE"]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.evidence", "--short", "--out", str(out), *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    report: dict[str, Any] = json.loads((out / "evidence.json").read_text())
    return report


class TestWithRandomWeights:
    pytestmark = with_data

    def test_all_steps(self, tmp_path: Path) -> None:
        page = PAGE.read_text()
        report = run(tmp_path, "", "--random", "--backbone", "dinoneck_tiny")
        steps = report["steps"]
        assert tuple(steps) == STEPS
        assert len(steps["parity"]["rows"]) == 2 and steps["parity"]["holds"]
        assert steps["points"]["found"] > 2 * steps["points"]["chance"]
        assert steps["detector"]["best"].keys() >= {"AP", "AP50", "AP75"}
        image = DATA / "crop_cover" / "images" / "0001.jpg"
        for name in ("cover", "cells"):  # what --push sends
            [prediction] = Predictor(tmp_path / "heads" / f"{name}.safetensors")([image])
            assert prediction.keys() >= {"soil", "crop", "weed"}
        assert PAGE.read_text() == page
        shown = filled(page, report)
        assert f"{steps['points']['found']:.0%}" in shown and "Not yet run" not in shown

    def test_a_folder_of_weights_is_read_without_a_network(self, tmp_path: Path) -> None:
        name = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"
        model = tmp_path / "cache" / f"models--timm--{name}"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("0" * 40)
        (model / "snapshots" / ("0" * 40)).mkdir(parents=True)
        state = load_backbone(name, pretrained=False).adapter.model.state_dict()
        safetensors.torch.save_file(state, model / "snapshots" / ("0" * 40) / "model.safetensors")
        report = run(tmp_path, str(tmp_path / "cache"), "--only", "points", "--backbone", name)
        assert report["steps"]["points"]["found"] > report["steps"]["points"]["chance"]


@pytest.mark.skipif(not WEIGHTS, reason="set DINONECK_WEIGHTS to hub, or to a folder of published weights")
class TestWithPublishedWeights:
    pytestmark = with_data

    @pytest.mark.parametrize("step", STEPS)
    def test_step(self, step: str, tmp_path: Path) -> None:
        found = run(tmp_path, WEIGHTS, "--only", step)["steps"][step]
        if step == "parity":
            assert len({row["pair"] for row in found["rows"]}) == 3, f"not compared: {found['missing']}"
        elif step == "points":
            assert found["found"] > 3 * found["chance"]
        elif step != "detector":
            assert found["backbone"]["weights"]["kind"] == "hub"


def test_the_page_has_the_stored_numbers_or_names_the_command() -> None:
    page = PAGE.read_text()
    if RESULTS.exists():
        assert filled(page, json.loads(RESULTS.read_text())) == page
    else:
        assert "**Not yet run.**" in page.split(BEGIN)[1].split(END)[0]
    assert "make evidence" in page


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's client
def test_push_sends_what_was_trained(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    head = HeadCheckpoint.from_module(PatchMeanHead(8, [Task("crop"), Task("weed")]))
    for folder in ("heads", "detector"):
        (tmp_path / folder).mkdir()
    for name in ("cover", "cells"):
        head.save(tmp_path / "heads" / f"{name}.safetensors")
    detector = Detector(DetectionHead("fcos", ("a",), STAPyramid(64, 32)), load_backbone("dinoneck_tiny"), (64, 96))
    detector.save(tmp_path / "detector" / "detector.safetensors")
    evidence.push(Namespace(out=tmp_path, push="me", only=["parity", "cover", "detector"]))
    assert hub.repos.keys() == {"me/dinoneck-crop-cover", "me/dinoneck-blood-cells"}
