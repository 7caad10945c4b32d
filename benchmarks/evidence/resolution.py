"""Classes in the pixels of field images: logits resampled to the image, or one class per cell."""

from __future__ import annotations

from argparse import Namespace
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

SIZES = ((240, 320), (352, 480))
HEADS: dict[str, dict[str, Any]] = {
    "ViTFPN": {"type": "fpn", "fpn_dim": 64},
    "DPTNeck": {"type": "dpt_neck", "out_channels": 32, "hidden_sizes": (32, 32, 32, 32)},
}
BAND = 0.02  # of the diagonal: the width of a boundary


def resolution(options: Namespace) -> dict[str, Row]:
    """Return mIoU and boundary IoU of held-out images at full resolution, means over images.

    With random weights the backbone is dinoneck_tiny.
    """
    table: dict[str, Row] = {}
    if options.random:
        options = Namespace(**{**vars(options), "backbone": "dinoneck_tiny"})
    for size in [SHORT_SIZE] if options.short else SIZES:
        for title, head in HEADS.items():
            out = options.runs / "resolution" / f"{title}-{size[0]}"
            data = {
                "labels": "mask",
                "classes": CLASSES,
                "targets": (),
                "minimum": None,
                "size": size,
            }
            optim = {"epochs": 6, "lr": 1e-3, "batch_size": 8}
            config = config_of(
                options, 0, layers=layers_of(options.backbone), data=data, optim=optim, head=head
            )
            train(
                config.changed(folds=FoldsConfig(count=2, group=("group",), only=0)),
                out,
                overwrite=True,
            )
            table[f"{title}, {size[0]} × {size[1]}"] = scored(options, out)
    return table


def scored(options: Namespace, run: Any) -> Row:
    """Return the scores of the images of fold 0, which its head was not trained on."""
    predictor, data = Predictor(run / "heads" / "fold-0.safetensors"), options.data / "crop_cover"
    held_out = pandas.read_csv(run / "out_of_fold.csv")["image"]
    masks = pandas.read_csv(data / "cover.csv", index_col="image")["mask"]
    found: dict[str, list[float]] = {}
    for name in held_out:
        known = torch.from_numpy(np.array(Image.open(data / masks[name])))
        [row] = predictor(data / name, maps="patch")
        [cells], [whole] = row["maps"].values(), predictor.image_maps(data / name, row).values()
        classes = torch.from_numpy(cells).argmax(dim=0)[None, None].float()
        nearest = F.interpolate(classes, known.shape, mode="nearest-exact")[0, 0].long()
        for how, predicted in (("image", torch.from_numpy(whole)), ("cells", nearest)):
            found.setdefault(f"mIoU, {how}", []).append(iou(predicted, known))
            found.setdefault(f"boundary IoU, {how}", []).append(iou(predicted, known, BAND))
    return {name: fmean(values) for name, values in found.items()} | {"images": len(held_out)}


def iou(predicted: Tensor, known: Tensor, band: float | None = None) -> float:
    """Return the mean IoU over the classes of an image, or of what lies within a band inside of their outlines.

    Reference: Cheng et al., Boundary IoU, CVPR 2021.
    """
    width = None if band is None else max(1, round(band * float(np.hypot(*known.shape))))
    scores = []
    for label in range(len(CLASSES)):
        one, other = (_band(labels == label, width) for labels in (predicted, known))
        if bool((one | other).any()):
            scores.append(float((one & other).sum() / (one | other).sum()))
    return fmean(scores)


def _band(mask: Tensor, width: int | None) -> Tensor:
    """The pixels of a mask, (height, width), that are at most so many pixels from its outline, in squares."""
    if width is None:
        return mask
    outside = F.pad(~mask[None, None], (width,) * 4, value=True).float()
    rows = F.max_pool2d(outside, (2 * width + 1, 1), stride=1)
    return mask & (F.max_pool2d(rows, (1, 2 * width + 1), stride=1)[0, 0] > 0)
