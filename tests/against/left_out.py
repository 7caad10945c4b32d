"""What is not compared: times, versions and prose, each by the whole path that leads to it.

A path is the keys from the top of a file or of a verb's ``--json`` document down to the value; ANY
stands for one key. A task, column or class of the same name elsewhere is compared.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

Keys = tuple[str, ...]
Paths = tuple[Keys, ...]

LEFT_OUT = "(left out)"
ANY = "*"

REPORT: Paths = (
    ("minutes",),
    ("peak_memory_mb",),
    ("verdict",),
    ("versions",),
    ("cost", ANY, "seconds"),
    ("cost", ANY, "seconds_per_image"),
    ("best", "images_per_second"),
    ("best", "peak_memory_mb"),
    ("best", "seconds"),
)
"""Of the report of a training or of an evaluation."""
HEAD: Paths = (
    ("header", "__metadata__", "dinoneck", "created_by"),
    ("header", "__metadata__", "dinoneck", "digest"),  # it covers created_by
    ("header", "__metadata__", "facts"),  # of a store; it covers the root and times of files
)
LOG: Paths = (
    (ANY, "images_per_second"),
    (ANY, "peak_memory_mb"),
    (ANY, "seconds"),
)
"""Of the lines of a log, by their number."""
STORE: Paths = (("created_by",),)  # the digest does not cover it

FILES: dict[str, Paths] = {
    "report.json": REPORT,
    "*.jsonl": LOG,
    "*.safetensors": HEAD,
    "store.json": STORE,
}
"""Pattern of a file's name -> paths in it."""

EVERY_VERB: Paths = (("dinoneck",), ("error", "message"))
VERBS: dict[str, Paths] = {
    "doctor": (
        ("versions",),
        ("findings", ANY, "remedy"),
        ("findings", ANY, "text"),
    ),
    "evaluate": REPORT,
    "export": (("description", "made_with"),),
    "extract": (("unusable", ANY),),  # why; which image it is is compared
    "inspect": (("created_by",), ("digest",)),
    "predict": (("unusable", ANY),),
    "train": tuple(("report", *path) for path in REPORT),
    "verify": (("checked", ANY, "message"),),
    "viz": (("bytes",), ("unread", ANY)),  # how long a page is, and why an image is not on it
}
"""Verb -> paths in its ``--json`` document, next to those of every verb."""

CONTENT: tuple[str, ...] = (
    ".html",  # prose and styles; its numbers are those of the CSV files
    ".onnx",  # both hold the names of the modules and source lines that were traced
    ".pt2",
)
"""Endings of files of which only the name is compared."""


def of_file(name: str) -> Paths:
    """Return the paths that are not compared in a file of a name."""
    for pattern, paths in FILES.items():
        if fnmatch.fnmatchcase(name, pattern):
            return paths
    return ()


def of_verb(verb: str) -> Paths:
    """Return the paths that are not compared in what a verb prints with ``--json``."""
    return EVERY_VERB + VERBS.get(verb, ())


def is_left_out(path: Sequence[str], paths: Paths) -> bool:
    """Whether one of the paths is the given one."""
    for candidate in paths:
        if len(candidate) == len(path):
            pairs = zip(candidate, path, strict=True)
            if all(step in (ANY, key) for step, key in pairs):
                return True
    return False
