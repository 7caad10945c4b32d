"""Heads: from Tokens to one tensor per task, and the building blocks they are made of."""

from dinoneck.lazy import attach
from dinoneck.registry import exports

HOMES = {
    **exports(__name__),
    "Head": "dinoneck.heads.head",
}

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
