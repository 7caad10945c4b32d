"""What a verb answers to programs: with ``--json`` one document on stdout, and all that is for people on stderr.

Every document is an object with ``verb``, ``ok`` (the exit code is 0), ``dinoneck`` (the version) and the verb's own
entries. A refusal has ``error`` with ``type`` and ``message``, and goes to stderr as without ``--json``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dinoneck.version import __version__


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``; the verb gives its entries to :func:`answer`."""
    parser.add_argument(
        "--json", action="store_true", help="for programs: one JSON document on stdout, everything else on stderr"
    )
    parser.set_defaults(answer=None)


def answer(options: argparse.Namespace, **entries: Any) -> None:
    """Add entries to the document; without ``--json`` nobody reads them."""
    options.answer = {**(options.answer or {}), **entries}


@contextlib.contextmanager
def answering(options: argparse.Namespace) -> Iterator[None]:
    """Send to stderr what is printed on stdout meanwhile, if ``--json`` was given."""
    with contextlib.redirect_stdout(sys.stderr) if _wanted(options) else contextlib.nullcontext():
        yield


def close(options: argparse.Namespace, code: int, error: Exception | None = None) -> None:
    """Print the document, if ``--json`` was given."""
    if not _wanted(options):
        return
    document = {"verb": options.verb, "ok": code == 0, "dinoneck": __version__, **(options.answer or {})}
    if error is not None:
        step = getattr(error, "step", None)
        told = {"type": type(error).__name__, "message": str(error)}
        document["error"] = told if step is None else {**told, "step": step}
    print(json.dumps(_plain(document), indent=2))


def _wanted(options: argparse.Namespace) -> bool:
    return hasattr(options, "answer") and options.json


def _plain(value: Any) -> Any:
    """A value as JSON knows it; numbers that JSON has no word for are null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
