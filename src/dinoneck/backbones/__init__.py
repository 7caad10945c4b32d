"""Backbones: DINO ViTs of several libraries behind one interface."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone as Backbone
    from dinoneck.backbones.load import load_backbone as load_backbone
    from dinoneck.backbones.load import wrap_backbone as wrap_backbone

_HOMES = {
    "Backbone": "dinoneck.backbones.backbone",
    "load_backbone": "dinoneck.backbones.load",
    "wrap_backbone": "dinoneck.backbones.load",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
