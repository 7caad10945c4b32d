"""``dinoneck migrate``: rewrite older head files in the present schema, and an older ensemble's folder as one file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.ensemble_folder import is_ensemble
from dinoneck.checkpoint.file import head_files, read_content, read_header
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.cli.arguments import Paths, check_output
from dinoneck.cli.text import Row, each, good, show_rows
from dinoneck.errors import CheckpointError


def migrate(files: Paths, out: Path | None = None) -> dict[str, Any]:
    """Rewrite older head files in the present schema; exit 1 if one is refused.

    Each file is replaced whole or not at all.

    Example: dinoneck migrate heads/

    Args:
        files: head files, folders of them, or the folder of an ensemble.
        out: folder for the new files (default: replace the old), or the file for an ensemble.
    """
    rows = show_rows(each(files, partial(_migrate, out=out)))
    return {"ok": good(rows), "files": rows}


def _migrate(path: Path, out: Path | None) -> Iterator[Row]:
    """Migrate the files in a path; the folder of an ensemble becomes one file."""
    if not is_ensemble(path):
        yield from each(head_files(path), partial(_one, out=out))
        return
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    if out is None:
        raise CheckpointError(f"{path} holds an ensemble, which becomes one file; name it with --out", step="write")
    head = HeadCheckpoint.load(path)
    check_output(out, [path])
    if not _is_written(out, head.meta["digest"]):
        head.save(out)
    yield _row("migrated", out, 1, head.meta["digest"])


def _row(state: str, path: Path, schema: int, digest: str) -> Row:
    return {"state": state, "path": path, "from": schema, "to": SCHEMA, "digest": digest}


def _is_written(target: Path, digest: str) -> bool:
    """Whether an interrupted run has written this head already; another head is not replaced."""
    if not target.exists():
        return False
    if read_header(target).meta["digest"] != digest:
        raise CheckpointError(f"{target} exists already, and is another head", step="write")
    return True


def _one(file: Path, out: Path | None) -> Iterator[Row]:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.checkpoint.migrate import check_versions, is_present
    from dinoneck.checkpoint.read import read_file
    from dinoneck.tensor_bytes import bytes_of

    old = read_header(file)
    check_versions(old.meta, str(file))
    if is_present(old.meta):
        yield _row("current", file, SCHEMA, old.meta["digest"])
        return
    if out is None and is_ensemble(folder := file.absolute().parent.parent):
        raise CheckpointError(
            f"{file} belongs to an ensemble, whose list holds its digest; name the folder {folder}, and with --out the "
            "one file to write",
            step="write",
        )
    (_, content), (new, state) = read_content(file), read_file(file)
    versions = old.meta.get("versions") or dict.fromkeys(new.meta["versions"], 1)
    if versions == new.meta["versions"] and content != {name: bytes_of(value) for name, value in state.items()}:
        raise CheckpointError(f"{file}: the migrated tensors are not those of the file", step="tensors")
    target, digest = file if out is None else out / file.name, new.meta["digest"]
    if target != file and _is_written(target, digest):
        yield _row("current", target, SCHEMA, digest)
        return
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"the folder {out} cannot be created: {error}", step="write") from error
    HeadCheckpoint(new.meta, state).save(target)
    yield _row("migrated", target, old.meta["schema"], digest)
