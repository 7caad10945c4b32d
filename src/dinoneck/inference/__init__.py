"""From images to values in original units: the predictor and test-time augmentation."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    batching=["MicroBatcher"],
    predictor=["Predictor"],
    results=["coco_objects", "to_frame"],
    tiles=["VIEWS"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
