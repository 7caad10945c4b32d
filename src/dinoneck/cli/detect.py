"""The verbs on detectors: training from boxes, and predictions as boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.atomic import write_text
from dinoneck.cli.arguments import HeadBackbone, Views
from dinoneck.cli.text import save_picture, show, table, whole_folder
from dinoneck.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
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


def predict(
    heads: Sequence[HeadCheckpoint],
    images: Mapping[str, Path],
    out: Path,
    overlay: Path | None,
    places: Sequence[Path],
    backbone: HeadBackbone,
    views: Views,
    skip_unusable: bool,
) -> dict[str, Any]:
    """Write one CSV row per box, and on request a picture of each image, at its place in a folder.

    Raises:
        ConfigError: for several detectors.
        DataError: for an image that cannot be used, if ``skip_unusable`` is not set, or if none can.
    """
    from dinoneck.data.cells import csv_text
    from dinoneck.detection import Detector
    from dinoneck.devices import local_device
    from dinoneck.inference.results import predict_many
    from dinoneck.viz.panels import boxes_panel

    if len(heads) > 1:
        raise ConfigError(f"--heads names {len(heads)} files and the first is a detector; predict with one detector")
    detector = Detector.from_checkpoint(heads[0], backbone.given(heads[0]), local_device(views.device))
    names, files = [*images], [*images.values()]
    unusable: dict[int, str] | None = {} if skip_unusable else None
    detect = partial(detector.predict, **views.of_boxes)
    results = predict_many(detect, files, at_once=4 * views.batch_size, unusable=unusable)
    if not results:
        raise DataError(f"none of the {len(files)} images can be used; the first: {(unusable or {})[0]}")
    rows = [
        [names[place], label, round(score, 4), *(round(side, 2) for side in box)]
        for place, each in results.items()
        for label, score, box in zip(each["names"], each["scores"].tolist(), each["boxes"].tolist(), strict=True)
    ]
    write_text(out, csv_text(_COLUMNS, rows))
    left_out = {names[place]: reason for place, reason in (unusable or {}).items()}
    for name, reason in left_out.items():
        show(f"left out: {name}: {reason}")
    with whole_folder(overlay) as folder:
        for place, each in results.items() if folder is not None else ():
            save_picture(Path(folder or "", f"{places[place]}.jpg"), boxes_panel(files[place], each))
    written = [path for path in (out, overlay) if path is not None]
    show({"images": len(results), "boxes": len(rows), "written": written})
    boxes = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    return {"boxes": boxes, "out": out, "written": written, "unusable": left_out}


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
