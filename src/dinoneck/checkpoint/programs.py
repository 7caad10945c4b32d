"""Exported programs without what the exporter notes about the machine: source paths, line by line, on every node.

Nobody needs them to run a model, and they tell strangers user names and folders; in small models they are most of the
file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def without_paths(program: ExportedProgram) -> ExportedProgram:
    """Drop the stack traces of a program's nodes, in place, and return it."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def bare_onnx(model: Any) -> Any:
    """Drop what the exporter notes beside an ONNX model (``ModelProto``), its nodes and values; return the model.

    The conversion notes paths of its own, so a program without them is not enough.
    """
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        for noted in _noted(graph):
            del noted.metadata_props[:]
            noted.ClearField("doc_string")
    return model


def _noted(graph: Any) -> Iterator[Any]:
    """A graph or function, and everything in it that may have notes."""
    yield graph
    for field in ("input", "output", "initializer", "value_info"):
        yield from (entry for entry in getattr(graph, field) if not isinstance(entry, str))
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _noted(attribute.g)
