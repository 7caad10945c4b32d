"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.detection.detector import Detector as Detector
from dinoneck.detection.evaluation import coco_results as coco_results
from dinoneck.detection.evaluation import evaluate_boxes as evaluate_boxes
from dinoneck.detection.evaluation import evaluate_masks as evaluate_masks
from dinoneck.detection.evaluation import score_boxes as score_boxes
from dinoneck.detection.evaluation import score_masks as score_masks
from dinoneck.detection.evaluation import score_segments as score_segments
from dinoneck.detection.head import DetectionHead as DetectionHead
from dinoneck.detection.objects import train_instances as train_instances
from dinoneck.detection.rf_detr import RfDetr as RfDetr
from dinoneck.detection.training import train_detector as train_detector
