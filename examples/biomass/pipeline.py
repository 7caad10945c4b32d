"""``python -m examples.biomass run``: images -> feature store -> five folds -> one ensemble -> submission.

Every step is a verb of ``dinoneck`` and is printed before it runs, so that it can be called alone.
A step that is finished is not done again: the same command takes up a run that was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dinoneck import Predictor, load_head
from dinoneck.atomic import write_text
from dinoneck.backbones.known import DINOV3_SMALL, TINY
from dinoneck.checkpoint.rebuild import rebuild
from dinoneck.cli import main as cli
from dinoneck.cli import train
from dinoneck.cli.text import show_scores, table
from dinoneck.data.pasture import WEIGHTS
from dinoneck.data.tables import read_cells
from dinoneck.errors import ConfigError, DataError, DinoneckError
from dinoneck.inference.results import table_row
from dinoneck.inference.tiles import TTA, VIEWS
from dinoneck.training import TrainConfig, r2, weighted_r2
from dinoneck.training.folder import HEAD_FILE
from dinoneck.training.source import source_of
from dinoneck.training.table import class_names, table_of, target_columns
from dinoneck.version import versions
from examples import kinds
from examples.biomass import layouts
from examples.biomass.keys import flat

PATTERNS = {1: "none", 4: "flips4", 20: "color20"}
TOLERANCE, COMPARED = 1e-3, 8
_PLACES = ("data.csv", "data.images", "data.store")


class Stopped(Exception):
    """A verb was refused and has said why."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options, rest = argument_parser().parse_known_args(arguments)
    try:
        run(options, rest)
    except Stopped as stop:
        return int(str(stop))
    except (DinoneckError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m examples.biomass run``."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.biomass run",
        description=__doc__,
        epilog="All other options are those of 'dinoneck train', such as --backbone NAME, "
        "--random-backbone, --size, --epochs or --device; they win over the training file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; give it again to go on"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="CSIRO layout, or images with a cover.csv; default: a pasture",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="training file; default: the one for the data"
    )
    parser.add_argument(
        "--views",
        choices=PATTERNS.values(),
        help="augmentation of the store; default: as the training file counts",
    )
    parser.add_argument(
        "--pasture", type=kinds.count, metavar="N", help="training images to draw (default 120)"
    )
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
    command += [
        "--images",
        str(layout.images),
        "--store",
        str(out / "store"),
        "--out",
        str(out / "run"),
        *rest,
    ]
    count = next((count for count, name in PATTERNS.items() if name == options.views), None)
    command += [] if count is None else ["--views", str(count)]
    given = cli.command("train", command[1:]).keywords
    config = train.with_width(given["run"], given["hidden_dim"])
    if not isinstance(config.data.size, tuple):
        raise ConfigError(
            "a store needs images of one size; give data.size in the file, or --size HEIGHTxWIDTH"
        )
    truth = layouts.prepare(layout, config.data.size, options.pasture)

    verb(extraction(layout, config, options.views, out / "store"))
    if not given["overwrite"] and finished(out / "run", config):
        print(f"{out / 'run'} is finished.")
    else:
        verb(command)
    if layout.targets == tuple(WEIGHTS):
        print(
            f"Weighted R² of held-out images: {weighted_score(out / 'run' / 'out_of_fold.csv'):.3f}"
        )
    predictions, file, report = (
        out / "predictions.csv",
        out / layout.answer,
        out / "run" / "report.json",
    )
    if not file.exists() or file.stat().st_mtime_ns < report.stat().st_mtime_ns:
        verb(prediction(layout, config, out / "run" / HEAD_FILE, predictions))
        if file != predictions:
            write_text(file, layouts.submission(predictions, layout.images / "test.csv"))
    if truth is not None:
        print(scores_of(truth, layouts.answers(layout, predictions)))
    compare(out / "run" / HEAD_FILE, config)
    seconds = time.perf_counter() - begin
    print(
        f"written: {file}; {seconds:.0f} s; " + ", ".join(f"{k} {v}" for k, v in versions().items())
    )


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


def extraction(
    layout: layouts.Layout, config: TrainConfig, views: str | None, store: Path
) -> list[str]:
    """Return the command that brings the table's images into the store, as the training will read them.

    Raises:
        ConfigError: if the training file asks for what a store cannot hold.
    """
    data, backbone, count = config.data, config.backbone, config.data.views or 4
    if count not in PATTERNS:
        raise ConfigError(f"data.views is {count}; expected one of {', '.join(map(str, PATTERNS))}")
    if data.blur is not None:
        raise ConfigError(
            f"data.blur is {data.blur}, and stores hold images without a blur; use 'dinoneck train'"
        )
    folders = sorted({str((layout.images / name).parent) for name in table_of(config).index})
    flags: dict[str, Any] = {
        "--backbone": backbone.name or DINOV3_SMALL,
        "--backbone-source": backbone.source,
        "--backbone-file": backbone.file,
        "--backbone-seed": backbone.seed,
        "--layers": backbone.layers,
        "--size": "x".join(map(str, data.size)) if isinstance(data.size, tuple) else None,
        "--resize": data.resize,
        "--pad-to": data.pad_to,
        "--interpolation": data.interpolation,
        "--views": views or PATTERNS[count],
        "--device": config.device,
    }
    command = [
        "extract",
        *folders,
        "--root",
        str(layout.images),
        "--out",
        str(store),
        *_flags(flags),
    ]
    is_random = backbone.random and backbone.name != TINY
    return [*command, "--random-backbone"] if is_random else command


def prediction(layout: layouts.Layout, config: TrainConfig, head: Path, file: Path) -> list[str]:
    """Return the command that predicts the test table's images with all folds and recorded views, without the store."""
    flags = {
        "--heads": str(head),
        "--out": str(file),
        "--backbone-file": config.backbone.file,
        "--device": config.device,
    }
    images = [str(layout.images / name) for name in read_cells(layout.test, ["image"])["image"]]
    return ["predict", *images, *_flags(flags)]


def _flags(values: Mapping[str, Any]) -> list[str]:
    given = {name: value for name, value in values.items() if value is not None}
    return [
        word
        for name, value in given.items()
        for word in (name, *map(str, value if isinstance(value, tuple) else (value,)))
    ]


def finished(folder: Path, config: TrainConfig) -> bool:
    """Whether a folder holds the results of this very run; if so, print its scores.

    Raises:
        DataError: if it holds those of another run.
    """
    report = folder / "report.json"
    if not report.exists():
        return False
    stored = json.loads(report.read_text(encoding="utf-8"))
    before, now = flat(stored["config"]), flat(json.loads(json.dumps(config.to_dict())))
    differ = [
        name
        for name in {**before, **now}
        if name not in _PLACES and before.get(name) != now.get(name)
    ]
    if differ:
        shown = "; ".join(f"{name} {before.get(name)!r}, not {now.get(name)!r}" for name in differ)
        raise DataError(
            f"{folder} holds a run with {shown}. Choose another --out, or replace it with "
            "--overwrite"
        )
    show_scores(stored)
    return True


def weighted_score(file: Path) -> float:
    """Return the weighted R² of the heads' predictions of held-out images."""
    rows = read_cells(file)
    known = {name: rows[name].astype(float).to_numpy() for name in WEIGHTS}
    found = {name: rows[f"{name} (head)"].astype(float).to_numpy() for name in WEIGHTS}
    return weighted_r2(known, found, WEIGHTS)


def scores_of(truth: pd.DataFrame, found: Mapping[str, Sequence[float]]) -> str:
    """Return R² of images that no head and no fold has seen, as a table."""
    values = {name: np.array(predicted) for name, predicted in found.items()}
    known = {name: truth[name].to_numpy() for name in values}
    row = {name: r2(known[name], values[name]) for name in values}
    if "weights" in truth.attrs:
        row["weighted"] = weighted_r2(known, values, truth.attrs["weights"])
    shown = table(["R²", *row], [["all folds", *(f"{score:.3f}" for score in row.values())]])
    return f"\n{len(truth)} images that were only predicted:\n{shown}"


def compare(head: Path, config: TrainConfig) -> dict[str, float]:
    """Predict a few images by both ways, and print by how much they differ at most.

    Raises:
        DataError: if a difference is beyond 1e-3 of the target's standard deviation.
    """
    images = {
        name: Path(str(config.data.images)) / name for name in table_of(config).index[:COMPARED]
    }
    found = differences(head, config, images)
    shown = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
    print(
        f"\nFrom images and from the store, {len(images)} images, largest difference in standard "
        f"deviations: {shown}"
    )
    if max(found.values()) > TOLERANCE:
        raise DataError(
            f"{config.data.store} and the images give other predictions, beyond {TOLERANCE:g}"
        )
    return found


@torch.no_grad()
def differences(head: Path, config: TrainConfig, images: Mapping[str, Path]) -> dict[str, float]:
    """Return the largest difference between predictions from images and from stored tokens, per column of the table.

    Args:
        head: file of the head.
        config: the run; its store holds the images' tokens, flips first.
        images: table id -> file.

    Returns:
        Column -> the difference over the standard deviation of its values; for classes, of
        probabilities.

    Raises:
        ConfigError: if the run reads images, not a store.
    """
    if config.data.store is None:
        raise ConfigError("the run has no store to compare with; give data.store, or --store")
    frame = table_of(config)
    source = source_of(config, frame)
    tokens, file = source.load(), config.backbone.file
    patterns = getattr(tokens, "views", ())
    views: TTA = "flip4" if len(patterns) >= len(VIEWS["flip4"]) else "none"
    predictor = Predictor(
        head, None if file is None else rebuild(source.record, file), views, config.device
    )
    live = [table_row(result, predictor.tasks) for result in predictor(list(images.values()))]
    own = load_head(head).eval()
    parts = [
        own.predict(tokens.batch(tokens.ids[: len(images)], [i] * len(images)))
        for i in range(len(VIEWS[views]))
    ]
    means = {name: torch.stack([part[name] for part in parts]).mean(dim=0) for name in parts[0]}
    stored = [
        table_row({name: values[i].numpy() for name, values in means.items()}, predictor.tasks)
        for i in range(len(images))
    ]
    largest = {}
    targets, auxiliary = target_columns(config, frame)
    for name in (*targets, *auxiliary):
        columns = [f"{name}:{label}" for label in class_names(frame, name)]
        spread = 1.0 if columns else float(np.nanstd(frame[name]))
        pairs = [
            (a[column], b[column])
            for a, b in zip(live, stored, strict=True)
            for column in columns or [name]
        ]
        largest[name] = max(abs(float(a) - float(b)) for a, b in pairs) / spread
    return largest
