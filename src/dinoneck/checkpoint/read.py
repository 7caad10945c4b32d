"""Reading a head file, one check after the other; nothing is used before everything is checked.

Order: size and header caps -> strict JSON -> schema -> registry -> configuration (built on the meta device,
so a header cannot ask for memory) -> tensor names, shapes, dtypes -> digest -> finite values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from dinoneck import registry
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint import lora_weights
from dinoneck.checkpoint.header import Header, TensorEntry
from dinoneck.configured import encode
from dinoneck.data.photos import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError, RegistryError, some_of

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FILE_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5


def read_file(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """Read and check a whole head file.

    Raises:
        CheckpointError: if any check fails; ``error.step`` names it.
    """
    headers.check_path(path)
    name = os.fspath(path)
    with headers.open_regular(path) as file:
        try:
            header = headers.parse(file, os.fstat(file.fileno()).st_size, str(name))
            check_meta(header.meta, header.tensors, str(name))
            state = _tensors(file, header, str(name))
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{name} cannot be read: {error}") from error
    check_finite(state, str(name))
    return header, state


def check_meta(meta: Mapping[str, Any], tensors: tuple[TensorEntry, ...], name: str) -> None:
    """Check registry, configuration and the list of tensors of a head against each other."""
    try:
        cls = registry.resolve(meta["head_type"])
    except RegistryError as error:
        raise CheckpointError(f"{name}: {error}", step="registry") from None
    skeleton = on_meta(cls, meta["config"], name)
    if encode(list(getattr(skeleton, "tasks", ()))) != meta["tasks"]:
        raise CheckpointError(f"{name}: the tasks listed are not those of the configuration", step="config")
    if meta["inputs"] is not None:
        try:
            Preprocessing.from_record(meta["inputs"])
        except (ConfigError, TypeError, ValueError) as error:
            raise CheckpointError(f"{name}: inputs: {error}", step="config") from None
    travelling = {entry.name: entry for entry in tensors if entry.name.startswith(lora_weights.PREFIX)}
    lora_weights.check(travelling, meta["backbone"], name)
    _check_tensors(skeleton, tuple(entry for entry in tensors if entry.name not in travelling), name)


def on_meta(cls: type[Any], config: Mapping[str, Any], name: str) -> nn.Module:
    """Build what a configuration describes without its memory."""
    try:
        with torch.device("meta"):
            skeleton = cls.from_config(config)
    except Exception as error:  # whatever a constructor makes of values from a file
        raise CheckpointError(f"{name}: the configuration is refused: {error}", step="config") from error
    if not isinstance(skeleton, nn.Module) or skeleton.config != config:
        raise CheckpointError(f"{name}: the configuration is not in its normal form", step="config")
    return skeleton


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse NaN and infinite values."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(f"{name}: {key} holds values that are not finite", step="finite")


def _check_tensors(skeleton: nn.Module, tensors: tuple[TensorEntry, ...], name: str) -> None:
    expected = skeleton.state_dict()
    found = {entry.name: entry for entry in tensors}
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{name} lacks {some_of(missing, _SHOWN)}{_prefix_hint(found)}", step="tensors")
    if extra := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{name} holds {some_of(extra, _SHOWN)}, which this head has not", step="tensors")
    floats = {entry.dtype for key, entry in found.items() if expected[key].is_floating_point()}
    if len(floats) > 1:
        raise CheckpointError(f"{name} mixes {', '.join(sorted(floats))}; a head has one dtype", step="tensors")
    for key, value in expected.items():
        entry = found[key]
        dtype = TORCH_DTYPES[entry.dtype]
        alike = dtype.is_floating_point if value.is_floating_point() else dtype == value.dtype
        if tuple(value.shape) != entry.shape or not alike:
            raise CheckpointError(
                f"{name}: {key} is {entry.dtype} {entry.shape}; its configuration needs {tuple(value.shape)} of "
                f"{FILE_DTYPES.get(value.dtype, value.dtype)}",
                step="tensors",
            )


def _tensors(file: BinaryIO, header: Header, name: str) -> dict[str, Tensor]:
    """Read the tensors into memory of their own, then compare the digest."""
    buffers = []
    for entry in header.tensors:
        buffer = bytearray(entry.nbytes)
        if file.readinto(buffer) != entry.nbytes:  # type: ignore[attr-defined]
            raise CheckpointError(f"{name} ended while {entry.name} was read", step="tensors")
        buffers.append(buffer)
    if headers.digest(header.meta, [memoryview(buffer) for buffer in buffers]) != header.meta["digest"]:
        raise CheckpointError(
            f"{name}: the content does not match its digest; the file is damaged or was edited. Fetch it again",
            step="digest",
        )
    return {
        entry.name: (
            torch.frombuffer(buffer, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)
            if buffer
            else torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
        )
        for entry, buffer in zip(header.tensors, buffers, strict=True)
    }


def _prefix_hint(found: Mapping[str, TensorEntry]) -> str:
    for prefix in _WRAPPER_PREFIXES:
        if any(key.startswith(prefix) for key in found):
            return f"; its names begin with {prefix!r}: it was saved from a wrapped module (DDP, torch.compile)"
    return ""
