"""Small parts that necks and heads are made of: norms and convolution blocks on maps, and the check of Tokens."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    blocks=["ChannelNorm", "ConvBlock", "MapLinear", "map_norm"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
