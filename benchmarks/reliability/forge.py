"""Head files that are wrong on purpose, with a digest and a spelling that are right."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck import HeadCheckpoint
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.lora_weights import PREFIX
from dinoneck.errors import CheckpointError

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]
"""Changes copies of a head's metadata and tensors in place."""


def content_of(head: HeadCheckpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Copies of everything in a head file."""
    adapter = {PREFIX + key: value for key, value in head.adapter_state.items()}
    return copy.deepcopy(head.meta), {key: value.clone() for key, value in (head.state_dict | adapter).items()}


def written(meta: dict[str, Any], state: dict[str, Tensor], *, digest: bool = True) -> bytes:
    """The file of this metadata and these tensors; ``digest=False`` keeps the one that stands in the metadata."""
    rows = meta["tensors"] if isinstance(meta.get("tensors"), list) else []
    listed = [row[0] for row in rows if isinstance(row, list) and row and isinstance(row[0], str) and row[0] in state]
    chunks = [state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name in listed]
    if digest:
        meta["digest"] = headers.digest(meta, chunks)
    return _start(meta) + b"".join(chunks)


def _start(meta: dict[str, Any]) -> bytes:
    """Length and header; of a list of tensors that no header can be spelled from, one without tensors."""
    try:
        return headers.build(meta)
    except (CheckpointError, KeyError):
        text = headers.canonical({"__metadata__": {headers.METADATA_KEY: headers.canonical(meta).decode()}})
        return with_header(text.decode())


def forged(head: HeadCheckpoint, change: Change, *, digest: bool = True) -> bytes:
    """The file of a head after a change, with its digest computed anew: only the checks before it can refuse it."""
    meta, state = content_of(head)
    change(meta, state)
    return written(meta, state, digest=digest)


def with_header(text: str, body: bytes = b"") -> bytes:
    """A file whose JSON header is this text, padded to eight bytes."""
    raw = text.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + body


def relisted(folder: Path, change: Callable[[dict[str, Any]], object], *, digest: bool = True) -> None:
    """Change the list of an ensemble's folder; its spelling is right, its digest too unless ``digest=False``."""
    path = folder / headers.LISTING
    listing = json.loads(path.read_bytes())
    change(listing)
    if digest:
        listing["digest"] = headers.digest(listing, ())
    path.write_bytes(headers.canonical(listing) + b"\n")
