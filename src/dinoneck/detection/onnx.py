"""Whole detectors as ONNX files: an image in, boxes, scores and labels out, and masks of some."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from dinoneck.backbones import lora
from dinoneck.backbones.backbone import plain_backbone
from dinoneck.checkpoint.format import spelling
from dinoneck.detection.plain_operators import add_suppression, sample_by_gathers
from dinoneck.dtypes import dtype_name
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.export.onnx_file import drop_metadata, onnx_runner, to_half, write_onnx
from dinoneck.export.program import Run
from dinoneck.export.resampling import DECOMPOSITIONS as RESAMPLING
from dinoneck.extras import missing_extra
from dinoneck.runtime.description import DETECTOR_KEY, FORMAT, DetectorRecord, to_entry
from dinoneck.text import first_line
from dinoneck.version import __version__

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
OUTPUTS = ("boxes", "scores", "labels")
MASKS = "masks"  # the output after these, of a model that gives masks
_CANDIDATES = ("candidate_boxes", "candidate_scores", "candidate_labels")
# decompositions of operators that the exporter does not know, or that runtimes compute differently
DECOMPOSITIONS = {
    **RESAMPLING,
    torch.ops.aten._is_all_true.default: torch.all,
    torch.ops.aten.grid_sampler.default: sample_by_gathers,
}
SUPPRESSING = ("fcos", "retinanet")
_LEAST_SCORE = 0.05  # boxes of lower scores are not compared
_BLOB_PX = 16  # side of the blobs of a random image
# modules of torchvision and transformers whose products stay in float32 with half=True: they give
# scores that are ranked, boxes, and the places that a decoder samples
FLOAT32_MODULES = (
    "cls_logits",
    "bbox_reg",
    "bbox_ctrness",
    "enc_score_head",
    "enc_bbox_head",
    "class_embed",
    "bbox_embed",
    "pre_bbox_head",
    "integral",
    "lqe_layers",
    "query_pos_head",
    "sampling_offsets",
    "enc_out_class_embed",
    "enc_out_bbox_embed",
    "ref_point_head",
)


class BoxTolerance(NamedTuple):
    """How far the boxes of an ONNX file may be from the detector's.

    Attributes:
        box_px: the largest difference of a coordinate, in pixels of the input.
        score: the largest difference of a score, or of a value of a mask.
        unmatched: the largest share of boxes without a counterpart so near.
    """

    box_px: float
    score: float
    unmatched: float


FLOAT32_TOLERANCE = BoxTolerance(box_px=0.1, score=1e-3, unmatched=0.0)
# rounding decides anew on boxes at the edge of a choice: of overlapping boxes, of the queries, of
# the last row
HALF_TOLERANCE = BoxTolerance(box_px=1.0, score=0.02, unmatched=0.02)


class BoxParity(NamedTuple):
    """How far the boxes of an ONNX file are from the detector's, on random images.

    Attributes:
        compared: how many boxes were compared, those of both: of scores of 0.05 or more.
        unmatched: how many have no counterpart of their class in the other within the tolerance.
        box_px: the largest difference of a coordinate to a counterpart, in pixels of the input.
        score: the largest difference of a score to a counterpart.
        first_unmatched: the first box without a counterpart; None if all have one.
    """

    compared: int
    unmatched: int
    box_px: float
    score: float
    first_unmatched: str | None


def export(
    detector: Any,
    path: str | os.PathLike[str],
    size: tuple[int, int],
    *,
    half: bool,
    check: bool,
) -> BoxParity | None:
    """Write a detector in eval mode as an ONNX file, see :meth:`dinoneck.detection.Detector.export_onnx`.

    Args:
        detector: FCOS, RetinaNet, D-FINE, RT-DETRv2 or RF-DETR.
        path: the file.
        size: (height, width) of the input.
        half: compute products of matrices and convolutions in float16.
        check: compare ONNX Runtime with the detector before anything is written.

    Returns:
        How far its boxes are from the detector's; None without the check.

    Raises:
        CheckpointError: if the export fails, or the check finds other boxes.
        ConfigError: for ``half`` and a detector of another dtype than float32.
        ImportError: if the extra ``export`` is missing.
    """
    if half:
        _check_float32(detector)
    if detector.trained_boxes is not None and detector.trained_boxes.tile is not None:
        logger.warning(
            "the detector was trained on tiles of %dx%d px (height x width), and the ONNX file takes "
            "whole images: cut large ones before it",
            *detector.trained_boxes.tile,
        )
    proto = exported_model(OneImage(_without_lora(detector)), size)
    if half:
        to_half(proto, FLOAT32_MODULES)
    drop_metadata(proto)
    parity = None
    if check:
        parity = _compare(detector, proto, size, half=half)
    facts = DetectorRecord(
        format=FORMAT,
        classes=tuple(detector.classes),
        size=list(size),
        detector=detector.head.detector,
        half=half,
        parity=None if parity is None else _record(parity, half),
        dinoneck=__version__,
        preprocess=detector.preprocess.changed(size=tuple(size)).record(),
        min_score=detector.min_score,
        thresholds=list(detector.thresholds),
        digest=detector.checkpoint().meta["digest"],
        has_masks=detector.has_masks,
    )
    write_onnx(Path(path), proto, {DETECTOR_KEY: spelling(to_entry(facts))})
    return parity


def _record(parity: BoxParity, half: bool) -> dict[str, Any]:
    """A parity as the metadata of a file hold it, with its tolerance."""
    record = parity._asdict()
    del record["first_unmatched"]
    return {**record, "tolerance": _tolerance(half)._asdict()}


def _tolerance(half: bool) -> BoxTolerance:
    """How far the boxes of a file in float32, or with ``half``, may be from the detector's."""
    if half:
        return HALF_TOLERANCE
    return FLOAT32_TOLERANCE


def _check_float32(detector: Any) -> None:
    """Raise a ConfigError for a detector whose weights are not float32 throughout."""
    dtypes = {parameter.dtype for parameter in detector.parameters()}
    if dtypes != {torch.float32}:
        names = ", ".join(sorted(dtype_name(dtype) for dtype in dtypes))
        raise ConfigError(
            f"half is True, and the detector computes in {names}; expected float32, of which half "
            "of the weights' bytes are left: leave half out"
        )


def _without_lora(detector: Any) -> Any:
    """The detector, or a copy in which LoRA is merged into the weights, or left out if it is off."""
    if detector.backbone is None:
        return detector
    adapter = plain_backbone(detector.backbone).adapter
    if adapter.lora is None:
        return detector
    plain = copy.deepcopy(detector)
    if adapter.lora_off:
        lora.remove(plain_backbone(plain.backbone).adapter)
    else:
        plain_backbone(plain.backbone).merge_lora()
    return plain.eval()


class OneImage(nn.Module):
    """What is traced of a detector: one image, and outputs of fixed shapes.

    Attributes:
        suppresses: whether overlapping boxes fall out, as in FCOS and RetinaNet. The outputs are
            candidates then, of which :func:`add_suppression` leaves the detections.
        output_names: names of the outputs of the file.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        self.channels = detector.preprocess.channels
        self.suppresses = detector.head.detector in SUPPRESSING
        self.output_names: tuple[str, ...] = OUTPUTS
        if detector.has_masks:
            self.output_names = (*OUTPUTS, MASKS)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (n, 4) XYXY in pixels, scores (n,) and labels (n,) of the image (1, 3, H, W) in 0 ... 1.

        A model that gives masks also returns them, (n, H / 4, W / 4) in 0 ... 1.
        """
        head = self.detector.head
        normalised = self.detector.normalised(image)
        if self.suppresses:
            return dense_candidates(head.model, normalised)
        outputs: tuple[Tensor, ...] = head.ranked(normalised)
        return outputs


def dense_candidates(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what torchvision's FCOS or RetinaNet suppresses and ranks; their number does not depend on the image.

    Scores below the threshold are set to 0 instead of being cut out: they suppress no other box.

    Args:
        model: FCOS or RetinaNet of torchvision, in eval mode.
        images: one normalised image, (1, 3, H, W).

    Returns:
        boxes (n, 4) XYXY in pixels of the image, scores (n,) and labels (n,), by level.
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
    best = torch.cat(level_scores)
    best = torch.where(best > model.score_thresh, best, 0.0)
    return torch.cat(level_boxes), best, torch.cat(level_labels)


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


def exported_model(model: OneImage, size: Sequence[int]) -> Any:
    """The ONNX model for images of this size; the detector is on the CPU meanwhile."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, model.channels, *size, generator=generator, device="cpu")
    device = next(model.parameters()).device
    # it warns of operators that its optimiser leaves as they are
    onnxscript_logger = logging.getLogger("onnxscript")
    level = onnxscript_logger.level
    onnxscript_logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.cpu(), (image,), strict=False)
            program = program.run_decompositions(DECOMPOSITIONS)
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=list(_CANDIDATES if model.suppresses else model.output_names),
            )
    except ImportError as error:
        raise missing_extra("onnxscript", "export") from error
    except Exception as error:  # of the exporter: many unrelated types
        raise CheckpointError(
            f"this detector has no ONNX export: {first_line(error)}", step="config"
        ) from error
    finally:
        onnxscript_logger.setLevel(level)
        model.to(device)
    proto = exported.model_proto
    if model.suppresses:
        detector = model.detector.head.model
        num_candidates = proto.graph.output[1].type.tensor_type.shape.dim[0].dim_value
        add_suppression(
            proto,
            OUTPUTS,
            iou_threshold=detector.nms_thresh,
            num_detections=min(detector.detections_per_img, num_candidates),
        )
    return proto


@torch.no_grad()
def _compare(detector: Any, proto: Any, size: tuple[int, int], *, half: bool) -> BoxParity:
    """Compare a file with the detector on images that the export has not seen.

    Raises:
        CheckpointError: if more of its boxes differ than the tolerance allows.
    """
    tolerance = _tolerance(half)
    channels = detector.preprocess.channels
    with onnx_runner(proto, lambda image: [image]) as run:
        images = _random_images(channels, size, with_blobs=half)
        parity = compare_boxes(_detections(detector, run, images), tolerance)
        if parity.compared == 0 and not half:
            images = _random_images(channels, size, with_blobs=True)
            parity = compare_boxes(_detections(detector, run, images), tolerance)
    if parity.compared == 0:
        logger.warning(
            "parity: no box on random images has a score of %g or more, so none was compared; "
            "compare the boxes of the file and of the detector on images of yours",
            _LEAST_SCORE,
        )
    if parity.unmatched > tolerance.unmatched * parity.compared:
        if half:
            raise _other_boxes_in_half(detector, parity)
        raise CheckpointError(
            f"the ONNX file gives other boxes than the detector: {parity.first_unmatched}",
            step="config",
        )
    return parity


def _other_boxes_in_half(detector: Any, parity: BoxParity) -> CheckpointError:
    """The error for a file with ``half`` of which more boxes differ than the tolerance allows."""
    tolerance = HALF_TOLERANCE
    reason = ""
    if detector.head.detector not in SUPPRESSING:
        reason = (
            " (rounding ranks proposals of nearly equal scores in another order, as most are "
            "of weights that are not trained)"
        )
    return CheckpointError(
        f"in float16 {parity.unmatched} of {parity.compared} boxes have no counterpart of the "
        f"detector's within {tolerance.box_px:g} px and a score of {tolerance.score:g}, more "
        f"than {tolerance.unmatched:.0%}: {parity.first_unmatched}{reason}; nothing was written. "
        "Leave half out (--half)",
        step="config",
    )


def _detections(
    detector: Any, run: Run, images: Sequence[Tensor]
) -> list[tuple[Detections, Detections]]:
    """Of every image the detections of the detector, and those of the file."""
    device = next(detector.parameters()).device
    pairs: list[tuple[Detections, Detections]] = []
    for image in images:
        [outputs] = detector(image.to(device))
        expected = [outputs[name].cpu().double().numpy() for name in OUTPUTS]
        if MASKS in outputs:
            expected.append(outputs[MASKS].sigmoid().cpu().double().numpy())
        from_file = [output.numpy() for output in run(image).values()]
        pairs.append((expected, from_file))
    return pairs


def _random_images(channels: int, size: tuple[int, int], *, with_blobs: bool) -> list[Tensor]:
    """Random images (1, channels, H, W) in 0 ... 1: noise, and on request blobs, on which a detector finds more."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(1, channels, *size, generator=generator) for _ in range(2)]
    if with_blobs:
        rows = max(1, size[0] // _BLOB_PX)
        cols = max(1, size[1] // _BLOB_PX)
        for _ in range(2):
            blobs = torch.rand(1, channels, rows, cols, generator=generator)
            images.append(F.interpolate(blobs, size, mode="bicubic").clamp(0, 1))
    return images


Detections = Sequence[Any]
"""Boxes (n, 4) XYXY in pixels, scores (n,) and labels (n,); then masks (n, h, w) in 0 ... 1, of some."""


def compare_boxes(
    pairs: Sequence[tuple[Detections, Detections]], tolerance: BoxTolerance
) -> BoxParity:
    """Compare the boxes of two runtimes.

    Rows are compared as sets, since rows of equal scores may be in another order.

    Args:
        pairs: of every image the detections of one runtime, and those of the other.
        tolerance: how near a counterpart is.
    """
    total = _Comparison()
    for first, second in pairs:
        total.add(_AllDetections.of(first), _AllDetections.of(second), tolerance)
        total.add(_AllDetections.of(second), _AllDetections.of(first), tolerance)
    return BoxParity(
        compared=total.compared,
        unmatched=total.unmatched,
        box_px=total.box_px,
        score=total.score,
        first_unmatched=total.first_unmatched,
    )


class _AllDetections(NamedTuple):
    """The detections of an image as arrays.

    Attributes:
        boxes: (n, 4) XYXY in pixels.
        scores: (n,).
        labels: (n,).
        masks: (n, h, w) in 0 ... 1; None of a model that gives none.
    """

    boxes: Array
    scores: Array
    labels: Array
    masks: Array | None

    @classmethod
    def of(cls, detections: Detections) -> Self:
        """Name the outputs of a model, which are in the order of ``OUTPUTS``, and masks last."""
        boxes, scores, labels, *masks = (np.asarray(values) for values in detections)
        return cls(boxes, scores, labels, masks[0] if masks else None)

    def counterparts_of(self, other: _AllDetections, i: int, tolerance: BoxTolerance) -> Array:
        """Return which of these, (n,) bool, are near the i-th one of ``other`` and of its class."""
        is_near: Array = np.abs(self.boxes - other.boxes[i]).max(1) < tolerance.box_px
        is_near = is_near & (np.abs(self.scores - other.scores[i]) < tolerance.score)
        is_near = is_near & (self.labels == other.labels[i])
        if self.masks is not None and other.masks is not None:
            mask_gaps = np.abs(self.masks[is_near] - other.masks[i]).max((1, 2))
            is_near[is_near] = mask_gaps < tolerance.score
        return is_near


@dataclass
class _Comparison:
    """What a comparison has found until now, see :class:`BoxParity`."""

    compared: int = 0
    unmatched: int = 0
    box_px: float = 0.0
    score: float = 0.0
    first_unmatched: str | None = None

    def add(
        self, detections: _AllDetections, others: _AllDetections, tolerance: BoxTolerance
    ) -> None:
        """Look for a counterpart of each of the detections of an image among those of the other runtime."""
        for i, score in enumerate(detections.scores):
            if score < _LEAST_SCORE:
                continue
            self.compared += 1
            is_counterpart = others.counterparts_of(detections, i, tolerance)
            if is_counterpart.any():
                px = np.abs(others.boxes - detections.boxes[i]).max(1)
                nearest = np.where(is_counterpart, px, np.inf).argmin()
                score_gap = np.abs(others.scores[nearest] - score)
                self.box_px = max(self.box_px, float(px[nearest]))
                self.score = max(self.score, float(score_gap))
                continue
            self.unmatched += 1
            if self.first_unmatched is None:
                box = np.round(detections.boxes[i], 2).tolist()
                self.first_unmatched = (
                    f"box {box} of class {int(detections.labels[i])}, score {score:.4f}, is in one "
                    "of them only"
                )
