"""Frozen folders of trainings, written by ``dinoneck train`` from the YAML file next to each of them.

``runs`` is the working directory of a user: paths are relative to it. ``field`` holds the images,
and ``store`` their tokens.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck import FeatureStore
from dinoneck.data import Views
from dinoneck.training import TrainConfig, train
from tests import kit
from tests.frozen.field import COUNT as IMAGES
from tests.frozen.field import write_field
from tests.frozen.folder import VersionFolder, is_frozen
from tests.frozen.stores import INDEX, SOURCE_TIME, SOURCES, empty_sources

FOLDER = "runs"
FIELD = "field"
STORE = "store"
UNFINISHED = "unfinished"
INPUTS = (FIELD, STORE)
PREDICTED_IMAGES = (f"{FIELD}/0.png", f"{FIELD}/1.png")
SIZE = (32, 64)
OBJECT_SCORES = ("AP", "AP50", "F1")


@dataclass(frozen=True)
class RunToFreeze:
    """A training that is run once.

    Attributes:
        name: of its folder, and of its file.
        config: the text of the file.
        predict: further words of ``predict``. A smallest score is far from those of all objects,
            since another machine may change the last bits of these.
        truth: the words of ``evaluate`` that name the truth.
    """

    name: str
    config: str
    predict: tuple[str, ...] = ()
    truth: tuple[str, ...] = ("--truth", f"{FIELD}/table.csv")

    @property
    def file(self) -> str:
        """Its path in the folder of a version."""
        return f"{FOLDER}/{self.name}"


RUNS = (
    RunToFreeze(
        "numbers",
        """\
data:
  csv: field/table.csv
  targets: [crop, weed, green, kind]
  aux_targets: [height]
  unit: g
  minimum: 0
  size: [32, 64]
  tta: flip4
backbone: {name: dinoneck_tiny}
head: {type: patch_mean, hidden_dim: 2}
compositions: {sums: {sums: {green: [crop, weed]}}}
optim: {epochs: 1, batch_size: 2}
folds: {count: 2, group: [place]}
with_ridge: true
""",
    ),
    RunToFreeze(
        "masks",
        """\
data: {csv: field/table.csv, labels: mask, classes: [soil, plant, herb], nodata: [255]}
backbone: {name: dinoneck_tiny, layers: [2, 5]}
head: {type: dense, hidden_dim: 4, depth: 0}
optim: {epochs: 1, batch_size: 2}
folds: {count: 2, group: [place]}
""",
        truth=("--truth", f"{FIELD}/table.csv", "--labels", "mask"),
    ),
    RunToFreeze(
        "lora",
        """\
data: {csv: field/table.csv, targets: [crop]}
backbone: {name: dinoneck_tiny, lora: 1}
head: {type: patch_mean, hidden_dim: 2}
optim: {epochs: 1, batch_size: 2}
folds: {count: 2, group: [place], only: 0}
""",
    ),
    RunToFreeze(
        "instances",
        """\
data: {instances: field/objects.json, images: field, size: [32, 64]}
backbone: {name: dinoneck_tiny}
head: {type: simple_pyramid, out_channels: 4, scales: [1]}
optim: {epochs: 12, batch_size: 2, lr: 2e-2}
folds: {count: 2}
""",
        truth=("--truth", f"{FIELD}/objects.json"),
    ),
    RunToFreeze(
        "boxes",
        """\
data: {boxes: field/objects.json, images: field, size: [64, 128]}
backbone: {name: dinoneck_tiny}
head: {type: simple_pyramid, out_channels: 8, scales: [1]}
detector: {name: retinanet, augment: none, eval_every: 5}
optim: {epochs: 20, batch_size: 2, lr: 1e-2, freeze: [0=all]}
folds: {count: 2}
""",
        predict=("--min-score", "0.72"),
        truth=("--truth", f"{FIELD}/objects.json"),
    ),
)

# It reads tokens of a store: those of a backbone differ in their last bits from machine to machine,
# and a run whose tokens differ is another run, which dinoneck refuses to continue.
UNFINISHED_CONFIG = """\
data: {csv: field/table.csv, targets: [crop, kind], store: store, views: 2}
head: {type: patch_mean, hidden_dim: 2}
optim: {epochs: 6, batch_size: 2, lr: 3e-2, ema_decay: 0.3, mixup_alpha: 0.5}
folds: {count: 2, group: [place]}
"""
FINISHED_EPOCHS = 4  # of the second fold, when the process ends


class Killed(BaseException):
    """The process ends; nothing in dinoneck catches it."""


def freeze(folder: VersionFolder) -> None:
    """Run the trainings that no version has run, and record what their heads predict and score."""
    pending = [run for run in RUNS if not is_frozen(run.file)]
    needs_unfinished = not is_frozen(f"{FOLDER}/{UNFINISHED}")
    if not pending and not needs_unfinished:
        return
    with empty_sources(), contextlib.chdir(SOURCES):
        prepare_inputs(folder)
        for run in pending:
            path = folder.new_path(run.file)
            config = folder.new_path(f"{run.file}.yaml")
            Path(f"{run.name}.yaml").write_text(run.config)
            command = ["train", f"{run.name}.yaml", "--out", run.name]
            checked(kit.cli(*command))
            shutil.copytree(run.name, path)
            shutil.copyfile(f"{run.name}.yaml", config)
            facts, numbers = observe(run)
            folder.record(run.file, facts, numbers)
        if needs_unfinished:
            freeze_unfinished(folder)


def prepare_inputs(folder: VersionFolder) -> None:
    """Put the images and their tokens into the working directory; make and keep them if a version has none."""
    kept = folder.path / FOLDER
    if not kept.exists():
        write_field(Path(FIELD))
        images = [Path(FIELD, f"{number}.png") for number in range(IMAGES)]
        for image in images:
            os.utime(image, (SOURCE_TIME, SOURCE_TIME))
        views = Views([{}, {"horizontal": True}])
        backbone = kit.backbone()
        store = FeatureStore.create(STORE, backbone=backbone, image_size=SIZE, views=views)
        store.extract(images, FIELD)
        Path(STORE, INDEX).unlink()
        for name in INPUTS:
            shutil.copytree(name, kept / name)
    else:
        for name in INPUTS:
            shutil.copytree(kept / name, name)


def freeze_unfinished(folder: VersionFolder) -> None:
    """Train on the store until the process ends in the second fold; record what a run without that predicts."""
    path = folder.new_path(f"{FOLDER}/{UNFINISHED}")
    config_file = folder.new_path(f"{FOLDER}/{UNFINISHED}.yaml")
    Path(f"{UNFINISHED}.yaml").write_text(UNFINISHED_CONFIG)
    config = TrainConfig.read(f"{UNFINISHED}.yaml")
    epochs = config.optim.epochs
    seen: list[int] = []

    def kill(epoch: int, row: dict[str, Any]) -> None:
        seen.append(epoch)
        if len(seen) == epochs + FINISHED_EPOCHS:
            raise Killed

    with keeping_every_epoch(), contextlib.suppress(Killed):
        train(config, UNFINISHED, callbacks=[kill])
    shutil.copytree(UNFINISHED, path)
    shutil.copyfile(f"{UNFINISHED}.yaml", config_file)
    numbers = {}
    for column, values in train_on_store("uninterrupted").items():
        numbers[f"held_out/{column}"] = values
    folder.record(f"{FOLDER}/{UNFINISHED}", {"files": files_in(path)}, numbers)


@contextlib.contextmanager
def keeping_every_epoch() -> Iterator[None]:
    """Keep the state of a training after every epoch, not after 30 seconds."""
    from dinoneck.training import engine

    seconds = engine.SAVE_EVERY_S
    engine.SAVE_EVERY_S = 0.0
    try:
        yield
    finally:
        engine.SAVE_EVERY_S = seconds


def observe(run: RunToFreeze) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return facts and numbers of a run in the working directory: what ``predict`` and ``evaluate`` give."""
    options = {"heads": run.name, "predict": run.predict, "truth": run.truth}
    columns, words, predictions = predict(options)
    numbers = {f"prediction/{name}": value for name, value in predictions.items()}
    for name, value in evaluate(options).items():
        numbers[f"score/{name}"] = value
    facts = {"files": files_in(Path(run.name)), "columns": columns, "words": words}
    return facts | options, numbers


def predict(options: Mapping[str, Any]) -> tuple[list[str], list[str], dict[str, Tensor]]:
    """Return the columns of the CSV file that ``predict`` writes, its words, and its numbers by column.

    Args:
        options: of the command line, as the facts of a run hold them.
    """
    out = "predicted.csv"
    words = [*PREDICTED_IMAGES, "--heads", options["heads"], *options["predict"], "--out", out]
    checked(kit.cli("predict", *words))
    return read_table(Path(out))


def train_on_store(out: str) -> dict[str, Tensor]:
    """Train, or go on training, as the unfinished run; return the numbers that it predicts of held-out images."""
    checked(kit.cli("train", f"{UNFINISHED}.yaml", "--out", out))
    _, _, numbers = read_table(Path(out, "out_of_fold.csv"))
    return numbers


def read_table(path: Path) -> tuple[list[str], list[str], dict[str, Tensor]]:
    """Return the columns of a CSV file, its words, and its numbers by column."""
    with path.open(newline="") as file:
        columns, *rows = csv.reader(file)
    words = []
    numbers = {}
    for place, column in enumerate(columns):
        cells = [row[place] for row in rows]
        try:
            numbers[column] = torch.tensor([float(cell) for cell in cells])
        except ValueError:
            words += cells
    return columns, words, numbers


def evaluate(options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the scores that ``evaluate`` gives; its options are as for :func:`predict`."""
    words = ["--heads", options["heads"], *options["truth"], "--json"]
    document = checked(kit.cli("evaluate", FIELD, *words)).json
    return scores_of(document)


def scores_of(report: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return every score over all images, of ``evaluate`` or ``report.json``: ``TARGET/METHOD/SCORE``."""
    found = {}
    for target, methods in report.get("scores", {}).items():
        for method, scores in methods.items():
            for name, value in scores.items():
                if isinstance(value, dict) and isinstance(value.get("pooled"), float):
                    found[f"{target}/{method}/{name}"] = torch.tensor(value["pooled"])
    for kind in ("masks", "boxes"):
        for method, scores in report.get(kind, {}).items():
            for name in OBJECT_SCORES:
                if name in scores:
                    found[f"{kind}/{method}/{name}"] = torch.tensor(scores[name])
    return found


def files_in(folder: Path) -> list[str]:
    """Return the files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def checked(ran: kit.Ran) -> kit.Ran:
    """Return what a command left, if it succeeded."""
    if ran.code != 0:
        raise RuntimeError(f"the command failed with {ran.code}: {ran.err}")
    return ran
