"""Published weights of a CLS-gating module -> a CLSGatingHead; the names and tasks are in ``cls_gating.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoneck import registry
from dinoneck.configured import normal
from dinoneck.errors import BackboneError, CheckpointError, some_of
from dinoneck.tasks import Task
from dinoneck.weight_files import read_state

_PUBLISHED = json.loads(Path(__file__).with_name("cls_gating.json").read_text())
_NAMES = {
    f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _PUBLISHED["names"].items() for kind in ("weight", "bias")
}


def cls_gating_tasks() -> tuple[Task, ...]:
    """Return the tasks of the published module: main, state, height and aux, with their losses and weights."""
    return cast("tuple[Task, ...]", normal(tuple[Task, ...], _PUBLISHED["tasks"], "cls_gating.json"))


def import_cls_gating(source: Mapping[str, Tensor] | str | os.PathLike[str], dropout: float = 0.1) -> nn.Module:
    """Return the head that computes what the published module with these weights does; weights stay bit-identical.

    Args:
        source: its state dict, or a ``.safetensors`` file or a torch file of it, read by the weights-only loader.
        dropout: of the hidden units, which a state dict does not record.

    Returns:
        A head of mode ``mlp`` in eval mode, with :func:`cls_gating_tasks`, in the dtype of the weights.

    Raises:
        CheckpointError: if the file cannot be read, or a key is missing, unknown, misshapen or not finite.
    """
    if isinstance(source, str | os.PathLike):
        try:
            state: Mapping[str, Tensor] = read_state(source)
        except BackboneError as error:
            raise CheckpointError(str(error)) from error
        where = str(source)
    else:
        state, where = source, "the state dict"
    _check_names(state, where)
    (width, embed_dim), num_patches = _pair(state, "gate_mlp.0.weight", where), len(state["gate_mlp.2.weight"])
    if width != embed_dim // 4:
        raise CheckpointError(
            f"{where}: gate_mlp.0 turns {embed_dim} channels into {width}; expected a quarter, {embed_dim // 4}",
            step="tensors",
        )
    dtype = state["gate_mlp.0.weight"].dtype
    hidden_dim = len(state["shared_mlp.0.weight"])
    cls: Any = registry.resolve("cls_gating")
    head = cls(embed_dim, cls_gating_tasks(), "mlp", num_patches, hidden_dim, dropout, device="meta", dtype=dtype)
    return _filled(head, state, where)


def _check_names(state: Mapping[str, Tensor], where: str) -> None:
    missing, unknown = set(_NAMES) - set(state), {str(key) for key in state} - set(_NAMES)
    if missing or unknown:
        differences = [f"lacks {some_of(missing, 4)}"] if missing else []
        differences += [f"holds {some_of(unknown, 4)}, which this head has no place for"] if unknown else []
        expected = ", ".join(_PUBLISHED["names"])
        raise CheckpointError(
            f"{where} {' and '.join(differences)}; expected the weights and biases of {expected}", step="tensors"
        )
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.ndim or not value.is_floating_point():
            raise CheckpointError(f"{where}: {key} is not a tensor of floating-point weights", step="tensors")


def _pair(state: Mapping[str, Tensor], key: str, where: str) -> tuple[int, int]:
    shape = tuple(state[key].shape)
    if len(shape) != 2 or not all(shape):
        raise CheckpointError(f"{where}: {key} has shape {shape}; expected (outputs, inputs)", step="tensors")
    return shape[0], shape[1]


def _filled(head: nn.Module, state: Mapping[str, Tensor], where: str) -> nn.Module:
    expected = head.state_dict()
    for theirs, ours in _NAMES.items():
        value = state[theirs]
        if value.shape != expected[ours].shape:
            raise CheckpointError(
                f"{where}: {theirs} has shape {tuple(value.shape)}; expected {tuple(expected[ours].shape)}",
                step="tensors",
            )
        if value.dtype != expected[ours].dtype:
            raise CheckpointError(
                f"{where}: {theirs} is {value.dtype} and gate_mlp.0.weight {expected[ours].dtype}; expected one dtype",
                step="tensors",
            )
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{where}: {theirs} holds values that are not finite", step="finite")
    head = head.to_empty(device="cpu")
    with torch.no_grad():
        head.load_state_dict({ours: state[theirs] for theirs, ours in _NAMES.items()}, strict=True)
    return head.eval()
