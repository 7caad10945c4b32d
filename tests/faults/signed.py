"""Head files spelled from the format's description alone, so that a forgery has a canonical header and a valid digest.

Nothing here uses the library's writer or reader: the campaigns judge them, and must not share a
fault with them. A file is the header's length (8 bytes, little endian), a JSON header and the
tensors' bytes. The header's ``__metadata__`` holds one key, ``dinoneck``: the metadata as JSON with
sorted keys and no spaces. The digest is SHA-256 over the metadata without its digest, a zero byte,
and the tensors' bytes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dinoneck import HeadCheckpoint

Meta = dict[str, Any]
Change = Callable[[Meta, dict[str, Tensor]], object]
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
# at the end of a key: the key is spelled without it, and so occurs twice
TWICE = "\ue000"
# at the begin of a text: the rest is spelled without quotes, as JSON of its own
RAW = "\ue001"
_RAW = re.compile(rf'"{RAW}((?:[^"\\]|\\.)*)"')


def canonical(value: Any) -> str:
    """One line of JSON with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text = text.replace(TWICE, "")
    return _RAW.sub(_unquoted, text)


def _unquoted(match: re.Match[str]) -> str:
    """Return the text behind the mark RAW, without its quotes and escapes."""
    return str(json.loads(f'"{match[1]}"'))


def digest(meta: Meta, chunks: dict[str, bytes]) -> str:
    """The digest that belongs to this content."""
    without_digest = {key: value for key, value in meta.items() if key != "digest"}
    text = canonical(without_digest).encode("utf-8", "surrogatepass")
    sha256 = hashlib.sha256(text + b"\0" + b"".join(chunks.values()))
    return f"sha256:{sha256.hexdigest()}"


def framed(text: str, body: bytes = b"") -> bytes:
    """A file with this JSON header, padded to eight bytes."""
    header = text.encode("utf-8", "surrogatepass")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def write(meta: Meta, chunks: dict[str, bytes], *, sign: bool = True) -> bytes:
    """Return the file of this metadata and these tensors.

    Args:
        meta: may describe other tensors than there are.
        chunks: the bytes of every tensor.
        sign: compute the digest; otherwise ``meta`` keeps its own.
    """
    if sign and "digest" in meta:
        meta = {**meta, "digest": digest(meta, chunks)}
    header: Meta = {"__metadata__": {"dinoneck": canonical(meta)}}
    rows = meta.get("tensors")
    if not isinstance(rows, list):  # a forgery
        rows = []
    offset = 0
    for row in rows:
        try:
            name, dtype, shape = row
            size = BYTES.get(dtype, 4) * math.prod(shape)  # any size for an unknown type
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        except (TypeError, ValueError, OverflowError):
            pass  # a row that describes no tensor has no entry
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return framed(text, b"".join(chunks.values()))


def body_at(content: bytes) -> int:
    """Where the tensors of a file begin."""
    return 8 + int.from_bytes(content[:8], "little")


def read(content: bytes) -> tuple[Meta, dict[str, bytes]]:
    """The metadata of a sound file, and the bytes of every tensor by its name, in file order."""
    begin_of_body = body_at(content)
    header = json.loads(content[8:begin_of_body])
    body = content[begin_of_body:]
    meta = json.loads(header["__metadata__"]["dinoneck"])
    chunks = {}
    for name, *_ in meta["tensors"]:
        begin, end = header[name]["data_offsets"]
        chunks[name] = body[begin:end]
    return meta, chunks


def forged(head: HeadCheckpoint, change: Change, *, sign: bool = True) -> bytes:
    """The file of a checkpoint without an adapter after ``change(meta, state)``."""
    meta = copy.deepcopy(head.meta)
    state = {name: value.clone() for name, value in head.state_dict.items()}
    change(meta, state)
    chunks = {}
    for name, *_ in meta["tensors"]:
        if name in state:
            values = state[name].contiguous().reshape(-1)
            chunks[name] = values.view(torch.uint8).numpy().tobytes()
    return write(meta, chunks, sign=sign)
