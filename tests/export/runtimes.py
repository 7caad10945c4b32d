"""ONNX files in the runtimes that read them, and the operators that they may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
Runner = Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]

_ALLOWED = """
    Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat ConstantOfShape Conv
    ConvTranspose Cos Div Einsum Equal Erf Exp Expand Floor Gather GatherElements GatherND Gelu Gemm
    Greater GreaterOrEqual GroupNormalization Identity InstanceNormalization LayerNormalization
    LeakyRelu Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow Range ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Shape Sigmoid Sin Slice Softmax
    Softplus Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Unsqueeze Where
"""
# all that an export may hold. Not among them: GridSample, which TensorRT gets wrong without an
# error; NonMaxSuppression and NonZero, whose results have no fixed number; Loop, If and Scan;
# operators of other domains
ALLOWED_OPERATORS = frozenset(_ALLOWED.split())


def onnx_runtime(path: Path) -> Runner:
    """Return a function that runs a file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


def openvino(path: Path) -> Runner:
    """Return a function that runs a file in OpenVINO on the CPU, in the precision of the file.

    An output may have a second name there, that of a value inside the file.
    """
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    names_of_outputs = [output.names for output in compiled.outputs]

    def run(inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        results = compiled(dict(inputs))
        outputs = {}
        for i, names in enumerate(names_of_outputs):
            outputs.update(dict.fromkeys(names, results[i]))
        return outputs

    return run


RUNTIMES: dict[str, Callable[[Path], Runner]] = {
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
}


def operators_of(proto: Any) -> dict[str, int]:
    """Return operator -> how many nodes of a file have it, the most frequent first; those of other domains with it."""
    counts: dict[str, int] = {}
    for node in proto.graph.node:
        name = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def relative_gaps(outputs: Arrays, expected: Arrays) -> dict[str, float]:
    """Return output -> its largest difference, relative to the largest value that is expected."""
    gaps = {}
    for name, values in expected.items():
        assert outputs[name].shape == values.shape, name
        scale = max(float(np.abs(values).max()), 1e-6)
        gaps[name] = float(np.abs(outputs[name] - values).max()) / scale
    return gaps
