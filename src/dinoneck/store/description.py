"""What made the tokens of a store: ``store.json``, written once, and the channel scale of an int8 store.

Some channels of DINO tokens are much larger than others; a scale per token alone would spend the
eight bits on them. So an int8 store has one vector per layer, in a file of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_file
from torch import Tensor
from xxhash import xxh3_64_intdigest

from dinoneck.atomic import flush_folder
from dinoneck.backbones import weight_hashes
from dinoneck.devices import bytes_of
from dinoneck.errors import ConfigError, DinoneckError, StoreError
from dinoneck.grid import GridSize
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.views import Views
from dinoneck.store.encoding import Columns, Part, QuantisedTokens, StoreDtype, parts_of
from dinoneck.store.files import Files, failed_write, write_first
from dinoneck.text import first_line, reason_of, some_of
from dinoneck.tokens import Tokens
from dinoneck.version import __version__

FILE = "store.json"
SCALE_FILE = "channel_scale.safetensors"
DATA = "data"
FORMAT = "dinoneck.store"
SCHEMA = 1
# the entries of store.json
_ENTRIES = frozenset(
    {"format", "schema", "backbone", "inputs", "views", "dtype", "created_by", "digest"}
)
_SHOWN = 3  # entries in a message
# characters of a maker that a message quotes from a file
_LONGEST_MAKER = 40
# entries of a backbone's record that decide on its tokens
_COMPARED = (
    "name",
    "source",
    "patch_size",
    "embed_dim",
    "depth",
    "num_cls",
    "num_registers",
    "layers",
    "norm",
    "pos_embed",
    "dtype",
    "adapter",
    "weights_sha256",
)


@dataclass(frozen=True)
class Description:
    """Everything that decides what the tokens in a store are.

    Attributes:
        backbone: the backbone's record, weights digest included.
        preprocess: how images were prepared, size included.
        views: flips, turns and colour changes; view i of an image is stored under the number i.
        dtype: ``fp16``, ``bf16`` or ``int8``.
    """

    backbone: Mapping[str, Any]
    preprocess: Preprocessing
    views: Views
    dtype: StoreDtype

    def __post_init__(self) -> None:
        if self.dtype not in get_args(StoreDtype):
            raise ConfigError(
                f"dtype is {self.dtype!r}; a store holds one of {', '.join(get_args(StoreDtype))}"
            )

    def parts(self, patches: int) -> tuple[Part, ...]:
        """Return the parts of a view of so many patches."""
        record = self.backbone
        return parts_of(
            self.dtype,
            layers=self.num_layers,
            prefix=record["num_cls"] + record["num_registers"],
            width=record["embed_dim"],
            patches=patches,
        )

    @property
    def num_layers(self) -> int:
        """Stored layers; converted features, which do not name theirs, have one."""
        return len(self.backbone.get("layers") or [None])

    def tokens(
        self, columns: Columns, grid: GridSize, dtype: torch.dtype | None = torch.float32
    ) -> Tokens:
        """Make Tokens of what is stored: part name -> one (B, ...) tensor per layer; ``dtype`` None: no cast."""
        if self.dtype == "int8":
            return self.quantised(columns, grid).dequantise(dtype or torch.float32)
        sequence = columns["tokens"]
        if dtype is not None:
            sequence = tuple(x.to(dtype) for x in sequence)
        return self._tokens(sequence, grid)

    def quantised(self, columns: Columns, grid: GridSize) -> QuantisedTokens:
        """Wrap what an int8 store holds as it is.

        Raises:
            StoreError: for another dtype.
        """
        if self.dtype != "int8":
            raise StoreError(
                f"the store holds {self.dtype}; only int8 stores give quantised tokens: use batch()"
            )
        return QuantisedTokens(**columns, like=self._tokens((), grid))

    def _tokens(self, sequence: tuple[Tensor, ...], grid: GridSize) -> Tokens:
        record = self.backbone
        layers = record.get("layers")
        return Tokens(
            sequence=sequence,
            grid=grid,
            patch_size=self.preprocess.patch_size,
            num_cls=record["num_cls"],
            num_registers=record["num_registers"],
            layers=None if layers is None else tuple(layers),
            normed=record.get("norm"),
            source=self.source,
        )

    @cached_property
    def source(self) -> str | None:
        """The fingerprint of the backbone, which the tokens carry; None if its record does not hold it."""
        return weight_hashes.fingerprint_from_record(self.backbone)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what made the tokens; shards repeat it, and the checksum of every view begins with it."""
        text = json.dumps(self._signed(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _signed(self) -> dict[str, Any]:
        """The entries of ``store.json`` that the digest is made of."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "backbone": dict(self.backbone),
            "inputs": self.preprocess.record(),
            "views": self.views.record(),
            "dtype": self.dtype,
        }

    def content(self) -> dict[str, Any]:
        """Return what ``store.json`` holds."""
        return {**self._signed(), "created_by": f"dinoneck {__version__}", "digest": self.digest}

    def check_equal(self, asked: Description, name: str) -> None:
        """Reject this store where another one was asked for.

        Raises:
            StoreError: naming the first field that differs, with both values.
        """
        asked_fields = asked._fields()
        for field, value in self._fields().items():
            asked_value = asked_fields[field]
            if value != asked_value:
                reason = ""
                if field == "backbone.weights_sha256":
                    reason = ", so the backbone has other weights"
                raise StoreError(
                    f"the store {name} was made with {field} = {value:.200}; asked for "
                    f"{asked_value:.200}{reason}. Use what it was made with, or create another store"
                )

    def _fields(self) -> dict[str, str]:
        """What decides whether tokens belong together, as JSON texts."""
        fields = {}
        for key in _COMPARED:
            fields[f"backbone.{key}"] = json.dumps(self.backbone.get(key))
        inputs = {"bits": None, **self.preprocess.record()}  # a record holds no bits without any
        for key, value in inputs.items():
            fields[f"inputs.{key}"] = json.dumps(value)
        fields["views"] = json.dumps(self.views.record())
        fields["dtype"] = json.dumps(self.dtype)
        return fields


def make_folder(root: Path, asked: Description) -> None:
    """Make the folders of a store and its ``store.json``, unless there is one.

    Raises:
        StoreError: if the folder holds something else or cannot be written.
        GridError: if no whole patch is left of the images' size.
    """
    asked.preprocess.grid()
    if root.is_file():
        raise StoreError(f"{root} is a file; expected a folder for the store")
    if (root / FILE).exists():  # it may be on a read-only disk
        return
    # a creation that was killed leaves the folder of shards
    others = sorted(path.name for path in root.glob("[!.]*") if path.name != DATA)
    if others and not (root / FILE).exists():  # another process may have made the store meanwhile
        raise StoreError(f"the folder {root} holds {others[0]!r} but no {FILE}: give a new folder")
    try:
        (root / DATA).mkdir(parents=True, exist_ok=True)
        write_first(root / FILE, json.dumps(asked.content(), indent=1).encode() + b"\n")
        flush_folder(root.parent)
    except OSError as error:
        raise failed_write(root, error) from error


def named_views(views: str | Views) -> Views:
    """Return the views given, or those of a name."""
    return views if isinstance(views, Views) else Views.named(views)


def read_description(files: Files) -> Description:
    """Read ``store.json``.

    Raises:
        StoreError: if there is none, it cannot be read, is damaged or of a newer schema.
    """
    name = f"{files}/{FILE}"
    content = _read_content(files)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(
            f"{name} does not describe a feature store: it states no format {FORMAT!r}; check the "
            "path"
        )
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        maker = str(content.get("created_by", "a later dinoneck"))[:_LONGEST_MAKER]
        raise StoreError(
            f"{name} has schema {schema}, this dinoneck reads schema {SCHEMA}; install {maker}, "
            "which wrote it, or later"
        )
    missing = _ENTRIES - content.keys()
    if missing:
        raise StoreError(f"{name} lacks {some_of(missing, _SHOWN)}: it was edited; copy it back")
    unknown = content.keys() - _ENTRIES
    if unknown:
        raise StoreError(
            f"{name} holds entries that describe no store, {some_of(map(repr, unknown), _SHOWN)}: "
            "it was edited; copy it back"
        )
    try:
        description = Description(
            backbone=content["backbone"],
            preprocess=Preprocessing.from_record(content["inputs"]),
            views=Views(content["views"]),
            dtype=content["dtype"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, DinoneckError) as error:
        raise StoreError(
            f"{name} holds a value that describes no store: {type(error).__name__}: "
            f"{first_line(error)}. It was edited; copy it back"
        ) from error
    if content["digest"] != description.digest:
        raise StoreError(
            f"{name} was edited or damaged: its digest does not fit its content; copy it back"
        )
    return description


def _read_content(files: Files) -> Any:
    """What ``store.json`` holds.

    Raises:
        StoreError: if there is none, it cannot be read, or it is no JSON.
    """
    try:
        raw = files.read(FILE)
    except FileNotFoundError:
        raise StoreError(
            f"{files} is not a feature store: it holds no {FILE}; check the path, or extract first"
        ) from None
    except NotADirectoryError:
        raise StoreError(f"{files} is a file; expected the folder of a feature store") from None
    except OSError as error:
        raise StoreError(f"{files}/{FILE} cannot be read: {reason_of(error)}") from error
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{files}/{FILE} is damaged: it is no JSON, {first_line(error)}; copy it back"
        ) from error


def read_scale(files: Files, shape: tuple[int, int]) -> tuple[Tensor, int] | None:
    """Return the scale (layers, channels) float32, and its checksum; None if there is none.

    Raises:
        StoreError: if it is damaged or of another shape.
    """
    name = f"{files}/{SCALE_FILE}"
    try:
        content = parse_tensors(files.read(SCALE_FILE))
        scale = content["channel_scale"]
        checksum = int(content["checksum"])
    except FileNotFoundError:
        return None
    except Exception as error:  # the library raises types of its own
        raise StoreError(f"{name} cannot be read: {reason_of(error)}; copy it back") from error
    if tuple(scale.shape) != shape:
        raise StoreError(
            f"{name} has the shape {tuple(scale.shape)}; expected {shape}, (layers, channels): it "
            "is another store's. Copy the store's own back"
        )
    if _hash_of(scale) != checksum:
        raise StoreError(f"{name} is damaged: its values have another checksum; copy it back")
    return scale, checksum


def write_scale(files: Files, scale: Tensor) -> None:
    """Write the scale unless another writer was faster.

    Raises:
        StoreError: if it cannot be written.
    """
    content = tensor_file({"channel_scale": scale, "checksum": torch.tensor(_hash_of(scale))})
    write_first(Path(str(files), SCALE_FILE), content)


def _hash_of(scale: Tensor) -> int:
    return xxh3_64_intdigest(bytes_of(scale)) >> 1  # an int64 holds 63 bits
