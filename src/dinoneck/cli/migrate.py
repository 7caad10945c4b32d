"""``dinoneck migrate``: rewrite older head files in the present schema, and an older ensemble's folder as one file."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.ensemble_folder import is_ensemble
from dinoneck.checkpoint.file import Header, head_files, read_content, read_header
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.one_by_one import Rows, refused
from dinoneck.cli.outputs import check_output
from dinoneck.cli.text import say
from dinoneck.errors import CheckpointError

HELP = "rewrite older head files in the present schema; exit 1 if one is refused"
EXAMPLE = "dinoneck migrate heads/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("files", type=Path, nargs="+", help="head files, folders of them, or the folder of an ensemble")
    parser.add_argument(
        "--out",
        type=Path,
        help="a folder for the new files, which replace the old ones without it; for an ensemble's folder the new file",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Bring every file to the present schema, one after the other; each is replaced whole or not at all."""
    rows: Rows = []
    bad = sum(refused(path, partial(_all, path, options, rows), rows) for path in options.files)
    answer(options, files=rows)
    return 1 if bad else 0


def _all(path: Path, options: argparse.Namespace, rows: Rows) -> int:
    """How many of the files in a path are refused; an ensemble's folder becomes one file."""
    if is_ensemble(path):
        return _report(_join(path, options.out), rows)
    return sum(refused(file, partial(_one, file, options, rows), rows) for file in head_files(path))


def _one(file: Path, options: argparse.Namespace, rows: Rows) -> int:
    return _report(_migrate(file, options.out), rows)


def _report(row: dict[str, Any], rows: Rows) -> int:
    told = f"schema {row['from']} -> {SCHEMA}  {row['digest']}"
    current = row["state"] == "current"
    say(f"{row['state']:<8} {row['path']}  {f'schema {SCHEMA}; left as it is' if current else told}")
    rows.append(row)
    return 0


def _join(folder: Path, out: Path | None) -> dict[str, Any]:
    """Write the heads of an ensemble's folder as one file."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    if out is None:
        raise CheckpointError(f"{folder} holds an ensemble, which becomes one file; name it with --out", step="write")
    checkpoint = HeadCheckpoint.load(folder)
    check_output(out, [folder])
    digest = checkpoint.meta["digest"]
    if not _is_written(out, digest):
        checkpoint.save(out)
    return {"path": out, "state": "migrated", "from": 1, "to": SCHEMA, "digest": digest}


def _is_written(target: Path, digest: str) -> bool:
    """Whether a run that was interrupted has written this head; another one is not replaced."""
    if not target.exists():
        return False
    if read_header(target).meta["digest"] != digest:
        raise CheckpointError(f"{target} exists already, and is another head", step="write")
    return True


def _migrate(file: Path, out: Path | None) -> dict[str, Any]:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.checkpoint.migrate import check_versions, is_present
    from dinoneck.checkpoint.read import read_file

    old = read_header(file)
    check_versions(old.meta, str(file))
    if is_present(old.meta):
        return {"path": file, "state": "current", "from": SCHEMA, "to": SCHEMA, "digest": old.meta["digest"]}
    if out is None and is_ensemble(folder := file.absolute().parent.parent):
        raise CheckpointError(
            f"{file} belongs to an ensemble, whose list holds its digest; name the folder {folder}, and with --out the "
            "one file to write",
            step="write",
        )
    header, state = read_file(file)
    _check_bytes(file, header, state)
    target = file if out is None else out / file.name
    digest = header.meta["digest"]
    if target != file and _is_written(target, digest):
        return {"path": target, "state": "current", "from": SCHEMA, "to": SCHEMA, "digest": digest}
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
