"""Files of weights from elsewhere, read so that nothing in them can run."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from dinoneck.atomic import check_regular
from dinoneck.errors import BackboneError
from dinoneck.text import first_line, reason_of, some_of
from dinoneck.torch_wrappers import LEADING

_STATES = ("model", "state_dict")  # where a dict keeps its state dict
_SHOWN = 8  # names in a message
# how often a byte of the file may be used: tied weights have two names, or a few, for one memory
_MOST_SHARES = 4
_CLASS_NAME = re.compile(r"GLOBAL ([\w.]+)")  # in torch's message: a class that it does not load
# where trainings save their settings and numbers: Namespace, DictConfig, PosixPath, scalars
_SETTINGS = (
    "argparse.",
    "omegaconf.",
    "yacs.",
    "easydict.",
    "mmengine.",
    "pathlib.",
    "numpy.",
    "lightning.",
    "lightning_fabric.",
    "pytorch_lightning.",
)
# the entries in which trainings save weights
_WEIGHT_ENTRIES = ("teacher", "student", "model_ema", "model", "state_dict")
_DISTRIBUTED = "torch.distributed."
_REFUSED = "Weights only load failed"  # in torch's message


def without_wrapper(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take away what DDP (``module.``) and torch.compile (``_orig_mod.``) put before every name.

    Returns:
        The tensors under their own names, and what was taken away, ``""`` if nothing.
    """
    tensors = dict(state)
    taken = ""
    prefix = _common_wrapper(tensors)
    while prefix:
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
        taken += prefix
        prefix = _common_wrapper(tensors)
    return tensors, taken


def _common_wrapper(state: Mapping[str, Tensor]) -> str:
    """What a wrapper put before every name, ``""`` if nothing, as where there are no names."""
    if not state:
        return ""
    for prefix in LEADING:
        if all(key.startswith(prefix) for key in state):
            return prefix
    return ""


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or, through the weights-only loader, ``.pth``/``.pt``/``.bin``.

    Nothing in the file can run: a pickle that wants to import or call anything is refused.

    Args:
        path: the file; a dict that holds the state dict under ``model`` or ``state_dict`` is fine.

    Raises:
        BackboneError: if the file is missing, damaged, compressed, a pickle that would run code, or
            holds something else than named tensors with values of their own.
    """
    file = Path(path)
    loaded = read_any(path)
    for name in _STATES:  # one, or one within the other
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    state = as_dict(loaded, str(file))
    check_dense(state, str(file))
    check_held(state, str(file))
    return dict(state)


def as_dict(loaded: Any, where: str) -> Mapping[Any, Any]:
    """Return what a file holds, if it is a dict that is not empty.

    Raises:
        BackboneError: if it is anything else, naming the file.
    """
    if not isinstance(loaded, Mapping) or not loaded:
        raise BackboneError(
            f"{where} holds a {type(loaded).__name__}; expected a state dict of named tensors"
        )
    return loaded


def check_dense(state: Mapping[Any, Any], where: str) -> None:
    """Raise a BackboneError for entries of a file that are not dense tensors, or whose name is not a text."""
    strange = []
    for key, value in state.items():
        if not (isinstance(key, str) and is_dense(value)):
            strange.append(str(key))
    if strange:
        raise BackboneError(
            f"{where}: {some_of(strange, _SHOWN)} are no dense tensors; expected a plain state dict"
        )


def is_dense(value: object) -> bool:
    """Whether a value is a tensor that stores all of its elements: not sparse, nested or on meta."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or value.is_nested)
    )


def check_held(state: Mapping[str, Tensor], where: str) -> None:
    """Reject tensors that share most of their memory: a small file could expand to any size.

    Args:
        state: the tensors.
        where: their file, for the message.

    Raises:
        BackboneError: naming the largest.
    """
    tensor_bytes = 0
    storages: dict[int, int] = {}  # address -> bytes
    for value in state.values():
        tensor_bytes += value.numel() * value.itemsize
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    stored_bytes = sum(storages.values())
    if tensor_bytes > _MOST_SHARES * stored_bytes:
        largest = max(state, key=lambda key: state[key].numel())
        raise BackboneError(
            f"{where}: its tensors, such as {largest}, have {tensor_bytes} bytes and share "
            f"{stored_bytes} of them; expected tensors with values of their own: save {{key: "
            "value.clone() for key, value in state.items()}"
        )


def read_any(path: str | os.PathLike[str]) -> Any:
    """Return what a file holds: tensors, plain values and dicts of them.

    Args:
        path: a ``.safetensors`` file, an ``.npz`` file of named arrays, or what ``torch.save`` wrote.
            Tensors come to the CPU.

    Raises:
        BackboneError: if the file is missing, damaged, larger unpacked, or a pickle that would run
            code; nothing of it runs.
    """
    file = Path(path)
    if file == Path():
        raise BackboneError(
            "the path of the weights file is empty or the current folder; pass a file of weights"
        )
    try:
        check_regular(file)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"the weights file {file} cannot be read: {reason_of(error)}"
        ) from error
    try:
        if file.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(file)
        _check_unpacked(file)
        if file.suffix.lower() == ".npz":
            return _read_arrays(file)
        return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except BackboneError:
        raise
    except Exception as error:  # a damaged pickle makes torch raise almost anything
        class_names = _CLASS_NAME.findall(str(error))
        if class_names:
            raise _foreign_object(file, class_names[-1]) from error
        if file.suffix.lower() == ".safetensors" and _begins_like_pickle(file):
            raise BackboneError(
                f"{file} is what torch.save writes, a pickle, with the name of a .safetensors file; "
                "take the .safetensors file of its publisher, or write its tensors with "
                "safetensors.torch.save_file"
            ) from error
        reason = f"{type(error).__name__}: {first_line(error)}"
        if _REFUSED in str(error):  # torch's own message advises to run the file after all
            reason = "torch's weights-only loader refuses it, and nothing of it ran"
        raise BackboneError(
            f"{file} cannot be read as weights: {reason}; expected .safetensors, or a .pth state "
            "dict of tensors only"
        ) from error


def _begins_like_pickle(file: Path) -> bool:
    """Whether a file begins like a pickle, or like the zip file of pickles that torch writes."""
    with file.open("rb") as stream:
        return stream.read(2).startswith((b"PK", b"\x80"))


def _read_arrays(file: Path) -> dict[str, Tensor]:
    """Read the arrays of an ``.npz`` file, of which none may be of objects: those are pickles."""
    with np.load(file, allow_pickle=False) as arrays:  # noqa: TID251
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def _foreign_object(file: Path, name: str) -> BackboneError:
    """Return the error for a file that holds an object of another class than tensors and plain containers."""
    if name.startswith("dinoneck."):
        return BackboneError(
            f"{file} cannot be read as weights: it holds a {name} next to them. Take them "
            "out: with torch.serialization.safe_globals(dinoneck.safe_globals()): state = "
            "torch.load(file)['state_dict'], and save state"
        )
    if name.startswith(_DISTRIBUTED):
        return BackboneError(
            f"{file} holds parts of tensors that are spread over GPUs ({name}); pass a "
            "file of whole tensors, such as the eval/training_…/teacher_checkpoint.pth "
            "that DINOv2 and DINOv3 write"
        )
    if name.startswith(_SETTINGS):
        return BackboneError(
            f"{file} holds other objects than tensors ({name}), as trainings save with "
            "their settings; no object is read, as it could run code. If the file is your "
            f"own, write its weights alone into weights.pth: {_keep_weights(file)}"
        )
    return BackboneError(
        f"{file} cannot be read as weights: this pickle asks for {name}, which may be "
        "code; nothing of it ran. Ask its author for a state dict of tensors only"
    )


def _keep_weights(file: Path) -> str:
    """Return the command that copies the weights of a checkpoint, for the owner of the file to run."""
    return (
        'python -c "import torch; c = torch.load('
        f"{os.fspath(file)!r}, map_location='cpu', weights_only=False); "
        f"torch.save({{k: c[k] for k in {_WEIGHT_ENTRIES} if k in c}}, 'weights.pth')\""
    )


def _check_unpacked(file: Path) -> None:
    """Refuse a zip file that is larger unpacked; torch writes its own unpacked."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as listing:
            unpacked = sum(entry.file_size for entry in listing.infolist())
        if unpacked > file.stat().st_size:
            raise BackboneError(
                f"{file} is a compressed zip file of {unpacked} bytes, which torch.save and "
                "numpy.savez do not write"
            )
