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
from torch import Tensor

from dinoneck import Predictor, load_head
from dinoneck.atomic import write_text
from dinoneck.backbones.known import DINOV3_SMALL, TINY
from dinoneck.checkpoint.rebuild import rebuild
from dinoneck.cli import main as cli
from dinoneck.cli.text import show_scores, table
from dinoneck.data.run_names import HEAD_FILE
from dinoneck.data.tables import read_cells
from dinoneck.demo.pasture import WEIGHTS
from dinoneck.errors import ConfigError, DataError, DinoneckError
from dinoneck.inference.results import table_row
from dinoneck.inference.views import VIEWS
from dinoneck.kinds import TTA
from dinoneck.training import TrainConfig, r2, weighted_r2
from dinoneck.training.head_arguments import head_with_width
from dinoneck.training.run_tokens import RunTokens
from dinoneck.training.table import table_of, target_columns
from dinoneck.version import versions
from examples import kinds
from examples.biomass import layouts
from examples.biomass.keys import flat

PATTERNS = {1: "none", 4: "flips4", 20: "color20"}
"""Views that a training file counts -> name of the augmentation that makes them."""
COMPARED = 8
"""Images that are predicted by both ways."""
TOLERANCE = 1e-3
"""Largest difference of both ways, in standard deviations of a target."""
_PLACES = ("data.csv", "data.images", "data.store")  # the same run may lie somewhere else


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
    out = options.out
    store = out / "store"
    run_folder = out / "run"
    layout = layouts.find(options.data, out)
    command = training(options, layout, rest)
    parsed = cli.command("train", command[1:]).keywords
    config = parsed["run"]
    if parsed["hidden_dim"] is not None:
        config = config.changed(head=head_with_width(config, parsed["hidden_dim"]))
    if not isinstance(config.data.size, tuple):
        raise ConfigError(
            "a store needs images of one size; give data.size in the file, or --size HEIGHTxWIDTH"
        )
    truth = layouts.prepare(layout, config.data.size, options.pasture)

    # images -> feature store -> head
    verb(extraction(layout, config, options.views, store))
    if not parsed["overwrite"] and finished(run_folder, config):
        print(f"{run_folder} is finished.")
    else:
        verb(command)
    if layout.targets == tuple(WEIGHTS):
        score = weighted_score(run_folder / "out_of_fold.csv")
        print(f"Weighted R² of held-out images: {score:.3f}")

    # head -> predictions in the form that is asked for
    predictions = out / "predictions.csv"
    answer = out / layout.answer
    if not is_newer(answer, run_folder / "report.json"):
        verb(prediction(layout, config, run_folder / HEAD_FILE, predictions))
        if answer != predictions:
            write_text(answer, layouts.submission(predictions, layout.images / "test.csv"))
    if truth is not None:
        print(scores_of(truth, layouts.answers(layout, predictions)))
    compare(run_folder / HEAD_FILE, config)

    seconds = time.perf_counter() - begin
    shown = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"written: {answer}; {seconds:.0f} s; {shown}")


def is_newer(file: Path, report: Path) -> bool:
    """Whether a file was written after the report of the run."""
    return file.exists() and file.stat().st_mtime_ns >= report.stat().st_mtime_ns


def verb(command: Sequence[str]) -> None:
    """Print and run a verb of ``dinoneck``.

    Raises:
        Stopped: with the exit code, if it is not 0.
    """
    print(f"\n$ dinoneck {shlex.join(command)}", flush=True)
    begin = time.perf_counter()
    code = cli.main(command)
    if code:
        raise Stopped(code)
    print(f"({command[0]}: {time.perf_counter() - begin:.0f} s)", flush=True)


def training(options: argparse.Namespace, layout: layouts.Layout, rest: Sequence[str]) -> list[str]:
    """Return the command that trains on the table's images from the store."""
    command = ["train", str(options.config or layout.config)]
    command += ["--csv", str(layout.train)]
    command += ["--images", str(layout.images)]
    command += ["--store", str(options.out / "store")]
    command += ["--out", str(options.out / "run")]
    command += rest
    for count, name in PATTERNS.items():
        if name == options.views:
            command += ["--views", str(count)]
    return command


def extraction(
    layout: layouts.Layout, config: TrainConfig, views: str | None, store: Path
) -> list[str]:
    """Return the command that brings the table's images into the store, as the training will read them.

    Raises:
        ConfigError: if the training file asks for what a store cannot hold.
    """
    data = config.data
    backbone = config.backbone
    count = data.views or 4
    if count not in PATTERNS:
        raise ConfigError(f"data.views is {count}; expected one of {', '.join(map(str, PATTERNS))}")
    if data.blur is not None:
        raise ConfigError(
            f"data.blur is {data.blur}, and stores hold images without a blur; use 'dinoneck train'"
        )
    folders = sorted({str((layout.images / name).parent) for name in table_of(config).ids})
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
    command = ["extract", *folders, "--root", str(layout.images), "--out", str(store)]
    command += _flags(flags)
    if backbone.random and backbone.name != TINY:
        command.append("--random-backbone")
    return command


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
    """The options whose values are given, and their values: several words for a tuple."""
    words = []
    for name, value in values.items():
        if value is None:
            continue
        words.append(name)
        if isinstance(value, tuple):
            words += [str(item) for item in value]
        else:
            words.append(str(value))
    return words


def finished(folder: Path, config: TrainConfig) -> bool:
    """Whether a folder holds the results of this very run; if so, print its scores.

    Raises:
        DataError: if it holds those of another run.
    """
    report = folder / "report.json"
    if not report.exists():
        return False
    stored = json.loads(report.read_text(encoding="utf-8"))
    before = flat(stored["config"])
    now = flat(json.loads(json.dumps(config.to_dict())))
    differences_shown = []
    for name in {**before, **now}:
        old = before.get(name)
        new = now.get(name)
        if name not in _PLACES and old != new:
            differences_shown.append(f"{name} {old!r}, not {new!r}")
    if differences_shown:
        raise DataError(
            f"{folder} holds a run with {'; '.join(differences_shown)}. Choose another --out, or replace it with "
            "--overwrite"
        )
    show_scores(stored)
    return True


def weighted_score(file: Path) -> float:
    """Return the weighted R² of the heads' predictions of held-out images."""
    rows = read_cells(file)
    true = {name: rows[name].astype(float).to_numpy() for name in WEIGHTS}
    predicted = {name: rows[f"{name} (head)"].astype(float).to_numpy() for name in WEIGHTS}
    return weighted_r2(true, predicted, WEIGHTS)


def scores_of(truth: pd.DataFrame, predictions: Mapping[str, Sequence[float]]) -> str:
    """Return R² of images that no head and no fold has seen, as a table."""
    predicted = {name: np.array(values) for name, values in predictions.items()}
    true = {name: truth[name].to_numpy() for name in predicted}
    scores = {name: r2(true[name], predicted[name]) for name in predicted}
    if "weights" in truth.attrs:
        scores["weighted"] = weighted_r2(true, predicted, truth.attrs["weights"])
    row = ["all folds"]
    row += [f"{score:.3f}" for score in scores.values()]
    shown = table(["R²", *scores], [row])
    return f"\n{len(truth)} images that were only predicted:\n{shown}"


def compare(head: Path, config: TrainConfig) -> dict[str, float]:
    """Predict a few images by both ways, and print by how much they differ at most.

    Raises:
        DataError: if a difference is beyond 1e-3 of the target's standard deviation.
    """
    folder = Path(str(config.data.images))
    images = {name: folder / name for name in table_of(config).ids[:COMPARED]}
    largest = differences(head, config, images)
    shown = ", ".join(f"{name} {value:.1e}" for name, value in largest.items())
    print(
        f"\nFrom images and from the store, {len(images)} images, largest difference in standard "
        f"deviations: {shown}"
    )
    if max(largest.values()) > TOLERANCE:
        raise DataError(
            f"{config.data.store} and the images give other predictions, beyond {TOLERANCE:g}"
        )
    return largest


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
    image_table = table_of(config)
    run_tokens = RunTokens.open(config, image_table)
    tokens = run_tokens.frozen()
    patterns = getattr(tokens, "views", ())
    views: TTA = "flip4" if len(patterns) >= len(VIEWS["flip4"]) else "none"

    # from images
    backbone = None
    if config.backbone.file is not None:
        backbone = rebuild(run_tokens.record, config.backbone.file)
    predictor = Predictor(head, backbone, views, config.device)
    results = predictor(list(images.values()))
    live_rows = [table_row(result, predictor.tasks) for result in results]

    # from the store: the mean over the first views, which are the flips
    stored_head = load_head(head).eval()
    ids = tokens.ids[: len(images)]
    outputs: dict[str, list[Tensor]] = {}
    for view in range(len(VIEWS[views])):
        for name, output in stored_head.predict(tokens.batch(ids, [view] * len(ids))).items():
            outputs.setdefault(name, []).append(output)
    means = {name: torch.stack(of_views).mean(dim=0) for name, of_views in outputs.items()}
    stored_rows = []
    for i in range(len(images)):
        values = {name: mean[i].numpy() for name, mean in means.items()}
        stored_rows.append(table_row(values, predictor.tasks))

    largest = {}
    targets, auxiliary = target_columns(config, image_table.columns)
    for name in (*targets, *auxiliary):
        columns = [f"{name}:{label}" for label in image_table.class_names(name)]
        scale = 1.0
        if not columns:  # a number
            columns = [name]
            scale = float(np.nanstd(image_table.numbers(name)))
        gaps = []
        for live_row, stored_row in zip(live_rows, stored_rows, strict=True):
            gaps += [abs(float(live_row[col]) - float(stored_row[col])) for col in columns]
        largest[name] = max(gaps) / scale
    return largest
