"""An ONNX model in ONNX Runtime or OpenVINO on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinoneck import cpu_libraries
from dinoneck.errors import CheckpointError, DataError
from dinoneck.kinds import FileRuntime
from dinoneck.text import counted, first_line

Array = np.ndarray[Any, Any]
_FATAL_ONLY = 4  # of ONNX Runtime's log levels


class OnnxRuntimeSession:
    """A model in ONNX Runtime; several threads may call it at once."""

    def __init__(self, content: bytes, name: str, num_threads: int | None) -> None:
        library = cpu_libraries.onnxruntime()
        options = library.SessionOptions()
        options.log_severity_level = _FATAL_ONLY  # failures are raised
        options.intra_op_num_threads = num_threads or 0
        try:
            self._session = library.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of ONNX Runtime: several types
            raise _unusable(name, "ONNX Runtime", error) from error

    def run(self, outputs: Sequence[str], input_name: str, values: Array) -> list[Array]:
        """Return some outputs for the values of the one input."""
        arrays: list[Array] = self._session.run(list(outputs), {input_name: values})
        return arrays


class OpenVinoSession:
    """A model in OpenVINO; threads that call it wait for each other."""

    def __init__(self, content: bytes, name: str, num_threads: int | None) -> None:
        core = cpu_libraries.openvino().Core()
        properties: dict[str, Any] = {
            # without it OpenVINO computes in bfloat16 wherever the processor can
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if num_threads is not None:
            properties["INFERENCE_NUM_THREADS"] = num_threads
        try:
            model = core.read_model(content)
            self._request = core.compile_model(model, "CPU", properties).create_infer_request()
        except Exception as error:  # of OpenVINO: several types
            raise _unusable(name, "OpenVINO", error) from error
        self._lock = threading.Lock()

    def run(self, outputs: Sequence[str], input_name: str, values: Array) -> list[Array]:
        """Return some outputs for the values of the one input."""
        with self._lock:
            self._request.infer({input_name: values})
            return [np.array(self._request.get_tensor(name).data) for name in outputs]


Session = OnnxRuntimeSession | OpenVinoSession


def open_session(
    content: bytes, runtime: FileRuntime, name: str, num_threads: int | None
) -> Session:
    """Make a model ready to run.

    Args:
        content: of the file, which is checked.
        runtime: what runs it.
        name: of the file, for messages.
        num_threads: of the runtime; None: as many as it chooses.

    Raises:
        CheckpointError: if the runtime does not take it.
        ImportError: if the runtime is not installed.
    """
    try:
        if runtime == "onnxruntime":
            return OnnxRuntimeSession(content, name, num_threads)
        return OpenVinoSession(content, name, num_threads)
    except ImportError as error:
        raise ImportError(
            f"{runtime} is not installed, and it runs {name}: pip install {runtime}"
        ) from error


def run_session(
    session: Session, outputs: Sequence[str], input_name: str, images: Array
) -> dict[str, Array]:
    """Return output -> its values for prepared images (B, C, H, W).

    Raises:
        DataError: if the model fails on them.
    """
    try:
        arrays = session.run(outputs, input_name, images)
    except Exception as error:  # of both libraries: several types
        height, width = images.shape[-2:]
        raise DataError(
            f"the model fails on {counted(len(images), 'image')} of {height}x{width} px: "
            f"{first_line(error)}; "
            "take fewer at once (batch_size, --batch-size), or images of the size that it was "
            "exported for"
        ) from error
    return dict(zip(outputs, arrays, strict=True))


def _unusable(name: str, library: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{library} does not take {name}: {first_line(error)}; export it again", step="file"
    )
