"""Pairs of arguments of ``fit``: the form of the data must not matter, a field of the recipe must.

The reference of another source, another form of the targets, or a run that was interrupted is the
training without it. A field of the recipe that changes nothing is a fault. The trained head, saved
and opened with the images, predicts what it predicted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tests import kit
from tests.faults.pairs.options import (
    Differs,
    Option,
    Settings,
    Trainings,
    check_same,
    judged,
    pairs,
)

from dinoneck import FeatureStore, FPNHead, PatchMeanHead, Predictor, Task, save_head
from dinoneck.training import LiveTokens, MemoryTokens, fit

IDS = ("a", "b", "c", "d", "e", "f")
HELD_OUT = ("e", "f")
SIZE = (32, 48)
FORMS = (  # they must not change the trained head
    Option("source", "memory", ["store", "live"]),
    Option("targets", "by id", ["array", "permuted array", "frame", "text of numbers"]),
    Option("ids", None, ["ascending"]),  # their order is that of the samples
    Option("out", None, ["folder", "interrupted"]),
    Option("target weights", None, ["for nothing"]),
)
RECIPE = (  # each of them must
    Option("seed", 0, [11]),
    Option("lr", 0.01, [0.03]),
    Option("batch_size", 2, [3]),
    Option("epochs", 2, [3]),
    Option("optimizer", "adamw", ["sam"]),
    Option("ema_decay", None, [0.5]),
    Option("amp", None, ["bf16"]),
    Option("standardise_tokens", True, [False]),
    Option("mixup_alpha", None, [0.4]),
    Option("weight_decay", 0.01, [0.3]),
    Option("warmup", 0.1, [0.6]),
    Option("clip_norm", 1.0, [0.05]),
    Option("layers", "5", ["2", "1 4"]),
    Option("two tasks", None, ["on"]),
)
OPTIONS = (*FORMS, *RECIPE)
CASES = [*pairs(OPTIONS)]
SAME, ROUNDED = 2e-5, 3e-2
FIELDS = (
    "seed",
    "lr",
    "batch_size",
    "epochs",
    "optimizer",
    "ema_decay",
    "amp",
    "standardise_tokens",
    "mixup_alpha",
    "weight_decay",
    "warmup",
    "clip_norm",
)


def outcomes(cases: Sequence[Settings], folder: Path) -> Iterator[str]:
    """Judge cases: train, and compare with the training without each of the two."""
    return judged(cases, OPTIONS, World(folder).check)


class World:
    """Images, their values, a store for each choice of layers, and what was trained already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = kit.write_images(folder / "images", [f"{name}.png" for name in IDS], *SIZE)
        self.values = {name: 1.0 + number for number, name in enumerate(IDS)}
        self._trainings = Trainings(self.train)

    def check(self, settings: Settings) -> None:
        """Train with both options; then without each."""
        predictions = self.train(settings)
        for option in OPTIONS:
            if settings[option.name] == option.neutral:
                continue
            without = self._trainings.result_of({**settings, option.name: option.neutral})
            if without is None or option.name in ("two tasks", "layers"):
                continue
            if option in FORMS:
                is_rounded = option.name == "source" and settings["source"] == "live"
                tolerance = ROUNDED if is_rounded else SAME
                check_same(predictions, without, f"the head without {option.name}", tolerance)
            elif np.allclose(predictions, without, rtol=0, atol=1e-7):
                raise Differs(f"{option.name} has no effect, and is not refused")

    def train(self, settings: Settings) -> list[float]:
        """Train a head; compare its file with it, and return its predictions of all images."""
        layers = [*map(int, settings["layers"].split())]
        backbone = kit.backbone(layers=layers)
        recipe = backbone.preprocess.changed(size=SIZE)
        memory = MemoryTokens.extract(backbone, self.paths, [*IDS], preprocess=recipe)
        source: Any = memory
        if settings["source"] == "store":
            source = self._store(backbone, settings["layers"])
        elif settings["source"] == "live":
            source = LiveTokens(backbone, self.paths, IDS, recipe)
        head = self._head(settings, len(layers))
        options: dict[str, Any] = {name: settings[name] for name in FIELDS}
        options |= self._data(settings)
        if settings["ids"] == "ascending":
            options["ids"] = [name for name in IDS if name not in HELD_OUT]
        if settings["out"] is None:
            fit(head, source, **options)
        else:
            head = self._train_in_folder(settings, head, source, options)
        head.eval()
        tokens = memory.batch([*IDS])
        with torch.no_grad():
            right = head.predict(tokens)["mass"].float().flatten().tolist()
        file = self.folder / "head.safetensors"
        save_head(file, head, backbone=backbone, preprocess=recipe)
        found = [float(np.ravel(row["mass"])[0]) for row in Predictor(file)(self.paths)]
        check_same(found, right, "the predictions of the file", 5e-3)
        return right

    def _train_in_folder(
        self, settings: Settings, head: Any, source: Any, options: dict[str, Any]
    ) -> Any:
        """Train with a state on disk; if interrupted, with a new head after the first epoch."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        if settings["out"] == "folder":
            fit(head, source, out=out, **options)
            return head

        def stop(epoch: int, row: dict[str, float]) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

        try:
            fit(head, source, out=out, callbacks=[stop], **options)
        except KeyboardInterrupt:
            head = self._head(settings, len(settings["layers"].split()))
            fit(head, source, out=out, **options)
        return head

    def _head(self, settings: Settings, num_layers: int) -> Any:
        tasks = [Task("mass", unit="g")]
        if settings["two tasks"] is not None:
            tasks.append(Task("height"))
        torch.manual_seed(0)
        if num_layers > 1:
            return FPNHead(64, tasks, num_layers=num_layers, fpn_dim=8, num_levels=2)
        return PatchMeanHead(64, tasks, hidden_dim=8)

    def _data(self, settings: Settings) -> dict[str, Any]:
        """The targets in the form of the case; the held-out ids have none in any."""
        names = [name for name in IDS if name not in HELD_OUT]
        tasks = ["mass"] if settings["two tasks"] is None else ["mass", "height"]
        form = settings["targets"]
        if form == "permuted array":
            names = names[::-1]
        columns = {task: [self.values[name] for name in names] for task in tasks}
        if form in ("array", "permuted array"):
            arrays = {task: np.array(column) for task, column in columns.items()}
            return {"targets": arrays, "target_ids": names}
        if form == "frame":
            return {"targets": pd.DataFrame(columns, index=names)}
        if form == "text of numbers":
            texts = {task: dict(zip(names, map(str, columns[task]), strict=True)) for task in tasks}
            return {"targets": texts}
        by_id = {task: dict(zip(names, columns[task], strict=True)) for task in tasks}
        data: dict[str, Any] = {"targets": by_id}
        if settings["target weights"] is not None:
            data["weights"] = {}
        return data

    def _store(self, backbone: Any, layers: str) -> FeatureStore:
        root = self.folder / f"store {layers}"
        store = FeatureStore.create(root, backbone=backbone, views="none", image_size=SIZE)
        store.extract(self.paths, root=self.folder / "images", workers=1)
        return store
