"""``store.json``: what a store holds, written once when it is created and compared ever after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dinoneck.backbones import weight_hashes
from dinoneck.data.patterns import Patterns
from dinoneck.data.photos import Preprocessing
from dinoneck.errors import DinoneckError, StoreError
from dinoneck.grid import GridSize
from dinoneck.store.encoding import Layout, StoreDtype, check_dtype
from dinoneck.tokens import Tokens
from dinoneck.version import __version__

FILE = "store.json"
FORMAT = "dinoneck.store"
SCHEMA = 2  # 1: version 0.1, whose index lines have no checksum, hash and time
_TOLD = ("name", "source", "patch_size", "embed_dim", "depth", "num_cls", "num_registers", "layers", "norm",
         "pos_embed", "dtype", "adapter", "weights_sha256")  # fmt: skip
_NEEDED = ("patch_size", "embed_dim", "num_cls", "num_registers")


@dataclass(frozen=True)
class Description:
    """Everything that decides what the tokens in a store are.

    Attributes:
        backbone: the backbone's record, weights digest included.
        preprocess: how photos were prepared, size included.
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
        backbone = {key: self.backbone.get(key) for key in _TOLD}
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
            raise StoreError(f"{name} is no sound JSON ({error}); it is damaged or no store's") from None
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
        pairs = [(f"inputs.{key}", value, asked.preprocess.record()[key])
                 for key, value in self.preprocess.record().items()]  # fmt: skip
        pairs += [("patterns", self.patterns.record(), asked.patterns.record()), ("dtype", self.dtype, asked.dtype)]
        _compare(pairs, name)

    def check_backbone(self, record: Mapping[str, Any], name: str) -> None:
        """Refuse another backbone than the one this store was made with.

        Raises:
            StoreError: naming the entry of the record that differs, with both values.
        """
        _compare([(f"backbone.{key}", self.backbone.get(key), record.get(key)) for key in _TOLD], name)


def _compare(pairs: list[tuple[str, Any, Any]], name: str) -> None:
    for field, stored, asked in pairs:
        if _plain(stored) != _plain(asked):
            raise StoreError(
                f"the store {name} was made with {field} = {_short(stored)}; asked for {_short(asked)}. Create another "
                "store for that (or delete this one, if nothing in it is needed), or use the values it was made with"
            )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _maker(content: Mapping[str, Any]) -> str:
    made = content.get("created_by")
    return str(made.get("dinoneck", "of unknown version"))[:40] if isinstance(made, Mapping) else "of unknown version"
