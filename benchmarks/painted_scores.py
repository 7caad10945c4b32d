"""Scores of a head of simulated strokes next to one of whole masks.

    python -m benchmarks painted_scores [--data DATA]

Field photos with masks of soil, crop and weed; whole groups of photos are held out. Strokes are
simulated from the true masks: on every painted photo at most two straight strokes for each class,
which stay inside the class. Both heads are the softmax regression of ``dinoneck paint``. DATA holds
crop_cover. The weights are seeded random ones, or published ones where DINONECK_WEIGHTS is set.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import distance_transform_edt

from benchmarks.evidence.run import DATA
from benchmarks.evidence.weights import WEIGHTS
from benchmarks.measure import Row
from benchmarks.runtime_scores import FIELD_CLASSES, NAME, Photos, thinned
from dinoneck import LinearHead, load_backbone
from dinoneck.painting import PaintedImage, Photo, PhotoTokens, Stroke, Strokes, fit_strokes
from dinoneck.painting.head import fit_masks

ROUNDS = 5  # draws of photos and strokes
SIZE = (640, 640)  # of dinoneck paint
COUNTS = (64, 64)  # photos to paint on, and held-out ones
SHORT_COUNTS = (6, 4)
PAINTED = (1, 4, 16)  # photos
SHORT_PAINTED = (1, 4)
HELD_OUT_EVERY = 4  # of the groups of neighbouring photos
STROKES_PER_CLASS = 2  # on a photo
RADIUS = 3.0  # of the brush, in pixels of photos of 480 x 360
LENGTH = 50  # pixels of a stroke at most
LEAST_SHARE = 0.005  # of each class on the photo that is painted first

Mask = np.ndarray


class Fields(NamedTuple):
    """Photos with tokens and true masks.

    Attributes:
        photos: to paint on, with tokens.
        masks: their true masks (height, width).
        held_out: photos that are scored.
        held_out_masks: their true masks.
    """

    photos: Sequence[Photo]
    masks: Sequence[Mask]
    held_out: Sequence[Photo]
    held_out_masks: Sequence[Mask]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--data", type=Path, default=DATA)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield one table; a round is a draw of photos and strokes.

    Raises:
        SystemExit: if the data is missing.
    """
    if not (options.data / "crop_cover" / "cover.csv").is_file():
        raise SystemExit(f"{options.data} holds no crop_cover; pass --data with its folder")
    counts = SHORT_COUNTS if options.short else COUNTS
    painted = SHORT_PAINTED if options.short else PAINTED
    fields = read_fields(options.data / "crop_cover", counts)
    weights = "published weights" if WEIGHTS else "random weights"
    yield f"fields, {weights}", scores(fields, painted, draws=options.rounds)


def list_photos(folder: Path) -> Photos:
    """Return crop_cover; every fourth group of photos is held out, so both parts show all kinds of fields."""
    with (folder / "cover.csv").open() as file:
        lines = list(csv.DictReader(file))
    groups = sorted({int(line["group"]) for line in lines})
    held_out = groups[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    lines.sort(key=lambda line: (int(line["group"]) in held_out, int(line["group"])))
    return Photos(
        images=[folder / line["image"] for line in lines],
        masks=[folder / line["mask"] for line in lines],
        classes=FIELD_CLASSES,
        num_train=sum(int(line["group"]) not in held_out for line in lines),
    )


def read_fields(folder: Path, counts: tuple[int, int]) -> Fields:
    """Return the photos of crop_cover with their tokens; whole groups are held out."""
    listed = thinned(list_photos(folder), *counts)
    backbone = load_backbone(NAME, pretrained=bool(WEIGHTS), seed=0)
    files = {image.name: image for image in listed.images}
    photos = PhotoTokens.extract(files, backbone, size=SIZE).photos
    masks = []
    for mask in listed.masks:
        with Image.open(mask) as opened:  # of fields all masks are files
            masks.append(np.array(opened))
    num_train = listed.num_train
    return Fields(photos[:num_train], masks[:num_train], photos[num_train:], masks[num_train:])


def scores(fields: Fields, painted: Sequence[int], draws: int) -> dict[str, Row]:
    """Return the held-out scores of strokes on so many photos, and of whole masks of the same photos."""
    table: dict[str, Row] = {}
    for count in painted:
        of_strokes = []
        of_masks = []
        pixels = []
        for seed in range(draws):
            random = np.random.default_rng(seed)
            rows = draw_photos(fields.masks, count, random)
            strokes = strokes_on(fields, rows, random)
            head = fit_strokes(fields.photos, strokes)
            of_strokes.append(mean_iou(head, fields))
            whole = {fields.photos[row].name: fields.masks[row] for row in rows}
            of_masks.append(mean_iou(fit_masks(fields.photos, whole, FIELD_CLASSES), fields))
            for image in strokes.images:
                pixels.append(int((image.mask(FIELD_CLASSES) < len(FIELD_CLASSES)).sum()))
        title = f"{count} photo{'' if count == 1 else 's'}"
        table[title] = {
            "mIoU, strokes": fmean(of_strokes),
            "lowest … highest": [min(of_strokes), max(of_strokes)],
            "mIoU, whole masks of the same photos": fmean(of_masks),
            "painted pixels of a photo": fmean(pixels),
        }
    everything = dict(zip((photo.name for photo in fields.photos), fields.masks, strict=True))
    head = fit_masks(fields.photos, everything, FIELD_CLASSES)
    table[f"all {len(everything)} photos"] = {
        "mIoU, strokes": None,
        "lowest … highest": None,
        "mIoU, whole masks of the same photos": mean_iou(head, fields),
        "painted pixels of a photo": None,
    }
    return table


def draw_photos(masks: Sequence[Mask], count: int, random: np.random.Generator) -> list[int]:
    """Return the rows of the photos to paint; the first one shows all classes, as a person would choose."""
    showing_all = []
    for row, mask in enumerate(masks):
        shares = [(mask == label).mean() for label in range(len(FIELD_CLASSES))]
        if min(shares) >= LEAST_SHARE:
            showing_all.append(row)
    first = int(random.choice(showing_all))
    others = [row for row in range(len(masks)) if row != first]
    return [first, *random.choice(others, count - 1, replace=False).tolist()]


def strokes_on(fields: Fields, rows: Sequence[int], random: np.random.Generator) -> Strokes:
    """Return simulated strokes on these photos."""
    images = []
    for row in rows:
        photo = fields.photos[row]
        strokes = []
        for number, label in enumerate(FIELD_CLASSES):
            inside = distance_transform_edt(np.pad(fields.masks[row] == number, 1))[1:-1, 1:-1]
            for _ in range(STROKES_PER_CLASS):
                stroke = draw_stroke(inside, label, random)
                if stroke is not None:
                    strokes.append(stroke)
        images.append(
            PaintedImage(
                photo.name, photo.sha256, photo.height, photo.width, strokes=tuple(strokes)
            )
        )
    return Strokes(FIELD_CLASSES, tuple(images))


def draw_stroke(inside: np.ndarray, label: str, random: np.random.Generator) -> Stroke | None:
    """Return a straight stroke that stays inside a class; None if the photo hardly shows it.

    Args:
        inside: (height, width) distance of each pixel of the class to the next one of another.
        label: of the class.
        random: draws the first pixel, of those where the brush fits, and the direction.
    """
    radius = RADIUS
    places = np.argwhere(inside > radius)
    if not len(places):
        radius = RADIUS / 2
        places = np.argwhere(inside > radius)
    if not len(places):
        return None
    row, col = places[random.integers(len(places))].tolist()
    angle = random.uniform(0, 2 * np.pi)
    start = (col + 0.5, row + 0.5)
    end = start
    for step in range(1, LENGTH + 1):
        x = start[0] + step * np.cos(angle)
        y = start[1] + step * np.sin(angle)
        is_within = 0 <= x < inside.shape[1] and 0 <= y < inside.shape[0]
        if not is_within or inside[int(y), int(x)] <= radius:
            break
        end = (float(x), float(y))
    return Stroke(label, radius, (start, end))


@torch.inference_mode()
def mean_iou(head: LinearHead, fields: Fields) -> float:
    """Return the mean over classes of the intersection over union of all pixels of the held-out photos."""
    num_classes = len(FIELD_CLASSES)
    confusion = np.zeros((num_classes, num_classes))
    for photo, mask in zip(fields.held_out, fields.held_out_masks, strict=True):
        rows, cols, _ = photo.patches.shape
        patches = photo.patches.reshape(1, rows * cols, -1)
        logits = head(patches, grid=(rows, cols), num_prefix_tokens=0)["segmentation"]
        probabilities = F.interpolate(logits.softmax(dim=1), mask.shape, mode="bilinear")
        classes = probabilities[0].argmax(dim=0).numpy()
        cells = np.bincount((mask * num_classes + classes).ravel(), minlength=num_classes**2)
        confusion += cells.reshape(num_classes, num_classes)
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return float((hits / union).mean())
