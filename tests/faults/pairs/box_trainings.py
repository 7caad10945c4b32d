"""Pairs of options of ``dinoneck train --boxes``: each has its effect or is refused, and the file is what was scored.

The scores that a run states are those of its file, by ``dinoneck evaluate`` on the held-out images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests import kit
from tests.faults.pairs.options import (
    Differs,
    Groups,
    Option,
    Settings,
    Trainings,
    check_same,
    judged,
    pairs,
    raise_refusal,
    training_file,
)
from tests.unit.detection import coloured_boxes

from dinoneck import HeadCheckpoint

# name of an option -> value -> words of the command line
WORDS: dict[str, dict[str, list[object]]] = {
    "detector": {"retinanet": ["--detector", "retinanet"]},
    "head": {"sta_pyramid": ["--head", "sta_pyramid"]},
    "hidden-dim": {"64": ["--hidden-dim", 64]},
    "features-at": {"0.5": []},  # by FILES
    "layers": {"1 3 4": ["--layers", 1, 3, 4]},
    "size": {"64x128": ["--size", "64x128"]},
    "bits": {"12": ["--bits", 12]},
    "seed": {"7": ["--seed", 7]},
    "backbone-seed": {"3": ["--backbone-seed", 3]},
    "freeze": {"last:2": ["--freeze", "0=last:2"]},
    "backbone-lr": {"0.01": ["--backbone-lr", 0.01]},
    "layer-decay": {"0.5": ["--layer-decay", 0.5]},
    "ema": {"0.5": ["--ema-decay", 0.5]},
    "amp": {"bf16": ["--amp", "bf16"]},
    "lr": {"0.01": ["--lr", 0.01]},
    "batch-size": {"1": ["--batch-size", 1]},
    "augment": {"none": ["--augment", "none"], "both": ["--augment", "both"]},
    "classes": {"turned": ["--classes", "blue", "red"]},
    "checkpointing": {"on": ["--checkpointing"]},
    "eval-every": {"2": ["--eval-every", 2]},
    "crowd": {"objects": ["--crowd", "objects"]},
    "lora": {"2": ["--lora", 2]},
}
# name of an option -> value -> groups of a training file, of options that have no flag
FILES: dict[str, dict[str, Groups]] = {"features-at": {"0.5": {"detector": {"features_at": 0.5}}}}
OPTIONS = tuple(Option(name, None, [*values]) for name, values in WORDS.items())
CASES = [*pairs(OPTIONS)]
# they change how a run is computed, what is measured, or images that are not there
WITHOUT_EFFECT = ("checkpointing", "eval-every", "bits", "crowd")
OF_A_PLAN = ("backbone-lr", "layer-decay")
TOLERANCE = 1e-5


def outcomes(cases: Sequence[Settings], folder: Path) -> Iterator[str]:
    """Judge cases: train, score the file, and compare with each option alone."""
    return judged(cases, OPTIONS, World(folder).check)


class World:
    """Images with boxes, and what was trained already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boxes = coloured_boxes.write(folder / "images")
        self._trainings = Trainings(self.train)

    def check(self, settings: Settings) -> None:
        """Train with both options, then with each alone."""
        weights = self.train(settings)
        for name, value in settings.items():
            if value is None or name in WITHOUT_EFFECT:
                continue
            if name in OF_A_PLAN and settings["freeze"] is None:
                continue  # a detector's own plan trains blocks from its tenth epoch on
            alone = self._trainings.result_of({**settings, name: None})
            if alone is not None and _are_equal(alone, weights):
                raise Differs(f"{name} has no effect, and is not refused")

    def train(self, settings: Settings) -> Any:
        """Train; compare the stated scores with those of the file, and return its weights."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        words: list[object] = ["--epochs", 1, "--device", "cpu", "--backbone", "dinoneck_tiny"]
        defaults = {
            "size": ["--size", "64x64"],
            "hidden-dim": ["--hidden-dim", 32],
            "batch-size": ["--batch-size", 2],
            "lr": ["--lr", 0.001],
        }
        for name, value in settings.items():
            words += defaults.get(name, []) if value is None else WORDS[name][value]
        words = [*training_file(self.folder / "run.yaml", FILES, settings), *words]
        words += ["--boxes", self.boxes, "--val-boxes", self.boxes, "--out", run]
        ran = kit.cli("train", *words)
        raise_refusal(ran)
        best = json.loads((run / "report.json").read_text())["best"]
        self._check_scores(settings, run, best)
        return HeadCheckpoint.load(run / "detector.safetensors").state_dict

    def _check_scores(self, settings: Settings, run: Path, best: dict[str, Any]) -> None:
        words: list[object] = ["--truth", self.boxes, "--json"]
        if settings["crowd"] is not None:
            words += WORDS["crowd"][settings["crowd"]]
        ran = kit.cli("evaluate", self.boxes.parent, "--heads", run, *words)
        if ran.code != 0:
            raise AssertionError(f"evaluate: {ran.err[-200:]}")
        [scores] = ran.json["boxes"].values()
        tolerance = TOLERANCE if settings["amp"] is None else 0.2
        for name in ("AP", "AP50"):
            check_same([scores[name]], [best[name]], name, tolerance)


def _are_equal(one: Any, other: Any) -> bool:
    if one.keys() != other.keys():
        return False
    return all(
        one[name].shape == other[name].shape
        and np.allclose(one[name].float(), other[name].float(), rtol=0, atol=1e-9)
        for name in one
    )
