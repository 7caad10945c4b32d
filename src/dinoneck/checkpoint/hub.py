"""Head files on the Hugging Face hub."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from dinoneck.errors import CheckpointError, some_of

logger = logging.getLogger(__name__)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_SUFFIX = ".safetensors"
_TIMEOUT_S = 10.0
_SHOWN = 8


def names_a_repo(path_or_repo: object) -> bool:
    """Whether this is ``user/name`` and nothing local: no file or folder, no name of a head file in a local folder."""
    text = os.fspath(path_or_repo) if isinstance(path_or_repo, str | os.PathLike) else None
    if not isinstance(text, str) or not _REPO_ID.fullmatch(text) or text.endswith(_SUFFIX):
        return False
    return not Path(text).exists() and not Path(text).parent.is_dir()


def download_head(repo_id: str, revision: str | None = None) -> Path:
    """Return the local path of the one head file of a hub repository: downloaded, or without a network from the cache.

    Only ``.safetensors`` files are looked at.

    Args:
        repo_id: ``user/name``.
        revision: a branch, tag or commit; None = the main branch.

    Raises:
        CheckpointError: if the repository holds no head file or several, or it is neither reachable nor cached.
    """
    import huggingface_hub as hub

    try:
        info = hub.HfApi().model_info(repo_id, revision=revision, timeout=_TIMEOUT_S)
        name = _only([file.rfilename for file in info.siblings or ()], repo_id)
        return Path(hub.hf_hub_download(repo_id, name, revision=info.sha or revision))
    except CheckpointError:
        raise
    except Exception as error:  # the hub's client raises many unrelated types
        logger.info("the hub did not give %s (%s); looking in the cache", repo_id, error)
        return _cached(repo_id, revision, error)


def commit_of(path: Path) -> str | None:
    """Return the commit that a file of the local cache belongs to."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def _cached(repo_id: str, revision: str | None, error: Exception) -> Path:
    import huggingface_hub as hub

    try:
        wanted = [f"*{_SUFFIX}"]
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=wanted, local_files_only=True))
    except Exception as missing:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise CheckpointError(
            f"there is no file or folder {repo_id}, and as a hub repository it is not in the local cache and the hub "
            f"did not give it ({type(error).__name__}: {first}). Check the name, go online, or log in if it is private",
        ) from missing
    return folder / _only([str(file.relative_to(folder)) for file in folder.rglob(f"*{_SUFFIX}")], repo_id)


def _only(files: list[str], repo_id: str) -> str:
    """The one head file among the files of a repository."""
    heads = sorted(name for name in files if name.endswith(_SUFFIX))
    if len(heads) == 1:
        return heads[0]
    if not heads:
        raise CheckpointError(f"the hub repository {repo_id} holds no head file (*{_SUFFIX})")
    raise CheckpointError(
        f"the hub repository {repo_id} holds {len(heads)} head files: {some_of(heads, _SHOWN)}; one was expected. "
        "Download them and pass the folder, or the file that you want"
    )
