"""An exported program as an ONNX file: named outputs, a refusal of odd sizes inside, large weights beside it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dinoneck.atomic import write_whole
from dinoneck.checkpoint.programs import bare_onnx
from dinoneck.errors import CheckpointError, first_line, missing_extra
from dinoneck.inference.whole_model import Sides

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dinoneck.inference.export_parity import Run

LARGEST_BYTES = (1 << 31) - (1 << 24)  # protobuf ends at 2 GiB
_SMALL_BYTES = 1 << 10
_ALIGNED = 1 << 12
_OUTSIDE = 1  # TensorProto.EXTERNAL
_SILENT = 4


def onnx_model(program: ExportedProgram, image: str, outputs: Sequence[str], sides: Sides) -> Any:
    """Return a program as an ONNX model (``ModelProto``).

    Args:
        program: of one batch of images.
        image: name of the input.
        outputs: names of the outputs, in order.
        sides: of the images; free ones are checked inside the graph.

    Raises:
        CheckpointError: if it has no ONNX export.
        ImportError: naming the extra, if onnx or onnxscript is not installed.
    """
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    except ImportError as error:
        raise missing_extra(str(error.name or "onnx"), "export") from error
    except Exception as error:  # of the exporter: many unrelated types
        told = first_line(error) or type(error).__name__
        raise CheckpointError(f"this model has no ONNX export: {told}. Take format='pt2'", step="config") from error
    model = bare_onnx(cast("Any", made).model_proto)
    graph = model.graph
    del graph.value_info[:]  # symbols without meaning for people; runtimes find shapes themselves
    _rename(graph, [image], outputs)
    _name_sides(graph.input[0], ("batch", None, "height", "width"))
    for value in graph.output:
        rank = len(value.type.tensor_type.shape.dim)
        _name_sides(value, ("batch", None, f"{value.name}.rows", f"{value.name}.cols")[:rank])
    if sides.size is None:
        _refuse_odd_sides(graph, image, sides.patch)
    return model


def with_metadata(model: Any, metadata: Mapping[str, str]) -> Any:
    """Put texts into the model's ``metadata_props`` and return it."""
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model


def write_onnx(path: Path, model: Any) -> list[Path]:
    """Write a model, whole or not at all; weights that make it larger than protobuf's 2 GiB go into a second file.

    That file is named after the model's and its own content, and written first: a model that is replaced never reads
    weights that are not its own.

    Returns:
        The files.
    """
    beside: Path | None = None
    earlier = _weights_of(path)  # those that come from now on may be another process's
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_BYTES:
        beside = _write_weights(path, model)
    try:
        write_whole(path, model.SerializeToString())
    except BaseException:
        if beside is not None:
            with suppress(OSError):
                beside.unlink()
        raise
    for old in earlier:
        if old != beside:
            with suppress(OSError):
                old.unlink()
    return [path] if beside is None else [path, beside]


def onnx_runner(model: Any, folder: Path, outputs: Sequence[str]) -> Run:
    """Return a function that runs a model by ONNX Runtime on the CPU.

    Args:
        model: the model; it stays as it is.
        folder: an empty one for its files, which are needed as long as it runs.
        outputs: names.

    Raises:
        CheckpointError: if ONNX Runtime does not take it.
        ImportError: naming the extra, if onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "export") from error
    copied = type(model)()
    copied.CopyFrom(model)
    write_onnx(folder / "model.onnx", copied)
    del copied
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of ONNX Runtime: several types
        told = first_line(error) or type(error).__name__
        raise CheckpointError(f"ONNX Runtime does not take the exported model: {told}", step="write") from error
    (image,) = session.get_inputs()

    def run(pixels: Tensor) -> dict[str, Tensor]:
        found = session.run(list(outputs), {image.name: pixels.numpy()})
        return {name: torch.as_tensor(x) for name, x in zip(outputs, found, strict=True)}

    return run


def _rename(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs their names, and whatever inside has one of these another."""
    taken = {*inputs, *outputs}
    new = {name: f"{name}.inside" for name in _names(graph) if name in taken}
    new |= {value.name: name for value, name in zip(graph.input, inputs, strict=True)}
    for node in _nodes(graph):
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for value in graph.input:
        value.name = new[value.name]
    for value, name in zip(graph.output, outputs, strict=True):
        graph.node.add(
            op_type="Identity", name=f"output_{name}", input=[new.get(value.name, value.name)], output=[name]
        )
        value.name = name


def _names(graph: Any) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    for node in _nodes(graph):
        yield from node.output


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _name_sides(value: Any, names: Sequence[str | None]) -> None:
    for side, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
        if name is not None and not side.HasField("dim_value"):
            side.dim_param = name


def _refuse_odd_sides(graph: Any, image: str, patch: tuple[int, int]) -> None:
    """Let images of other sides than whole patches fail: a convolution would drop the rest in silence."""
    from onnx import helper, numpy_helper

    seen, stem = f"{image}.whole_patches", f"{image}.sides"
    for node in _nodes(graph):
        node.input[:] = [seen if name == image else name for name in node.input]
    constants = {"patch": patch, "batch_and_channels": (0, 0)}  # a 0 keeps what is there
    graph.initializer.extend(
        numpy_helper.from_array(torch.tensor(values).numpy(), f"{stem}.{name}") for name, values in constants.items()
    )
    refusal = f"height_and_width_must_be_multiples_of_{patch[0]}_and_{patch[1]}"
    checks = [
        helper.make_node("Shape", [image], [stem], f"{stem}.read", start=2, end=4),
        helper.make_node("Div", [stem, f"{stem}.patch"], [f"{stem}.cells"], f"{stem}.divided"),
        helper.make_node("Mul", [f"{stem}.cells", f"{stem}.patch"], [f"{stem}.whole"], f"{stem}.multiplied"),
        helper.make_node("Concat", [f"{stem}.batch_and_channels", f"{stem}.whole"], [f"{stem}.shape"], axis=0),
        helper.make_node("Reshape", [image, f"{stem}.shape"], [seen], refusal),
    ]
    nodes = [*checks, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _write_weights(path: Path, model: Any) -> Path:
    """Move large weights out of the model into a file beside ``path``."""
    chunks: list[bytes] = []
    offset, hashed = 0, hashlib.sha256()
    moved = []
    for tensor in model.graph.initializer:
        content = tensor.raw_data
        if len(content) < _SMALL_BYTES:
            continue
        filling = bytes(-offset % _ALIGNED)
        chunks += [filling, content]
        hashed.update(content)
        moved.append((tensor, offset + len(filling), len(content)))
        offset += len(filling) + len(content)
    beside = path.with_name(f"{path.name}.{hashed.hexdigest()[:16]}.data")
    write_whole(beside, chunks)
    for tensor, start, length in moved:
        tensor.ClearField("raw_data")
        tensor.data_location = _OUTSIDE
        for key, value in (("location", beside.name), ("offset", start), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    return beside


def _weights_of(path: Path) -> list[Path]:
    """Files of weights that were once written for a model of this path."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    return [path.with_name(entry) for entry in os.listdir(path.parent) if name.fullmatch(entry)]  # noqa: PTH208
