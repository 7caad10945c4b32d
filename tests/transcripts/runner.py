"""Transcripts of every verb: exit code, files written, keys of ``--json``, for right and wrong input.

``python -m tests.transcripts.runner [SCENE ...]`` writes ``transcripts.json`` again, for a change
of the command line that is meant; review its diff. Help and messages are not part of a transcript.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# whose results are equal on every machine
os.environ["DINONECK_RUNTIME"] = "torch"

import torch

from dinoneck.cli.main import main
from tests.transcripts.materials import scene_folder
from tests.transcripts.scenes import FAST, SLOW, commands

FILE = Path(__file__).with_name("transcripts.json")
DEPTH = 3
PER_MACHINE = ("versions", "machine", "checks")
"""Entries whose keys depend on what is installed: they are listed without what they hold."""
NO_JSON = ("viz",)
PEAK_MEMORY = re.compile(rb'"peak_memory_mb": [0-9.]+')
"""In a report: it may differ between two runs in one process."""
WRITER_NAME = re.compile(r"w-[0-9a-f-]+")
"""Part of the names of a store's files: which process wrote them."""


def run_scene(scene: str) -> list[dict[str, Any]]:
    """What every command of a scene gave, in a new folder next to a new, empty hub."""
    with scene_folder():
        return [transcript(command) for command in commands(scene)]


def transcript(command: str) -> dict[str, Any]:
    """Run a command line in the present folder."""
    words = shlex.split(command)
    asks = command not in NO_JSON and words[0] != "demo" and not words[0].startswith("-")
    before, out = files(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            code = main([*words, "--json"] if asks else words)
        except SystemExit as end:
            code = int(end.code or 0)
    after = files()
    found: dict[str, Any] = {"command": command, "exit": code}
    written = [name for name, content in after.items() if before.get(name) != content]
    for entry, names in (("files", written), ("removed", before.keys() - after.keys())):
        if names:
            found[entry] = sorted(WRITER_NAME.sub("w-*", name) for name in names)
    if asks and code != 2:
        found["keys"] = keys(json.loads(out.getvalue()))
    return found


def files() -> dict[str, str]:
    """Every file below the present folder with its content's hash; but a store's index, which an opening may renew.

    The peak memory in a report does not count.
    """
    found = sorted(
        path for path in Path().rglob("*") if path.is_file() and path.name != "index.sqlite"
    )
    hashes = {}
    for path in found:
        content = PEAK_MEMORY.sub(b"", path.read_bytes())
        hashes[path.as_posix()] = hashlib.sha256(content).hexdigest()
    return hashes


def keys(document: Any, depth: int = DEPTH) -> Any:
    """The keys of objects, and of the objects in lists; nothing of the values."""
    if isinstance(document, list):
        merged: dict[str, Any] = {}
        for entry in document:
            if isinstance(inner := keys(entry, depth), dict):
                merged |= inner
        return merged or None
    if not isinstance(document, Mapping) or not depth:
        return None
    return {
        key: None if key in PER_MACHINE else keys(document[key], depth - 1)
        for key in sorted(document)
    }


def write(scenes: list[str]) -> None:
    """Run the scenes, all where none is named, and write them into the file."""
    before = json.loads(FILE.read_text()) if scenes else {}
    stored = {
        name: before[name] if scenes and name not in scenes else run_scene(name)
        for name in (*FAST, *SLOW)
    }
    FILE.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(sys.argv[1:])
