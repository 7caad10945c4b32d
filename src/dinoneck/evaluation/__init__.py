"""The scores of finished models on images whose truth is known."""

from dinoneck.lazy import attach, homes

HOMES = homes(__name__, dispatch=["evaluate"])

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
