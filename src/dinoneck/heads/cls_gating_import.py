"""Weights of the design source's gating module -> a CLSGatingHead, and the tasks that go with it."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from dinoneck.data.auxiliary import STATES
from dinoneck.errors import BackboneError, CheckpointError, some_of
from dinoneck.heads.cls_gating import CLSGatingHead
from dinoneck.tasks import Task
from dinoneck.weight_files import read_state

_PLACES = {
    "gate_mlp.0": "gating.hidden",
    "gate_mlp.2": "gating.out",
    "shared_mlp.0": "trunk",
    "shared_mlp.1": "norm",
    "main_head": "readouts.0",
    "state_head": "readouts.1",
    "height_head": "readouts.2",
    "aux_head": "readouts.3",
}
_NAMES = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _PLACES.items() for kind in ("weight", "bias")}


def cls_gating_tasks() -> tuple[Task, ...]:
    """Return the tasks of the design source: main, state, height and aux, with their losses and weights.

    :class:`dinoneck.losses.TaskLoss` of them is its loss: the sum of 1.0, 0.6 and 0.3 times the SmoothL1 of total,
    GDM and green, and 0.1 times each of the others.
    """
    return (
        Task(
            "main",
            dim=3,
            activation="softplus",
            loss="smooth_l1",
            weight=(1.0, 0.6, 0.3),
            unit="g",
            labels=("Dry_Total_g", "GDM_g", "Dry_Green_g"),
        ),
        Task("state", dim=len(STATES), kind="classification", weight=0.1, labels=STATES),
        Task("height", activation="softplus", loss="smooth_l1", weight=0.1, unit="cm", labels=("Height_Ave_cm",)),
        Task(
            "aux",
            dim=2,
            activation="softplus",
            loss="smooth_l1",
            weight=0.1,
            unit="g",
            labels=("Dry_Dead_g", "Dry_Clover_g"),
        ),
    )


def import_cls_gating(source: Mapping[str, Tensor] | str | os.PathLike[str], dropout: float = 0.1) -> CLSGatingHead:
    """Return the head that does what the design source's module with these weights does, to the bit of the weights.

    Args:
        source: its state dict, or a ``.safetensors`` file or a torch file of it, read by the weights-only loader.
        dropout: of the hidden units; state dicts do not tell.

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
    head = CLSGatingHead(
        embed_dim, cls_gating_tasks(), "mlp", num_patches, hidden_dim, dropout, device="meta", dtype=dtype
    )
    return _filled(head, state, where)


def _check_names(state: Mapping[str, Tensor], where: str) -> None:
    missing, unknown = set(_NAMES) - set(state), {str(key) for key in state} - set(_NAMES)
    if missing or unknown:
        told = [f"lacks {some_of(missing, 4)}"] if missing else []
        told += [f"holds {some_of(unknown, 4)}, which this head has no place for"] if unknown else []
        raise CheckpointError(
            f"{where} {' and '.join(told)}; expected the weights and biases of {', '.join(_PLACES)}", step="tensors"
        )
    for key, value in state.items():
        if not isinstance(value, Tensor) or not value.ndim or not value.is_floating_point():
            raise CheckpointError(f"{where}: {key} is no tensor of floating-point weights", step="tensors")


def _pair(state: Mapping[str, Tensor], key: str, where: str) -> tuple[int, int]:
    shape = tuple(state[key].shape)
    if len(shape) != 2 or not all(shape):
        raise CheckpointError(f"{where}: {key} has shape {shape}; expected (outputs, inputs)", step="tensors")
    return shape[0], shape[1]


def _filled(head: CLSGatingHead, state: Mapping[str, Tensor], where: str) -> CLSGatingHead:
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
