"""An HTTP service around a head or a detector: images in, predictions out, every resource a client uses bounded."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach, homes

if TYPE_CHECKING:
    from dinoneck.serve.app import create_app as create_app
    from dinoneck.serve.server import serve as serve
    from dinoneck.serve.settings import Settings as Settings

_HOMES = homes(__name__, app=["create_app"], server=["serve"], settings=["Settings"])

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
