"""``dinoneck inspect``: what a head file is, from its header alone, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from dinoneck.checkpoint.format import HEAD_NAME, files_in, is_file, read_header
from dinoneck.checkpoint.schema import describe_parts, describe_weights
from dinoneck.cli.text import in_line, show
from dinoneck.errors import DataError

_SHOWN = ("kind", "dim", "unit", "minimum", "maximum", "labels", "from_map")
_MISSING = "not recorded"


def inspect(file: Annotated[Path, Positional]) -> dict[str, Any]:
    """Print what a head file is, from its header alone.

    Example: dinoneck inspect head.safetensors

    Args:
        file: a head file, the folder of a training, or a folder of head files.
    """
    if is_file(file / "store.json"):
        raise DataError(f"{file} is a feature store and not a folder of heads; 'dinoneck verify {file}' checks it")
    if is_file(file / HEAD_NAME):
        file = file / HEAD_NAME
    if file.is_dir():
        heads = {path.name: read_header(path).meta for path in files_in(file)}
        show({"file": f"{file} (folder of {len(heads)} head files)"})
        for name, meta in heads.items():
            show({"head": f"{name}: {meta['head_type']}, {_tasks(meta)}, {meta['digest'][:19]}"})
        return {"heads": heads}
    header = read_header(file)
    data_bytes = sum(header.sizes)
    size = f"{len(header.sizes)} tensors, {data_bytes} bytes"
    show({"file": f"{file} ({header.data_start + data_bytes} bytes)", **entries(header.meta), "weights": size})
    show("the header alone was read: 'dinoneck verify' checks every byte")
    return header.meta


def entries(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of a header in words: heading -> text."""
    made = f"schema {meta['schema']}, made by dinoneck {meta['created_by'].get('dinoneck')}"
    backbone = meta["backbone"] or {}
    plain = {key: value for key, value in backbone.items() if key not in ("weights", "probe")}
    return {
        "head_type": f"{meta['head_type']} ({made})",
        "tasks": _tasks(meta),
        "backbone": f"{in_line(plain)}; {describe_weights(backbone.get('weights'))}" if backbone else _MISSING,
        "inputs": in_line(meta["inputs"] or {}) or _MISSING,
        "config": in_line({key: value for key, value in meta["config"].items() if key not in ("tasks", "members")}),
        "training": in_line(meta.get("training") or {}) or _MISSING,
        "licence": meta["license"] or _MISSING,
        "backbone's licence": meta["licences"].get("backbone") or _MISSING,
        "views": (meta.get("tta") or {}).get("ops") or _MISSING,
        "extra": in_line(meta["extra"]) or "none",
        "digest": meta["digest"],
    }


def _tasks(meta: Mapping[str, Any]) -> str:
    lines = []
    for task in meta["tasks"]:
        steps = {key: value for key, value in (task.get("transform") or {}).items() if key != "$"}
        parts = [in_line({key: task.get(key) for key in _SHOWN}), in_line(steps)]
        parts += [describe_parts(task["parts_of"])] if task.get("parts_of") else []
        lines.append(f"{task.get('name')} ({', '.join(filter(None, parts))})")
    return "; ".join(lines) or "no tasks"
