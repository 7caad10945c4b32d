"""Code lines of the packages, and Python calls and changes of file while a head is loaded.

    python -m benchmarks size

Code lines are those without blank lines, comments and docstrings. ``sys.setprofile`` counts the calls of functions of
the package; a change of file is a call into another file than that of the call before. It fails unless every step of
``HeadCheckpoint.load`` is called once, and the file changes at most 30 times.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

import dinoneck
from benchmarks.measure import Row
from dinoneck import HeadCheckpoint, PatchMeanHead, Predictor, Task, load_backbone, save_head

ROUNDS = 1
ROOT = Path(dinoneck.__file__).parent
MOST_CHANGES = 30  # of file, in HeadCheckpoint.load
LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)
STEPS = ("hub.resolve", "format.read", "schema.check", "contents.check")


class Call(NamedTuple):
    """A call of a function of the package: its file and its name."""

    file: str
    name: str


def calls_of(work: Callable[[], Any]) -> list[Call]:
    """Return the calls while ``work`` runs for the second time: imports and caches belong to the first."""
    work()
    calls: list[Call] = []

    def count(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            calls.append(Call(path.relative_to(ROOT).as_posix(), frame.f_code.co_qualname))

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def changes(calls: list[Call]) -> int:
    """Return how often a call is in another file than the one before."""
    return sum(one.file != other.file for one, other in pairwise(calls))


def code_lines(path: Path) -> int:
    """Return how many lines of a file hold code."""
    text = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        documentable = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documentable and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in LAYOUT and token.string]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - documented)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield both tables; fail if loading repeats a step.

    Raises:
        SystemExit: for a step that is not called once, or more changes of file than allowed.
    """
    packages: dict[str, Row] = {}
    for path in sorted(ROOT.rglob("*.py")):
        row = packages.setdefault(path.relative_to(ROOT.parent).parent.as_posix(), {"files": 0, "code lines": 0})
        row["files"] += 1
        row["code lines"] += code_lines(path)
    yield "code lines", packages
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "head.safetensors")
        save_head(file, PatchMeanHead(64, [Task("mass", unit="g")]), backbone=load_backbone("dinoneck_tiny"))
        image, predictor = torch.rand(3, 64, 96), Predictor(file)
        loading = calls_of(lambda: HeadCheckpoint.load(file))
        found = {
            "HeadCheckpoint.load(path)": loading,
            "Predictor(path)": calls_of(lambda: Predictor(file)),
            "predictor(image)": calls_of(lambda: predictor(image)),
        }
    yield (
        "calls",
        {
            name: {
                "calls": len(calls),
                "functions": len({*calls}),
                "files": len({call.file for call in calls}),
                "changes of file": changes(calls),
            }
            for name, calls in found.items()
        },
    )
    counts = Counter(f"{Path(call.file).stem}.{call.name}" for call in loading)
    wrong = [f"{step} is called {counts[step]} times" for step in STEPS if counts[step] != 1]
    if wrong or changes(loading) > MOST_CHANGES:
        raise SystemExit("; ".join(wrong) or f"HeadCheckpoint.load changes the file {changes(loading)} times")
