"""Programs and ONNX models of a head (tokens) or of backbone and heads (images)."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    exporting=["Exported", "export_head", "export_model"],
    program=["Parity"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
