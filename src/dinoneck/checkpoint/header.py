"""The header of a head file: what it is, read without torch.

The file is a safetensors file: 8 bytes header length (little endian), a JSON header, the tensors' bytes. Its
only metadata key, ``dinoneck``, holds canonical JSON (keys sorted, no spaces, UTF-8). The whole header is a
function of that metadata, so any other spelling of the same header is refused: no byte of the file is free.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dinoneck.checkpoint.records import check_entries
from dinoneck.errors import CheckpointError

FORMAT = "dinoneck.head"
SCHEMA = 2
METADATA_KEY = "dinoneck"
HEAD_FILES = "*.safetensors"
LISTING, HEADS = "ensemble.json", "heads"  # of an ensemble's folder
MAX_HEADER_BYTES = 1 << 20
MAX_FILE_BYTES = 16 << 30
MAX_DEPTH = 32
MAX_EXTRA_BYTES = 16 << 10
_GZIP = b"\x1f\x8b"  # no length of a header: those written here are multiples of 8
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}

_FIRST_KEYS = frozenset(
    {"format", "schema", "created_by", "head_type", "config", "tensors", "digest"}
    | {"backbone", "inputs", "tasks", "extra"}
)
KEYS = {1: _FIRST_KEYS, 2: _FIRST_KEYS | {"versions", "training", "license", "tta"}}
"""The metadata's keys by schema, all of them required: null, or empty, where unknown."""
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[{\]}]', re.DOTALL)
"""A string that nobody ends reaches to the end of the text; possessive, so that it takes linear time."""


@dataclass(frozen=True)
class TensorEntry:
    """Name, safetensors dtype and shape of one stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A checked header: the metadata, the tensors in file order, where their bytes begin, and the file's own digest."""

    meta: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    data_start: int
    file_digest: str

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


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a head file for reading.

    Raises:
        CheckpointError: if it is missing, a folder, or no regular file.
    """
    check_path(path)
    file = Path(path)
    try:
        _check_regular(file.stat(), file)  # before it is opened: that alone makes some devices do things
        opened = open(file, "rb", opener=_without_waiting)  # noqa: SIM115
        try:
            _check_regular(os.fstat(opened.fileno()), file)  # it may have been exchanged since
        except CheckpointError:
            opened.close()
            raise
        return opened
    except CheckpointError:
        raise
    except FileNotFoundError:
        home = ": '~' is not expanded, pass Path(...).expanduser()" if str(file).startswith("~") else ""
        raise CheckpointError(f"there is no head file {file}, nor a folder of that name{home}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be opened: {error}") from error


def _check_regular(found: os.stat_result, file: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        many = f". It holds an ensemble: HeadCheckpoint.load reads it, its heads are in {file / HEADS}"
        raise CheckpointError(
            f"{file} is {kind}; expected a head file (.safetensors){many if is_file(file / LISTING) else ''}"
        )


def _without_waiting(path: str, flags: int) -> int:
    """Open; a pipe that nobody writes to is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def is_file(path: Path) -> bool:
    """Whether there is such a file; ``Path.is_file`` raises where its folder is closed."""
    return os.path.isfile(path)  # noqa: PTH113


def check_path(path: object) -> None:
    """Refuse what is not a path; an empty one too, which would mean the current folder.

    Raises:
        CheckpointError: naming what it is.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str) or not os.fspath(path):
        raise CheckpointError(f"the path of a head file is {path!r}; expected a string or a Path of text, not empty")


def check_revision(revision: object) -> None:
    """Refuse what is no revision of a repository.

    Raises:
        CheckpointError: naming what it is.
    """
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError(f"revision is {revision!r}; expected the name of a branch, tag or commit, or None")


def head_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the head files in a folder or an ensemble's, sorted; a path that is no folder stands for itself.

    Raises:
        CheckpointError: if the folder holds none, or the path is empty.
    """
    check_path(path)
    if not os.path.isdir(path):  # noqa: PTH112 - Path raises where a folder is closed; who opens the file says so
        return [Path(path)]
    folder = Path(path, HEADS) if is_file(Path(path, LISTING)) else Path(path)
    files = sorted(folder.glob(HEAD_FILES))
    if not files:
        raise CheckpointError(f"the folder {path} holds no head files ({HEAD_FILES})")
    return files


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of a head file; the tensors' bytes are not read.

    Raises:
        CheckpointError: if the file is no sound head file; ``error.step`` says which check refused it.
    """
    with open_regular(path) as file:
        return parse(file, os.fstat(file.fileno()).st_size, str(path))


def read_content(path: str | os.PathLike[str]) -> tuple[Header, dict[str, bytearray | memoryview]]:
    """Read the header of a head file and every tensor's bytes by name, checked by the digest; without torch.

    Raises:
        CheckpointError: as :func:`read_header`, or if the digest is another.
    """
    with open_regular(path) as file:
        header = parse(file, os.fstat(file.fileno()).st_size, str(path))
        buffers = read_data(file, header, str(path))
    return header, {entry.name: buffer for entry, buffer in zip(header.tensors, buffers, strict=True)}


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
            f"{name} is no head file, or damaged: its first 8 bytes announce a header of {length} bytes in a file of "
            f"{size} (at most {MAX_HEADER_BYTES}).{_guess(start)}",
            step="header",
        )
    raw = file.read(length)
    meta, listed = _metadata(raw, name)
    _check_schema(meta, name)
    entries = entries_of(meta["tensors"], name)
    if build(meta) != start + raw:
        raise CheckpointError(f"{name}: the header is not spelled canonically; it was edited or damaged", step="json")
    header = Header(meta, entries, 8 + length, meta["digest"])
    if listed != len(entries) or size != header.data_start + header.data_bytes:
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


def entries_of(listing: Any, name: str = "metadata") -> tuple[TensorEntry, ...]:
    """Check the list of tensors in the metadata: ``[name, dtype, shape]`` each, sorted by name, none twice."""
    if not isinstance(listing, list):
        raise CheckpointError(f"{name}: the list of tensors is {type(listing).__name__}", step="tensors")
    entries = []
    for row in listing:
        sound = (
            isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and row[0] not in ("", "__metadata__")
        )
        sound = sound and isinstance(row[1], str) and row[1] in DTYPE_BYTES and isinstance(row[2], list)
        if not sound or any(type(side) is not int or not 0 <= side < 1 << 48 for side in row[2]) or len(row[2]) > 8:
            raise CheckpointError(f"{name}: {str(row)[:200]} describes no tensor of a head", step="tensors")
        if math.prod(side for side in row[2] if side) * DTYPE_BYTES[row[1]] >= 1 << 63:
            raise CheckpointError(
                f"{name}: {str(row)[:200]} has sides that no tensor can have, though it may be empty; expected fewer "
                "than 2^63 bytes over those that are not 0",
                step="tensors",
            )
        entries.append(TensorEntry(row[0], row[1], tuple(row[2])))
    names = [entry.name for entry in entries]
    if names != sorted(set(names)):
        raise CheckpointError(f"{name}: the tensors are not in order, or one stands twice", step="tensors")
    return tuple(entries)


def _metadata(raw: bytes, name: str) -> tuple[dict[str, Any], int]:
    """The dinoneck metadata in a safetensors header, and how many tensors the header lists."""
    header = strict_json(raw, name, "header")
    block = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(block, dict) or set(block) != {METADATA_KEY} or not isinstance(block[METADATA_KEY], str):
        raise CheckpointError(
            f"{name} is a safetensors file without dinoneck metadata: plain weights, not a head file. Build the head "
            "yourself, load the weights into it and save it with save_head",
            step="json",
        )
    meta = strict_json(block[METADATA_KEY].encode("utf-8", "surrogatepass"), name, "metadata")
    if not isinstance(meta, dict):
        raise CheckpointError(f"{name}: the dinoneck metadata is no JSON object", step="json")
    if canonical(meta) != block[METADATA_KEY].encode("utf-8", "surrogatepass"):
        raise CheckpointError(f"{name}: the metadata is not spelled canonically; it was edited or damaged", step="json")
    return meta, len(header) - 1


def _check_schema(meta: Mapping[str, Any], name: str) -> None:
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{name}: format is {meta.get('format')!r}, expected {FORMAT!r}", step="schema")
    schema = meta.get("schema")
    if type(schema) is not int or schema < 1:
        raise CheckpointError(f"{name}: schema is {schema!r}; expected a positive integer", step="schema")
    if schema > SCHEMA:
        raise CheckpointError(
            f"{name} was written with schema {schema}; this dinoneck reads up to {SCHEMA}. It was made by dinoneck "
            f"{_maker(meta)}: install that version or a later one",
            step="schema",
        )
    if set(meta) != KEYS[schema]:
        strange, missing = sorted(set(meta) - KEYS[schema]), sorted(KEYS[schema] - set(meta))
        raise CheckpointError(f"{name}: the metadata has unknown keys {strange} and lacks {missing}", step="schema")
    kinds: dict[str, tuple[type, ...]] = {
        "config": (dict,),
        "tasks": (list,),
        "extra": (dict,),
        "created_by": (dict,),
        "head_type": (str,),
        "digest": (str,),
        "backbone": (dict, type(None)),
        "inputs": (dict, type(None)),
        "versions": (dict,),
        "training": (dict, type(None)),
        "license": (str, type(None)),
        "tta": (dict, type(None)),
    }
    for key, allowed in kinds.items():
        if key in meta and not isinstance(meta[key], allowed):
            raise CheckpointError(f"{name}: {key} is {type(meta[key]).__name__} in the metadata", step="schema")
    check_entries(meta, name)
    if len(canonical(meta["extra"])) > MAX_EXTRA_BYTES:
        raise CheckpointError(f"{name}: extra is larger than {MAX_EXTRA_BYTES} bytes", step="schema")


def _maker(meta: Mapping[str, Any]) -> str:
    made = meta.get("created_by")
    return str(made.get("dinoneck", "of unknown version"))[:40] if isinstance(made, dict) else "of unknown version"


def strict_json(raw: bytes, name: str, what: str) -> Any:
    """Strict JSON: UTF-8, no key twice, finite numbers, no surrogates, limited depth."""
    try:
        text = raw.decode("utf-8")
        _check_depth(text)
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite, parse_int=_short)
        canonical(value)
    except (ValueError, RecursionError) as error:  # UnicodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"{name}: the {what} is no sound JSON ({error}).{_guess(raw)}", step="json") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _short(text: str) -> int:
    if len(text) > 20:
        raise ValueError("an integer has more than 20 digits")
    return int(text)


def _check_depth(text: str) -> None:
    """Count brackets, strings left out, before the recursive parser sees them."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        if found[0] in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
        elif found[0] in ("]", "}"):
            depth -= 1


def _guess(start: bytes) -> str:
    """Name the usual things that are mistaken for a head file."""
    code = "which may run code; an older head is brought over by dinoneck import-legacy"
    known = (
        (b"version ", "a Git LFS pointer: fetch the real file with 'git lfs pull'"),
        (b"<", "a web page saved in place of the file"),
        (b"PK", f"a zip or torch.save file, {code}"),
        (b"\x80", f"a pickle, {code}"),
        (_GZIP, "a gzip file: unpack it first"),
    )
    shown = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((f" It looks like {what}" for mark, what in known if shown.startswith(mark)), "")
