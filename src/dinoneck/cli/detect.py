"""The verbs on detectors: training from boxes, and predictions as boxes."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.cli import backbone_options
from dinoneck.cli.answers import answer
from dinoneck.cli.text import say, table
from dinoneck.errors import ConfigError, counted

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.training.config import TrainConfig

_COLUMNS = ("image", "name", "score", "x0", "y0", "x1", "y1")
_PICTURES = 8


def train(config: TrainConfig, out: Path, *, overwrite: bool, resume: bool) -> dict[str, Any]:
    """Train a detector from boxes and print its held-out scores; return the report."""
    from dinoneck.detection import train_detector

    report: dict[str, Any] = train_detector(config, out, overwrite=overwrite, resume=resume)
    images, best = report["images"], report["best"]
    print(f"{images['train']} training images, {images['val']} held out; the best of {config.optim.epochs} epochs")
    rows = [("all", best["AP"], best["AP50"])]
    rows += [(name, each["AP"], each["AP50"]) for name, each in best["per_class"].items()]
    print(table(("held-out boxes", "AP", "AP50"), [(name, _number(ap), _number(ap50)) for name, ap, ap50 in rows]))
    print(f"written: {out}/detector.safetensors, log.jsonl, report.json")
    return report


def predict(options: argparse.Namespace, head: HeadCheckpoint, names: Sequence[str], files: Sequence[Path]) -> int:
    """Write one CSV row per box, and draw the first images on request; return the exit code."""
    from dinoneck.atomic import write_text
    from dinoneck.detection import Detector

    detector = Detector.from_checkpoint(head, backbone_options.rebuilt(options, head), options.device)
    found = detector.predict(list(files))
    rows = [
        [name, label, f"{score:.4f}", *(f"{side:.2f}" for side in box)]
        for name, each in zip(names, found, strict=True)
        for label, score, box in zip(each["names"], each["scores"].tolist(), each["boxes"].tolist(), strict=True)
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *rows])
    write_text(options.out, text.getvalue())
    say(f"{counted(len(rows), 'box').replace('boxs', 'boxes')} in {counted(len(files), 'image')}: {options.out}")
    drawn = []
    if options.maps:
        named = options.out.with_suffix(".png") if options.maps is True else options.maps
        drawn = _draw(found, files[:_PICTURES], named)
    answer(options, boxes=[dict(zip(_COLUMNS, row, strict=True)) for row in rows], out=options.out, pictures=drawn)
    return 0


def export(options: argparse.Namespace, checkpoint: HeadCheckpoint) -> None:
    """Write a detector with its backbone as an ONNX file."""
    from dinoneck.detection import Detector, export_detector

    if options.format != "onnx" or options.grid is not None or options.maps:
        raise ConfigError(
            "a detector is exported as an ONNX file with its backbone: leave --format, --grid, --maps out"
        )
    detector = Detector.from_checkpoint(checkpoint, backbone_options.rebuilt(options, checkpoint), options.device)
    size = options.size or detector.size
    file = export_detector(detector, options.out, size=size, check=options.check)
    answer(options, files=[file], format="onnx", with_backbone=True)
    print(f"detector written: {file}; input image: RGB in 0 ... 1, (1, 3, {size[0]}, {size[1]})")


def _draw(found: Sequence[Mapping[str, Any]], files: Sequence[Path], named: Path) -> list[Path]:
    """One picture per image: NAME.png, NAME-2.png, ..."""
    from dinoneck.viz import boxes_figure

    drawn = []
    for number, (file, each) in enumerate(zip(files, found, strict=False), 1):
        path = named if number == 1 else named.with_stem(f"{named.stem}-{number}")
        boxes_figure(file, {**each, "labels": each["names"]}).savefig(path)
        say(f"drawn: {path}")
        drawn.append(path)
    return drawn


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
