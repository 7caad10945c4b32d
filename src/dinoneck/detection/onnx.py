"""Whole detectors as ONNX files: an image in, boxes, scores and labels out."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from dinoneck.detection.head import DETRS
from dinoneck.errors import CheckpointError
from dinoneck.export.onnx_file import onnx_runner, write_onnx
from dinoneck.extras import missing_extra
from dinoneck.text import first_line
from dinoneck.version import __version__

if TYPE_CHECKING:
    from dinoneck.detection.detector import Detector

OUTPUTS = ("boxes", "scores", "labels")
KEY = "dinoneck_detector"
# what the check of a file tolerates
_LEAST_SCORE = 0.05  # boxes of lower scores are not compared
_BOX_PX = 0.1  # largest difference of a coordinate, in pixels
_SCORE_GAP = 1e-3  # largest difference of a score


def export(
    detector: Detector, path: str | os.PathLike[str], size: tuple[int, int], *, check: bool
) -> None:
    """Write a detector in eval mode as an ONNX file, see :meth:`dinoneck.detection.Detector.export_onnx`.

    Args:
        detector: FCOS, RetinaNet, D-FINE or RT-DETRv2.
        path: the file.
        size: (height, width) of the input.
        check: compare ONNX Runtime with the detector before anything is written.

    Raises:
        CheckpointError: if the export fails, or the check finds other boxes.
        ImportError: if the extra ``export`` is missing.
    """
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

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.channels = detector.preprocess.channels

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (n, 4) XYXY in pixels, scores (n,) and labels (n,) of the image (1, 3, H, W) in 0 ... 1."""
        head = self.detector.head
        normalised = self.detector.normalised(image)
        if head.detector not in DETRS:
            return dense_detections(head.model, normalised)
        from dinoneck.detection.detr import ranked

        outputs: Any = head.model(pixel_values=normalised)
        boxes, scores, labels = ranked(outputs.logits, outputs.pred_boxes, image.shape[-2:])
        return boxes[0], scores[0], labels[0]


def dense_detections(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the detections of torchvision's FCOS or RetinaNet for one image; their number does not depend on it.

    Scores below the threshold are set to 0 instead of being cut out: they suppress no other box.

    Args:
        model: FCOS or RetinaNet of torchvision, in eval mode.
        images: one normalised image, (1, 3, H, W).

    Returns:
        boxes (n, 4) XYXY in pixels of the image, scores (n,) and labels (n,), by falling score.
    """
    _, _, height, width = images.shape
    levels = list(model.backbone(images).values())
    outputs = model.head(levels)
    [anchors] = model.anchor_generator(ImageList(images, [(height, width)]), levels)
    scores = outputs["cls_logits"][0].sigmoid()  # (anchors, classes)
    if "bbox_ctrness" in outputs:
        scores = (scores * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
    deltas = outputs["bbox_regression"][0]  # (anchors, 4)

    # the candidates of each level
    cells_of_levels = [level.shape[-2] * level.shape[-1] for level in levels]
    anchors_per_cell = anchors.shape[0] // sum(cells_of_levels)
    level_boxes = []
    level_scores = []
    level_labels = []
    start = 0
    for num_cells in cells_of_levels:
        num_anchors = num_cells * anchors_per_cell
        in_level = slice(start, start + num_anchors)
        start += num_anchors
        boxes, best, labels = _candidates(
            model,
            scores[in_level],
            deltas=deltas[in_level],
            anchors=anchors[in_level],
            size=(height, width),
        )
        level_boxes.append(boxes)
        level_scores.append(best)
        level_labels.append(labels)
    boxes = torch.cat(level_boxes)
    best = torch.cat(level_scores)
    labels = torch.cat(level_labels)

    # non-maximum suppression, within classes: boxes of different classes are moved apart
    best = torch.where(best > model.score_thresh, best, 0.0)
    apart = boxes + (labels * (max(height, width) + 1.0))[:, None]
    kept = torchvision.ops.nms(apart, best, model.nms_thresh)
    is_kept = torch.zeros_like(best).index_fill(0, kept, 1.0)
    num_detections = min(model.detections_per_img, best.shape[0])
    scores, rows = (best * is_kept).topk(num_detections)
    return boxes[rows], scores, labels[rows]


def _candidates(
    model: Any,
    scores: Tensor,
    *,
    deltas: Tensor,
    anchors: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of anchor and class of a level with the highest scores.

    Args:
        model: FCOS or RetinaNet.
        scores: (A, classes).
        deltas: (A, 4), from the anchors to the boxes, as the model codes them.
        anchors: (A, 4) XYXY in pixels.
        size: (height, width) of the image; boxes are cut at its edge.

    Returns:
        boxes (n, 4) XYXY in pixels, scores (n,), labels (n,).
    """
    height, width = size
    num_anchors, num_classes = scores.shape
    num_candidates = min(model.topk_candidates, num_anchors * num_classes)
    # a pair has the number anchor * num_classes + class
    best, pairs = scores.flatten().topk(num_candidates)
    rows = torch.div(pairs, num_classes, rounding_mode="floor")
    decode = getattr(model.box_coder, "decode_single", model.box_coder.decode)
    boxes = decode(deltas[rows], anchors[rows])
    x = boxes[:, 0::2].clamp(0, width)
    y = boxes[:, 1::2].clamp(0, height)
    inside = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)
    return inside, best, pairs % num_classes


def _proto(model: _OneImage, size: Sequence[int]) -> Any:
    """The ONNX model for images of this size; the detector is on the CPU meanwhile."""
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
    """Reject a file that gives other boxes than the detector, on images that the export has not seen.

    Rows are compared as sets, since rows of equal scores may be in another order.
    """
    generator = torch.Generator().manual_seed(1)
    device = next(model.parameters()).device
    with onnx_runner(proto, lambda image: [image]) as run:
        for _ in range(2):
            image = torch.rand(1, model.channels, *size, generator=generator)
            expected = [output.cpu().double().numpy() for output in model(image.to(device))]
            from_file = [output.numpy() for output in run(image).values()]
            difference = unmatched(expected, from_file)
            if difference is not None:
                raise CheckpointError(
                    f"the ONNX file gives other boxes than the detector: {difference}",
                    step="config",
                )


def unmatched(first: Sequence[Any], second: Sequence[Any]) -> str | None:
    """Return what is wrong with the boxes, scores and labels of another runtime; None if nothing is.

    Args:
        first: boxes (n, 4) XYXY in pixels, scores (n,), labels (n,).
        second: those of the other runtime.
    """
    return _missing_box(first, second) or _missing_box(second, first)


def _missing_box(detections: Sequence[Any], others: Sequence[Any]) -> str | None:
    """Describe the first box that has no counterpart in the others; None if all have one."""
    boxes, scores, labels = detections
    other_boxes, other_scores, other_labels = (np.asarray(values) for values in others)
    for box, score, label in zip(boxes, scores, labels, strict=True):
        if score < _LEAST_SCORE:
            continue
        is_near = np.abs(other_boxes - box).max(1) < _BOX_PX
        is_as_sure = np.abs(other_scores - score) < _SCORE_GAP
        is_of_class = other_labels == label
        if not (is_near & is_of_class & is_as_sure).any():
            return (
                f"box {np.round(box, 2).tolist()} of class {int(label)}, score "
                f"{score:.4f}, is in one of them only"
            )
    return None
