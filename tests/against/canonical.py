"""One plain form of results and files, which two versions share exactly where they agree to the bit.

It consists of what JSON holds, so that a process can hand it to another one. An array becomes its
dtype, shape and SHA-256, with a few of its values for the report. What differs between two runs of
the same code (temporary folders, ports, times) or is rewritten on purpose (prose) is replaced by a
fixed word; the tables of ``left_out.py`` and below are the whole list.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from tests.against.compare import ARRAY, RAISED, typed, without_type
from tests.against.json_text import read_document
from tests.against.left_out import CONTENT, LEFT_OUT, Keys, Paths, is_left_out, of_file

MAX_SAMPLE = 32
"""How many values of an array are kept for the report."""
METADATA = "__metadata__"
"""The entry of a safetensors header that holds texts."""
PICTURES = (".jpg", ".png", ".tif")
TEXTS = (".csv", ".md", ".txt", ".yaml")

HUB_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
COMMIT = re.compile(r"\b[0-9a-f]{40}\b")  # on the hub; it covers a file that names the version
WRITER = re.compile(r"\bw-[0-9a-f]{24}\b")  # which process wrote a file of a store


def canonical(value: Any, folder: Path, *, left_out: Paths = (), path: Keys = ()) -> Any:
    """Return the plain form of a result.

    Args:
        value: the result.
        folder: the temporary one that paths begin with.
        left_out: paths of values that are not compared.
        path: the keys that lead to the value.

    Raises:
        TypeError: for an object without a plain form, so that nothing is left out by accident.
    """
    if is_left_out(path, left_out):
        return LEFT_OUT
    # before float and str, which np.float64 and np.str_ are as well
    if isinstance(value, np.ndarray | np.generic):
        return canonical_array(value, folder)
    if isinstance(value, Tensor):
        return with_type(value, summarise_tensor(value), Tensor)
    if isinstance(value, PurePath):
        return typed(type(value).__name__, canonical_text(str(value), folder))
    if isinstance(value, bytes):
        return typed("bytes", hashlib.sha256(value).hexdigest())
    if isinstance(value, str):
        return with_type(value, canonical_text(value, folder), str)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return with_type(value, int(value), int)
    if isinstance(value, float):
        return with_type(value, float(value), float)
    if isinstance(value, Mapping):
        plain = canonical_mapping(value, folder, left_out, path)
        return with_type(value, plain, dict)
    if isinstance(value, list | tuple):
        items = []
        for position, item in enumerate(value):
            inside = (*path, str(position))
            items.append(canonical(item, folder, left_out=left_out, path=inside))
        return with_type(value, items, list)
    raise TypeError(f"{type(value).__name__} has no plain form; add one to tests/against/canonical")


def with_type(value: Any, plain: Any, usual: type) -> Any:
    """Return a plain form, with the value's type unless that is the usual one."""
    if type(value) is usual:
        return plain
    return typed(type(value).__name__, plain)


def canonical_mapping(
    mapping: Mapping[Any, Any], folder: Path, left_out: Paths, path: Keys
) -> dict[str, Any]:
    """Return a mapping in its order of keys; keys that are no text have their type in their name."""
    plain: dict[str, Any] = {}
    for key, value in mapping.items():
        name = canonical_text(str(key), folder)
        if type(key) is not str:
            name = f"{name} ({type(key).__name__})"
        if name in plain:
            raise ValueError(f"two keys become {name!r}")
        plain[name] = canonical(value, folder, left_out=left_out, path=(*path, str(key)))
    return plain


def canonical_array(value: np.ndarray[Any, Any] | np.generic, folder: Path) -> Any:
    """Return the plain form of an array or of one of NumPy's scalars."""
    values = np.asarray(value)
    if values.dtype == object:
        items = canonical(values.reshape(-1).tolist(), folder)
        return typed(f"object array {values.shape}", items)
    return with_type(value, summarise_array(values), np.ndarray)


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
            "order": order_of_axes(tensor.shape, tensor.stride()),
            "requires_grad": tensor.requires_grad,
            **summarise_numbers(flat.double().numpy()),
        }
    }


def summarise_array(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    summary = {
        "dtype": str(values.dtype),
        "shape": list(values.shape),
        "sha256": hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest(),
        "order": order_of_axes(values.shape, values.strides),
        "requires_grad": False,
    }
    if values.dtype.kind in "biuf":
        summary |= summarise_numbers(values.reshape(-1).astype(np.float64))
    return {ARRAY: summary}


def order_of_axes(shape: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the axes from the outermost in memory to the innermost, without those of one value."""
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    return sorted(axes, key=lambda axis: -abs(strides[axis]))


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
    left_out = of_file(path.name)
    if ending in CONTENT:
        return LEFT_OUT
    if ending == ".safetensors":
        return canonical_tensors(path, root, left_out)
    if ending == ".json":
        return canonical_json(read_text(path), root, left_out)
    if ending == ".jsonl":
        return canonical_lines_of_json(read_text(path), root, left_out)
    if ending in TEXTS:
        # not splitlines: it would take other line ends, and one that is missing, for the same
        return canonical(read_text(path).split("\n"), root)
    if ending in PICTURES:
        return canonical_picture(path, root)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_text(path: Path) -> str:
    """Return the text of a file with its line ends as they are."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def canonical_json(text: str, root: Path, left_out: Paths, path: Keys = ()) -> Any:
    """Return the plain form of a JSON text, which tells how it is written too."""
    return read_document(
        text, left_out=left_out, path=path, words=lambda word: canonical_text(word, root)
    )


def canonical_lines_of_json(text: str, root: Path, left_out: Paths) -> list[Any]:
    """Return the plain form of each line; that after the last line end is empty."""
    lines: list[Any] = []
    for number, line in enumerate(text.split("\n")):
        if line:
            lines.append(canonical_json(line, root, left_out, path=(str(number),)))
        else:
            lines.append("")
    return lines


def canonical_picture(path: Path, root: Path) -> dict[str, Any]:
    """Return decoded pixels and metadata; how they are compressed is left to the libraries."""
    with Image.open(path) as image:
        return {
            "format": image.format,
            "mode": image.mode,
            "palette": image.getpalette(),
            "pixels": summarise_array(np.asarray(image)),
            "metadata": canonical(image.info, root),
        }


def canonical_tensors(path: Path, root: Path, left_out: Paths) -> dict[str, Any]:
    """Return header and tensors of a safetensors file; JSON in the metadata is read.

    The header says where in the file each tensor is, so the whole file is compared, apart from the
    padding of the header: it depends on how long the version is.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].decode().rstrip(" ")
    header = canonical_json(text, root, left_out, path=("header",))
    read_metadata(header, root, left_out)
    tensors: dict[str, Any] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            tensors[name] = summarise_tensor(file.get_tensor(name))
    return {"header": header, "tensors": tensors}


def read_metadata(header: Any, root: Path, left_out: Paths) -> None:
    """Put the plain forms of JSON texts in the place of the texts in a header's metadata.

    The keys are sorted: the library writes them in another order each time.
    """
    entries = without_type(header)
    if METADATA not in entries:
        return
    metadata = without_type(entries[METADATA])
    texts = dict(sorted(metadata.items()))
    metadata.clear()
    for key, text in texts.items():
        metadata[key] = text
        content = without_type(text)
        if content.startswith(("{", "[")):
            inside = ("header", METADATA, key)
            metadata[key] = canonical_json(content, root, left_out, path=inside)
