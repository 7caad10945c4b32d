"""Every command line of ``tests/transcripts``: exit code, warnings, ``--json`` and files."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tests.against.canonical import canonical, canonical_file, canonical_json, canonical_text
from tests.against.left_out import of_verb
from tests.against.this_version import run_command
from tests.transcripts.materials import scene_folder
from tests.transcripts.scenes import FAST, SLOW, commands

MADE_AT = 1_700_000_000
"""When all files of a scene were made, in seconds: a store records it."""
AS_TEXT = ("usage", "head files", "predictions")
"""Scenes that are run without ``--json`` too: only then is stderr empty where all is well."""
INDEX = ".sqlite"
"""The ending of a store's index, which opening it may write again."""


def run_scene(scene: str, folder: Path, *, as_json: bool = True) -> dict[str, Any]:
    """Run the commands of a scene one after another: command -> what it gave.

    They run in a folder of their own, next to a hub, so the one that is given stays empty. Without
    ``as_json`` what they print is prose: only whether it is there is compared.
    """
    results: dict[str, Any] = {}
    with scene_folder() as inside:
        for path in inside.rglob("*"):
            os.utime(path, (MADE_AT, MADE_AT))
        times: Counter[str] = Counter()
        for command in commands(scene):
            times[command] += 1
            name = command
            if times[command] > 1:
                name = f"{command} (time {times[command]})"
            results[name] = run_in(inside, command, as_json=as_json)
    return results


def run_in(folder: Path, command: str, *, as_json: bool) -> dict[str, Any]:
    """Run a command line in a scene's folder, which is the current one."""
    words = shlex.split(command)
    if as_json and not words[0].startswith("-"):
        words.append("--json")
    before = hashes(folder)
    ran = run_command(words)
    after = hashes(folder)
    written = {}
    for path, sha256 in after.items():
        if before.get(path) != sha256:
            name = canonical_text(path.relative_to(folder).as_posix(), folder)
            if name in written:
                raise ValueError(f"{command}: two files become {name!r}")
            written[name] = canonical_file(path, folder)
    removed = sorted(path.relative_to(folder).as_posix() for path in before.keys() - after.keys())
    result: dict[str, Any] = {
        "exit": ran.code,
        "stdout": "something" if ran.output else "nothing",
        "stderr": ran.stderr,
        "warnings": ran.warnings,
    }
    if ran.output.startswith("{"):
        result["json"] = canonical_json(ran.output, folder, of_verb(words[0]))
    result["written"] = written
    result["removed"] = canonical(removed, folder)
    return result


def hashes(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of every file below a folder, without those of indexes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != INDEX:
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


CASES = {scene: partial(run_scene, scene) for scene in (*FAST, *SLOW)}
for _scene in AS_TEXT:
    CASES[f"{_scene} without json"] = partial(run_scene, _scene, as_json=False)
