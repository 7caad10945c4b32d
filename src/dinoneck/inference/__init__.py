"""From images to values in original units: the predictor and test-time augmentation."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    batching=["MicroBatcher"],
    cropped_masks=["CroppedMasks"],
    predictions=["ImagePrediction"],
    predictor=["Predictor"],
    results=["coco_objects", "to_frame"],
    views=["VIEWS"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
