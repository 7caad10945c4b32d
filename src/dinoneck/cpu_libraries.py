"""The libraries that run models outside of torch: ONNX Runtime and OpenVINO. No other module imports them.

Both report their use and keep an identifier of the user in the home folder unless they are kept
from it, as they are here.
"""

from __future__ import annotations

import os
import sys
import threading
from types import ModuleType

_TELEMETRY = "openvino_telemetry"
_IMPORT = threading.Lock()


def onnxruntime() -> ModuleType:
    """Import ONNX Runtime without what would report it.

    Raises:
        ImportError: if it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read while it is imported
    import onnxruntime as library

    module: ModuleType = library
    return module


def openvino() -> ModuleType:
    """Import OpenVINO without what would report it: its package ``openvino_telemetry`` is hidden.

    Raises:
        ImportError: if it is not installed.
    """
    with _IMPORT:
        hidden = sys.modules.get(_TELEMETRY)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # its import raises ImportError
        try:
            import openvino as library
        finally:
            if hidden is None:
                del sys.modules[_TELEMETRY]
            else:
                sys.modules[_TELEMETRY] = hidden
    module: ModuleType = library
    return module
