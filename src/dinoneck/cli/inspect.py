"""``dinoneck inspect``: what a head file is, from its header alone, without torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from dinoneck.checkpoint.ensemble_folder import is_ensemble, read_listing
from dinoneck.checkpoint.file import Header, head_files, read_header
from dinoneck.checkpoint.schema import SCHEMA, describe_parts, describe_weights
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.stores import is_store
from dinoneck.errors import DataError, printable

HELP = "print what a head file or an ensemble is, from the headers alone"
EXAMPLE = "dinoneck inspect head.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", type=Path, help="a head file, a folder of them, or the folder of an ensemble")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the header, or of a folder a line per head."""
    if options.file.is_dir():
        return _folder(options, options.file)
    header = read_header(options.file)
    answer(options, **header.meta)
    print(describe(header, options.file))
    return 0


def _folder(options: argparse.Namespace, folder: Path) -> int:
    if is_store(folder):
        raise DataError(f"{folder} is a feature store, no folder of heads; 'dinoneck store verify {folder}' reads it")
    listing = read_listing(folder) if is_ensemble(folder) else None
    found = {str(file.relative_to(folder)): read_header(file).meta for file in head_files(folder)}
    answer(options, ensemble=None if listing is None else msgspec.to_builtins(listing), heads=found)
    lines = [f"{'file':<10} {folder} (folder of {len(found)} head files{'' if listing is None else ', an ensemble'})"]
    weights = {}
    if listing is not None:
        weights = {member.file: member.weight for member in listing.members}
        lines += [f"{'reduce':<10} {listing.reduce}", f"{'backbone':<10} {_backbone(listing.backbone)}"]
        lines += [f"{'inputs':<10} {_inputs(listing.inputs)}"]
        lines += [f"{'digest':<10} {listing.digest} (the heads are not checked: use 'dinoneck verify')"]
    for file, meta in found.items():
        tasks = "; ".join(_task(task) for task in meta["tasks"]) or "no tasks"
        share = f", weight {weights[file]:g}" if file in weights else ""
        lines.append(f"{'head':<10} {file}: {meta['head_type']}, {tasks}{share}, {meta['digest'][:19]}...")
    print("\n".join(map(printable, lines)))
    return 0


def describe(header: Header, file: Path) -> str:
    """Return the header as lines for people. The tensors' bytes are not read, so their digest is not checked."""
    weights = f"{len(header.tensors)} tensors, {header.data_bytes} bytes"
    told = entries(header.meta, weights)
    told["digest"] += " (not checked: use 'dinoneck verify')"
    lines = {"file": f"{file} ({header.data_start + header.data_bytes} bytes)", **told}
    return "\n".join(printable(f"{key:<10} {value}") for key, value in lines.items())


def entries(meta: Mapping[str, Any], weights: str | None = None) -> dict[str, str]:
    """Return what a header says, in words: heading -> text; what the weights are is told by who has read them."""
    made = meta["created_by"]
    older = "" if meta["schema"] == SCHEMA else f"; 'dinoneck migrate' brings it to {SCHEMA}"
    versions = ", ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items() if version != 1)
    told = {
        "head_type": f"{meta['head_type']} (schema {meta['schema']}, made by dinoneck {made.get('dinoneck')}{older})"
        + (f"; versions: {versions}" if versions else ""),
        "tasks": "; ".join(_task(task) for task in meta["tasks"]) or "none",
        "backbone": _backbone(meta["backbone"]),
        "inputs": _inputs(meta["inputs"]),
        "weights": weights,
        "config": json.dumps({key: value for key, value in meta["config"].items() if key not in ("tasks", "members")}),
        "training": _training(meta.get("training")),
        "licence": meta.get("license") or "not recorded",
        "views": (meta.get("tta") or {}).get("ops") or "not recorded",
        "extra": json.dumps(meta["extra"], sort_keys=True) if meta["extra"] else "none",
        "digest": str(meta["digest"]),
    }
    return {key: str(value) for key, value in told.items() if value is not None}


def _task(task: dict[str, Any]) -> str:
    unit = f", {task['unit']}" if task.get("unit") else ""
    unit += "" if task.get("minimum") is None else f", at least {task['minimum']:g}"
    transform = task.get("transform")
    steps = []
    if transform:
        steps += ["/ area"] if transform.get("area") else []
        steps += ["log1p"] if transform.get("log1p") else []
        steps += ["z-score"] if transform.get("mean") is not None else []
    steps += [f"mean over the cells of {task['from_cells']}"] if task.get("from_cells") else []
    steps += [describe_parts(task["parts_of"])] if task.get("parts_of") else []
    return (
        f"{task.get('name')} ({task.get('kind')}, dim {task.get('dim')}{unit}{', ' + ' '.join(steps) if steps else ''})"
    )


def _backbone(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not recorded"
    origin = describe_weights(record.get("weights"))
    tuned = record.get("adapter")
    origin += f", with LoRA of rank {tuned['rank']}" if tuned else ""
    licence = f"; licence {record['license']}" if record.get("license") else ""
    norm = "normed" if record.get("norm") else "not normed"
    shape = f"patch {record.get('patch_size')} px, width {record.get('embed_dim')}"
    return (
        f"{record.get('name')} of {record.get('source')}, layers {record.get('layers')} {norm}, {shape}, "
        f"{record.get('num_registers')} registers; {origin}{licence}"
    )


def _inputs(record: dict[str, Any] | None) -> str:
    if record is None:
        return "not recorded"
    told = f"where the patch does not divide: {record.get('policy')}"
    if record.get("size") is None:
        told = f"photos in their own size; {told}"
    else:
        size = "x".join(str(side) for side in record["size"])
        told = f"photos brought to {size} px by {record.get('fit')}, {record.get('interpolation')}; {told}"
    told += f"; blur {record['blur']}" if record.get("blur") else ""
    return told + f"; mean {record.get('mean')}, std {record.get('std')}"


def _training(record: dict[str, Any] | None) -> str:
    if not record:
        return "not recorded"
    told = [f"{key} {record[key]}" for key in ("seed", "folds", "fold", "epochs") if record.get(key) is not None]
    data = record.get("data") or {}
    told += [f"data {' at '.join(filter(None, (data.get('name'), data.get('revision'))))}"] if data else []
    for name, value in (record.get("metrics") or {}).items():
        told.append(f"{name} {value['mean']:g} ± {value['sd']:g}" if isinstance(value, dict) else f"{name} {value:g}")
    return ", ".join(told)
