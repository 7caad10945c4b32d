"""The channel scale of an int8 store: one vector per layer for the whole store, in a file of its own.

Some channels of DINO tokens are much larger than others; a scale per token alone would spend the eight bits on them.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_file
from torch import Tensor

from dinoneck.errors import StoreError
from dinoneck.store.files import Files, told_write, write_first
from dinoneck.tensor_bytes import bytes_of

FILE = "channel_scale.safetensors"


def read_scale(files: Files, shape: tuple[int, int]) -> Tensor:
    """Return the scale (layers, channels) float32.

    Raises:
        StoreError: if it is missing, damaged or of another shape.
    """
    name = f"{files}/{FILE}"
    try:
        raw = files.read(FILE)
    except FileNotFoundError:
        raise StoreError(f"{name} is missing: the int8 values cannot be read without it; copy it back") from None
    try:
        content = parse_tensors(raw)
        scale, checksum = content["channel_scale"], int(content["crc32"])
    except Exception as error:  # the library raises types of its own
        raise StoreError(f"{name} cannot be read: {error}") from error
    if tuple(scale.shape) != shape or zlib.crc32(bytes_of(scale)) != checksum:
        raise StoreError(f"{name} is damaged or another store's: its checksum or shape {tuple(scale.shape)} is wrong")
    return scale


def write_scale(root: Path, scale: Tensor) -> None:
    """Write the scale unless another writer was faster.

    Raises:
        StoreError: if it cannot be written.
    """
    checksum = torch.tensor(zlib.crc32(bytes_of(scale)), dtype=torch.int64)
    try:
        write_first(root / FILE, tensor_file({"channel_scale": scale, "crc32": checksum}))
    except OSError as error:
        raise told_write(root / FILE, error) from error


def hash_of_scale(scale: Tensor) -> str:
    """Return 8 hex digits of a scale."""
    return f"{zlib.crc32(bytes_of(scale)):08x}"
