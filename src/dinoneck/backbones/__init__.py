"""Backbones: DINO ViTs of several libraries behind one interface."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    backbone=["Backbone"],
    load=["load_backbone", "wrap_backbone"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
