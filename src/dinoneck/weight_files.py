"""Files of weights from elsewhere, read so that nothing in them can run."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dinoneck.errors import BackboneError, first_line, reason_of, some_of
from dinoneck.regular_files import check_regular

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_WRAPPERS = ("model", "state_dict")
_SHOWN = 8
_SHARES = 4  # names of one memory: tied weights
_CODE = re.compile(r"GLOBAL ([\w.]+)")
_ODD = re.compile(r"Unsupported operand \d+")


def without_wrapper(state: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], str]:
    """Take away what DDP (``module.``) and torch.compile (``_orig_mod.``) put before every name.

    Returns:
        The tensors under their own names, and what was taken away, ``""`` if nothing.

    Raises:
        BackboneError: if only some names have such a prefix.
    """
    found, taken = dict(state), ""
    while prefix := next((p for p in WRAPPER_PREFIXES if any(key.startswith(p) for key in found)), None):
        if plain := [key for key in found if not key.startswith(prefix)]:
            raise BackboneError(
                f"{where}: some names begin with {prefix!r}, as saved from a wrapped module (DDP, torch.compile), and "
                f"some do not ({some_of(plain, _SHOWN)}); expected all or none"
            )
        found, taken = {key.removeprefix(prefix): value for key, value in found.items()}, taken + prefix
    return found, taken


def read_state(path: str | os.PathLike[str], max_bytes: int | None = None) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or, through the weights-only loader, ``.pth``/``.pt``/``.bin``.

    Nothing in the file can run: a pickle that wants to import or call anything is refused.

    Args:
        path: the file; a dict that holds the state dict under ``model`` or ``state_dict`` is fine.
        max_bytes: larger files are refused, and files that would be larger unpacked; None = no limit.

    Raises:
        BackboneError: if the file is missing, damaged, too large, a pickle that would run code, or holds something
            else than named tensors.
    """
    file, loaded = Path(path), read_any(path, max_bytes)
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise BackboneError(f"{file} holds {type(loaded).__name__}; expected a state dict of named tensors")
    strange = [str(key) for key, value in loaded.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise BackboneError(f"{file}: {some_of(strange, _SHOWN)} are no tensors; expected a plain state dict")
    check_held(loaded, str(file))
    return dict(loaded)


def check_held(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors of which the file does not hold every value: a few bytes of it would become any memory.

    Raises:
        BackboneError: naming those that are sparse, without values, or larger than what is held of them.
    """
    held: dict[int, int] = {}
    odd = [key for key, value in state.items() if not _is_held(value, held)]
    if odd:
        raise BackboneError(
            f"{where}: {some_of(odd, _SHOWN)} hold fewer values than their shapes need (expanded, sparse or meta "
            "tensors); expected dense ones: save {key: value.contiguous() for key, value in state.items()}"
        )
    asked, there = sum(value.numel() * value.itemsize for value in state.values()), sum(held.values())
    if asked > _SHARES * there:
        raise BackboneError(
            f"{where}: its {len(state)} tensors have {asked} bytes and share {there} of them; expected tensors with "
            "values of their own: save {key: value.clone() for key, value in state.items()}"
        )


def _is_held(value: Tensor, held: dict[int, int]) -> bool:
    """Whether a tensor's values are all in memory; notes which memory that is."""
    if value.layout != torch.strided or value.is_meta or value.is_nested:
        return False
    memory = value.untyped_storage()
    held[memory.data_ptr()] = memory.nbytes()
    return value.numel() * value.itemsize <= memory.nbytes()


def read_tensor(path: str | os.PathLike[str]) -> Tensor:
    """Read a single tensor from a ``.pt`` file through the weights-only loader.

    Raises:
        BackboneError: if the file is missing or damaged, or holds anything else.
    """
    loaded = read_any(path)
    if not isinstance(loaded, Tensor):
        raise BackboneError(f"{path} holds {type(loaded).__name__}; expected a tensor")
    return loaded


def read_any(path: str | os.PathLike[str], max_bytes: int | None = None) -> Any:
    """Return what a file holds: tensors, plain values and dicts of them; a pickle that wants to call is refused."""
    file = Path(path)
    if file == Path():
        raise BackboneError("the path of the weights file is empty or the current folder; pass a file of weights")
    try:
        check_regular(file)
    except FileNotFoundError:
        raise BackboneError(f"the weights file {file} does not exist") from None
    except (OSError, ValueError) as error:
        raise BackboneError(f"the weights file {file} cannot be read: {reason_of(error)}") from error
    _check_size(file, max_bytes)
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise almost anything
        if found := _CODE.search(str(error)):
            raise BackboneError(
                f"{file} cannot be read as weights: this pickle asks for {found[1]}, which is code. It was refused and "
                "nothing of it ran; ask its author for a state dict of tensors only, or a .safetensors file"
            ) from error
        raise BackboneError(
            f"{file} cannot be read as weights ({_reason(error)}); expected .safetensors, or a .pth state dict "
            "of tensors only"
        ) from error


def _check_size(file: Path, max_bytes: int | None) -> None:
    """Refuse what is too large, packed or unpacked; torch writes its zip files unpacked."""
    if max_bytes is None:
        return
    size = file.stat().st_size
    if size > max_bytes:
        raise BackboneError(f"{file} has {size} bytes; at most {max_bytes} were expected")
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as listing:
            entries = listing.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise BackboneError(f"{file} is a damaged zip file ({first_line(error)})") from error
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > size:
        raise BackboneError(
            f"{file} is a compressed zip file, or one that lists more than it holds; torch.save writes neither"
        )


def _reason(error: Exception) -> str:
    """The message of a loader, without torch's advice to run the file after all."""
    text = str(error)
    if "weights_only" not in text:
        return f"{type(error).__name__}: {first_line(error)}"
    odd = _ODD.search(text)
    return f"it is a pickle that may run code{f': {odd[0]}' if odd else ''}; nothing of it ran"
