"""Heads for programs without dinoneck: plain weights, a torch program, an ONNX model; the last two say what they are.

A program takes tokens and gives every task in natural units, with free batch and, where the head has no grid of its
own, free grid. The head file's whole metadata travels inside under the key ``dinoneck``.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from dinoneck.atomic import write_whole
from dinoneck.checkpoint import file as files
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.programs import bare_onnx, without_paths
from dinoneck.errors import CheckpointError, ConfigError, missing_extra
from dinoneck.grid import GridSize
from dinoneck.tokens import Tokens

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_TRACED_BATCH = 3
_TRACED_GRID = GridSize(8, 9)
_MAX_CELLS = 1 << 16


def export_state_dict(checkpoint: HeadCheckpoint, path: str | os.PathLike[str], *, drop_adapter: bool = False) -> None:
    """Write the head's weights alone as a plain ``.safetensors`` file, for ``module.load_state_dict`` anywhere.

    Everything else is lost: configuration, backbone, units, digest.

    Args:
        checkpoint: the head.
        path: the file.
        drop_adapter: leave LoRA weights behind that travel with the head; else such a head is refused.

    Raises:
        CheckpointError: if LoRA weights would be lost, or the file cannot be written.
    """
    if checkpoint.adapter_state and not drop_adapter:
        raise CheckpointError(
            "LoRA weights of the backbone travel with this head and have no place among its own; pass "
            "drop_adapter=True to leave them behind",
            step="write",
        )
    _write(path, safetensors.torch.save(dict(checkpoint.state_dict)))


def export_program(
    checkpoint: HeadCheckpoint, path: str | os.PathLike[str], *, grid: tuple[int, int] | None = None
) -> None:
    """Write a ``torch.export`` program (``.pt2``): ``program(tokens) -> {task: natural units}``.

    ``torch.export.load(path, extra_files={"dinoneck": ""})`` gives the metadata too. No example inputs are stored, so
    the file holds no pickle.

    Args:
        checkpoint: the head, with the record of its backbone.
        path: the file.
        grid: (rows, cols), the only ones it will take; None = any, of one or some cells upwards by the head.

    Raises:
        CheckpointError: if the head needs a grid and none is given, is no head with tasks, or cannot be written.
    """
    program = _traced(checkpoint, grid)
    program._example_inputs = None
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={files.METADATA_KEY: _metadata(checkpoint)})
    _write(path, buffer.getvalue())


def export_onnx(
    checkpoint: HeadCheckpoint, path: str | os.PathLike[str], *, grid: tuple[int, int] | None = None
) -> None:
    """Write an ONNX model: tokens of every layer in, every task in natural units out.

    Its inputs are ``tokens_0``, ... (batch, prefix + rows * cols, width), one per layer, and where the head reads them
    the integers ``rows`` and ``cols``; its outputs have the tasks' names. The metadata is in its ``metadata_props``.

    Args:
        checkpoint: as for :func:`export_program`.
        path: the file.
        grid: likewise.

    Raises:
        CheckpointError: as :func:`export_program`.
        ImportError: if onnx is not installed.
    """
    program = _traced(checkpoint, grid)
    count = len(program.graph_signature.user_inputs)
    names = [f"tokens_{i}" for i in range(count - 2)]
    tasks = [task["name"] for task in checkpoint.meta["tasks"]]
    try:
        made = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=[*names, "rows", "cols"], output_names=tasks
        )
    except ImportError as error:
        raise missing_extra(str(error.name or "onnx"), "export") from error
    model = bare_onnx(cast("Any", made).model_proto)
    for key, value in {files.METADATA_KEY: _metadata(checkpoint)}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    _write(path, model.SerializeToString())


class _Natural(nn.Module):
    """What a head says in natural units."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{task: natural units}``."""
        answers: dict[str, Tensor] = cast("Any", self.head).natural(tokens)
        return answers


def _traced(checkpoint: HeadCheckpoint, grid: tuple[int, int] | None) -> ExportedProgram:
    if not checkpoint.meta["tasks"]:
        raise CheckpointError(
            f"{checkpoint.head_type!r} is no head with tasks; export_state_dict writes its weights", step="config"
        )
    if grid is not None and not 1 <= math.prod(grid) <= _MAX_CELLS:
        raise CheckpointError(
            f"grid is {tuple(grid)}; expected 1 to {_MAX_CELLS} cells: the head runs once on it while it is exported",
            step="config",
        )
    head = checkpoint.build()
    tokens = _example(checkpoint, head, _TRACED_GRID if grid is None else GridSize(*grid))
    free = tokens.dynamic_spec() if grid is None else _only_batch(tokens)
    try:
        with torch.no_grad():
            _Natural(head)(tokens)
            natural = _Natural(head).eval()
            return without_paths(torch.export.export(natural, (tokens,), dynamic_shapes=(free,), strict=False))
    except Exception as error:  # the exporter raises many unrelated types
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        hint = "" if grid is not None else " A head with a grid of its own needs grid=(rows, cols) (--grid ROWSxCOLS)."
        raise CheckpointError(
            f"this {checkpoint.head_type!r} cannot be exported: {told}.{hint}", step="config"
        ) from error


def _example(checkpoint: HeadCheckpoint, head: nn.Module, grid: GridSize) -> Tokens:
    """Tokens like those of the backbone the head was trained on."""
    record: Mapping[str, Any] = checkpoint.meta["backbone"] or {}
    if lacking := [key for key in ("patch_size", "num_cls", "num_registers", "layers") if record.get(key) is None]:
        raise CheckpointError(
            f"this head file does not say which tokens it takes (backbone: {', '.join(lacking)}); save it "
            "with backbone=",
            step="pairing",
        )
    layers = tuple(getattr(head, "layer_indices", None) or record["layers"])
    width, prefix = cast("Any", head).embed_dim, int(record["num_cls"]) + int(record["num_registers"])
    down, across = record["patch_size"] if isinstance(record["patch_size"], list) else (record["patch_size"],) * 2
    dtype = next(head.parameters()).dtype
    sequence = [torch.zeros(_TRACED_BATCH, prefix + grid.count, width, dtype=dtype) for _ in layers]
    try:
        return Tokens.from_sequence(
            sequence,
            image_size=(grid.rows * down, grid.cols * across),
            patch_size=(down, across),
            num_prefix_tokens=prefix,
            layers=layers,
            normed=record.get("norm"),
        )
    except (ConfigError, ValueError) as error:
        raise CheckpointError(f"the backbone record describes no tokens: {error}", step="pairing") from error


def _only_batch(tokens: Tokens) -> Any:
    """Free batch, fixed grid."""
    return [*({0: torch.export.Dim.DYNAMIC} for _ in tokens.sequence), None, None]


def _metadata(checkpoint: HeadCheckpoint) -> str:
    return files.canonical(checkpoint.meta).decode("utf-8")


def _write(path: str | os.PathLike[str], content: bytes) -> None:
    files.check_path(path)
    try:
        write_whole(Path(path), content)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}", step="write") from error
