"""Heads that others published for frozen DINOv2 and DINOv3 backbones, as modules of this library."""

from dinoneck.lazy import attach

_HOMES = {
    "PublishedHead": "dinoneck.published.table",
    "list_published": "dinoneck.published.table",
    "load_published": "dinoneck.published.loading",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
