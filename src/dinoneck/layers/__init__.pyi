"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.layers.blocks import ChannelNorm as ChannelNorm
from dinoneck.layers.blocks import ConvBlock as ConvBlock
from dinoneck.layers.blocks import MapLinear as MapLinear
from dinoneck.layers.blocks import map_norm as map_norm
