"""Tensors of a head as they lie in a file: their dtypes, their order, their bytes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import CheckpointError
from dinoneck.tensor_bytes import bytes_of

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


def listing_of(state: Mapping[str, Tensor]) -> list[list[Any]]:
    """Return how a header lists these tensors."""
    return [[key, FILE_DTYPES[value.dtype], list(value.shape)] for key, value in sorted(state.items())]


def chunks_of(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[memoryview]:
    """Return the tensors' bytes in the order of a file."""
    return [bytes_of(state[row[0]]) for row in meta["tensors"] if state[row[0]].numel()]


def snapshot(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return copies of tensors on the CPU.

    Raises:
        CheckpointError: for a value that is not a dense tensor of a known dtype, and for shared memory.
    """
    state: dict[str, Tensor] = {}
    places: dict[tuple[Any, int], str] = {}
    check_byte_order("write")
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or value.is_meta or value.dtype not in FILE_DTYPES or _sparse(value):
            what = (
                f"{value.dtype} on {value.device}{' (sparse)' * _sparse(value)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise CheckpointError(f"{name}: {key} is {what}; it cannot be saved", step="write")
        place = (value.device, value.data_ptr())
        if value.numel() and places.setdefault(place, key) != key:
            raise CheckpointError(
                f"{name}: {key} and {places[place]} share their memory; untie them first", step="write"
            )
        state[key] = value.detach().to("cpu", copy=True).contiguous()
    _check_overlaps(tensors, name)
    return state


def _sparse(value: Tensor) -> bool:
    return value.layout is not torch.strided


def check_byte_order(step: str) -> None:
    """Refuse machines whose numbers lie the other way round: the files' are little-endian.

    Raises:
        CheckpointError: with this step.
    """
    if sys.byteorder != "little":
        raise CheckpointError(f"head files hold little-endian numbers, this machine has {sys.byteorder}-endian ones; "
                              "use another one", step=step)  # fmt: skip


def _check_overlaps(tensors: Mapping[str, Tensor], name: str) -> None:
    """Views of one memory that begin at different places; neighbours in one buffer are fine."""
    spans = sorted(
        (str(value.device), value.data_ptr(), value.data_ptr() + value.numel() * value.element_size(), key)
        for key, value in tensors.items()
        if value.numel() and value.is_contiguous()
    )
    for (device, _, end, one), (same, begin, _, other) in pairwise(spans):
        if device == same and begin < end:
            raise CheckpointError(f"{name}: {one} and {other} share their memory; untie them first", step="write")
