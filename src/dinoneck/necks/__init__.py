"""Necks: from Tokens to a FeaturePyramid, and the building blocks they are made of."""

from dinoneck.lazy import attach
from dinoneck.registry import exports

HOMES = {
    **exports(__name__),
    "Neck": "dinoneck.necks.neck",
    "TopDown": "dinoneck.necks.vit_fpn",
}

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
