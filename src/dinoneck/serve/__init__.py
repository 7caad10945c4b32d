"""An HTTP service around a head or a detector: images in, predictions out, every resource a client uses bounded."""

from dinoneck.lazy import attach, homes

HOMES = homes(__name__, app=["create_app", "serve"], settings=["Settings"])

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
