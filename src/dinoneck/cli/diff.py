"""``dinoneck diff``: what differs between two head files, entry by entry and tensor by tensor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.header import Header, read_content
from dinoneck.errors import printable

HELP = "compare two head files; exit 1 if anything differs"
EXAMPLE = "dinoneck diff old.safetensors new.safetensors --values"
_APART = ("tensors", "digest")  # the first is listed tensor by tensor, the second differs whenever anything does
_LONGEST = 120
_NOTHING = object()

Content = tuple[Header, dict[str, bytearray | memoryview]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("first", type=Path, help="a head file")
    parser.add_argument("second", type=Path, help="another one")
    parser.add_argument("--values", action="store_true", help="how far apart differing tensors are (imports torch)")


def run(options: argparse.Namespace) -> int:
    """Print what differs; the digests are checked first, so a damaged file is refused and not compared."""
    one, other = read_content(options.first), read_content(options.second)
    metas = [{key: value for key, value in content[0].meta.items() if key not in _APART} for content in (one, other)]
    changed = list(_entries(metas[0], metas[1]))
    told = list(_tensors(one, other, options.values))
    alike = sum(line.startswith("equal") for line in told)
    lines = changed + told
    print("\n".join(map(printable, lines)))
    same = not changed and alike == len(told)
    print(
        "the same content" if same else f"{len(changed)} entries and {len(told) - alike} of {len(told)} tensors differ"
    )
    return 0 if same else 1


def _entries(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """One line per entry of the metadata that differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _entries(one.get(key, _NOTHING), other.get(key, _NOTHING), f"{place}.{key}" if place else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other) and any(map(_is_rich, one)):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _entries(*pair, f"{place}[{index}]")
    elif _spelled(one) != _spelled(other):
        yield f"header   {place}: {_shown(one)} -> {_shown(other)}"


def _tensors(one: Content, other: Content, values: bool) -> Iterator[str]:
    """One line per tensor."""
    found = [{entry.name: entry for entry in content[0].tensors} for content in (one, other)]
    for name in sorted({*found[0], *found[1]}):
        first, second = found[0].get(name), found[1].get(name)
        if first is None or second is None:
            yield f"only in {'the first' if second is None else 'the second'}  {name}"
        elif (first.dtype, first.shape) != (second.dtype, second.shape):
            yield f"differs  {name}: {first.dtype} {list(first.shape)} -> {second.dtype} {list(second.shape)}"
        elif one[1][name] == other[1][name]:
            yield f"equal    {name}"
        else:
            gap = f", at most by {_gap(first.dtype, one[1][name], other[1][name]):g}" if values else ""
            yield f"differs  {name}: {first.dtype} {list(first.shape)}{gap}"


def _gap(dtype: str, one: bytearray | memoryview, other: bytearray | memoryview) -> float:
    """The largest absolute difference of two tensors' values."""
    import torch

    from dinoneck.checkpoint.state import TORCH_DTYPES

    pair = [torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype]).double() for buffer in (one, other)]
    return float((pair[0] - pair[1]).abs().max())


def _is_rich(value: Any) -> bool:
    return isinstance(value, dict | list)


def _spelled(value: Any) -> str:
    return "nothing" if value is _NOTHING else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(value: Any) -> str:
    told = _spelled(value)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."
