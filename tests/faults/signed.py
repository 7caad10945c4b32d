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
# a second key of this name; a value that is spelled as exactly the text behind it
TWICE, RAW = "\ue000", "\ue001"
_RAW = re.compile(rf'"{RAW}((?:[^"\\]|\\.)*)"')


def canonical(value: Any) -> str:
    """One line of JSON with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return _RAW.sub(lambda match: str(json.loads(f'"{match[1]}"')), text.replace(TWICE, ""))


def digest(meta: Meta, chunks: dict[str, bytes]) -> str:
    """The digest that belongs to this content."""
    text = canonical({key: value for key, value in meta.items() if key != "digest"}).encode(
        "utf-8", "surrogatepass"
    )
    return f"sha256:{hashlib.sha256(text + bytes(1) + b''.join(chunks.values())).hexdigest()}"


def framed(text: str, body: bytes = b"") -> bytes:
    """A file with this JSON header, padded to eight bytes."""
    header = text.encode("utf-8", "surrogatepass")
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def write(meta: Meta, chunks: dict[str, bytes], *, sign: bool = True) -> bytes:
    """The file of this metadata and these tensors; with ``sign`` the digest is the valid one, else that of ``meta``."""
    meta = {**meta, "digest": digest(meta, chunks)} if sign and "digest" in meta else meta
    header: Meta = {"__metadata__": {"dinoneck": canonical(meta)}}
    offset = 0
    rows = meta.get("tensors")
    for row in rows if isinstance(rows, list) else ():
        try:
            name, dtype, shape = row
            size = BYTES.get(dtype, 4) * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        except (TypeError, ValueError, OverflowError):  # a row that describes nothing has no entry
            continue
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return framed(text, b"".join(chunks.values()))


def body_at(content: bytes) -> int:
    """Where the tensors of a file begin."""
    return 8 + int.from_bytes(content[:8], "little")


def read(content: bytes) -> tuple[Meta, dict[str, bytes]]:
    """The metadata of a sound file, and the bytes of every tensor by its name, in file order."""
    header = json.loads(content[8 : body_at(content)])
    meta = json.loads(header["__metadata__"]["dinoneck"])
    places = {name: header[name]["data_offsets"] for name, *_ in meta["tensors"]}
    body = content[body_at(content) :]
    return meta, {name: body[begin:end] for name, (begin, end) in places.items()}


def forged(head: HeadCheckpoint, change: Change, *, sign: bool = True) -> bytes:
    """The file of a checkpoint without an adapter after ``change(meta, state)``."""
    meta, state = (
        copy.deepcopy(head.meta),
        {key: value.clone() for key, value in head.state_dict.items()},
    )
    change(meta, state)
    rows = [row[0] for row in meta["tensors"] if row[0] in state]
    chunks = {
        name: state[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name in rows
    }
    return write(meta, chunks, sign=sign)
