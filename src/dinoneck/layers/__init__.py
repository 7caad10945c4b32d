"""Small parts that necks and heads are made of: norms and convolution blocks on maps, and the check of Tokens."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.layers.blocks import ChannelNorm as ChannelNorm
    from dinoneck.layers.blocks import ConvBlock as ConvBlock
    from dinoneck.layers.blocks import MapLinear as MapLinear
    from dinoneck.layers.blocks import map_norm as map_norm

_HOMES = {
    "ConvBlock": "dinoneck.layers.blocks",
    "MapLinear": "dinoneck.layers.blocks",
    "ChannelNorm": "dinoneck.layers.blocks",
    "map_norm": "dinoneck.layers.blocks",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
