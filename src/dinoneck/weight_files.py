"""Files of weights from elsewhere, read so that nothing in them can run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dinoneck.errors import BackboneError, some_of

_WRAPPERS = ("model", "state_dict")
_SHOWN = 8


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or, through the weights-only loader, ``.pth``/``.pt``/``.bin``.

    Raises:
        BackboneError: if the file is missing or damaged, or holds something else than named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise BackboneError(f"there is no weights file {file}")
    try:
        if file.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise almost anything
        raise BackboneError(
            f"{file} cannot be read as weights ({first_line(error)}); expected .safetensors, or a .pth state dict "
            "of tensors only"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise BackboneError(f"{file} holds {type(loaded).__name__}; expected a state dict of named tensors")
    strange = [str(key) for key, value in loaded.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise BackboneError(f"{file}: {some_of(strange, _SHOWN)} are no tensors; expected a plain state dict")
    return dict(loaded)


def read_tensor(path: str | os.PathLike[str]) -> Tensor:
    """Read a single tensor from a ``.pt`` file through the weights-only loader.

    Raises:
        BackboneError: if the file is missing or damaged, or holds anything else.
    """
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise almost anything
        raise BackboneError(f"{path} cannot be read as a tensor ({first_line(error)})") from error
    if not isinstance(loaded, Tensor):
        raise BackboneError(f"{path} holds {type(loaded).__name__}; expected a tensor")
    return loaded


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, at most 200 characters."""
    return (str(error).strip().splitlines() or [""])[0][:200]
