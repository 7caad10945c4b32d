"""A head or an ensemble, whichever a file, a folder or a hub repository holds."""

from __future__ import annotations

import os

from dinoneck.checkpoint import hub
from dinoneck.checkpoint.ensemble_folder import EnsembleFolder, is_ensemble
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.header import LISTING, check_path


def load_any(source: str | os.PathLike[str], *, revision: str | None = None) -> HeadCheckpoint | EnsembleFolder:
    """Load a head, or the heads of an ensemble, and check everything in it.

    Args:
        source: a head file, the folder of an ensemble, or a hub repository ``user/name`` of one or the other.
        revision: branch, tag or commit of a hub repository; has no meaning for a local file or folder.

    Raises:
        CheckpointError: as :meth:`HeadCheckpoint.load` and :meth:`EnsembleFolder.load`.
    """
    check_path(source)
    many = is_ensemble(source)
    if hub.names_a_repo(source):
        found = hub.download(os.fspath(source), revision)
        many, revision = found.name == LISTING, hub.commit_of(found) or revision
    kind = EnsembleFolder if many else HeadCheckpoint
    return kind.load(source, revision=revision)
