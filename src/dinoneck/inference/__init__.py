"""From images to values in original units: the predictor and test-time augmentation."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.inference.batching import MicroBatcher as MicroBatcher
    from dinoneck.inference.predictor import Predictor as Predictor
    from dinoneck.inference.results import to_frame as to_frame
    from dinoneck.inference.tta import VIEWS as VIEWS
    from dinoneck.inference.tta import View as View

_HOMES = {
    "MicroBatcher": "dinoneck.inference.batching",
    "Predictor": "dinoneck.inference.predictor",
    "VIEWS": "dinoneck.inference.tta",
    "View": "dinoneck.inference.tta",
    "to_frame": "dinoneck.inference.results",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
