"""Heads that others published for frozen DINOv2 and DINOv3 backbones, as modules of this library."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    detectors=["PublishedDetector"],
    table=["PublishedHead", "list_published"],
    loading=["load_published"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
