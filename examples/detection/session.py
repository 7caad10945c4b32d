"""From options to a finished run: photos, detector, training or test, pictures."""

from __future__ import annotations

import argparse
import json
import logging
from importlib.util import find_spec
from pathlib import Path

import torch

from dinoneck.atomic import write_text
from dinoneck.data import BoxPhotos, box_transforms
from dinoneck.devices import local_device
from dinoneck.training.processes import Processes, joined
from dinoneck.version import versions
from examples.detection.detectors import Detector, build, load
from examples.detection.evaluation import evaluate
from examples.detection.loop import BEST, LOG, Run
from examples.detection.options import design_of
from examples.detection.pictures import draw_curves, draw_detections
from examples.detection.testing import predict

PICTURES = 4
_logger = logging.getLogger("examples.detection")


def run(options: argparse.Namespace) -> None:
    """Train and test, or only test, as the options say."""
    device = local_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processes = joined(device)
    if options.test_only:
        _test_only(options, processes, device)
        return
    train = _photos(options, options.train, train=True)
    val = _photos(options, options.val, train=False, classes=train.classes)
    training = Run(options, build(design_of(options, train.classes)), train, val, processes, device)
    best = training.run()
    if processes.writes:
        counts = {
            "photos": {"train": len(train), "val": len(val)},
            "skipped": {"train": dict(train.skipped), "val": dict(val.skipped)},
            "parameters": _parameters(training.detector),
            "minutes": round(training.minutes, 2),
        }
        finished = {"best": best, "untrained": training.untrained, **counts, "versions": versions()}
        write_text(options.out / "result.json", json.dumps(finished, indent=2) + "\n")
        if find_spec("matplotlib") is None:
            _logger.warning("no curves.png: pip install 'dinoneck[viz]'; the numbers are in %s", options.out / LOG)
        else:
            draw_curves(options.out / LOG, options.out / "curves.png")
        _pictures(load(options.out / BEST).to(device), val, options, device)
        _logger.info("best: AP %.3f, AP50 %.3f in epoch %d", best["AP"], best["AP50"], best["epoch"])


def _test_only(options: argparse.Namespace, processes: Processes, device: torch.device) -> None:
    detector = load(options.weights or options.out / BEST).to(device)
    options.size = detector.design.size
    val = _photos(options, options.val, train=False, classes=detector.design.classes)
    found = evaluate(predict(detector, val, processes, device, batch=options.batch, workers=options.workers), val)
    if processes.writes:
        print(json.dumps(found, indent=2))
        _pictures(detector, val, options, device)


def _pictures(detector: Detector, val: BoxPhotos, options: argparse.Namespace, device: torch.device) -> None:
    """Draw what is found in the first photos."""
    first = val.first(PICTURES)
    found = predict(detector, first, Processes(), device)
    options.out.mkdir(parents=True, exist_ok=True)
    draw_detections(first, found, options.out / "detections.png")


def _photos(
    options: argparse.Namespace, boxes: Path, *, train: bool, classes: tuple[str, ...] | None = None
) -> BoxPhotos:
    plain = options.plain_views or not train
    transform = box_transforms(
        options.size, train=not plain, flip=options.flips, photometric=not plain, mean=None, std=None
    )
    folder = options.photos if train else options.val_photos or options.photos
    photos = BoxPhotos(boxes, folder, transform=transform, classes=classes)
    return photos if options.photo_limit is None else photos.first(options.photo_limit)


def _parameters(detector: Detector) -> int:
    return sum(parameter.numel() for parameter in detector.parameters())
