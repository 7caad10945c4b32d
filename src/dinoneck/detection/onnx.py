"""Whole detectors as ONNX files: an image in, boxes, scores and labels out."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from dinoneck.detection.head import DETRS
from dinoneck.errors import CheckpointError, first_line, missing_extra
from dinoneck.export.onnx_file import onnx_runner, write_onnx
from dinoneck.version import __version__

OUTPUTS = ("boxes", "scores", "labels")
KEY = "dinoneck_detector"
_SCORE, _BOX_PX, _SCORE_GAP = 0.05, 0.1, 1e-3


def export(
    detector: Any, path: str | os.PathLike[str], size: tuple[int, int], *, check: bool
) -> None:
    """Write a detector in eval mode as an ONNX file, see :meth:`dinoneck.detection.Detector.export_onnx`."""
    model = _OneImage(detector)
    proto = _proto(model, size)
    if check:
        _compare(model, proto, size)
    facts = {
        "classes": detector.classes,
        "size": size,
        "detector": detector.head.detector,
        "dinoneck": __version__,
    }
    write_onnx(Path(path), proto, {KEY: json.dumps(facts)})


class _OneImage(nn.Module):
    """A detector on one image, with outputs of fixed shapes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        self.channels: int = detector.preprocess.channels

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (n, 4), scores (n,) and labels (n,) of the image (1, 3, H, W)."""
        head, normalised = self.detector.head, self.detector.normalised(image)
        if head.detector not in DETRS:
            return dense_detections(head.model, normalised)
        from dinoneck.detection.detr import ranked

        outputs: Any = head.model(pixel_values=normalised)
        boxes, scores, labels = ranked(outputs.logits, outputs.pred_boxes, image.shape[-2:])
        return boxes[0], scores[0], labels[0]


def dense_detections(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the detections of torchvision's FCOS or RetinaNet for one image, as many rows whatever is in it.

    Scores below the threshold are set to 0 instead of being cut out: they suppress no other box.
    """
    size = (images.shape[-2], images.shape[-1])
    levels = list(model.backbone(images).values())
    outputs = model.head(levels)
    [anchors] = model.anchor_generator(ImageList(images, [size]), levels)
    scores = outputs["cls_logits"][0].sigmoid()  # (anchors, classes)
    if "bbox_ctrness" in outputs:
        scores = (scores * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
    cells = [level.shape[-2] * level.shape[-1] for level in levels]
    per_cell = anchors.shape[0] // sum(cells)
    decode = getattr(model.box_coder, "decode_single", model.box_coder.decode)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    begin = 0
    for count in (cell * per_cell for cell in cells):
        part, count_classes = slice(begin, begin + count), scores.shape[1]
        begin += count
        best, index = scores[part].flatten().topk(min(model.topk_candidates, count * count_classes))
        anchor = torch.div(index, count_classes, rounding_mode="floor")
        boxes = decode(outputs["bbox_regression"][0][part][anchor], anchors[part][anchor])
        x, y = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
        rows.append(
            (torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1), best, index % count_classes)
        )
    boxes, best, labels = (torch.cat(each) for each in zip(*rows, strict=True))
    best = torch.where(best > model.score_thresh, best, 0.0)
    apart = boxes + (labels * (max(size) + 1.0))[:, None]  # boxes of other classes do not overlap
    kept = torch.zeros_like(best).index_fill(
        0, torchvision.ops.nms(apart, best, model.nms_thresh), 1.0
    )
    scores, index = (best * kept).topk(min(model.detections_per_img, best.shape[0]))
    return boxes[index], scores, labels[index]


def _proto(model: _OneImage, size: Sequence[int]) -> Any:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, model.channels, *size, generator=generator, device="cpu")
    device = next(model.parameters()).device
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.cpu(), (image,), strict=False)
            # the exporter does not know the first of these
            program = program.run_decompositions({torch.ops.aten._is_all_true.default: torch.all})
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=list(OUTPUTS),
            )
    except ImportError as error:
        raise missing_extra("onnxscript", "export") from error
    except Exception as error:  # of the exporter: many unrelated types
        raise CheckpointError(
            f"this detector has no ONNX export: {first_line(error)}", step="config"
        ) from error
    finally:
        model.to(device)
    return exported.model_proto


@torch.no_grad()
def _compare(model: _OneImage, proto: Any, size: Sequence[int]) -> None:
    """Refuse a file that gives other boxes than the detector, on images that the export has not seen.

    Rows are compared as sets, since equal scores may change places.
    """
    draw, device = torch.Generator().manual_seed(1), next(model.parameters()).device
    # all that the runner asks a model for
    inputs: Any = SimpleNamespace(values=lambda image: [image])
    with onnx_runner(proto, inputs) as run:
        for _ in range(2):
            image = torch.rand(1, model.channels, *size, generator=draw)
            own = [each.cpu().double().numpy() for each in model(image.to(device))]
            if (gap := unmatched(own, [x.numpy() for x in run(image).values()])) is not None:
                raise CheckpointError(
                    f"the ONNX file gives other boxes than the detector: {gap}", step="config"
                )


def unmatched(own: Sequence[Any], other: Sequence[Any]) -> str | None:
    """Return what is wrong with the boxes, scores and labels of another runtime; None if nothing is."""
    for one, two in ((own, other), (other, own)):
        for box, score, label in zip(*one, strict=True):
            if score < _SCORE:
                continue
            near = (np.abs(np.asarray(two[0]) - box).max(1) < _BOX_PX) & (
                np.asarray(two[2]) == label
            )
            if not (near & (np.abs(np.asarray(two[1]) - score) < _SCORE_GAP)).any():
                return (
                    f"box {np.round(box, 2).tolist()} of class {int(label)}, score "
                    f"{score:.4f}, is in one of them only"
                )
    return None
