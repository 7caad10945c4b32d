"""From images to values in original units: the predictor and test-time augmentation."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.inference.batching import MicroBatcher as MicroBatcher
    from dinoneck.inference.predictor import Predictor as Predictor
    from dinoneck.inference.results import to_frame as to_frame
    from dinoneck.inference.tiles import VIEWS as VIEWS
    from dinoneck.inference.tiles import View as View

_HOMES = {
    "MicroBatcher": "dinoneck.inference.batching",
    "Predictor": "dinoneck.inference.predictor",
    "VIEWS": "dinoneck.inference.tiles",
    "View": "dinoneck.inference.tiles",
    "to_frame": "dinoneck.inference.results",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
