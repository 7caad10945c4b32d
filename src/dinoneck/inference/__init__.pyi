"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.inference.batching import MicroBatcher as MicroBatcher
from dinoneck.inference.cropped_masks import CroppedMasks as CroppedMasks
from dinoneck.inference.predictions import ImagePrediction as ImagePrediction
from dinoneck.inference.predictor import Predictor as Predictor
from dinoneck.inference.results import coco_objects as coco_objects
from dinoneck.inference.results import to_frame as to_frame
from dinoneck.inference.views import VIEWS as VIEWS
