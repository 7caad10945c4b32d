"""Reading a head file, one check after the other; nothing is used before everything is checked.

Order: size and header caps -> strict JSON -> schema -> registry -> configuration (built on the meta device,
so a header cannot ask for memory) -> tensor names, shapes, dtypes -> digest -> finite values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dinoneck import registry
from dinoneck.checkpoint import file as files
from dinoneck.checkpoint.file import Header
from dinoneck.checkpoint.pairing import LORA_PREFIX, check_lora
from dinoneck.checkpoint.schema import TensorEntry
from dinoneck.checkpoint.tensors import FILE_DTYPES, TORCH_DTYPES, check_byte_order
from dinoneck.codec import encode
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError, RegistryError, some_of
from dinoneck.weight_files import WRAPPER_PREFIXES

_SHOWN = 5
_CALLS, _CALLS_PER_TENSOR = 4_000, 15  # of torch while a head is built; those here need at most 9 per tensor
_FILLING = frozenset(
    {getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")}
    | {getattr(Tensor, name) for name in ("uniform_", "normal_", "fill_", "zero_", "abs_")}
)


class _Limited(TorchFunctionMode):
    """Stops a constructor, in this thread, that makes far more than the tensors its file lists: a depth of 10^9.

    Nothing is drawn for tensors on the meta device: there is nothing to fill.
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConfigError("it describes far more tensors than the file lists")
        if func in _FILLING and (filled := args[0] if args else (kwargs or {})["tensor"]).is_meta:
            return filled
        return func(*args, **(kwargs or {}))


def read_file(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """Read and check a whole head file.

    Returns:
        The header and the tensors.

    Raises:
        CheckpointError: if any check fails; ``error.step`` names it.
    """
    header, state, _ = read_head(path)
    return header, state


def read_head(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor], nn.Module]:
    """Read like :func:`read_file`; return also the module that the file was checked against, on the meta device.

    Args:
        path: a head file, or a folder with one.

    Raises:
        CheckpointError: as :func:`read_file`, or if the folder holds none or several.
    """
    path = files.only_head(path)
    check_byte_order("file")
    name = str(path)
    with torch.inference_mode(False), files.open_head(path) as file:  # what is read can be trained
        try:
            header = files.parse(file, os.fstat(file.fileno()).st_size, name)
            skeleton = check_meta(header.meta, header.tensors, name)
            state = _tensors(files.read_data(file, header, name, _memory), header)
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{name} cannot be read: {error}") from error
    check_finite(state, name)
    return header, state, skeleton


def check_meta(meta: Mapping[str, Any], tensors: tuple[TensorEntry, ...], name: str) -> nn.Module:
    """Check registry, configuration and the list of tensors of a head; return the module on the meta device."""
    try:
        cls = registry.resolve(meta["head_type"])
    except RegistryError as error:
        raise CheckpointError(f"{name}: {error}", step="registry") from None
    with limited(sum(0 not in entry.shape for entry in tensors)):
        skeleton = on_meta(cls, meta["config"], name)
    if files.canonical(encode(predicted(skeleton))) != files.canonical(meta["tasks"]):  # in Python true equals 1
        raise CheckpointError(f"{name}: the tasks listed are not those of the configuration", step="config")
    if meta["inputs"] is not None:
        try:
            Preprocessing.from_record(meta["inputs"])
        except (ConfigError, TypeError, ValueError) as error:
            raise CheckpointError(f"{name}: inputs: {error}", step="config") from None
    travelling = {entry.name: entry for entry in tensors if entry.name.startswith(LORA_PREFIX)}
    check_lora(travelling, meta["backbone"], name)
    _check_tensors(skeleton, tuple(entry for entry in tensors if entry.name not in travelling), name)
    return skeleton


def predicted(module: nn.Module) -> list[Any]:
    """Return what a head predicts: its tasks and what it composes of them; nothing for other modules."""
    return list(getattr(module, "predicted", getattr(module, "tasks", ())))


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Stop a constructor that makes far more than ``count`` tensors, with a ConfigError."""
    grad = torch.is_grad_enabled()
    try:
        with _Limited(_CALLS + _CALLS_PER_TENSOR * count):
            yield
    finally:
        torch.set_grad_enabled(grad)  # the limit may strike where a constructor leaves torch.no_grad()


def on_meta(cls: type[Any], config: Mapping[str, Any], name: str) -> nn.Module:
    """Build what a configuration describes without its memory."""
    try:
        with torch.device("meta"):
            skeleton = cls.from_config(config)
    except Exception as error:  # any type: a constructor got values from a file
        raise CheckpointError(f"{name}: the configuration is refused: {error}", step="config") from error
    if not isinstance(skeleton, nn.Module) or skeleton.config != config:
        raise CheckpointError(f"{name}: the configuration is not in its normal form", step="config")
    return skeleton


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse NaN and infinite values."""
    for key, value in state.items():
        if not value.is_floating_point() or math.isfinite(value.sum().item()):
            continue  # one NaN or infinity makes the sum one; only large finite values may do so too
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{name}: {key} holds values that are not finite", step="finite")


def _check_tensors(skeleton: nn.Module, tensors: tuple[TensorEntry, ...], name: str) -> None:
    expected = skeleton.state_dict()
    found = {entry.name: entry for entry in tensors}
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{name} lacks {some_of(missing, _SHOWN)}{_prefix_hint(found)}", step="tensors")
    if extra := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{name} holds {some_of(extra, _SHOWN)}, not tensors of this head", step="tensors")
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


def _memory(size: int) -> memoryview:
    """Memory that is not zeroed first; NumPy asks for large pages, of which fewer need be mapped while reading."""
    return np.empty(size, dtype=np.uint8).data


def _tensors(buffers: Sequence[bytearray | memoryview], header: Header) -> dict[str, Tensor]:
    """The tensors in the memory that was read."""
    return {
        entry.name: (
            torch.frombuffer(buffer, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)
            if buffer
            else torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
        )
        for entry, buffer in zip(header.tensors, buffers, strict=True)
    }


def _prefix_hint(found: Mapping[str, TensorEntry]) -> str:
    for prefix in WRAPPER_PREFIXES:
        if any(key.startswith(prefix) for key in found):
            return f"; its names begin with {prefix!r}: it was saved from a wrapped module (DDP, torch.compile)"
    return ""
