"""``dinoneck migrate``: rewrite older head files in the present schema."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.header import LISTING, SCHEMA, Header, head_files, read_content, read_header
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.one_by_one import Rows, refused
from dinoneck.cli.text import say
from dinoneck.errors import CheckpointError

HELP = "rewrite older head files in the present schema; exit 1 if one is refused"
EXAMPLE = "dinoneck migrate heads/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("files", type=Path, nargs="+", help="head files, or folders of them")
    parser.add_argument("--out", type=Path, help="a folder for the new files; without it they replace the old ones")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Bring every file to the present schema, one after the other; each is replaced whole or not at all."""
    rows: Rows = []
    bad = sum(refused(path, partial(_all, path, options, rows), rows) for path in options.files)
    answer(options, files=rows)
    return 1 if bad else 0


def _all(path: Path, options: argparse.Namespace, rows: Rows) -> int:
    """How many of the files in a path are refused."""
    return sum(refused(file, partial(_one, file, options, rows), rows) for file in head_files(path))


def _one(file: Path, options: argparse.Namespace, rows: Rows) -> int:
    row = _migrate(file, options.out)
    told = f"schema {row['from']} -> {SCHEMA}  {row['digest']}"
    current = row["state"] == "current"
    say(f"{row['state']:<8} {row['path']}  {f'schema {SCHEMA}; left as it is' if current else told}")
    rows.append(row)
    return 0


def _migrate(file: Path, out: Path | None) -> dict[str, Any]:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.checkpoint.migrations import check_versions, is_present
    from dinoneck.checkpoint.read import read_file

    old = read_header(file)
    check_versions(old.meta, str(file))
    if is_present(old.meta):
        return {"path": file, "state": "current", "from": SCHEMA, "to": SCHEMA, "digest": old.meta["digest"]}
    if out is None and any((folder / LISTING).exists() for folder in (file.parent, file.parent.parent)):
        raise CheckpointError(
            f"{file} is of an ensemble folder whose {LISTING} names its digest; write new files with --out",
            step="write",
        )
    header, state = read_file(file)
    _check_bytes(file, header, state)
    target = file if out is None else out / file.name
    digest = header.meta["digest"]
    if target != file and target.exists():
        if read_header(target).meta["digest"] == digest:  # of a run that was interrupted
            return {"path": target, "state": "current", "from": SCHEMA, "to": SCHEMA, "digest": digest}
        raise CheckpointError(f"{target} exists already, and is another head", step="write")
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"the folder {out} cannot be made: {error}", step="write") from error
    HeadCheckpoint(header.meta, state).save(target)
    return {"path": target, "state": "migrated", "from": old.meta["schema"], "to": SCHEMA, "digest": digest}


def _check_bytes(file: Path, migrated: Header, state: dict[str, Any]) -> None:
    """Refuse to write other tensors than the file holds, unless a class has brought a migration of its own."""
    from dinoneck.tensor_bytes import bytes_of

    header, old = read_content(file)
    new = {name: bytes_of(value) for name, value in state.items()}
    told = header.meta.get("versions") or dict.fromkeys(migrated.meta["versions"], 1)
    if told == migrated.meta["versions"] and old != new:
        raise CheckpointError(f"{file}: the migrated tensors are not those of the file", step="tensors")
