"""The bytes of a head file: how its header is spelled, read and compared, and the digest. Imports no torch.

The file is a safetensors file: 8 bytes header length (little endian), a JSON header, the tensors' bytes. Its
only metadata key, ``dinoneck``, holds canonical JSON (keys sorted, no spaces, UTF-8). The whole header is a
function of that metadata, so any other spelling of the same header is refused: no byte of the file is free.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dinoneck.checkpoint.schema import TensorEntry, check_header, entries_of
from dinoneck.errors import CheckpointError, reason_of, some_of
from dinoneck.regular_files import open_regular

METADATA_KEY = "dinoneck"
HEAD_FILES = "*.safetensors"
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 16 << 30
MAX_DEPTH = 32
_SHOWN = 5
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # possessive: linear time, also without its end
_GZIP = b"\x1f\x8b"  # not a header's length: those written here are multiples of 8


@dataclass(frozen=True)
class Header:
    """A checked header: the metadata, the tensors in file order, and where their bytes begin."""

    meta: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    data_start: int

    @property
    def data_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(entry.nbytes for entry in self.tensors)


def canonical(value: Any) -> bytes:
    """Return the one JSON spelling of a plain value: sorted keys, no spaces, UTF-8, finite numbers only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def build(meta: Mapping[str, Any]) -> bytes:
    """Return the length and header bytes that belong to this metadata."""
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: canonical(meta).decode("utf-8")}}
    offset = 0
    for entry in entries_of(meta["tensors"]):
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def digest(meta: Mapping[str, Any], chunks: Iterable[bytes | memoryview]) -> str:
    """Return SHA-256 over the canonical metadata without its digest, a zero byte, and the tensors' bytes."""
    total = hashlib.sha256(canonical({key: value for key, value in meta.items() if key != "digest"}) + b"\0")
    for chunk in chunks:
        total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def open_head(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a head file for reading.

    Raises:
        CheckpointError: if it is missing, a folder, or not a regular file.
    """
    check_path(path)
    try:
        return open_regular(path)
    except FileNotFoundError:
        home = ": '~' is not expanded, pass Path(...).expanduser()" if str(path).startswith("~") else ""
        raise CheckpointError(f"there is no head file {path}, nor a folder of that name{home}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be opened: {reason_of(error)}; expected a head file (.safetensors)"
        ) from error


def is_file(path: Path) -> bool:
    """Whether there is such a file; ``Path.is_file`` raises where its folder is closed."""
    return os.path.isfile(path)  # noqa: PTH113


def check_path(path: object) -> None:
    """Raise a CheckpointError for what is not a path, and for an empty one, which would mean the current folder."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str) or not os.fspath(path):
        raise CheckpointError(f"the path of a head file is {path!r}; expected a string or a Path of text, not empty")


def check_revision(revision: object) -> None:
    """Raise a CheckpointError for a revision that is not text."""
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError(f"revision is {revision!r}; expected the name of a branch, tag or commit, or None")


def head_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the head files in a folder, sorted; a path that is a file stands for itself.

    Raises:
        CheckpointError: if the folder holds none, or the path is empty.
    """
    check_path(path)
    if not os.path.isdir(path):  # noqa: PTH112 - Path raises where a folder is closed; opening the file reports that
        return [Path(path)]
    files = sorted(file for file in Path(path).glob(HEAD_FILES) if not file.name.startswith("."))
    if not files:
        raise CheckpointError(f"the folder {path} holds no head files ({HEAD_FILES})")
    return files


def only_head(path: str | os.PathLike[str]) -> Path:
    """Return a head file, or the one in a folder.

    Raises:
        CheckpointError: if the folder holds none or several, or the path is empty.
    """
    files = head_files(path)
    if len(files) > 1:
        raise CheckpointError(
            f"the folder {path} holds {len(files)} head files: {some_of((file.name for file in files), _SHOWN)}; "
            "expected one. Load one of them, or pass the folder to Predictor, which averages heads of the same task; "
            "HeadEnsemble.from_heads(heads) and save_head make one file of them"
        )
    return files[0]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a head file; the tensors' bytes are not read.

    Raises:
        CheckpointError: if the file is not a valid head file; ``error.step`` names the check that refused it.
    """
    with open_head(path) as file:
        return parse(file, os.fstat(file.fileno()).st_size, str(path))


def parse(file: BinaryIO, size: int, name: str) -> Header:
    """Read and check the header at the beginning of an open file of ``size`` bytes."""
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{name} has {size} bytes; a head file has at most {MAX_FILE_BYTES}")
    if size < 8:
        raise CheckpointError(f"{name} has {size} bytes: too few for a head file, it is cut short", step="header")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8) or start.startswith(_GZIP):
        raise CheckpointError(
            f"{name} is not a head file, or is damaged: its first 8 bytes announce a header of {length} bytes in a "
            f"file of {size} (at most {MAX_HEADER_BYTES}).{_guess(start)}",
            step="header",
        )
    raw = file.read(length)
    meta = _metadata(raw, name)
    check_header(meta, name)
    entries = entries_of(meta["tensors"], name)
    if build(meta) != start + raw:
        raise CheckpointError(f"{name}: the header is not in its canonical form; it was edited or damaged", step="json")
    header = Header(meta, entries, 8 + length)
    if size != header.data_start + header.data_bytes:
        raise CheckpointError(
            f"{name} has {size} bytes; its header announces {header.data_start + header.data_bytes}: it is cut "
            "short or something was appended",
            step="tensors",
        )
    return header


def read_data(
    file: BinaryIO, header: Header, name: str, allocate: Callable[[int], bytearray | memoryview] = bytearray
) -> list[bytearray | memoryview]:
    """Read the tensors' bytes that follow a header, one buffer of its own each, and compare the digest."""
    buffers = []
    for entry in header.tensors:
        buffer = allocate(entry.nbytes)
        if file.readinto(buffer) != entry.nbytes:  # type: ignore[attr-defined]
            raise CheckpointError(f"{name} ended while {entry.name} was read", step="tensors")
        buffers.append(buffer)
    if digest(header.meta, [memoryview(buffer) for buffer in buffers]) != header.meta["digest"]:
        raise CheckpointError(
            f"{name}: the content does not match its digest; the file is damaged or was edited. Fetch it again",
            step="digest",
        )
    return buffers


def _metadata(raw: bytes, name: str) -> dict[str, Any]:
    """The dinoneck metadata in a safetensors header."""
    header = strict_json(raw, name, "header")
    block = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(block, dict) or set(block) != {METADATA_KEY} or not isinstance(block[METADATA_KEY], str):
        raise CheckpointError(
            f"{name} is not a dinoneck head: a safetensors file without the single metadata key {METADATA_KEY!r}. "
            "Build the head, load these weights with dinoneck.import_weights(head, file) and save it with save_head",
            step="json",
        )
    text = block[METADATA_KEY].encode("utf-8", "surrogatepass")
    meta = strict_json(text, name, "metadata")
    if not isinstance(meta, dict) or canonical(meta) != text:
        raise CheckpointError(f"{name}: the metadata is not canonical JSON; it was edited or damaged", step="json")
    return meta


def strict_json(raw: bytes, name: str, what: str) -> Any:
    """Decode JSON whose values have a canonical spelling: UTF-8, finite numbers, no lone surrogates, limited depth.

    Whether ``raw`` is that spelling is for the caller to compare: keys that repeat are found by it.

    Raises:
        CheckpointError: of step json.
    """
    try:
        text = raw.decode("utf-8")
        _check_depth(text)
        value = json.loads(text, parse_int=_short_int)
        canonical(value)
    except (ValueError, RecursionError) as error:  # UnicodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"{name}: the {what} is not valid JSON ({error}).{_guess(raw)}", step="json") from None
    return value


def _short_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("an integer has more than 20 digits")
    return int(text)


def _check_depth(text: str) -> None:
    """Count brackets outside strings, before the recursive parser sees them."""
    depth = 0
    for bracket in re.findall(r"[\[{\]}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _guess(start: bytes) -> str:
    """Name the usual things that are mistaken for a head file."""
    weights = "which may run code: dinoneck.import_weights(head, file) takes weights alone from it"
    known = (
        (b"version ", "a Git LFS pointer: fetch the real file with 'git lfs pull'"),
        (b"<", "a web page saved in place of the file"),
        (b"PK", f"a zip or torch.save file, {weights}"),
        (b"\x80", f"a pickle, {weights}"),
        (_GZIP, "a gzip file: unpack it first"),
    )
    shown = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((f" It looks like {what}" for mark, what in known if shown.startswith(mark)), "")
