"""Classes in the pixels of field images: logits resampled to the image, or one class per cell."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.evidence.real import CLASSES, SHORT_SIZE, config_of, layers_of
from benchmarks.measure import Row
from dinoneck import Predictor
from dinoneck.training import FoldsConfig, train

SIZES = ((240, 320), (352, 480))  # height, width
HEADS: dict[str, dict[str, Any]] = {
    "ViTFPN": {"type": "fpn", "fpn_dim": 64},
    "DPTNeck": {"type": "dpt_neck", "out_channels": 32, "hidden_sizes": (32, 32, 32, 32)},
}
BAND = 0.02  # of the diagonal: the width of a boundary


def resolution(options: Namespace) -> dict[str, Row]:
    """Return mIoU and boundary IoU of held-out images at full resolution, means over images.

    With random weights the backbone is dinoneck_tiny.
    """
    if options.random:
        options = Namespace(**{**vars(options), "backbone": "dinoneck_tiny"})
    table: dict[str, Row] = {}
    for size in [SHORT_SIZE] if options.short else SIZES:
        height, width = size
        for title, head in HEADS.items():
            config = config_of(
                options,
                seed=0,
                layers=layers_of(options.backbone),
                data={
                    "labels": "mask",
                    "classes": CLASSES,
                    "targets": (),
                    "minimum": None,
                    "size": size,
                },
                optim={"epochs": 6, "lr": 1e-3, "batch_size": 8},
                head=head,
            )
            one_of_two = FoldsConfig(count=2, group=("group",), only=0)
            run = options.runs / "resolution" / f"{title}-{height}"
            train(config.changed(folds=one_of_two), run, overwrite=True)
            table[f"{title}, {height} × {width}"] = score(options.data / "crop_cover", run)
    return table


def score(data: Path, run: Path) -> Row:
    """Return the scores of the images of fold 0, on which its head was not trained."""
    predictor = Predictor(run / "heads" / "fold-0.safetensors")
    held_out = pandas.read_csv(run / "out_of_fold.csv")["image"]
    masks = pandas.read_csv(data / "cover.csv", index_col="image")["mask"]
    scores: dict[str, list[float]] = {}
    for name in held_out:
        truth = torch.from_numpy(np.array(Image.open(data / masks[name])))
        [prediction] = predictor.predictions(data / name)
        [patch_logits] = prediction.row(maps="patch")["maps"].values()
        [image_classes] = prediction.image_maps().values()
        patch_classes = torch.from_numpy(patch_logits).argmax(dim=0)[None, None].float()
        nearest = F.interpolate(patch_classes, truth.shape, mode="nearest-exact")[0, 0].long()
        for method, predicted in (("image", torch.from_numpy(image_classes)), ("cells", nearest)):
            boundary_iou = iou(predicted, truth, BAND)
            scores.setdefault(f"mIoU, {method}", []).append(iou(predicted, truth))
            scores.setdefault(f"boundary IoU, {method}", []).append(boundary_iou)
    means: Row = {name: fmean(values) for name, values in scores.items()}
    means["images"] = len(held_out)
    return means


def iou(predicted: Tensor, truth: Tensor, band: float | None = None) -> float:
    """Return the mean IoU over the classes of an image.

    With a band, a share of the diagonal, only pixels count that lie within it inside the outlines
    of their class.

    Reference: Cheng et al., Boundary IoU, CVPR 2021.
    """
    width = None
    if band is not None:
        diagonal = float(np.hypot(*truth.shape))
        width = max(1, round(band * diagonal))
    scores = []
    for label in range(len(CLASSES)):
        predicted_mask = _band(predicted == label, width)
        true_mask = _band(truth == label, width)
        union = predicted_mask | true_mask
        if bool(union.any()):
            intersection = predicted_mask & true_mask
            scores.append(float(intersection.sum() / union.sum()))
    return fmean(scores)


def _band(mask: Tensor, width: int | None) -> Tensor:
    """Return the pixels of a mask (height, width) at most ``width`` pixels from its outline.

    Distances are those of squares.
    """
    if width is None:
        return mask
    outside = F.pad(~mask[None, None], (width,) * 4, value=True).float()
    side = 2 * width + 1
    near_in_cols = F.max_pool2d(outside, (side, 1), stride=1)
    near = F.max_pool2d(near_in_cols, (1, side), stride=1)[0, 0] > 0
    return mask & near
