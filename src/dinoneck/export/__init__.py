"""Programs and ONNX models that run without dinoneck, of a head or of backbone and heads."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.export.exporting import Exported as Exported
    from dinoneck.export.exporting import export_head as export_head
    from dinoneck.export.exporting import export_model as export_model
    from dinoneck.export.exporting import export_state_dict as export_state_dict
    from dinoneck.export.parity import Parity as Parity

_HOMES = {
    "Exported": "dinoneck.export.exporting",
    "export_head": "dinoneck.export.exporting",
    "export_model": "dinoneck.export.exporting",
    "export_state_dict": "dinoneck.export.exporting",
    "Parity": "dinoneck.export.parity",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
