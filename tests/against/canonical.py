"""One plain form of results and files, which two versions share exactly where they agree to the bit.

It consists of what JSON holds, so that a process can hand it to another one. An array becomes its
dtype, shape and SHA-256, with a few of its values for the report. What differs between two runs of
the same code (temporary folders, ports, times) or is rewritten on purpose (prose) is replaced by a
fixed word; the tables below are the whole list.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from tests.against.compare import ARRAY, RAISED

LEFT_OUT = "(left out)"
MAX_SAMPLE = 32
"""How many values of an array are kept for the report."""

MEASURED = {
    "images_per_second",
    "minutes",
    "ms_per_image",
    "peak_memory_mb",
    "quartile_range_ms",
    "seconds",
    "seconds_per_image",
}
VERSIONS = {
    "created_by",
    "digest",  # of a head file: it covers created_by
    "dinoneck",
    "made_with",
    "versions",
}
PROSE = {
    "bytes",  # how long a page of the report is
    "message",
    "remedy",
    "text",
    "verdict",
}
KEYS_LEFT_OUT = MEASURED | VERSIONS | PROSE
"""Keys whose values are not compared."""
PROSE_BY_NAME = {"unread", "unusable"}
"""Keys of mappings from an image to why it was left out: the images are compared."""
CONTENT_LEFT_OUT = {
    ".html",  # prose and styles; its numbers are those of the CSV files
    ".onnx",  # both hold the names of the modules and source lines that were traced
    ".pt2",
    ".txt",
}
"""Endings of files of which only the name is compared."""

HUB_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
COMMIT = re.compile(r"\b[0-9a-f]{40}\b")  # on the hub; it covers a file that names the version
WRITER = re.compile(r"\bw-[0-9a-f]{24}\b")  # which process wrote a file of a store


def canonical(value: Any, folder: Path) -> Any:
    """Return the plain form of a result; ``folder`` is the temporary one that paths begin with.

    Raises:
        TypeError: for an object without a plain form, so that nothing is left out by accident.
    """
    if value is None or isinstance(value, bool):
        return value
    # before float, which np.float64 is as well: a change of the dtype is a difference
    if isinstance(value, np.ndarray | np.generic):
        values = np.asarray(value)
        if values.dtype == object:
            return canonical(values.tolist(), folder)
        return summarise_array(values)
    if isinstance(value, Tensor):
        return summarise_tensor(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, str | os.PathLike):
        return canonical_text(os.fspath(value), folder)
    if isinstance(value, Mapping):
        return canonical_mapping(value, folder)
    if isinstance(value, list | tuple):
        return [canonical(item, folder) for item in value]
    raise TypeError(f"{type(value).__name__} has no plain form; add one to tests/against/canonical")


def canonical_mapping(mapping: Mapping[Any, Any], folder: Path) -> dict[str, Any]:
    """Return a mapping in its order of keys."""
    plain: dict[str, Any] = {}
    for key, value in mapping.items():
        name = canonical_text(key, folder) if isinstance(key, str) else repr(key)
        if name in plain:
            raise ValueError(f"two keys become {name!r}")
        if name in KEYS_LEFT_OUT:
            plain[name] = LEFT_OUT
        elif name in PROSE_BY_NAME and isinstance(value, Mapping):
            plain[name] = canonical(dict.fromkeys(value, LEFT_OUT), folder)
        else:
            plain[name] = canonical(value, folder)
    return plain


def canonical_text(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "FOLDER")
    text = HUB_ADDRESS.sub("127.0.0.1:PORT", text)
    text = COMMIT.sub("COMMIT", text)
    return WRITER.sub("w-WRITER", text)


def summarise_tensor(tensor: Tensor) -> dict[str, Any]:
    flat = tensor.detach().contiguous().reshape(-1)
    return {
        ARRAY: {
            "dtype": str(tensor.dtype),
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(flat.view(torch.uint8).numpy()).hexdigest(),
            **summarise_numbers(flat.double().numpy()),
        }
    }


def summarise_array(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    summary = {
        "dtype": str(values.dtype),
        "shape": list(values.shape),
        "sha256": hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(),
    }
    if values.dtype.kind in "biuf":
        summary |= summarise_numbers(values.reshape(-1).astype(np.float64))
    return {ARRAY: summary}


def summarise_numbers(numbers: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return what tells how far two arrays are apart: the norm, and values evenly spread."""
    count = min(len(numbers), MAX_SAMPLE)
    positions = np.linspace(0, len(numbers) - 1, count).round().astype(int)
    return {
        "count": len(numbers),
        "norm": float(np.linalg.norm(numbers)),
        "sample": numbers[positions].tolist(),
    }


def raised(error: Exception, folder: Path) -> dict[str, Any]:
    """Return the plain form of an error."""
    message = canonical_text(str(error), folder)
    return {RAISED: {"class": type(error).__name__, "message": message}}


def canonical_folder(folder: Path, root: Path) -> dict[str, Any]:
    """Return the content of every file below a folder, by path; ``root`` as in :func:`canonical`."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = canonical_text(path.relative_to(folder).as_posix(), root)
            if name in contents:
                raise ValueError(f"two files become {name!r}")
            contents[name] = canonical_file(path, root)
    return contents


def canonical_file(path: Path, root: Path) -> Any:
    """Return the content of a file in the form that its ending suggests."""
    ending = path.suffix
    if ending in CONTENT_LEFT_OUT:
        return LEFT_OUT
    if ending == ".safetensors":
        return canonical_tensors(path, root)
    if ending == ".json":
        return canonical(json.loads(path.read_text()), root)
    if ending == ".jsonl":
        return [canonical(json.loads(line), root) for line in path.read_text().splitlines()]
    if ending in (".csv", ".yaml"):
        return canonical(path.read_text().splitlines(), root)
    if ending in (".jpg", ".png", ".tif"):
        with Image.open(path) as image:
            pixels = summarise_array(np.asarray(image))
            return {"mode": image.mode, "palette": image.getpalette(), "pixels": pixels}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def canonical_tensors(path: Path, root: Path) -> dict[str, Any]:
    """Return metadata and tensors of a safetensors file; JSON in the metadata is read."""
    metadata: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    with safe_open(path, "pt") as file:
        entries = file.metadata() or {}
        for key in sorted(entries):  # the library returns them in another order each time
            metadata[key] = canonical(read_json(entries[key]), root)
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            tensors[name] = summarise_tensor(file.get_tensor(name))
    return {"metadata": metadata, "tensors": tensors}


def read_json(text: str) -> Any:
    """Return what a text holds as JSON, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
