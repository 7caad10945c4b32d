"""``python -m examples.biomass run``: photos -> feature store -> five folds -> one ensemble -> submission.

Every step is a verb of ``dinoneck`` and is printed before it runs, so that it can be called alone. A step that is
finished is not done again: the same command takes up a run that was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinoneck import HeadEnsemble, Predictor, load_head
from dinoneck.backbones.known import DINOV3_SMALL, TINY
from dinoneck.checkpoint.file import head_files
from dinoneck.cli import main as cli
from dinoneck.cli import numbers, text, train_options
from dinoneck.data import PhotoTable
from dinoneck.errors import ConfigError, DataError, DinoneckError
from dinoneck.inference.rebuild import rebuild
from dinoneck.inference.tta import TTA, VIEWS
from dinoneck.training import ConfiguredRun, TrainingConfig, r2, weighted_r2
from dinoneck.training.config_run import head_choice
from dinoneck.training.config_tasks import read_table
from dinoneck.version import versions
from examples.biomass import layouts

PATTERNS = {1: "none", 4: "flips4", 20: "color20"}
TOLERANCE, COMPARED = 1e-3, 8
_PLACES = ("csv", "photos", "store")


class Stopped(Exception):
    """A verb was refused and has said why."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options, rest = _parser().parse_known_args(arguments)
    try:
        run(options, rest)
    except Stopped as stop:
        return int(str(stop))
    except (DinoneckError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.biomass run",
        description=__doc__,
        epilog="All other options are those of 'dinoneck train', such as --backbone NAME, --random-backbone, --size, "
        "--epochs or --device; they win over the training file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; give it again to go on")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="CSIRO layout, or photos with a cover.csv; default: a pasture"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="training file; default: the one for the data")
    parser.add_argument(
        "--patterns", choices=PATTERNS.values(), help="augmentation of the store; default: as the training file counts"
    )
    parser.add_argument("--pasture", type=numbers.count, metavar="N", help="training photos to draw (default 120)")
    return parser


def run(options: argparse.Namespace, rest: Sequence[str] = ()) -> None:
    """Do all five steps.

    Args:
        options: what the parser reads.
        rest: options of ``dinoneck train``.
    """
    begin = time.perf_counter()
    layout, out = layouts.find(options.data, options.out), options.out
    command = ["train", str(options.config or layout.config), "--csv", str(layout.train)]
    command += ["--photos", str(layout.photos), "--store", str(out / "store"), "--out", str(out / "run"), *rest]
    count = next((count for count, name in PATTERNS.items() if name == options.patterns), None)
    command += [] if count is None else ["--patterns", str(count)]
    config = train_options.config(parsed := cli.parser().parse_args(command))
    if config.image_size is None:
        raise ConfigError("which size? A store needs one: say dataset.img_size in the file, or --size HEIGHTxWIDTH")
    truth = layouts.prepare(layout, config.image_size, options.pasture)

    verb(extraction(layout, config, options.patterns, out / "store"))
    if not parsed.overwrite and finished(out / "run", config):
        print(f"{out / 'run'} is finished.")
    else:
        verb(command)
    file, report = out / layout.answer, out / "run" / "report.json"
    if not file.exists() or file.stat().st_mtime_ns < report.stat().st_mtime_ns:
        verb(prediction(layout, config, out / "run" / "heads", file))
    if truth is not None:
        print(told_scores(truth, layouts.answers(layout, file)))
    compare(out / "run" / "heads", config)
    seconds = time.perf_counter() - begin
    print(f"written: {file}; {seconds:.0f} s; " + ", ".join(f"{k} {v}" for k, v in versions().items()))


def verb(command: Sequence[str]) -> None:
    """Print and run a verb of ``dinoneck``.

    Raises:
        Stopped: with the exit code, if it is not 0.
    """
    print(f"\n$ dinoneck {shlex.join(command)}", flush=True)
    begin = time.perf_counter()
    if code := cli.main(command):
        raise Stopped(code)
    print(f"({command[0]}: {time.perf_counter() - begin:.0f} s)", flush=True)


def extraction(layout: layouts.Layout, config: TrainingConfig, patterns: str | None, store: Path) -> list[str]:
    """Return the command that brings the table's photos into the store, as the training will read them.

    Raises:
        ConfigError: if the training file counts patterns that have no name here.
    """
    count = 4 if config.patterns is None else config.patterns
    if count not in PATTERNS:
        raise ConfigError(f"dataset.num_aug_patterns is {count}; expected one of {', '.join(map(str, PATTERNS))}")
    folders = sorted({str((layout.photos / name).parent) for name in read_table(config).ids})
    name = config.backbone or DINOV3_SMALL
    layers = head_choice(config).layers or config.layers
    said: dict[str, Any] = {
        "--backbone": name,
        "--backbone-source": config.backbone_source,
        "--backbone-file": config.backbone_file,
        "--backbone-seed": config.backbone_seed,
        "--layers": None if layers is None else ",".join(map(str, layers)),
        "--size": "x".join(map(str, config.image_size or ())),
        "--fit": config.fit,
        "--interpolation": config.interpolation,
        "--policy": config.policy,
        "--patterns": patterns or PATTERNS[count],
        "--device": config.device,
    }
    command = ["extract", *folders, "--root", str(layout.photos), "--out", str(store), *_flags(said)]
    return command if config.pretrained or name == TINY else [*command, "--random-backbone"]


def prediction(layout: layouts.Layout, config: TrainingConfig, heads: Path, file: Path) -> list[str]:
    """Return the command that predicts the test table's photos with all folds and views, without the store."""
    said = {
        "--photo-folder": str(layout.photos),
        "--heads": str(heads),
        "--out": str(file),
        "--tta": config.tta or "flip4",
        "--backbone-file": config.backbone_file,
        "--device": config.device,
    }
    return ["predict", "--csv", str(layout.test), *_flags(said)]


def _flags(said: Mapping[str, Any]) -> list[str]:
    return [part for name, value in said.items() if value is not None for part in (name, str(value))]


def finished(folder: Path, config: TrainingConfig) -> bool:
    """Whether a folder holds the results of this very run; if so, print its scores.

    Raises:
        DataError: if it holds those of another run.
    """
    report = folder / "report.json"
    if not report.exists():
        return False
    found = json.loads(report.read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(asdict(config)))
    differ = [name for name in asked if name not in _PLACES and asked[name] != found["config"].get(name)]
    if differ:
        shown = "; ".join(f"{name} {found['config'].get(name)!r}, not {asked[name]!r}" for name in differ)
        raise DataError(f"{folder} holds a run with {shown}. Choose another --out, or replace it with --overwrite")
    columns = [*read_table(config).targets, *("overall", "worst fold")]
    scores, lead = (
        {method: {name: row[name] for name in columns if name in row} for method, row in found[key].items()}
        for key in ("scores", "head_minus")
    )
    print(f"{text.scores(scores, found['mae'], found['target_sd'])}\n{text.differences(lead)}")
    return True


def told_scores(truth: PhotoTable, found: Mapping[str, Sequence[float]]) -> str:
    """Return R² of photos that no head and no fold has seen, as a table."""
    values = {name: np.array(found[name]) for name in truth.targets}
    row: dict[str, float | None] = {name: r2(values[name], truth.targets[name]) for name in truth.targets}
    if truth.weights:
        row["weighted"] = weighted_r2(values, dict(truth.targets), dict(truth.weights))
    return f"\n{len(truth)} photos that were only predicted, their R²:\n{text.scores({'all folds': row})}"


def compare(folder: Path, config: TrainingConfig) -> dict[str, float]:
    """Predict a few photos by both ways, and print by how much they differ at most.

    Raises:
        DataError: if a difference is beyond 1e-3 of the target's standard deviation.
    """
    opened = ConfiguredRun.of(config)
    photos = {name: Path(str(config.photos)) / name for name in opened.table.ids[:COMPARED]}
    found = differences(folder, opened, photos)
    shown = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    print(f"\nFrom photos and from the store, {len(photos)} photos, largest difference in standard deviations: {shown}")
    if max(found.values()) > TOLERANCE:
        raise DataError(f"{opened.config.store} and the photos give other predictions, beyond {TOLERANCE:g}")
    return found


@torch.no_grad()
def differences(folder: Path, opened: ConfiguredRun, photos: Mapping[str, Path]) -> dict[str, float]:
    """Return the largest difference between predictions from photos and from stored tokens, per task.

    Args:
        folder: with the heads.
        opened: the run; its source holds the photos' tokens, flips first.
        photos: table id -> file.

    Returns:
        Task -> the difference over the standard deviation of the task's values; for classes, of probabilities.

    Raises:
        ConfigError: if the run reads photos, not a store.
    """
    if opened.source is None:
        raise ConfigError("the run has no store to compare with; say dataset.feature_dir, or --store")
    patterns = getattr(opened.source, "patterns", None)
    views: TTA = "flip4" if patterns is not None and len(patterns) >= len(VIEWS["flip4"]) else "none"
    file = opened.config.backbone_file
    backbone = None if file is None else rebuild(opened.record, file)
    live = Predictor(folder, backbone, views, opened.config.device)(list(photos.values()))
    ensemble = HeadEnsemble.from_heads([load_head(file) for file in head_files(folder)]).eval()
    parts = []
    for pattern in range(len(VIEWS[views])):
        tokens = opened.source.batch(list(photos), [pattern] * len(photos))
        parts.append(ensemble.predict(tokens))
    largest = {}
    for name, values in {**opened.table.targets, **opened.table.auxiliary}.items():
        stored = torch.stack([part[name] for part in parts]).mean(dim=0).numpy()
        own = np.stack([np.atleast_1d(answer[name]) for answer in live])
        spread = 1.0 if values.dtype.kind == "i" else float(np.nanstd(values))
        largest[name] = float(np.abs(stored - own).max()) / spread
    return largest
