"""The verbs on detectors: training from boxes, and predictions as boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.atomic import write_text
from dinoneck.cli.arguments import HeadBackbone, Views
from dinoneck.cli.text import save_picture, show, table
from dinoneck.errors import ConfigError

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.detection import Detector
    from dinoneck.training.config import TrainConfig

_COLUMNS = ("image", "name", "score", "x0", "y0", "x1", "y1")
_SCORES = ("AP", "AP50")


def train(config: TrainConfig, out: Path, overwrite: bool, resume: bool) -> dict[str, Any]:
    """Train a detector from boxes and print its held-out scores; return the report."""
    from dinoneck.detection import train_detector

    report: dict[str, Any] = train_detector(config, out, overwrite=overwrite, resume=resume)
    images, best = report["images"], report["best"]
    print(f"{images['train']} training images, {images['val']} held out; the best of {config.optim.epochs} epochs")
    scores = {"all": best, **best["per_class"]}
    cells = [
        [name, *("-" if row[key] is None else f"{row[key]:.3f}" for key in _SCORES)] for name, row in scores.items()
    ]
    print(table(("held-out boxes", *_SCORES), cells))
    print(f"written: {out}/detector.safetensors, log.jsonl, report.json")
    return report


def open_detector(read: Mapping[str, Sequence[HeadCheckpoint]], views: Views, backbone: HeadBackbone) -> Detector:
    """Return the one detector among heads that were read.

    Raises:
        ConfigError: for several heads.
    """
    from dinoneck.detection import Detector
    from dinoneck.devices import local_device

    heads = [head for own in read.values() for head in own]
    if len(heads) > 1:
        raise ConfigError(f"--heads names {len(heads)} files and the first is a detector; predict with one detector")
    return Detector.from_checkpoint(heads[0], backbone.given(heads[0]), local_device(views.device))


def write(out: Path, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Write one CSV row per box; return the same for programs."""
    from dinoneck.data.cells import csv_text

    rows = [
        [image, label, round(score, 4), *(round(side, 2) for side in box)]
        for image, each in results.items()
        for label, score, box in zip(each["names"], each["scores"].tolist(), each["boxes"].tolist(), strict=True)
    ]
    write_text(out, csv_text(_COLUMNS, rows))
    return {"boxes": [dict(zip(_COLUMNS, row, strict=True)) for row in rows], "out": out}


def write_pictures(_: Any, images: Sequence[tuple[Path, Path, Any]], maps: Any, overlay: Any) -> None:
    """Write pictures of images (file, place in the folder, boxes); a detector has no maps."""
    from dinoneck.viz.panels import boxes_panel

    for file, place, boxes in images:
        save_picture(overlay / f"{place}.jpg", boxes_panel(file, boxes))


def export(
    checkpoint: HeadCheckpoint, out: Path, backbone: HeadBackbone, size: tuple[int, int] | None, check: bool
) -> dict[str, Any]:
    """Write a detector with its backbone as an ONNX file."""
    from dinoneck.detection import Detector

    detector = Detector.from_checkpoint(checkpoint, backbone.given(checkpoint))
    size = size or detector.size
    detector.export_onnx(out, size=size, check=check)
    show({"input": f"RGB in 0 ... 1, (1, 3, {size[0]}, {size[1]})", "written": out})
    return {"files": [out], "format": "onnx", "with_backbone": True}
