"""Rotary frequencies that differ from those which a published model is built with.

timm and transformers keep them in buffers that are in no state dict, and compute them when a model
is built. Meta's files hold periods that were rounded to bfloat16, and a model may be built with
another temperature; both give other tokens. These buffers are no part of the hash of the weights,
which is the same for every copy of a published model: they travel with the weights instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dinoneck.errors import BackboneError

PERIODS = "rope.periods"
"""timm's name of the buffer."""
FREQUENCIES = "rope_embeddings.inv_freq"
"""The name of the buffer in transformers, which holds their inverse."""
NAMES = (PERIODS, FREQUENCIES)
_TEMPERATURE = 100.0  # of every published DINOv3
_ROUNDING = 2**-8  # relative, of Meta's files in bfloat16: 2**-9, and of inverses as much again


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of rotary frequencies that are in no state dict, by their names in the model."""
    modules = dict(model.named_children())
    buffers = {}
    for name in NAMES:
        module_name, buffer_name = name.split(".")
        module = modules.get(module_name)
        if module is None:
            continue
        # only this module is asked: predictors compare the buffers at every call
        buffer = dict(module.named_buffers(recurse=False)).get(buffer_name)
        if buffer is not None and buffer_name not in module.state_dict():
            buffers[name] = buffer
    return buffers


def changed_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return those of :func:`buffers_of` that differ from those of a model that is built by name."""
    changed = {}
    for name, value in buffers_of(model).items():
        if not value.is_meta and not torch.equal(value.cpu(), _published(name, value.numel())):
            changed[name] = value
    return changed


def unusual_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return those of :func:`changed_buffers` that are not those of a published model in bfloat16 either."""
    unusual = {}
    for name, value in changed_buffers(model).items():
        published = _published(name, value.numel())
        if not torch.allclose(value.cpu().float(), published, rtol=_ROUNDING, atol=0.0):
            unusual[name] = value
    return unusual


def without_buffers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file without the buffers, which the hash of the weights leaves out."""
    return {name: value for name, value in state.items() if name not in NAMES}


def load_buffers(
    model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """Copy the buffers that a file holds into a model; return the file's other tensors.

    Raises:
        BackboneError: if the model has no such buffer of this shape, or a value is not positive.
    """
    buffers = buffers_of(model)
    for name in NAMES:
        if name not in state:
            continue
        value = state[name]
        buffer = buffers.get(name)
        if buffer is None or buffer.shape != value.shape:
            expected = "none" if buffer is None else str(tuple(buffer.shape))
            raise BackboneError(
                f"{path}: {name} has shape {tuple(value.shape)}, and the model's is {expected}; "
                "load the file with the name and the source= that it was saved with"
            )
        if not bool((value.isfinite() & (value > 0)).all()):
            raise BackboneError(
                f"{path}: {name} holds values that are not positive; the file is damaged or was "
                "edited, fetch it again"
            )
        with torch.no_grad():
            buffer.copy_(value)
    return without_buffers(state)


def _published(name: str, count: int) -> Tensor:
    """The values of a model that is built by its name, to the last bit as timm computes them."""
    exponents = 2.0 * torch.arange(count, dtype=torch.float32) / (2 * count)
    periods = _TEMPERATURE**exponents
    if name == PERIODS:
        return periods
    return 1.0 / periods
