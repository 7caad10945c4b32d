"""A property test over the schema: every hostile value at every place of a header, behind a valid digest.

For every path of the metadata of every sound file (objects, lists and the values in them) the campaign puts each value
of :data:`HOSTILE`, the values that other sound files have at this path, removes it, adds a key, and spells it
twice. Where other places hold the same value under the same key (a task stands in the configuration and in the list of
tasks), the value is also put into all of them, so that a comparison of two places cannot hide what the reader does with
the value. Then the header is spelled canonically, the digest is computed, and :mod:`tests.faults.judge` judges.

A value of another JSON type than the sound one has to be refused, except where :data:`OPEN` lists that the format keeps
any value, or null. A float field takes whole numbers that are spelled as integers; an integer field takes no float.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import signed, subjects
from tests.faults.judge import HARMLESS, REFUSED, SILENT, Judge, Verdict

Path_ = tuple[Any, ...]
LONG = "x" * 100_000
GONE, TWICE, MORE = object(), object(), object()
HOSTILE: dict[str, Any] = {
    "null": None,
    "true": True,
    "false": False,
    "0": 0,
    "-1": -1,
    "1": 1,
    "a large side": 1 << 40,
    "2**63": 1 << 63,
    "0.5": 0.5,
    "-0.0": -0.0,
    "a whole float": 4.0,
    "1e308": 1e308,
    "NaN": signed.raw("NaN"),
    "1e999": signed.raw("1e999"),
    "21 digits": signed.raw("1" * 21),
    "empty text": "",
    "NaN as text": "NaN",
    "a digit": "4",
    "long text": LONG,
    "control characters": "\x1b[2J\x00\n",
    "right to left": "\u202eexe.",
    "half a surrogate": "\ud800",
    "half a surrogate, escaped": signed.raw('"\\ud800"'),
    "traversal": "../../etc/passwd",
    "an import path": "os.system",
    "a shell command": "$(id)",
    "an empty list": [],
    "an empty object": {},
    "a list": [1, 2],
    "a list of null": [None],
    "a long list": [0] * 5000,
    "an object": {"a": 1},
    "nested 1000 deep": signed.raw("[" * 1000 + "]" * 1000),
    "removed": GONE,
    "spelled twice": TWICE,
    "one more": MORE,
}
OPEN = {
    key: kinds
    for kinds, keys in {
        "*": "extra",
        "null dict": "training, tta, inputs, backbone, transform, metrics, data",
        "null str": "license, kind, scheme, weights_sha256, data.name, data.revision, activation",
        "null float": "area, mean, std",
        "null int float": "minimum",
        "null int": "ignore_index, seed, folds, fold, epochs, blur",
        "null list": "layer_indices",
        "null int list": "num_patches, size",
        "int list": "patch_size",
        "null list dict": "weights",
        "int float dict": "R2 over folds, R2",
    }.items()
    for key in keys.split(", ")
}
"""Types that may stand at a key (or its parent's and its own) next to those of the sound files; ``*``: any below it."""


@dataclass
class Forgery:
    """One forged header; ``must_refuse``: no sound file has a value of this type there."""

    name: str
    subject: str
    content: bytes
    changed: frozenset[str]
    must_refuse: bool


@dataclass
class Report:
    """Verdicts by kind and step, and every bad one with the name of its case."""

    tried: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, name: str, verdict: Verdict) -> None:
        """Count one verdict."""
        self.tried += 1
        self.kinds[verdict.kind] += 1
        if verdict.kind == REFUSED:
            self.steps[verdict.step] += 1
        if verdict.bad:
            self.bad.append(f"{name}: {verdict.kind}: {verdict.why}")

    def __iadd__(self, other: Report) -> Report:
        """Add the counts of another one."""
        self.tried += other.tried
        self.kinds, self.steps, self.bad = self.kinds + other.kinds, self.steps + other.steps, self.bad + other.bad
        return self

    def as_json(self) -> dict[str, Any]:
        """For the stored report."""
        return {
            "tried": self.tried,
            "kinds": dict(self.kinds.most_common()),
            "steps": dict(self.steps.most_common()),
            "bad": self.bad,
        }


def paths(value: Any, before: Path_ = ()) -> Iterator[Path_]:
    """Every place in nested objects and lists, containers too; of the list of tensors the first row and the last."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if (*before, key) == ("digest",) or (before == ("tensors",) and key not in (0, len(value) - 1)):
            continue
        yield (*before, key)
        yield from paths(inner, (*before, key))


def at(value: Any, path: Path_) -> Any:
    """The value at a path; GONE if there is none."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return GONE
    return value


def put(meta: Any, path: Path_, value: Any) -> None:
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


def mirrors(meta: Any, path: Path_) -> list[Path_]:
    """All places with the same key and an equal value, this one included."""
    value = at(meta, path)
    return [
        other
        for other in paths(meta)
        if other[-1] == path[-1] and signed.canonical([at(meta, other), 0]) == signed.canonical([value, 0])
    ]


def kind(value: Any) -> str:
    """The JSON type, with integers apart from floats."""
    return "null" if value is None else type(value).__name__


def fits(path: Path_, old: Any, new: Any) -> bool:
    """Whether the format lets a value of this type stand here."""
    if new in (GONE, TWICE, MORE) or kind(old) == kind(new) or (kind(old), kind(new)) == ("float", "int"):
        return True
    allowed = OPEN.get(path[-1], OPEN.get(".".join(map(str, path[-2:])), ""))
    return any(OPEN.get(key) == "*" for key in path) or kind(new) in allowed.split()


def forgeries(name: str) -> Iterator[tuple[str, Path_, Any, bool]]:
    """Every (name, path, value, everywhere) for one sound file."""
    meta = signed.read(subjects.files()[name]).meta
    others = {other: signed.read(raw).meta for other, raw in subjects.files().items() if other != name}
    for path in paths(meta):
        values = HOSTILE | {f"of {other}": found for other, them in others.items()
                            if (found := at(them, path)) is not GONE and found != at(meta, path)}  # fmt: skip
        many = len(mirrors(meta, path)) > 1 and not isinstance(at(meta, path), dict | list)
        for what, value in values.items():
            where = ".".join(map(str, path))
            for everywhere in (False, True)[: 1 + many]:
                yield f"{name}/{where}/{what}{'/everywhere' * everywhere}", path, value, everywhere


def made(name: str, case: str, path: Path_, value: Any, everywhere: bool) -> Forgery:
    """Forge one file."""
    sound = signed.read(subjects.files()[name])
    meta = copy.deepcopy(sound.meta)
    places = mirrors(meta, path) if everywhere else [path]
    for place in sorted(places, key=str, reverse=True):  # of a list the last first
        put(meta, place, value)
    fitting = all(fits(place, at(sound.meta, place), value) for place in places)
    return Forgery(case, name, signed.write(meta, sound.chunks), frozenset(place[0] for place in places), not fitting)


def judged(judge: Judge, forgery: Forgery) -> Verdict:
    """The judge's verdict, and that a value of a type which cannot stand there was refused."""
    verdict = judge.forged(forgery.content, forgery.subject, forgery.changed)
    if verdict.kind == HARMLESS and forgery.must_refuse:
        return Verdict(SILENT, why="a value of another type was accepted")
    return verdict


def campaign(folder: Path, share: float = 1.0, seed: int = 0, number: int = 0, of: int = 1) -> Report:
    """Judge a random share of all forgeries, 1 = all of them, or one of several equal parts of the share."""
    judge, report = Judge(folder), Report()
    everything = [(name, *case) for name in subjects.files() for case in forgeries(name)]
    for case in random.Random(seed).sample(everything, round(share * len(everything)))[number::of]:
        report.add(case[1], judged(judge, made(*case)))
    return report


def part(share: float, number: int, of: int) -> Report:
    """One of several parts of the campaign; for a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return campaign(Path(folder), share, number=number, of=of)
