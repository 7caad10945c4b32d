"""Detectors on a DINO backbone: FCOS, RetinaNet, Faster R-CNN, D-FINE and RT-DETRv2."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    detector=["Detector"],
    evaluation=[
        "coco_results",
        "evaluate_boxes",
        "evaluate_masks",
        "score_boxes",
        "score_masks",
        "score_segments",
    ],
    head=["DetectionHead"],
    objects=["train_instances"],
    rf_detr=["RfDetr"],
    training=["train_detector"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
