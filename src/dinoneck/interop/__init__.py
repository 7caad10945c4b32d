"""Interop: backbone and neck inside other libraries' models and pipelines, one file per library."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    encoder=["EncoderByName", "PyramidEncoder", "find_encoder"],
    torchvision=["TorchvisionBackbone"],
    transformers=["DinoneckBackbone", "DinoneckBackboneConfig", "attach_to_detr", "register"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
