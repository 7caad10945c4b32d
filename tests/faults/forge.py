"""A property test over the schema: every hostile value at every place of a header, behind a valid digest.

For every path of the metadata of every sound file (objects, lists and the values in them) the
campaign puts each value of :data:`HOSTILE`, the values that other sound files have at this path,
removes it, adds a key, and spells it twice. Where other places hold the same value under the same
key (a task stands in the configuration and in the list of tasks), the value is also put into all of
them, so that a comparison of two places cannot hide what the reader does with the value. Then the
header is spelled canonically, the digest is computed, and :mod:`tests.faults.judge` judges.

A value of another JSON type than the sound one has to be refused, except where :data:`OPEN` lists
that the format keeps any value, or null. A float field takes whole numbers that are spelled as
integers; an integer field takes no float.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults import signed
from tests.faults.judge import HARMLESS, MADE, Judge, files

MODES = tuple(MADE)
Place = tuple[Any, ...]
GONE, TWICE, MORE = object(), object(), object()
HOSTILE: dict[str, Any] = {
    **{f"number {x}": x for x in (0, -1, 1, 1 << 40, 1 << 63, 0.5, -0.0, 4.0, 1e308)},
    **{f"literal {text}": signed.RAW + text for text in ("NaN", "1e999", "1" * 21, '"\\ud800"')},
    **{
        f"text {x!r}": x
        for x in ("", "NaN", "4", "\x1b[2J\x00\n", "\u202eexe.", "\ud800", "../../etc/passwd")
    },
    **{f"text {x!r}": x for x in ("os.system", "$(id)")},
    **{f"value {x}": x for x in (None, True, False, [], {}, [1, 2], [None], {"a": 1})},
    "a long text": "x" * 100_000,
    "a long list": [0] * 5000,
    "nested 1000 deep": signed.RAW + ("[" * 1000 + "]" * 1000),
    "removed": GONE,
    "spelled twice": TWICE,
    "one more": MORE,
}
OPEN = {
    key: kinds
    for kinds, keys in {
        "*": "extra",
        "NoneType dict": "training, tta, inputs, backbone, transform, metrics, data",
        "NoneType str": "license, kind, scheme, weights_sha256, data.name, data.revision, "
        "activation",
        "NoneType float": "area, mean, std",
        "NoneType int float": "minimum, maximum",
        "NoneType int": "ignore_index, seed, folds, fold, epochs, blur, bits",
        "NoneType list": "layer_indices",
        "NoneType int list": "num_patches, size",
        "int list": "patch_size",
        "NoneType list dict": "weights",
        "int float dict": "R2 over folds, R2",
    }.items()
    for key in keys.split(", ")
}
"""Types that may stand at a key (or its parent's and its own) next to those of the sound files; ``*``: any below it."""


def paths(value: Any, before: Place = ()) -> Iterator[Place]:
    """Every place in nested objects and lists, containers too; of the list of tensors the first row and the last."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        if (*before, key) == ("digest",) or (
            before == ("tensors",) and key not in (0, len(value) - 1)
        ):
            continue
        yield (*before, key)
        yield from paths(inner, (*before, key))


def at(value: Any, path: Place) -> Any:
    """The value at a path; GONE if there is none."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return GONE
    return value


def put(meta: Any, path: Place, value: Any) -> None:
    """Change one place of the metadata."""
    holder, key = at(meta, path[:-1]), path[-1]
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


def mirrors(meta: Any, path: Place) -> list[Place]:
    """All places with the same key and an equal value, this one included; a container has none but itself."""
    value = at(meta, path)
    if isinstance(value, dict | list):
        return [path]
    same = signed.canonical(value)
    return [
        other
        for other in paths(meta)
        if other[-1] == path[-1] and signed.canonical(at(meta, other)) == same
    ]


def fits(path: Place, old: Any, new: Any) -> bool:
    """Whether the format lets a value of this type stand here."""
    before, after = type(old).__name__, type(new).__name__
    if new in (GONE, TWICE, MORE) or before == after or (before, after) == ("float", "int"):
        return True
    allowed = OPEN.get(path[-1], OPEN.get(".".join(map(str, path[-2:])), ""))
    return any(OPEN.get(key) == "*" for key in path) or after in allowed.split()


def forgeries(name: str) -> Iterator[tuple[str, list[Place], Any]]:
    """Every (case, the places that change, their value) for one sound file."""
    meta = signed.read(files()[name])[0]
    others = {f"of {other}": signed.read(raw)[0] for other, raw in files().items() if other != name}
    for path in paths(meta):
        found = {case: at(other, path) for case, other in others.items()}
        theirs = {
            case: value
            for case, value in found.items()
            if value is not GONE and value != at(meta, path)
        }
        everywhere = mirrors(meta, path)
        for case, value in (HOSTILE | theirs).items():
            where = ".".join(map(str, path))
            yield f"{where}/{case}", [path], value
            if len(everywhere) > 1:
                yield f"{where}/{case}/everywhere", everywhere, value


def judged(judge: Judge, name: str, places: list[Place], value: Any) -> str:
    """The verdict on one forged file, and that a value of a type which cannot stand there was refused."""
    sound, chunks = signed.read(files()[name])
    meta = copy.deepcopy(sound)
    for place in sorted(places, key=str, reverse=True):  # of a list the last first
        put(meta, place, value)
    verdict = judge.verdict(
        signed.write(meta, chunks), name, frozenset(place[0] for place in places)
    )
    if verdict == HARMLESS and not all(fits(place, at(sound, place), value) for place in places):
        return "a value of another type was accepted"
    return verdict


def outcomes(name: str, share: float, folder: Path) -> Iterator[str]:
    """Judge a random share of all forgeries of one sound file; a fault begins with its case."""
    judge, cases = Judge(folder), list(forgeries(name))
    for case, places, value in random.Random(0).sample(cases, max(1, round(share * len(cases)))):
        verdict = judged(judge, name, places, value)
        yield verdict if " " not in verdict else f"{case}: {verdict}"
