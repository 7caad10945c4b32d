"""Head files on the Hugging Face hub: found, downloaded, taken from the cache."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from dinoneck.atomic import write_text
from dinoneck.checkpoint.card import REPO_ID
from dinoneck.checkpoint.header import HEADS, LISTING, MAX_FILE_BYTES, MAX_HEADER_BYTES, strict_json
from dinoneck.errors import CheckpointError, some_of
from dinoneck.hub_errors import redacted_line, refusal, unreachable

logger = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REF = re.compile(r"(?!.*\.\.)[\w\-][\w.\-]*(/[\w\-][\w.\-]*)*", re.ASCII)
_TIMEOUT_S = 10.0
_SHOWN = 8
_MEMBER = re.compile(rf"{HEADS}/[\w.\-]+\.safetensors", re.ASCII)
_Choice = Callable[[list[str], str], list[str]]


class HubHead(NamedTuple):
    """A hub repository that holds a head or an ensemble.

    Attributes:
        repo_id: ``user/name``, as ``load_head`` and ``Predictor`` take it.
        last_modified: the time of its last commit; None if the hub does not give it.
        downloads: of the last 30 days, as the hub counts them.
    """

    repo_id: str
    last_modified: datetime | None
    downloads: int


def list_heads(search: str | None = None) -> list[HubHead]:
    """Return the hub repositories of the library ``dinoneck``, the last changed first.

    These are the repositories whose page has the tag ``dinoneck``, as :func:`dinoneck.checkpoint.push_to_hub` writes
    it. The private ones that you may see are among them if you are logged in.

    Args:
        search: a part of the names, such as ``user/``; None = all.

    Raises:
        CheckpointError: if the hub refuses, or cannot be reached.
    """
    import huggingface_hub as hub

    try:
        models = list(hub.HfApi().list_models(filter="dinoneck", search=search, expand=["downloads", "lastModified"]))
    except Exception as error:  # the hub's client raises many unrelated types
        reason = refusal(error, "models") or unreachable(error)  # the hub's page /models is that list
        raise CheckpointError(f"the heads on the hub cannot be listed: {reason}", step="hub") from None
    heads = [HubHead(model.id, model.last_modified, model.downloads or 0) for model in models]
    return sorted(heads, key=lambda head: head.last_modified.timestamp() if head.last_modified else 0.0, reverse=True)


def names_a_repo(path_or_repo: object) -> bool:
    """Whether this is ``user/name`` and nothing local: no file or folder, no name of a head file in a local folder."""
    text = os.fspath(path_or_repo) if isinstance(path_or_repo, str | os.PathLike) else None
    if not isinstance(text, str) or not REPO_ID.fullmatch(text) or text.endswith(_SUFFIX):
        return False
    # os.path says no of what may not be looked at, where Path raises; who opens it says why
    return not os.path.exists(text) and not os.path.isdir(os.path.dirname(text))  # noqa: PTH110, PTH112, PTH120


def download_head(repo_id: str, revision: str | None = None) -> Path:
    """Return the local path of the one head file of a hub repository: downloaded, or without a network from the cache.

    A branch or tag is resolved to a commit first, and the file is that commit's: see :func:`commit_of`. A commit that
    is in the cache is taken from there. Only the ``.safetensors`` file is fetched.

    Args:
        repo_id: ``user/name``.
        revision: a branch, tag or commit; None = the main branch.

    Raises:
        CheckpointError: if the repository or revision does not exist, is private, gated, holds no head file or
            several, the download breaks off, or it is neither reachable nor cached.
    """
    return _fetch(repo_id, revision, _one_head)


def download_ensemble(repo_id: str, revision: str | None = None) -> Path:
    """Return the local folder of an ensemble's repository, as :func:`download_head` does for one file.

    Args:
        repo_id: ``user/name``.
        revision: a branch, tag or commit; None = the main branch.

    Raises:
        CheckpointError: as there, or if the repository holds no ensemble.
    """
    return _fetch(repo_id, revision, _all_members).parent


def download(repo_id: str, revision: str | None = None) -> Path:
    """Return the local path of the one head file of a hub repository, or of its ensemble's list.

    Raises:
        CheckpointError: as :func:`download_head`.
    """
    return _fetch(repo_id, revision, lambda files, name: (_all_members if LISTING in files else _one_head)(files, name))


def commit_of(path: Path) -> str | None:
    """Return the commit that a file of the local cache belongs to."""
    parts = path.parts
    pairs = zip(parts[-2::-1], parts[:0:-1], strict=True)  # the innermost folder decides
    return next((below for above, below in pairs if above == "snapshots" and _COMMIT.fullmatch(below)), None)


def blamed(error: CheckpointError, repo_id: object, path: Path) -> CheckpointError:
    """Return the refusal of a downloaded file with where it comes from and, of a damaged one, what to do about it."""
    damaged = error.step in ("file", "header", "json", "tensors", "digest", "finite")
    advice = (
        f". If the file in the local cache was damaged, delete {os.path.realpath(path)} and load again; else it was "
        "damaged before it was uploaded"
    )
    return CheckpointError(f"{repo_id} at {commit_of(path)}: {error}{advice if damaged else ''}", step=error.step)


def cache_folder() -> Path:
    """Return the folder that the hub's client keeps downloads in; it need not be there."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether the hub's client was told to ask nobody (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _fetch(repo_id: str, revision: str | None, choose: _Choice) -> Path:
    """Download what is chosen from the files of a revision, all of one commit; return the path of the first."""
    import huggingface_hub as hub

    pinned = _cached(repo_id, revision, choose) if revision is not None and _COMMIT.fullmatch(revision) else None
    if pinned is not None:
        return _told(repo_id, revision, pinned, "the cache")
    try:
        info = hub.HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    except Exception as error:  # the hub's client raises many unrelated types
        return _without_the_hub(error, repo_id, revision, choose)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    names, commit = choose([*sizes], repo_id), info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise CheckpointError(f"the hub did not say which commit of {repo_id} {revision or 'main'!r} is", step="hub")
    for name in names:
        if sizes[name] > MAX_FILE_BYTES:
            raise CheckpointError(
                f"{name} of {repo_id} has {sizes[name]} bytes; a head file has at most {MAX_FILE_BYTES}. It was not "
                "fetched"
            )
    try:
        paths = [Path(hub.hf_hub_download(repo_id, name, revision=commit)) for name in names]
    except Exception as error:
        if reason := refusal(error, repo_id, commit):
            raise CheckpointError(reason, step="hub") from None
        raise _broke_off(error, f"{some_of(names, _SHOWN)} from {repo_id}") from None
    _remember(paths[0], revision or hub.constants.DEFAULT_REVISION, commit)
    return _told(repo_id, revision, paths[0], "the hub")


def _broke_off(error: Exception, what: str) -> CheckpointError:
    import huggingface_hub as hub

    if isinstance(error, OSError) and error.errno is not None:
        why = f"{type(error).__name__}: {redacted_line(error)}"
        return CheckpointError(
            f"{what} cannot be written to the local cache ({why}); set HF_HUB_CACHE to a folder that you may write and "
            f"that has room, now it is {hub.constants.HF_HUB_CACHE}",
            step="hub",
        )
    return CheckpointError(
        f"the download of {what} broke off ({type(error).__name__}: {redacted_line(error)}); nothing of it is used. "
        "Try again",
        step="hub",
    )


def _without_the_hub(error: Exception, repo_id: str, revision: str | None, choose: _Choice) -> Path:
    """The cached file when the hub could not be asked; a refusal is raised."""
    reason, known = refusal(error, repo_id, revision), _cached(repo_id, revision, choose)
    if reason is not None:
        cached = "" if known is None else f". Commit {commit_of(known)} is in the cache: HF_HUB_OFFLINE=1 uses it"
        raise CheckpointError(f"{reason}{cached}", step="hub") from None
    if known is None:
        what = f"revision {revision!r} of it" if revision else "it"
        raise CheckpointError(
            f"there is no file or folder {repo_id}, and as a hub repository {what} is not in the local cache: "
            f"{unreachable(error)}. Check the name too",
            step="hub",
        ) from None
    logger.warning("%s: %s", repo_id, unreachable(error))
    return _told(repo_id, revision, known, "the cache; the branch may have moved since")


def _cached(repo_id: str, revision: str | None, choose: _Choice) -> Path | None:
    """The first file chosen from those of a revision that were fetched before."""
    import huggingface_hub as hub

    try:
        wanted = [f"*{_SUFFIX}", LISTING]
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=wanted, local_files_only=True))
    except Exception:  # its types differ between versions of the client; all mean that it is not there
        return None
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return folder / choose(files, repo_id)[0] if _is_whole(folder, files) else None


def _is_whole(folder: Path, files: list[str]) -> bool:
    """Whether a cached commit has a head, or a list and every head it names: a download may have broken off."""
    if LISTING not in files:
        return any(name.endswith(_SUFFIX) for name in files) and not any(map(_MEMBER.fullmatch, files))
    try:
        with (folder / LISTING).open("rb") as file:
            rows = strict_json(file.read(MAX_HEADER_BYTES), LISTING, "list of members")["members"]
        return {str(row["file"]) for row in rows} <= set(files)
    except (CheckpointError, OSError, TypeError, KeyError):
        return True  # it is no sound list; who reads it says so


def _told(repo_id: str, revision: str | None, path: Path, source: str) -> Path:
    logger.info("%s: %r is commit %s, from %s", repo_id, revision or "main", commit_of(path), source)
    return path


def _remember(path: Path, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch was, so that it is found without a network.

    The client notes that only for files that it was asked for by branch; we ask by commit, so that a branch that
    moves between listing and fetching cannot mix two commits.
    """
    snapshot = next((folder for folder in path.parents if folder.name == commit), None)
    if snapshot is None or snapshot.parent.name != "snapshots" or revision == commit or not _REF.fullmatch(revision):
        return
    note = snapshot.parent.parent / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that only others may write
        if not note.is_file() or note.read_text() != commit:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, commit)


def _all_members(files: list[str], repo_id: str) -> list[str]:
    """The list of an ensemble and its heads."""
    if LISTING not in files:
        raise CheckpointError(f"the hub repository {repo_id} holds no ensemble ({LISTING})", step="hub")
    return [LISTING, *sorted(name for name in files if _MEMBER.fullmatch(name))]


def _one_head(files: list[str], repo_id: str) -> list[str]:
    """The one head file among the files of a repository."""
    heads = sorted(name for name in files if name.endswith(_SUFFIX))
    if len(heads) == 1 and LISTING not in files:
        return heads
    if not heads:
        raise CheckpointError(f"the hub repository {repo_id} holds no head file (*{_SUFFIX})", step="hub")
    if LISTING in files:
        raise CheckpointError(
            f"the hub repository {repo_id} holds an ensemble of {len(heads)} heads, no single one; load it with "
            "EnsembleFolder.load or load_ensemble of dinoneck.checkpoint, or hand the name to Predictor",
            step="hub",
        )
    raise CheckpointError(
        f"the hub repository {repo_id} holds {len(heads)} head files: {some_of(heads, _SHOWN)}; one was expected. "
        "Download them and pass the folder, or the file that you want",
        step="hub",
    )
