"""The state of a training run in one file: written whole, checked when read, no pickle.

A safetensors file. Its tensors are those of the state; everything else is JSON in its metadata, with the SHA-256 over
the JSON and every tensor's name, dtype, shape and bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_file
from torch import Tensor

from dinoneck.atomic import write_whole
from dinoneck.errors import CheckpointError
from dinoneck.tensor_bytes import bytes_of

FORMAT, SCHEMA = "dinoneck.run", 1
_TENSOR, _PAIRS = "tensor", "pairs"


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a nested state of dicts, lists, numbers, strings, None and tensors.

    Raises:
        CheckpointError: if the file cannot be written; an older one stays as it was.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps({"format": FORMAT, "schema": SCHEMA, "state": _packed(state, tensors)}, sort_keys=True)
    metadata = {"run": text, "sha256": _digest(text, tensors)}
    try:
        write_whole(path, tensor_file(tensors, metadata))
    except OSError as error:
        raise CheckpointError(f"the state of the run cannot be written to {path}: {error}", step="write") from error


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state; tensors are on the CPU.

    Raises:
        CheckpointError: if the file is damaged, of another kind, or written by a newer dinoneck.
    """
    try:
        raw = Path(path).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
        text, digest = metadata["run"], metadata["sha256"]
        tensors = parse_tensors(raw)
        told = json.loads(text)
        form, schema, state = told["format"], told["schema"], told["state"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is no state of a training run, or damaged ({type(error).__name__}: {error}). {_REMEDY}"
        ) from error
    if form != FORMAT or type(schema) is not int or schema > SCHEMA:
        raise CheckpointError(
            f"{path} has format {form!r}, schema {schema!r}; this dinoneck reads {FORMAT!r} up to {SCHEMA}. {_REMEDY}",
            step="schema",
        )
    if _digest(text, tensors) != digest:
        raise CheckpointError(f"{path} does not match its digest; it is damaged or edited. {_REMEDY}", step="digest")
    found: dict[str, Any] = _unpacked(state, tensors)
    return found


_REMEDY = "Restore it from a copy, or start again: fit(..., resume=False), --no-resume"


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        total.update(f"\0{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(bytes_of(value))
    return total.hexdigest()


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The JSON-able form; tensors go to ``tensors``, numbered in order."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, Mapping):  # keys may be numbers
        return {_PAIRS: [[key, _packed(own, tensors)] for key, own in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(own, tensors) for own in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"the state of a run holds a {type(value).__name__}, which cannot be kept", step="write")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(own, tensors) for own in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    return {key: _unpacked(own, tensors) for key, own in value[_PAIRS]}
