"""An exported program as an ONNX file: named outputs, a check of image sizes inside, large weights in a second file."""

from __future__ import annotations

import copy
import logging
import re
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dinoneck.atomic import write_whole
from dinoneck.cpu_libraries import onnxruntime
from dinoneck.errors import CheckpointError
from dinoneck.export.models import ImagesModel, Model
from dinoneck.export.program import Run, Traced
from dinoneck.export.resampling import DECOMPOSITIONS
from dinoneck.extras import missing_extra
from dinoneck.text import first_line, reason_of

LARGEST_BYTES = (1 << 31) - (1 << 24)  # protobuf ends at 2 GiB
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_LEAST_EXTERNAL_BYTES = 1024  # of a weight that goes into the second file
_MODULE_PATHS = "pkg.torch.onnx.name_scopes"  # an entry of a node's metadata
_FATAL_ONLY = 4  # of ONNX Runtime's log levels


def input_names(model: Model, traced: Traced) -> list[str]:
    """Return the names of the inputs, without rows and cols of a fixed grid.

    An input that has the name of an output gets the suffix ``:input``.
    """
    names = []
    for onnx_input in model.onnx_inputs:
        if onnx_input.is_grid_side and traced.grid is not None:
            continue
        name = onnx_input.name
        names.append(f"{name}:input" if name in traced.outputs else name)
    return names


def onnx_model(traced: Traced, model: Model) -> Any:
    """Return a program as an ONNX model (``ModelProto``).

    Free sides of images are checked inside the graph.

    Args:
        traced: the program.
        model: what it was made of.

    Raises:
        CheckpointError: if it has no ONNX export.
        ImportError: naming the extra, if onnx or onnxscript is not installed.
    """
    # it warns of operators that its optimiser leaves as they are
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        from onnx.compose import add_prefix_graph
        from onnxscript import ir

        program = traced.program.run_decompositions(DECOMPOSITIONS)
        exported = cast("Any", torch.onnx.export(program, dynamo=True, verbose=False))
    except ImportError as error:
        raise missing_extra(str(error.name or "onnx"), "export") from error
    except Exception as error:  # of the exporter: many unrelated types
        reason = first_line(error)
        raise CheckpointError(
            f"this model has no ONNX export: {reason}. Take format='pt2'", step="config"
        ) from error
    ir.passes.common.ClearMetadataAndDocStringPass()(exported.model)  # source paths among them
    proto = exported.model_proto
    graph = proto.graph
    del graph.value_info[:]  # symbols without meaning for people; runtimes find shapes themselves
    add_prefix_graph(graph, "inside:", inplace=True)  # a task may have the name of any value
    nodes = list(graph.node)
    del graph.node[:]
    has_free_images = isinstance(model, ImagesModel) and traced.grid is None
    # of a fixed grid rows and cols are left out; they are the last of the model's inputs
    inputs = zip(graph.input, input_names(model, traced), model.onnx_inputs, strict=False)
    for value, name, onnx_input in inputs:
        if has_free_images:
            graph.node.extend(_whole_patches(graph, name, value.name, model.patch_size))
        else:
            graph.node.add(
                op_type="Identity", name=f"input_{name}", input=[name], output=[value.name]
            )
        _name(value, name, onnx_input.free_sides)
    graph.node.extend(nodes)
    for value, name in zip(graph.output, traced.outputs, strict=True):
        graph.node.add(op_type="Identity", name=f"output_{name}", input=[value.name], output=[name])
        _name(value, name, ("batch", None, f"{name}.rows", f"{name}.cols"))
    return proto


def to_half(proto: Any, float32_modules: Collection[str] = ()) -> None:
    """Let matrix products and convolutions of an ONNX model compute in float16, with their weights in float16.

    Everything else stays in float32: softmax, norms, rotary positions, the sums of residuals,
    original units.

    Args:
        proto: the ONNX model, which is changed. With ``float32_modules`` it still has the metadata
            of the exporter, which name the module of every node.
        float32_modules: names of modules whose products stay in float32, such as ``"bbox_embed"``.

    Raises:
        CheckpointError: if a weight is too large for float16.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    halves: dict[str, str] = {}  # name of a float32 value -> name of the same in float16
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        is_transposed_weight = node.op_type == "Transpose" and node.input[0] in weights
        is_product = node.op_type in _PRODUCTS or is_transposed_weight
        if not is_product or not modules_of(node).isdisjoint(float32_modules):
            graph.node.append(node)
            continue
        for i, name in enumerate(node.input):
            if name not in halves:
                half_name = f"{name}:half"
                halves[name] = half_name
                if name in weights:
                    values = _as_half(numpy_helper.to_array(weights[name]))
                    graph.initializer.append(numpy_helper.from_array(values, half_name))
                else:
                    graph.node.append(
                        helper.make_node("Cast", [name], [half_name], to=TensorProto.FLOAT16)
                    )
            node.input[i] = halves[name]
        [result] = node.output
        half_result = f"{result}:half"
        halves[result] = half_result
        node.output[0] = half_result
        graph.node.append(node)
        graph.node.append(helper.make_node("Cast", [half_result], [result], to=TensorProto.FLOAT))
    _drop_unused_weights(graph)


def modules_of(node: Any) -> set[str]:
    """Return the names of the modules that a node was exported from, outermost and inner ones, without their paths."""
    for entry in node.metadata_props:
        if entry.key == _MODULE_PATHS:
            # the text of a list: "['', 'head', 'head.decoder.bbox_embed.0', 'linear_3']"
            return set(re.findall(r"\w+", entry.value))
    return set()


def drop_metadata(proto: Any) -> None:
    """Drop what the exporter notes of every node, with lines of source and their paths on this machine."""
    graph = proto.graph
    for owner in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del owner.metadata_props[:]
        owner.ClearField("doc_string")


def _as_half(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    largest = np.abs(values).max(initial=0.0)
    if largest > np.finfo(np.float16).max:
        raise CheckpointError(
            f"weights of {largest:g} do not fit float16; leave half out", step="config"
        )
    return values.astype(np.float16)


def _drop_unused_weights(graph: Any) -> None:
    used = set()
    for node in graph.node:
        used.update(node.input)
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def write_onnx(path: Path, model: Any, texts: Mapping[str, str] | None = None) -> list[Path]:
    """Write a model whole or not at all; weights that make it larger than protobuf's 2 GiB go into a second file.

    The name of that file is the model's with a random suffix, and it is written first: a model never
    reads the weights of the model that it replaces. The weights of the replaced model stay until
    they are deleted.

    Args:
        path: the file.
        model: the model; large weights are moved to the second file.
        texts: its metadata.

    Returns:
        The files.
    """
    for key, value in (texts or {}).items():
        model.metadata_props.add(key=key, value=value)
    weight_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weight_bytes <= LARGEST_BYTES:
        write_whole(path, model.SerializeToString())
        return [path]
    from onnx import save_model

    weights = path.with_name(f"{path.name}.{secrets.token_hex(8)}.data")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder, path.name)
        save_model(
            model,
            file,
            save_as_external_data=True,
            location=weights.name,
            size_threshold=_LEAST_EXTERNAL_BYTES,
        )
        Path(folder, weights.name).replace(weights)
        file.replace(path)
    return [path, weights]


@contextmanager
def onnx_runner(proto: Any, onnx_values: Callable[[Any], list[Any]]) -> Iterator[Run]:
    """Give the ``with`` block a function that runs an ONNX model by ONNX Runtime on the CPU, from a temporary file.

    Args:
        proto: the ONNX model; it stays as it is.
        onnx_values: gives the values of the model's inputs, in their order, from an example.

    Raises:
        CheckpointError: if the file cannot be written, or ONNX Runtime does not take it.
        ImportError: naming the extra, if onnxruntime is not installed.
    """
    try:
        library = onnxruntime()
    except ImportError as error:
        raise missing_extra("onnxruntime", "export") from error
    options = library.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            file = Path(folder, "model.onnx")
            write_onnx(file, copy.deepcopy(proto))
        except OSError as error:
            raise CheckpointError(
                f"the copy to check cannot be written: {reason_of(error)}; let TMPDIR name a "
                "folder with room, or leave the check out: check=False (--no-check)",
                step="write",
            ) from error
        try:
            session = library.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of ONNX Runtime: several types
            reason = first_line(error).replace(str(file), "the model")  # that file is gone by then
            raise CheckpointError(
                f"ONNX Runtime refuses the exported model: {reason}", step="write"
            ) from error
        names = [entry.name for entry in session.get_outputs()]

        def run(example: Any) -> dict[str, Tensor]:
            inputs = {}
            for entry, value in zip(session.get_inputs(), onnx_values(example), strict=False):
                inputs[entry.name] = np.asarray(value)
            outputs = {}
            for name, output in zip(names, session.run(names, inputs), strict=True):
                outputs[name] = torch.as_tensor(output)
            return outputs

        yield run


def _name(value: Any, name: str, sides: tuple[str | None, ...]) -> None:
    """Name an input or output and its free dimensions."""
    value.name = name
    for dimension, side in zip(value.type.tensor_type.shape.dim, sides, strict=False):
        if side is not None and not dimension.HasField("dim_value"):
            dimension.dim_param = side


def _whole_patches(graph: Any, image: str, result: str, patch: tuple[int, int]) -> Iterator[Any]:
    """Yield nodes that fail for images whose sides are not multiples of the patch.

    The backbone's convolution would ignore the remainder without an error.
    """
    from onnx import helper, numpy_helper

    sides = f"{image}:sides"
    cells = f"{image}:cells"
    whole = f"{image}:whole"
    shape = f"{image}:shape"
    kept = f"{image}:kept"
    unit = f"{image}:patch"
    graph.initializer.append(numpy_helper.from_array(np.asarray(patch), unit))
    # a 0 in a shape of Reshape keeps a side: here batch and channels
    graph.initializer.append(numpy_helper.from_array(np.asarray((0, 0)), kept))
    yield helper.make_node("Shape", [image], [sides], start=2, end=4)
    yield helper.make_node("Div", [sides, unit], [cells])
    yield helper.make_node("Mul", [cells, unit], [whole])
    yield helper.make_node("Concat", [kept, whole], [shape], axis=0)
    name = f"height_and_width_must_be_multiples_of_{patch[0]}_and_{patch[1]}"
    yield helper.make_node("Reshape", [image, shape], [result], name)
