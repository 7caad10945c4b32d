"""Python calls of dinoneck and changes of file while a head is loaded: ``python -m benchmarks.calls``.

``sys.setprofile`` counts the calls of functions of the package; a change of file is a call into another file than that
of the call before. Of ``HeadCheckpoint.load`` the script also prints how often each step is called, and the functions
of ``checkpoint/`` that are called twice with the same values; it fails unless every step is called once, there is no
such function, and the file changes at most 30 times.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

import dinoneck
from dinoneck import HeadCheckpoint, PatchMeanHead, Predictor, Task, load_backbone, save_head

ROOT = Path(dinoneck.__file__).parent
MOST_CHANGES = 30  # of file, in HeadCheckpoint.load
STEPS = ("hub.resolve", "format.read", "schema.check", "contents.check")


class Call(NamedTuple):
    """A call of a function of the package: its file, its name and its arguments."""

    file: str
    name: str
    values: dict[str, Any]


def calls_of(work: Callable[[], Any]) -> list[Call]:
    """Return the calls while ``work`` runs for the second time: imports and caches belong to the first."""
    work()
    calls: list[Call] = []

    def count(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            calls.append(Call(path.relative_to(ROOT).as_posix(), frame.f_code.co_qualname, dict(frame.f_locals)))

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def changes(calls: list[Call]) -> int:
    """Return how often a call is in another file than the one before."""
    return sum(one.file != other.file for one, other in pairwise(calls))


def repeated(calls: list[Call]) -> list[str]:
    """Return the functions of ``checkpoint/`` that are called twice with the same values (tensors: the same ones)."""
    seen: list[Call] = []
    twice = []
    for call in calls:
        named = "<" not in call.name and not call.name.startswith("_Limited")  # once per call of torch
        if call.file.startswith("checkpoint/") and named and call.values:
            if any(call[:2] == other[:2] and _same(call.values, other.values) for other in seen):
                twice.append(f"{call.file}: {call.name}")
            seen.append(call)
    return twice


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one.keys() != other.keys():
        return False
    plain = (str, int, bytes, dict, list, tuple, Path)
    return all(a is b or (isinstance(a, plain) and type(a) is type(b) and _equal(a, b))
               for a, b in zip(one.values(), other.values(), strict=True))  # fmt: skip


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # tensors and arrays inside
        return False


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "head.safetensors")
        save_head(file, PatchMeanHead(64, [Task("mass", unit="g")]), backbone=load_backbone("dinoneck_tiny"))
        image, predictor = torch.rand(3, 64, 96), Predictor(file)
        loading = calls_of(lambda: HeadCheckpoint.load(file))
        rows = {
            "HeadCheckpoint.load(path)": loading,
            "Predictor(path)": calls_of(lambda: Predictor(file)),
            "predictor(image)": calls_of(lambda: predictor(image)),
        }
    print(f"{'':28}{'calls':>8}{'functions':>11}{'files':>7}{'changes of file':>17}")
    for name, calls in rows.items():
        functions, files = {call[:2] for call in calls}, {call.file for call in calls}
        print(f"{name:28}{len(calls):8}{len(functions):11}{len(files):7}{changes(calls):17}")
    counts = Counter(f"{Path(call.file).stem}.{call.name}" for call in loading)
    print("steps of load: " + ", ".join(f"{step} {counts[step]}x" for step in STEPS))
    twice = repeated(loading)
    print("called twice with the same values: " + (", ".join(twice) or "none"))
    if twice or any(counts[step] != 1 for step in STEPS) or changes(loading) > MOST_CHANGES:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
