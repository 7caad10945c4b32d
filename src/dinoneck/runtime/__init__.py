"""Exported files run without torch: images in, values, maps and boxes out."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    exported=["ExportedDetector", "ExportedPrediction", "ExportedPredictor", "open_exported"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
