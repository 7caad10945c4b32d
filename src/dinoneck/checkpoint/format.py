"""The bytes of a head file: how its header is spelled, read and compared, and the digest.

Imports no torch.

The file is a safetensors file: 8 bytes header length (little endian), a JSON header, the tensors'
bytes. Its only metadata key, ``dinoneck``, holds canonical JSON (keys sorted, no spaces, UTF-8).
The whole header is a function of that metadata, so any other spelling of the same header is
refused: no byte of the file is free.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from dinoneck.atomic import open_regular
from dinoneck.checkpoint import schema
from dinoneck.checkpoint.schema import HeadRecord
from dinoneck.errors import CheckpointError
from dinoneck.text import reason_of, some_of

METADATA_KEY = "dinoneck"
HEAD_NAME = "head.safetensors"
HEAD_FILES = "*.safetensors"
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 16 << 30
MAX_DEPTH = 32
_SHOWN = 5
# possessive: linear time, also without its end
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_LONG_NUMBER = re.compile(r"\d{21}", re.ASCII)
_GZIP = b"\x1f\x8b"  # not a header's length: those written here are multiples of 8
spelling = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        meta: the metadata.
        record: the metadata as a struct, with the stored tensors in file order.
        sizes: the bytes of each tensor.
    """

    meta: dict[str, Any]
    record: HeadRecord
    sizes: tuple[int, ...]

    def start(self, text: str | None = None) -> bytes:
        """Return the length and header bytes that belong to the metadata, whose canonical text may be given."""
        header: dict[str, Any] = {
            "__metadata__": {METADATA_KEY: spelling(self.meta) if text is None else text}
        }
        begin = 0
        for entry, size in zip(self.record.tensors, self.sizes, strict=True):
            offsets = [begin, begin := begin + size]
            header[entry.name] = {
                "dtype": entry.dtype,
                "shape": entry.shape,
                "data_offsets": offsets,
            }
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
            "utf-8"
        )
        raw += b" " * (-len(raw) % 8)
        return len(raw).to_bytes(8, "little") + raw


@dataclass(frozen=True)
class HeadFile:
    """The bytes of a whole file.

    Attributes:
        name: of the file, for messages.
        header: its header.
        buffers: one per tensor.
        digest: the digest that belongs to these bytes.
    """

    name: str
    header: Header
    buffers: list[Any]
    digest: str


def canonical(value: Any) -> bytes:
    """Return the one JSON spelling of a plain value: sorted keys, no spaces, UTF-8, finite numbers only."""
    return spelling(value).encode("utf-8")


def digest(meta: Mapping[str, Any], chunks: Iterable[Any]) -> str:
    """Return SHA-256 over the canonical metadata without its digest, a zero byte, and the tensors' bytes."""
    total = hashlib.sha256(
        canonical({key: value for key, value in meta.items() if key != "digest"}) + b"\0"
    )
    for chunk in chunks:
        total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def header_of(meta: dict[str, Any], name: str) -> Header:
    """Check the metadata of the file ``name``, and return the header that belongs to it.

    Raises:
        CheckpointError: of steps ``schema`` and ``tensors``.
    """
    record = schema.check(meta, name)
    sizes = [math.prod(entry.shape) * schema.DTYPE_BYTES[entry.dtype] for entry in record.tensors]
    return Header(meta, record, tuple(sizes))


def packed(meta: dict[str, Any], buffers: list[Any], name: str) -> HeadFile:
    """Return the file of this metadata and these bytes; its digest goes into the metadata.

    Raises:
        CheckpointError: as :func:`header_of`.
    """
    header = header_of(meta, name)
    meta["digest"] = header.record.digest = digest(meta, buffers)
    return HeadFile(name, header, buffers, meta["digest"])


def read(path: Path) -> HeadFile:
    """Read a head file; its configuration, digest and values are not checked yet.

    Raises:
        CheckpointError: of steps ``file``, ``header``, ``json``, ``schema`` and ``tensors``.
    """
    import numpy as np  # headers are read without it

    if sys.byteorder != "little":
        raise CheckpointError(
            f"head files hold little-endian numbers, this machine has {sys.byteorder}-endian ones"
        )
    with opened(path) as file:
        header = _header(file, str(path))
        # a bytearray would be filled with zeros first
        buffers = [np.empty(size, np.uint8).data for size in header.sizes]
        for buffer in buffers:
            file.readinto(buffer)  # a file that is cut short meanwhile does not match its digest
    return HeadFile(str(path), header, buffers, digest(header.meta, buffers))


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a head file; the tensors' bytes are not read.

    Raises:
        CheckpointError: if the file is not a valid head file; ``error.step`` names the check that
            refused it.
    """
    check_path(path)
    with opened(Path(path)) as file:
        return _header(file, str(path))


def check_path(path: object) -> None:
    """Raise a CheckpointError for what is not a path, and for an empty one, which would mean the current folder."""
    if (
        not isinstance(path, str | os.PathLike)
        or not isinstance(os.fspath(path), str)
        or not os.fspath(path)
    ):
        # a module's repr has many lines
        shown = repr(path) if isinstance(path, str | bytes) else f"a {type(path).__name__}"
        raise CheckpointError(
            f"the path of a head file is {shown}; expected a string or a Path of text, not empty"
        )


def head_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the head files that a path stands for.

    A file stands for itself, a folder for its ``head.safetensors`` (as the folder of a training),
    or without one for all head files in it, sorted.

    Raises:
        CheckpointError: if the folder holds none, or the path is empty.
    """
    check_path(path)
    folder = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112 - Path raises where a folder is closed; opening the file reports that
        return [folder]
    if is_file(folder / HEAD_NAME):
        return [folder / HEAD_NAME]
    return files_in(folder)


def files_in(folder: Path) -> list[Path]:
    """Return all head files in a folder, sorted.

    Raises:
        CheckpointError: if it holds none.
    """
    files = sorted(file for file in folder.glob(HEAD_FILES) if not file.name.startswith("."))
    runs = [] if files else sorted(file.parent for file in folder.glob(f"*/{HEAD_NAME}"))
    if runs:
        raise CheckpointError(
            f"the folder {folder} holds a run for each of several heads: "
            f"{some_of((run.name for run in runs), _SHOWN)}; name one of them, such as {runs[0]}"
        )
    if not files:
        raise CheckpointError(
            f"the folder {folder} holds no head files ({HEAD_FILES}); a finished training writes "
            f"{HEAD_NAME}, and the heads of its folds into {folder / 'heads'}"
        )
    return files


def only_head(path: str | os.PathLike[str]) -> Path:
    """Return a head file, or the one in a folder.

    Raises:
        CheckpointError: if the folder holds none or several, or the path is empty.
    """
    files = head_files(path)
    if len(files) > 1:
        raise CheckpointError(
            f"the folder {path} holds {len(files)} head files: "
            f"{some_of((file.name for file in files), _SHOWN)}; expected one. Load one of them, "
            "or pass the folder to Predictor, which averages heads of the same task and backbone; "
            "HeadEnsemble.from_heads(heads) and save_head make one file of those"
        )
    return files[0]


def is_file(path: Path) -> bool:
    """Whether there is such a file; ``Path.is_file`` raises where its folder is closed."""
    return os.path.isfile(path)  # noqa: PTH113


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a head file for reading.

    Raises:
        CheckpointError: if it is missing, a folder, not a regular file, or fails while it is read.
    """
    try:
        file = open_regular(path)
    except (OSError, ValueError) as error:
        home = (
            "; '~' is not expanded, pass Path(...).expanduser()"
            if str(path).startswith("~")
            else ""
        )
        raise CheckpointError(
            f"the head file {str(path)!r} cannot be opened: {reason_of(error)}; expected a "
            f".safetensors file, or a folder with one{home}"
        ) from error
    with file:
        try:
            yield file
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error


def _header(file: BufferedReader, name: str) -> Header:
    """Read and check the header at the beginning of an open file, and compare its spelling and the file's size."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_FILE_BYTES:
        raise CheckpointError(f"{name} has {size} bytes; a head file has at most {MAX_FILE_BYTES}")
    if size == 0:
        raise CheckpointError(f"{name} is empty; copy or fetch it again", step="header")
    if size < 8:
        raise CheckpointError(
            f"{name} has {size} bytes, too few for a head file: it is cut short; copy or fetch it "
            "again",
            step="header",
        )
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if not 2 <= length <= MAX_HEADER_BYTES or start.startswith(_GZIP):
        raise CheckpointError(
            f"{name} is not a head file, or is damaged: its first 8 bytes announce a header of "
            f"{length} bytes; expected 2 to {MAX_HEADER_BYTES}.{_guess(start)}",
            step="header",
        )
    if size < 8 + length:
        raise CheckpointError(
            f"{name} is cut short: it has {size} bytes, and its header alone ends at byte "
            f"{8 + length}; copy or fetch it again",
            step="header",
        )
    raw = file.read(length)
    meta, text = _metadata(raw, name)
    header = header_of(meta, name)
    if header.start(text) != start + raw:
        raise CheckpointError(
            f"{name}: the header is not in its canonical form; it was edited or damaged. Fetch it "
            "again",
            step="json",
        )
    announced = 8 + length + sum(header.sizes)
    if size < announced:
        raise CheckpointError(
            f"{name} is cut short: it has {size} bytes, and its header announces {announced}; copy "
            "or fetch it again",
            step="tensors",
        )
    if size > announced:
        raise CheckpointError(
            f"{name} has {size} bytes, and its header announces {announced}: something was "
            "appended; copy or fetch it again",
            step="tensors",
        )
    return header


def _metadata(raw: bytes, name: str) -> tuple[dict[str, Any], str]:
    """The dinoneck metadata in a safetensors header, and its text."""
    header, _ = strict_json(raw, name, "header")
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{name} is not a safetensors file: its header is a JSON {type(header).__name__}, "
            "expected an object",
            step="json",
        )
    block = header.get("__metadata__")
    if (
        not isinstance(block, dict)
        or set(block) != {METADATA_KEY}
        or not isinstance(block[METADATA_KEY], str)
    ):
        raise CheckpointError(
            f"{name} is not a dinoneck head: a safetensors file without the single metadata key "
            f"{METADATA_KEY!r}. Build the head, load these weights with "
            "dinoneck.import_weights(head, file) and save it with save_head",
            step="json",
        )
    text = block[METADATA_KEY]
    meta, spelled = strict_json(text.encode("utf-8", "surrogatepass"), name, "metadata")
    if not isinstance(meta, dict):
        raise CheckpointError(
            f"{name}: the metadata is a JSON {type(meta).__name__}, expected an object; the file "
            "was edited or damaged. Fetch it again",
            step="json",
        )
    if spelled != text:
        raise CheckpointError(
            f"{name}: the metadata is not canonical JSON; it was edited or damaged. Fetch it again",
            step="json",
        )
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
    except (
        ValueError,
        RecursionError,
    ) as error:  # UnicodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(
            f"{name}: the {what} is not valid JSON: {error}.{_guess(raw)}", step="json"
        ) from None


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
