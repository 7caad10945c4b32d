"""What a store holds: ``store.json``, written once and compared ever after, and the channel scale of an int8 store.

Some channels of DINO tokens are much larger than others; a scale per token alone would spend the eight bits on them. So
an int8 store has one vector per layer, in a file of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_file
from torch import Tensor

from dinoneck.atomic import write_whole
from dinoneck.backbones import weight_hashes
from dinoneck.data.patterns import Patterns
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import DinoneckError, StoreError
from dinoneck.grid import GridSize
from dinoneck.store import index, shards
from dinoneck.store.encoding import Layout, StoreDtype, check_dtype
from dinoneck.store.files import Files, LocalFiles, failed_write, flush_folder, write_first
from dinoneck.tensor_bytes import bytes_of
from dinoneck.tokens import Tokens
from dinoneck.version import __version__

FILE = "store.json"
SCALE_FILE = "channel_scale.safetensors"
FORMAT = "dinoneck.store"
SCHEMA = 2  # 1: version 0.1, whose index lines have no checksum, hash and time
_COMPARED = ("name", "source", "patch_size", "embed_dim", "depth", "num_cls", "num_registers", "layers", "norm",
         "pos_embed", "dtype", "adapter", "weights_sha256")  # fmt: skip
_NEEDED = ("patch_size", "embed_dim", "num_cls", "num_registers")


@dataclass(frozen=True)
class Description:
    """Everything that decides what the tokens in a store are.

    Attributes:
        backbone: the backbone's record, weights digest included.
        preprocess: how images were prepared, size included.
        patterns: the augmentation patterns; pattern i of an image is stored under the number i.
        dtype: ``fp16``, ``bf16`` or ``int8``.
        schema: of the folder; 1 = version 0.1.
    """

    backbone: Mapping[str, Any]
    preprocess: Preprocessing
    patterns: Patterns
    dtype: StoreDtype
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        missing = [key for key in _NEEDED if self.backbone.get(key) is None]
        if missing:
            raise StoreError(f"the backbone record of the store lacks {', '.join(missing)}")

    def layout(self, grid: GridSize) -> Layout:
        """Return the layout of a record on this grid."""
        record = self.backbone
        prefix = record["num_cls"] + record["num_registers"]
        return Layout(self.dtype, self.num_layers, prefix, record["embed_dim"], grid)

    @property
    def num_layers(self) -> int:
        """Layers of a record; converted features, which do not name theirs, have one."""
        return len(self.backbone.get("layers") or [None])

    def tokens(self, sequence: tuple[Any, ...], grid: GridSize) -> Tokens:
        """Wrap tensors (B, P + N, C), one per layer."""
        record = self.backbone
        return Tokens(
            sequence,
            grid,
            self.preprocess.patch_size,
            record["num_cls"],
            record["num_registers"],
            None if record.get("layers") is None else tuple(record["layers"]),
            record.get("norm"),
            self.source,
        )

    @cached_property
    def source(self) -> str | None:
        """The fingerprint of the backbone, which the tokens carry; None where its record does not hold it."""
        return weight_hashes.fingerprint_from_record(self.backbone)

    @cached_property
    def made(self) -> str:
        """Short hashes of the backbone, inputs, patterns and dtype, joined by ``-``; index lines repeat them."""
        backbone = {key: self.backbone.get(key) for key in _COMPARED}
        parts = (backbone, self.preprocess.record(), self.patterns.record(), self.dtype)
        return "-".join(_digest(part)[:8] for part in parts)

    def to_bytes(self) -> bytes:
        """Return the content of ``store.json``, which ends in its own SHA-256."""
        content = {
            "format": FORMAT,
            "schema": self.schema,
            "created_by": {"dinoneck": __version__},
            "backbone": dict(self.backbone),
            "inputs": self.preprocess.record(),
            "patterns": self.patterns.record(),
            "dtype": self.dtype,
        }
        return json.dumps({**content, "sha256": _digest(content)}, indent=1, ensure_ascii=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, raw: bytes, name: str) -> Description:
        """Read ``store.json``.

        Raises:
            StoreError: if it is damaged, no store's, or of a newer schema.
        """
        try:
            content = json.loads(raw)
        except ValueError as error:
            raise StoreError(f"{name} is not sound JSON ({error}): it is damaged, or not a store's") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StoreError(f"{name} does not describe a feature store (no format {FORMAT!r})")
        schema = content.get("schema")
        if not isinstance(schema, int) or schema > SCHEMA:
            raise StoreError(
                f"{name} was written with schema {schema}; this dinoneck reads up to {SCHEMA}. It was made by dinoneck "
                f"{_maker(content)}: install that version or a later one"
            )
        digest = content.pop("sha256", None)
        if digest != _digest(content):
            raise StoreError(f"{name} is damaged or was edited: its SHA-256 does not fit its content")
        try:
            return cls(
                content["backbone"],
                Preprocessing.from_record(content["inputs"]),
                Patterns.from_record(content["patterns"]),
                content["dtype"],
                schema,
            )
        except (KeyError, TypeError, AttributeError, DinoneckError) as error:
            raise StoreError(f"{name} cannot be understood: {type(error).__name__}: {error}") from error

    def check_equal(self, asked: Description, name: str) -> None:
        """Refuse to take this store for another one.

        Raises:
            StoreError: naming the first field that differs, with both values.
        """
        self.check_backbone(asked.backbone, name)
        inputs = asked.preprocess.record()
        for key, value in self.preprocess.record().items():
            _check_same(f"inputs.{key}", value, inputs[key], name)
        _check_same("patterns", self.patterns.record(), asked.patterns.record(), name)
        _check_same("dtype", self.dtype, asked.dtype, name)

    def check_backbone(self, record: Mapping[str, Any], name: str) -> None:
        """Refuse another backbone than the one this store was made with.

        Raises:
            StoreError: naming the entry of the record that differs, with both values.
        """
        for key in _COMPARED:
            _check_same(f"backbone.{key}", self.backbone.get(key), record.get(key), name)


def make_folder(root: Path, asked: Description) -> None:
    """Make the folders of a store and its ``store.json``, unless there is one.

    Raises:
        StoreError: if the folder holds something else or cannot be written.
        GridError: if no whole patch is left of the images' size.
    """
    asked.preprocess.grid()
    if root.exists() and not (root / FILE).exists():
        _check_empty(root)
    try:
        for folder in (root, root / shards.FOLDER, root / index.FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
        if write_first(root / FILE, asked.to_bytes()):
            flush_folder(root.parent)
    except OSError as error:
        if not (root / FILE).exists():  # a finished store may be on a read-only disk
            raise failed_write(root, error) from error


def named_patterns(patterns: str | os.PathLike[str] | Patterns) -> Patterns:
    """Return the patterns given, or those of a name or a file."""
    return patterns if isinstance(patterns, Patterns) else Patterns.named(patterns)


def read_description(files: Files) -> Description:
    """Read ``store.json``.

    Raises:
        StoreError: if there is none, it cannot be read, is damaged or of a newer schema.
    """
    try:
        raw = files.read(FILE)
    except FileNotFoundError:
        raise StoreError(f"{files} is not a feature store: it holds no {FILE}") from None
    except NotADirectoryError:
        raise StoreError(f"{files} is a file; expected the folder of a feature store") from None
    except OSError as error:
        raise StoreError(f"{files} cannot be opened: {error}") from error
    return Description.from_bytes(raw, f"{files}/{FILE}")


def upgrade_schema(files: LocalFiles) -> None:
    """Give ``store.json`` the current schema before index lines of that schema are added to an older store.

    Raises:
        StoreError: if it is damaged or cannot be written.
    """
    description = read_description(files)
    if description.schema < SCHEMA:
        try:
            write_whole(files.root / FILE, replace(description, schema=SCHEMA).to_bytes())
        except OSError as error:
            raise failed_write(files.root / FILE, error) from error


def _check_empty(root: Path) -> None:
    if not root.is_dir():
        raise StoreError(f"{root} is a file; expected a folder for the store")
    own = (f".{FILE}", f"..{FILE}")  # what a killed creation leaves
    for path in sorted(root.iterdir()):
        empty = path.name in (shards.FOLDER, index.FOLDER) and path.is_dir() and not any(path.iterdir())
        if not empty and not path.name.startswith(own) and not (root / FILE).exists():
            raise StoreError(f"the folder {root} holds {path.name!r} but no {FILE}: give a new folder")


def read_scale(files: Files, shape: tuple[int, int]) -> Tensor:
    """Return the scale (layers, channels) float32.

    Raises:
        StoreError: if it is missing, damaged or of another shape.
    """
    name = f"{files}/{SCALE_FILE}"
    try:
        raw = files.read(SCALE_FILE)
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
        write_first(root / SCALE_FILE, tensor_file({"channel_scale": scale, "crc32": checksum}))
    except OSError as error:
        raise failed_write(root / SCALE_FILE, error) from error


def _check_same(field: str, stored: Any, asked: Any, name: str) -> None:
    first, second = (json.dumps(value) for value in (stored, asked))
    if first != second:
        first, second = (text if len(text) <= 200 else f"{text[:200]} ..." for text in (first, second))
        raise StoreError(
            f"the store {name} was made with {field} = {first}; asked for {second}. Create another store for that (or "
            "delete this one, if nothing in it is needed), or use the values it was made with"
        )


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _maker(content: Mapping[str, Any]) -> str:
    made = content.get("created_by")
    return str(made.get("dinoneck", "of unknown version"))[:40] if isinstance(made, Mapping) else "of unknown version"
