"""From images to values in original units: the predictor and test-time augmentation."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    batching=["MicroBatcher"],
    predictor=["Predictor"],
    results=["coco_objects", "to_frame"],
    tiles=["VIEWS"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
