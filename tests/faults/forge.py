"""A property test over the schema: every hostile value at every place of a header, behind a valid digest.

For every path of the metadata of every sound file (objects, lists and the values in them) the
campaign puts each value of :data:`HOSTILE`, the values that other sound files have at this path,
removes it, adds a key, and spells it twice. Where other places hold the same value under the same
key (a task stands in the configuration and in the list of tasks), the value is also put into all of
them, so that a comparison of two places cannot hide what the reader does with the value. Then the
header is spelled canonically, the digest is computed, and :mod:`tests.faults.judge` judges.

A value of another JSON type than the sound one has to be refused, except for the types that
:data:`OPEN` lists, and below :data:`FREE_KEYS`, where the format keeps any value. A float field
takes whole numbers that are spelled as integers; an integer field takes no float.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import signed
from tests.faults.judge import HARMLESS, MADE, Judge, files, named

MODES = tuple(MADE)
Address = tuple[Any, ...]  # keys and indices from the metadata to a value in it
# what is put at an address: no value, the value twice, and one key or entry more beside it
GONE = object()
TWICE = object()
MORE = object()
NUMBERS = (0, -1, 1, 1 << 40, 1 << 63, 0.5, -0.0, 4.0, 1e308)
# JSON that json.dumps does not write of itself
LITERALS = ("NaN", "1e999", "1" * 21, '"\\ud800"')
TEXTS = (
    "",
    "NaN",
    "4",
    "\x1b[2J\x00\n",
    "\u202eexe.",
    "\ud800",
    "../../etc/passwd",
    "os.system",
    "$(id)",
)
NESTED = "[" * 1000 + "]" * 1000
VALUES = (None, True, False, [], {}, [1, 2], [None], {"a": 1})
HOSTILE: dict[str, Any] = {
    **{f"number {number}": number for number in NUMBERS},
    **{f"literal {text}": signed.RAW + text for text in LITERALS},
    **{f"text {text!r}": text for text in TEXTS},
    **{f"value {value}": value for value in VALUES},
    "a long text": "x" * 100_000,
    "a long list": [0] * 5000,
    "nested 1000 deep": signed.RAW + NESTED,
    "removed": GONE,
    "spelled twice": TWICE,
    "one more": MORE,
}
# everything below these keys may have any type
FREE_KEYS = ("extra",)
# "key" or "parent.key" -> types that the format allows besides that of the sound file
OPEN: dict[str, tuple[str, ...]] = {
    "training": ("NoneType", "dict"),
    "tta": ("NoneType", "dict"),
    "inputs": ("NoneType", "dict"),
    "backbone": ("NoneType", "dict"),
    "transform": ("NoneType", "dict"),
    "metrics": ("NoneType", "dict"),
    "data": ("NoneType", "dict"),
    "license": ("NoneType", "str"),
    "kind": ("NoneType", "str"),
    "scheme": ("NoneType", "str"),
    "weights_sha256": ("NoneType", "str"),
    "data.name": ("NoneType", "str"),
    "data.revision": ("NoneType", "str"),
    "activation": ("NoneType", "str"),
    "area": ("NoneType", "float"),
    "mean": ("NoneType", "float"),
    "std": ("NoneType", "float"),
    "minimum": ("NoneType", "int", "float"),
    "maximum": ("NoneType", "int", "float"),
    "ignore_index": ("NoneType", "int"),
    "seed": ("NoneType", "int"),
    "folds": ("NoneType", "int"),
    "fold": ("NoneType", "int"),
    "epochs": ("NoneType", "int"),
    "blur": ("NoneType", "int"),
    "bits": ("NoneType", "int"),
    "layer_indices": ("NoneType", "list"),
    "num_patches": ("NoneType", "int", "list"),
    "size": ("NoneType", "int", "list"),
    "patch_size": ("int", "list"),
    "weights": ("NoneType", "list", "dict"),
    "R2 over folds": ("int", "float", "dict"),
    "R2": ("int", "float", "dict"),
}


def paths(value: Any, parent: Address = ()) -> Iterator[Address]:
    """Yield the path of everything in nested objects and lists but the digest.

    Of the list of tensors, these are the first row and the last.
    """
    if isinstance(value, dict):
        items = [*value.items()]
    elif isinstance(value, list):
        items = [*enumerate(value)]
    else:
        return
    for key, inner in items:
        path = (*parent, key)
        is_inner_tensor = parent == ("tensors",) and key not in (0, len(value) - 1)
        if path == ("digest",) or is_inner_tensor:
            continue
        yield path
        yield from paths(inner, path)


def at(value: Any, path: Address) -> Any:
    """The value at a path; GONE if there is none."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return GONE
    return value


def put(meta: Any, path: Address, value: Any) -> None:
    """Change one place of the metadata."""
    *parent, key = path
    holder = at(meta, tuple(parent))
    if value is GONE:
        del holder[key]
    elif value is TWICE and isinstance(holder, dict):
        holder[f"{key}{signed.TWICE}"] = holder[key]
    elif value is TWICE:
        holder.insert(key, copy.deepcopy(holder[key]))
    elif value is MORE and isinstance(holder, dict):
        holder[f"{key}_"] = copy.deepcopy(holder[key])
    elif value is MORE:
        holder.append(None)
    else:
        holder[key] = copy.deepcopy(value)


def mirrors(meta: Any, path: Address) -> list[Address]:
    """All paths with the same key and an equal value, this one included; a container has none but itself."""
    value = at(meta, path)
    if isinstance(value, dict | list):
        return [path]
    text = signed.canonical(value)
    same_paths = []
    for other in paths(meta):
        if other[-1] == path[-1] and signed.canonical(at(meta, other)) == text:
            same_paths.append(other)
    return same_paths


def is_allowed(path: Address, old: Any, new: Any) -> bool:
    """Whether the format allows a value of this type here."""
    if new in (GONE, TWICE, MORE):
        return True
    if any(key in FREE_KEYS for key in path):
        return True
    is_literal = isinstance(new, str) and new.startswith(signed.RAW)
    if is_literal and not new.startswith(f'{signed.RAW}"'):
        return False  # the format has no such numbers, and no lists that deep
    old_type = type(old).__name__
    new_type = type(new).__name__
    if new_type == old_type or (old_type, new_type) == ("float", "int"):
        return True
    key = path[-1]
    if key not in OPEN:
        key = ".".join(map(str, path[-2:]))
    return new_type in OPEN.get(key, ())


@dataclass(frozen=True)
class Forgery:
    """One change of a sound file.

    Attributes:
        case: the path and what is put there, in words.
        paths: where it is put.
        value: what is put there.
    """

    case: str
    paths: list[Address]
    value: Any


def forgeries(name: str) -> Iterator[Forgery]:
    """Yield every forgery of one sound file."""
    meta, _ = signed.read(files()[name])
    for path in paths(meta):
        words = ".".join(map(str, path))
        everywhere = mirrors(meta, path)
        for case, value in (HOSTILE | values_of_others(name, path)).items():
            yield Forgery(f"{words}/{case}", [path], value)
            if len(everywhere) > 1:
                yield Forgery(f"{words}/{case}/everywhere", everywhere, value)


def values_of_others(name: str, path: Address) -> dict[str, Any]:
    """Return the values that the other sound files have at a path, where they differ."""
    meta, _ = signed.read(files()[name])
    values = {}
    for other, raw in files().items():
        if other == name:
            continue
        other_meta, _ = signed.read(raw)
        value = at(other_meta, path)
        if value is not GONE and value != at(meta, path):
            values[f"of {other}"] = value
    return values


def judged(judge: Judge, name: str, forgery: Forgery) -> str:
    """Return the verdict on one forged file; an accepted value of a forbidden type is a fault."""
    sound, chunks = signed.read(files()[name])
    meta = copy.deepcopy(sound)
    # the last entries of a list first: one that is removed or doubled shifts those behind it
    for path in sorted(forgery.paths, key=str, reverse=True):
        put(meta, path, forgery.value)
    changed_keys = frozenset(path[0] for path in forgery.paths)
    verdict = judge.verdict(signed.write(meta, chunks), name, changed_keys)
    if verdict == HARMLESS:
        for path in forgery.paths:
            if not is_allowed(path, at(sound, path), forgery.value):
                return "a value of another type was accepted"
    return verdict


def outcomes(name: str, share: float, folder: Path) -> Iterator[str]:
    """Judge a random share of all forgeries of one sound file; a fault begins with its case."""
    judge = Judge(folder)
    cases = [*forgeries(name)]
    count = max(1, round(share * len(cases)))
    for forgery in random.Random(0).sample(cases, count):
        yield named(forgery.case, judged(judge, name, forgery))
