"""Small parts that necks and heads are made of: norms and convolution blocks on maps, and the check of Tokens."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.layers.conv_block import ConvBlock as ConvBlock
    from dinoneck.layers.conv_block import MapLinear as MapLinear
    from dinoneck.layers.norms import ChannelNorm as ChannelNorm
    from dinoneck.layers.norms import map_norm as map_norm

_HOMES = {
    "ConvBlock": "dinoneck.layers.conv_block",
    "MapLinear": "dinoneck.layers.conv_block",
    "ChannelNorm": "dinoneck.layers.norms",
    "map_norm": "dinoneck.layers.norms",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
