"""What a hub repository holds, into a file or folder of one's own, checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dinoneck.atomic import write_whole
from dinoneck.checkpoint import hub
from dinoneck.checkpoint.card import check_repo_id
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.header import LISTING
from dinoneck.checkpoint.read import read_file
from dinoneck.errors import CheckpointError

_CHUNK_BYTES = 1 << 22


def pull_from_hub(repo_id: str, out: str | os.PathLike[str], revision: str | None = None) -> str:
    """Fetch what a hub repository holds into a file of your own, and return the commit it is of.

    :meth:`dinoneck.HeadCheckpoint.load` reads from the hub without that; this is for keeping, and for machines without
    a network.

    Args:
        repo_id: ``user/name``.
        out: the file of the head; it appears whole and checked, or not at all.
        revision: a branch, tag or commit; None = the main branch.

    Raises:
        CheckpointError: as :meth:`dinoneck.HeadCheckpoint.load`, or if ``out`` cannot be written.
    """
    check_repo_id(repo_id)
    if not (room := Path(os.path.realpath(out)).parent).is_dir():
        raise CheckpointError(
            f"{out} cannot be written: the folder {room} does not exist; create it first", step="write"
        )
    source = hub.download(repo_id, revision)
    if source.name == LISTING:
        HeadCheckpoint.load(repo_id, revision=hub.commit_of(source) or revision).save(out)
    else:
        try:
            write_whole(out, _chunks(source), check=lambda file: _check(file, repo_id, source))
        except (OSError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{out} cannot be written: {error}", step="write") from error
    return hub.commit_of(source) or "of unknown commit"


def _check(file: Path, repo_id: str, source: Path) -> None:
    try:
        read_file(file)
    except CheckpointError as error:
        raise hub.blamed(error, repo_id, source) from None


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
