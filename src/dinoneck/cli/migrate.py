"""``dinoneck migrate``: rewrite older head files in the present schema, and an older ensemble's folder as one file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.ensemble_folder import is_ensemble
from dinoneck.checkpoint.file import Header, head_files, read_content, read_header
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.cli.arguments import Paths, check_output
from dinoneck.cli.one_by_one import Rows, each, good
from dinoneck.cli.text import show
from dinoneck.errors import CheckpointError


def migrate(files: Paths, out: Path | None = None) -> dict[str, Any]:
    """Rewrite older head files in the present schema; exit 1 if one is refused.

    Each file is replaced whole or not at all.

    Example: dinoneck migrate heads/

    Args:
        files: head files, folders of them, or the folder of an ensemble.
        out: a folder for the new files (default: they replace the old ones); for the folder of an ensemble the new
            file.
    """
    rows = each(files, partial(_all, out=out))
    return {"ok": good(rows), "files": rows}


def _all(path: Path, out: Path | None) -> Rows:
    """The files in a path; the folder of an ensemble becomes one file."""
    if is_ensemble(path):
        return [_report(path if out is None else out, 1, "migrated", _join(path, out))]
    return each(head_files(path), partial(_one, out=out))


def _report(path: Path, schema: int, state: str, digest: str) -> dict[str, Any]:
    change = f"schema {SCHEMA}; left as it is" if state == "current" else f"schema {schema} -> {SCHEMA}  {digest}"
    show(f"{state:<8} {path}  {change}")
    return {"path": path, "state": state, "from": schema, "to": SCHEMA, "digest": digest}


def _join(folder: Path, out: Path | None) -> str:
    """Write the heads of an ensemble's folder as one file."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    if out is None:
        raise CheckpointError(f"{folder} holds an ensemble, which becomes one file; name it with --out", step="write")
    head = HeadCheckpoint.load(folder)
    check_output(out, [folder])
    if not _is_written(out, head.meta["digest"]):
        head.save(out)
    return str(head.meta["digest"])


def _is_written(target: Path, digest: str) -> bool:
    """Whether an interrupted run has written this head already; another head is not replaced."""
    if not target.exists():
        return False
    if read_header(target).meta["digest"] != digest:
        raise CheckpointError(f"{target} exists already, and is another head", step="write")
    return True


def _one(file: Path, out: Path | None) -> Rows:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.checkpoint.migrate import check_versions, is_present
    from dinoneck.checkpoint.read import read_file

    old = read_header(file)
    check_versions(old.meta, str(file))
    if is_present(old.meta):
        return [_report(file, SCHEMA, "current", old.meta["digest"])]
    if out is None and is_ensemble(folder := file.absolute().parent.parent):
        raise CheckpointError(
            f"{file} belongs to an ensemble, whose list holds its digest; name the folder {folder}, and with --out the "
            "one file to write",
            step="write",
        )
    header, state = read_file(file)
    _check_bytes(file, header, state)
    target, digest = file if out is None else out / file.name, header.meta["digest"]
    if target != file and _is_written(target, digest):
        return [_report(target, SCHEMA, "current", digest)]
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"the folder {out} cannot be created: {error}", step="write") from error
    HeadCheckpoint(header.meta, state).save(target)
    return [_report(target, old.meta["schema"], "migrated", digest)]


def _check_bytes(file: Path, migrated: Header, state: dict[str, Any]) -> None:
    """Refuse to write other tensors than the file holds, unless a class brings a migration of its own."""
    from dinoneck.tensor_bytes import bytes_of

    header, old = read_content(file)
    new = {name: bytes_of(value) for name, value in state.items()}
    versions = header.meta.get("versions") or dict.fromkeys(migrated.meta["versions"], 1)
    if versions == migrated.meta["versions"] and old != new:
        raise CheckpointError(f"{file}: the migrated tensors are not those of the file", step="tensors")
