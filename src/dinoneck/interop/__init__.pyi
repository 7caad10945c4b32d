"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.interop.encoder import EncoderByName as EncoderByName
from dinoneck.interop.encoder import PyramidEncoder as PyramidEncoder
from dinoneck.interop.encoder import find_encoder as find_encoder
from dinoneck.interop.torchvision import TorchvisionBackbone as TorchvisionBackbone
from dinoneck.interop.transformers import DinoneckBackbone as DinoneckBackbone
from dinoneck.interop.transformers import DinoneckBackboneConfig as DinoneckBackboneConfig
from dinoneck.interop.transformers import attach_to_detr as attach_to_detr
from dinoneck.interop.transformers import register as register
