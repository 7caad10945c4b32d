"""The bytes of a head file: how its header is spelled, read and compared, and the digest. Imports no torch.

The file is a safetensors file: 8 bytes header length (little endian), a JSON header, the tensors' bytes. Its
only metadata key, ``dinoneck``, holds canonical JSON (keys sorted, no spaces, UTF-8). The whole header is a
function of that metadata, so any other spelling of the same header is refused: no byte of the file is free.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from dinoneck.checkpoint import schema
from dinoneck.checkpoint.schema import TensorEntry
from dinoneck.errors import CheckpointError, reason_of, some_of
from dinoneck.regular_files import open_regular

METADATA_KEY = "dinoneck"
HEAD_FILES = "*.safetensors"
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 16 << 30
MAX_DEPTH = 32
_SHOWN = 5
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # possessive: linear time, also without its end
_LONG_NUMBER = re.compile(r"\d{21}", re.ASCII)
_GZIP = b"\x1f\x8b"  # not a header's length: those written here are multiples of 8
spelling = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        meta: the metadata.
        tensors: the stored tensors in file order.
        sizes: the bytes of each.
        data_start: where the tensors' bytes begin.
    """

    meta: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    sizes: tuple[int, ...]
    data_start: int = 0

    @property
    def data_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(self.sizes)

    def start(self, text: str | None = None) -> bytes:
        """Return the length and header bytes that belong to the metadata, whose canonical text may be given."""
        header: dict[str, Any] = {"__metadata__": {METADATA_KEY: spelling(self.meta) if text is None else text}}
        begin = 0
        for entry, size in zip(self.tensors, self.sizes, strict=True):
            offsets = [begin, begin := begin + size]
            header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
        raw += b" " * (-len(raw) % 8)
        return len(raw).to_bytes(8, "little") + raw


@dataclass(frozen=True)
class Content:
    """The bytes of a whole file: its header, a buffer per tensor, and the digest that belongs to these bytes."""

    header: Header
    buffers: list[Any]
    digest: str


def canonical(value: Any) -> bytes:
    """Return the one JSON spelling of a plain value: sorted keys, no spaces, UTF-8, finite numbers only."""
    return spelling(value).encode("utf-8")


def digest(meta: Mapping[str, Any], chunks: Iterable[Any]) -> str:
    """Return SHA-256 over the canonical metadata without its digest, a zero byte, and the tensors' bytes."""
    total = hashlib.sha256(canonical({key: value for key, value in meta.items() if key != "digest"}) + b"\0")
    for chunk in chunks:
        total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def header_of(meta: dict[str, Any], name: str) -> Header:
    """Return the header of this metadata.

    Raises:
        CheckpointError: if the metadata lists the tensors in another way than a file does.
    """
    tensors = schema.entries_of(meta.get("tensors"), name)
    return Header(meta, tensors, tuple([math.prod(x.shape) * schema.DTYPE_BYTES[x.dtype] for x in tensors]))


def packed(meta: dict[str, Any], buffers: list[Any]) -> Content:
    """Return what a file of this metadata and these bytes holds; its digest goes into the metadata.

    Raises:
        CheckpointError: as :func:`header_of`.
    """
    meta["digest"] = digest(meta, buffers)
    return Content(header_of(meta, "metadata"), buffers, meta["digest"])


def read(path: Path, allocate: Callable[[int], Any] = bytearray) -> Content:
    """Read a head file; its records and tensors are not checked yet.

    Args:
        path: the file.
        allocate: returns a buffer of so many bytes.

    Raises:
        CheckpointError: of steps ``file``, ``header``, ``json`` and ``tensors``.
    """
    if sys.byteorder != "little":
        raise CheckpointError(f"head files hold little-endian numbers, this machine has {sys.byteorder}-endian ones")
    with opened(path) as file:
        header = _header(file, os.fstat(file.fileno()).st_size, str(path))
        buffers = []
        for entry, size in zip(header.tensors, header.sizes, strict=True):
            buffers.append(allocate(size))
            if file.readinto(buffers[-1]) != size:  # type: ignore[attr-defined]
                raise CheckpointError(f"{path} ended while {entry.name} was read", step="tensors")
    return Content(header, buffers, digest(header.meta, buffers))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a head file; the tensors' bytes are not read.

    Raises:
        CheckpointError: if the file is not a valid head file; ``error.step`` names the check that refused it.
    """
    check_path(path)
    with opened(Path(path)) as file:
        header = _header(file, os.fstat(file.fileno()).st_size, str(path))
    schema.check(header.meta, str(path))
    return header


def check_path(path: object) -> None:
    """Raise a CheckpointError for what is not a path, and for an empty one, which would mean the current folder."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str) or not os.fspath(path):
        raise CheckpointError(f"the path of a head file is {path!r}; expected a string or a Path of text, not empty")


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


def is_file(path: Path) -> bool:
    """Whether there is such a file; ``Path.is_file`` raises where its folder is closed."""
    return os.path.isfile(path)  # noqa: PTH113


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a head file for reading.

    Raises:
        CheckpointError: if it is missing, a folder, not a regular file, or fails while it is read.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        home = ": '~' is not expanded, pass Path(...).expanduser()" if str(path).startswith("~") else ""
        raise CheckpointError(f"there is no head file {path}, nor a folder of that name{home}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be opened: {reason_of(error)}; expected a head file (.safetensors)"
        ) from error
    with file:
        try:
            yield file
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error


def _header(file: BinaryIO, size: int, name: str) -> Header:
    """Read the header at the beginning of an open file of ``size`` bytes, and compare its spelling and the size."""
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
    meta, text = _metadata(raw, name)
    try:
        header = replace(header_of(meta, name), data_start=8 + length)
    except CheckpointError:
        schema.check(meta, name)  # a wrong record is named first, also a schema that lists tensors in another way
        raise
    if header.start(text) != start + raw:
        raise CheckpointError(f"{name}: the header is not in its canonical form; it was edited or damaged", step="json")
    if size != header.data_start + header.data_bytes:
        schema.check(meta, name)
        raise CheckpointError(
            f"{name} has {size} bytes; its header announces {header.data_start + header.data_bytes}: it is cut "
            "short or something was appended",
            step="tensors",
        )
    return header


def _metadata(raw: bytes, name: str) -> tuple[dict[str, Any], str]:
    """The dinoneck metadata in a safetensors header, and its text."""
    header, _ = strict_json(raw, name, "header")
    block = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(block, dict) or set(block) != {METADATA_KEY} or not isinstance(block[METADATA_KEY], str):
        raise CheckpointError(
            f"{name} is not a dinoneck head: a safetensors file without the single metadata key {METADATA_KEY!r}. "
            "Build the head, load these weights with dinoneck.import_weights(head, file) and save it with save_head",
            step="json",
        )
    text = block[METADATA_KEY]
    meta, spelled = strict_json(text.encode("utf-8", "surrogatepass"), name, "metadata")
    if not isinstance(meta, dict) or spelled != text:
        raise CheckpointError(f"{name}: the metadata is not canonical JSON; it was edited or damaged", step="json")
    return meta, text


def strict_json(raw: bytes, name: str, what: str) -> tuple[Any, str]:
    """Decode JSON of limited depth, with short integers and finite numbers; return it with its canonical spelling.

    Whether ``raw`` is that spelling is for the caller to compare: keys that repeat are found by it.

    Raises:
        CheckpointError: of step json.
    """
    try:
        text = raw.decode("utf-8")
        _check_depth(text)
        value = json.loads(text)
        return value, spelling(value)
    except (ValueError, RecursionError) as error:  # UnicodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"{name}: the {what} is not valid JSON ({error}).{_guess(raw)}", step="json") from None


def _check_depth(text: str) -> None:
    """Count brackets and digits outside strings, before the recursive parser sees them."""
    plain, depth = _STRING.sub("", text), 0
    for bracket in re.findall(r"[\[{\]}]", plain):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if _LONG_NUMBER.search(plain):
        raise ValueError("a number has more than 20 digits")


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
