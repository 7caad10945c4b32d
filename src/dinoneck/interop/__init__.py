"""Interop: backbone and neck inside other libraries' models and pipelines, one file per library."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.interop.encoder import EncoderByName as EncoderByName
    from dinoneck.interop.encoder import PyramidEncoder as PyramidEncoder
    from dinoneck.interop.encoder import find_encoder as find_encoder
    from dinoneck.interop.token_means import TokenMeans as TokenMeans
    from dinoneck.interop.torchvision import TorchvisionBackbone as TorchvisionBackbone
    from dinoneck.interop.transformers import DinoneckBackbone as DinoneckBackbone
    from dinoneck.interop.transformers import DinoneckBackboneConfig as DinoneckBackboneConfig
    from dinoneck.interop.transformers import attach_to_detr as attach_to_detr
    from dinoneck.interop.transformers import register as register

_HOMES = {
    "EncoderByName": "dinoneck.interop.encoder",
    "PyramidEncoder": "dinoneck.interop.encoder",
    "find_encoder": "dinoneck.interop.encoder",
    "TokenMeans": "dinoneck.interop.token_means",
    "TorchvisionBackbone": "dinoneck.interop.torchvision",
    "DinoneckBackbone": "dinoneck.interop.transformers",
    "DinoneckBackboneConfig": "dinoneck.interop.transformers",
    "attach_to_detr": "dinoneck.interop.transformers",
    "register": "dinoneck.interop.transformers",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
