"""Scores of heads that are used with another runtime or precision than they were trained with.

    python -m benchmarks runtime_scores [--data DATA]

Two sets of images: field photos with masks of soil, crop and weed, and photos of blood cells, whose
boxes are filled. A head learns the shares and the classes of every patch on some images, and is
scored on others: R² of the share of a class in an image, mean over the classes, and mean IoU over
pixels. DATA holds crop_cover and blood_cells. The weights are seeded random ones, or published ones
where DINONECK_WEIGHTS is set.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.evidence.run import DATA
from benchmarks.evidence.weights import WEIGHTS
from benchmarks.measure import Row
from benchmarks.runtime_speed import SETTINGS, Setting
from dinoneck import Backbone, DenseHead, Task, load_backbone
from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.training import MemoryTokens, fit

ROUNDS = 1
NAME = "vit_small_patch16_dinov3.lvd1689m"
SIZE = (224, 288)  # of the images that the model gets: height, width
FIELD_CLASSES = ("soil", "crop", "weed")
CELL_CLASSES = ("background", "RBC", "WBC", "Platelets")
TRAIN_GROUPS = 0.7  # the first groups of field photos are for training
HIDDEN_DIM = 64
EPOCHS = 8
BATCH_SIZE = 16
# images of both sets: for training, and to score
COUNTS = (96, 48)
SHORT_COUNTS = (12, 12)
SHARES = "share"
CLASSES = "class"
# heads are trained with the first of them, and with those that are compared with it
TRAINED_WITH = (
    SETTINGS[0],
    Setting("openvino", torch.float32),
    Setting("openvino", torch.bfloat16),
)


class Photos(NamedTuple):
    """Images and what is known of them.

    Attributes:
        images: files.
        masks: files or arrays (height, width) of class numbers.
        classes: their names.
        num_train: how many of the images, from the first, a head is trained on.
    """

    images: Sequence[Path]
    masks: Sequence[Path | np.ndarray]
    classes: tuple[str, ...]
    num_train: int


class Truth(NamedTuple):
    """What is known of images of one grid.

    Attributes:
        shares: (B, K, rows, cols), of every class in every patch.
        weights: (B, rows, cols), valid pixels of a patch.
        classes: (B, height, width), of every pixel.
    """

    shares: Tensor
    weights: Tensor
    classes: Tensor


def field_photos(folder: Path) -> Photos:
    """Return crop_cover; whole groups of photos are held out."""
    with (folder / "cover.csv").open() as file:
        lines = sorted(csv.DictReader(file), key=lambda line: int(line["group"]))
    groups = sorted({int(line["group"]) for line in lines})
    train_groups = groups[: round(TRAIN_GROUPS * len(groups))]
    return Photos(
        images=[folder / line["image"] for line in lines],
        masks=[folder / line["mask"] for line in lines],
        classes=FIELD_CLASSES,
        num_train=sum(int(line["group"]) in train_groups for line in lines),
    )


def cell_photos(folder: Path) -> Photos:
    """Return blood_cells; boxes are filled, the smallest last."""
    images: list[Path] = []
    masks: list[Path | np.ndarray] = []
    num_train = 0
    for name in ("train", "val"):
        listed = json.loads((folder / f"{name}.json").read_text())
        names = {category["id"]: category["name"] for category in listed["categories"]}
        for image in listed["images"]:
            boxes = [box for box in listed["annotations"] if box["image_id"] == image["id"]]
            mask = np.zeros((image["height"], image["width"]), np.uint8)
            for box in sorted(boxes, key=lambda box: -box["bbox"][2] * box["bbox"][3]):
                left, top, width, height = (round(value) for value in box["bbox"])
                label = CELL_CLASSES.index(names[box["category_id"]])
                mask[max(0, top) : top + height, max(0, left) : left + width] = label
            images.append(folder / "images" / image["file_name"])
            masks.append(mask)
        if name == "train":
            num_train = len(images)
    return Photos(images=images, masks=masks, classes=CELL_CLASSES, num_train=num_train)


def thinned(photos: Photos, num_train: int, num_held_out: int) -> Photos:
    """Return so many images of both parts, evenly spaced."""
    train_rows = np.linspace(0, photos.num_train - 1, num_train).round()
    held_out_rows = np.linspace(photos.num_train, len(photos.images) - 1, num_held_out).round()
    rows = [int(row) for row in (*train_rows, *held_out_rows)]
    return photos._replace(
        images=[photos.images[row] for row in rows],
        masks=[photos.masks[row] for row in rows],
        num_train=num_train,
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--data", type=Path, default=DATA)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield a table per set of images.

    Raises:
        SystemExit: if the data is missing.
    """
    if not (options.data / "crop_cover" / "cover.csv").is_file():
        raise SystemExit(f"{options.data} holds no crop_cover; pass --data with its folder")
    weights = "published weights" if WEIGHTS else "random weights"
    for title, photos in (
        ("fields", field_photos(options.data / "crop_cover")),
        ("cells", cell_photos(options.data / "blood_cells")),
    ):
        counts = SHORT_COUNTS if options.short else COUNTS
        yield f"{title}, {weights}", scores(thinned(photos, *counts))


def scores(photos: Photos) -> dict[str, Row]:
    """Return the scores of every head with the tokens of every runtime and precision."""
    backbones: dict[Setting, Backbone] = {}
    for setting in SETTINGS:
        backbones[setting] = load_backbone(
            NAME,
            pretrained=bool(WEIGHTS),
            seed=0,
            runtime=setting.runtime,
            dtype=setting.dtype,
        )
    first = backbones[SETTINGS[0]]
    preprocess = first.preprocess.changed(size=SIZE)
    truth = truth_of(photos, preprocess)
    ids = [image.stem for image in photos.images]
    sources = {}
    for setting, backbone in backbones.items():
        sources[setting] = MemoryTokens.extract(
            backbone, photos.images, ids, preprocess=preprocess, dtype=torch.float32
        )

    table: dict[str, Row] = {}
    for trained_with in TRAINED_WITH:
        head = trained_head(sources[trained_with], ids, truth, photos, first.embed_dim)
        predictions = {}
        for used_with, source in sources.items():
            predictions[used_with] = predict(head, source, ids[photos.num_train :])
        for used_with, predicted in predictions.items():
            row = score(predicted, truth, photos)
            row["largest difference"] = largest_difference(
                predictions[trained_with][SHARES], predicted[SHARES]
            )
            table[f"trained with {trained_with.title}; used with {used_with.title}"] = row
    return table


def truth_of(photos: Photos, preprocess: Preprocessing) -> Truth:
    """Return the shares and classes of all images."""
    labels = DenseLabels(classes=len(photos.classes))
    shares, weights = labels.cells(photos.masks, preprocess)
    classes = labels.indices(photos.masks, preprocess)
    return Truth(shares, weights, classes)


def trained_head(
    source: MemoryTokens, ids: Sequence[str], truth: Truth, photos: Photos, embed_dim: int
) -> DenseHead:
    """Return a head that learned the shares and classes of patches, from the same start every time."""
    torch.manual_seed(0)
    num_classes = len(photos.classes)
    tasks = [
        Task(SHARES, dim=num_classes, kind="dense", labels=photos.classes, shares=True),
        Task(CLASSES, dim=num_classes, kind="segmentation", labels=photos.classes),
    ]
    head = DenseHead(embed_dim, tasks, hidden_dim=HIDDEN_DIM)
    fit(
        head,
        source,
        targets={SHARES: truth.shares, CLASSES: truth.classes},
        weights={SHARES: truth.weights},
        target_ids=ids,
        ids=ids[: photos.num_train],
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        lr=1e-3,
    )
    return head.eval()


@torch.inference_mode()
def predict(head: DenseHead, source: MemoryTokens, ids: Sequence[str]) -> Mapping[str, Tensor]:
    """Return the maps of images: shares (B, K, rows, cols) and class logits."""
    return head.predict(source.batch(ids))


def score(predicted: Mapping[str, Tensor], truth: Truth, photos: Photos) -> Row:
    """Return R² of the shares in images, mean over classes, and the mean IoU over their pixels."""
    held_out = slice(photos.num_train, None)
    true_shares = truth.shares[held_out].mean(dim=(2, 3)).double()
    shares = predicted[SHARES].mean(dim=(2, 3)).double()
    errors = (shares - true_shares).square().sum(dim=0)
    spread = (true_shares - true_shares.mean(dim=0)).square().sum(dim=0)
    r2 = 1 - errors / spread

    logits = F.interpolate(predicted[CLASSES], SIZE, mode="bilinear")
    classes = logits.argmax(dim=1)
    true_classes = truth.classes[held_out]
    overlaps = []
    for label in range(len(photos.classes)):
        union = (classes == label) | (true_classes == label)
        intersection = (classes == label) & (true_classes == label)
        overlaps.append(intersection.sum().item() / union.sum().item())
    return {"R²": r2.mean().item(), "mIoU": sum(overlaps) / len(overlaps)}


def largest_difference(expected: Tensor, predicted: Tensor) -> float:
    """Return the largest difference relative to the largest prediction."""
    return ((predicted - expected).abs().max() / expected.abs().max()).item()
