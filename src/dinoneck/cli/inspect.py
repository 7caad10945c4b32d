"""``dinoneck inspect``: what a head file is, from its header alone, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from dinoneck.checkpoint.format import HEAD_NAME, head_files, is_file, read_header
from dinoneck.checkpoint.schema import describe_parts, describe_weights
from dinoneck.cli.text import in_line, show
from dinoneck.errors import DataError

_SHOWN = ("kind", "dim", "unit", "minimum", "labels", "from_cells")
_MISSING = "not recorded"
_UNCHECKED = "the header alone was read: 'dinoneck verify' checks every byte"


def inspect(file: Annotated[Path, Positional]) -> dict[str, Any]:
    """Print what a head file is, from its header alone.

    Example: dinoneck inspect head.safetensors

    Args:
        file: a head file, the folder of a training, or a folder of head files.
    """
    if is_file(file / HEAD_NAME):
        file = file / HEAD_NAME
    if file.is_dir():
        return _folder(file)
    header = read_header(file)
    data_bytes = sum(header.sizes)
    described = entries(header.meta, f"{len(header.sizes)} tensors, {data_bytes} bytes")
    show({"file": f"{file} ({header.data_start + data_bytes} bytes)", **described})
    show(_UNCHECKED)
    return header.meta


def _folder(folder: Path) -> dict[str, Any]:
    """Print a line per head."""
    if is_file(folder / "store.json"):
        raise DataError(f"{folder} is a feature store and not a folder of heads; 'dinoneck verify {folder}' checks it")
    heads = {file.name: read_header(file).meta for file in head_files(folder)}
    show({"file": f"{folder} (folder of {len(heads)} head files)"})
    for name, meta in heads.items():
        show({"head": f"{name}: {meta['head_type']}, {_tasks(meta)}, {meta['digest'][:19]}"})
    return {"heads": heads}


def entries(meta: Mapping[str, Any], weights: str | None = None) -> dict[str, str]:
    """Return the contents of a header in words: heading -> text; the caller describes the weights."""
    made = f"schema {meta['schema']}, made by dinoneck {meta['created_by'].get('dinoneck')}"
    described = {
        "head_type": f"{meta['head_type']} ({made})",
        "tasks": _tasks(meta),
        "backbone": _backbone(meta["backbone"]),
        "inputs": in_line(meta["inputs"] or {}) or _MISSING,
        "weights": weights,
        "config": in_line({key: value for key, value in meta["config"].items() if key not in ("tasks", "members")}),
        "training": in_line(meta.get("training") or {}) or _MISSING,
        "licence": meta["license"] or _MISSING,
        "backbone's licence": meta["licences"].get("backbone"),
        "views": (meta.get("tta") or {}).get("ops") or _MISSING,
        "extra": in_line(meta["extra"]) or "none",
        "digest": meta["digest"],
    }
    return {key: value for key, value in described.items() if value is not None}


def _tasks(meta: Mapping[str, Any]) -> str:
    lines = []
    for task in meta["tasks"]:
        steps = {key: value for key, value in (task.get("transform") or {}).items() if key != "$"}
        parts = [in_line({key: task.get(key) for key in _SHOWN})]
        parts += [in_line(steps)] if any(steps.values()) else []
        parts += [describe_parts(task["parts_of"])] if task.get("parts_of") else []
        lines.append(f"{task.get('name')} ({', '.join(parts)})")
    return "; ".join(lines) or "no tasks"


def _backbone(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return _MISSING
    shown = {key: value for key, value in record.items() if key not in ("weights", "probe")}
    return f"{in_line(shown)}; {describe_weights(record.get('weights'))}"
