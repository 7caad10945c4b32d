"""``dinoneck inspect``: what a head file is, from its header alone, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from tyro.conf import Positional

from dinoneck.checkpoint.ensemble_folder import is_ensemble, read_listing
from dinoneck.checkpoint.file import head_files, is_file, read_header
from dinoneck.checkpoint.schema import SCHEMA, describe_parts, describe_weights
from dinoneck.cli.text import show
from dinoneck.errors import DataError

_SHOWN = ("kind", "dim", "unit", "minimum", "labels", "from_cells")
_UNCHECKED = "(not checked: use 'dinoneck verify')"


def inspect(file: Annotated[Path, Positional]) -> dict[str, Any]:
    """Print what a head file or an ensemble is, from the headers alone.

    Example: dinoneck inspect head.safetensors

    Args:
        file: a head file, a folder of them, or the folder of an ensemble.
    """
    if file.is_dir():
        return _folder(file)
    header = read_header(file)
    described = entries(header.meta, f"{len(header.tensors)} tensors, {header.data_bytes} bytes")
    described["digest"] += f" {_UNCHECKED}"
    _print({"file": f"{file} ({header.data_start + header.data_bytes} bytes)", **described})
    return header.meta


def _folder(folder: Path) -> dict[str, Any]:
    """Print a line per head."""
    if is_file(folder / "store.json"):
        raise DataError(f"{folder} is a feature store and not a folder of heads; see 'dinoneck store verify {folder}'")
    listing = read_listing(folder) if is_ensemble(folder) else None
    heads = {str(file.relative_to(folder)): read_header(file).meta for file in head_files(folder)}
    lines = {"file": f"{folder} (folder of {len(heads)} head files{'' if listing is None else ', an ensemble'})"}
    weights = {}
    if listing is not None:
        weights = {member.file: f", weight {member.weight:g}" for member in listing.members}
        lines |= {"reduce": listing.reduce, "backbone": _backbone(listing.backbone), "inputs": _line(listing.inputs)}
        lines["digest"] = f"{listing.digest} {_UNCHECKED}"
    _print(lines)
    for name, meta in heads.items():
        _print({"head": f"{name}: {meta['head_type']}, {_tasks(meta)}{weights.get(name, '')}, {meta['digest'][:19]}"})
    return {"ensemble": None if listing is None else msgspec.to_builtins(listing), "heads": heads}


def _print(lines: Mapping[str, str]) -> None:
    for key, value in lines.items():
        show(f"{key:<10} {value}")


def entries(meta: Mapping[str, Any], weights: str | None = None) -> dict[str, str]:
    """Return the contents of a header in words: heading -> text; the caller describes the weights."""
    made = f"schema {meta['schema']}, made by dinoneck {meta['created_by'].get('dinoneck')}"
    older = "" if meta["schema"] == SCHEMA else f"; 'dinoneck migrate' rewrites it in {SCHEMA}"
    versions = {name: version for name, version in meta.get("versions", {}).items() if version != 1}
    described = {
        "head_type": f"{meta['head_type']} ({made}{older})" + (f"; versions: {_line(versions)}" if versions else ""),
        "tasks": _tasks(meta),
        "backbone": _backbone(meta["backbone"]),
        "inputs": _line(meta["inputs"]),
        "weights": weights,
        "config": _line({key: value for key, value in meta["config"].items() if key not in ("tasks", "members")}),
        "training": _line(meta.get("training")),
        "licence": meta.get("license") or "not recorded",
        "views": (meta.get("tta") or {}).get("ops") or "not recorded",
        "extra": _line(meta["extra"]) if meta["extra"] else "none",
        "digest": str(meta["digest"]),
    }
    return {key: str(value) for key, value in described.items() if value is not None}


def _line(record: Mapping[str, Any] | None, hidden: Sequence[str] = ()) -> str:
    """The entries of a record that hold something, on one line."""
    shown = [
        f"{key} ({_line(value)})" if isinstance(value, Mapping) else f"{key} {_text(value)}"
        for key, value in (record or {}).items()
        if value not in (None, "", [], {}) and key not in hidden
    ]
    return ", ".join(shown) or "not recorded"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tasks(meta: Mapping[str, Any]) -> str:
    lines = []
    for task in meta["tasks"]:
        steps = {key: value for key, value in (task.get("transform") or {}).items() if key != "$"}
        parts = [_line({key: task.get(key) for key in _SHOWN})]
        parts += [_line(steps)] if any(steps.values()) else []
        parts += [describe_parts(task["parts_of"])] if task.get("parts_of") else []
        lines.append(f"{task.get('name')} ({', '.join(parts)})")
    return "; ".join(lines) or "no tasks"


def _backbone(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "not recorded"
    return f"{_line(record, ('weights', 'probe', 'sha256'))}; {describe_weights(record.get('weights'))}"
