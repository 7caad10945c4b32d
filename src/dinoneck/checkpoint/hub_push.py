"""A head to the Hugging Face hub: checked here first, then everything in one commit."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dinoneck.checkpoint.card import HEAD_NAME, check_repo_id, config_json, model_card
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.header import HEADS, LISTING
from dinoneck.errors import CheckpointError, some_of
from dinoneck.hub_errors import refusal, unreachable
from dinoneck.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

FIGURES = "figures"
_MAX_FIGURE_BYTES = 20 << 20
_PICTURES = {
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff",),
    ".jpeg": (b"\xff\xd8\xff",),
    ".webp": (b"RIFF",),
    ".gif": (b"GIF87a", b"GIF89a"),
}
_PLAIN_NAME = re.compile(r"[\w\-][\w.\-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 10.0
_SHOWN = 8


_Contents = dict[str, Path | bytes]


class Pushed(NamedTuple):
    """Where a head now is on the hub.

    Attributes:
        commit: the commit that holds it; ``HeadCheckpoint.load(repo_id, revision=commit)`` gives it for ever.
        url: the page of that commit.
    """

    commit: str
    url: str


def push_to_hub(
    checkpoint_or_path: HeadCheckpoint | str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    create: bool = True,
    figures: Iterable[str | os.PathLike[str]] = (),
    token: str | None = None,
) -> Pushed:
    """Publish a head in a hub repository: head.safetensors, config.json, README.md and figures in one commit.

    The file is read with all checks before anything is sent, and the hub is asked afterwards whether it holds exactly
    these bytes. README.md and config.json are derived from the header and replace those that are there. Two pushes at
    once never mix: the later one is refused.

    Args:
        checkpoint_or_path: the head, its file, or a folder that :meth:`HeadCheckpoint.load` reads.
        repo_id: ``user/name``.
        private: a new repository is private, and one that exists and is public is refused; False leaves it to the
            account's default, which is public.
        revision: the branch; None = main. One that is missing begins at main's commit.
        commit_message: the first line of the commit; None = says which head.
        create: make the repository and the branch if they are missing; else that is refused.
        figures: pictures (PNG, JPEG, WebP, GIF) for the page.
        token: an access token that may write; None = the stored login.

    Raises:
        CheckpointError: if the head is damaged, a figure is no picture, the repository holds other head files, the hub
            refuses, or somebody else commits meanwhile.
    """
    check_repo_id(repo_id)
    if revision is not None and _COMMIT.fullmatch(revision):
        raise CheckpointError(f"a push goes to a branch; {revision} is a commit", step="hub")
    pictures = _pictures(figures)
    with tempfile.TemporaryDirectory(prefix="dinoneck-push-") as folder:
        source = checkpoint_or_path
        if isinstance(source, str | os.PathLike) and Path(source).is_dir():
            source = HeadCheckpoint.load(source)
        contents, title = _head(source, Path(folder), repo_id, sorted(pictures))
        contents |= pictures
        try:
            pushed = _push(repo_id, contents, commit_message or title, private, revision, create, token)
        except CheckpointError:
            raise
        except Exception as error:  # the hub's client raises many unrelated types
            if reason := refusal(error, repo_id, revision, token):
                raise CheckpointError(reason, step="hub") from None
            raise _broke_off(error, repo_id, token) from None
    logger.info("%s is in commit %s of %s", title, pushed.commit, repo_id)
    return pushed


def _head(source: Any, folder: Path, repo_id: str, figures: list[str]) -> tuple[_Contents, str]:
    """What a repository of one head holds, and the commit's message."""
    file = folder / HEAD_NAME
    checkpoint = _checked_copy(source, file)
    contents: _Contents = {
        HEAD_NAME: file,
        "config.json": config_json(file).encode("utf-8"),
        "README.md": model_card(file, repo_id, figures).encode("utf-8"),
    }
    return contents, f"{checkpoint.head_type}, {checkpoint.meta['digest'][:19]}"


def _push(
    repo_id: str,
    contents: _Contents,
    message: str,
    private: bool,
    revision: str | None,
    create: bool,
    token: str | None,
) -> Pushed:
    """Create what is missing, commit on top of what was looked at, and ask back."""
    import huggingface_hub as hub

    api = hub.HfApi(token=token, library_name="dinoneck", library_version=__version__)
    branch = revision or hub.constants.DEFAULT_REVISION
    if create:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        if branch != hub.constants.DEFAULT_REVISION:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
    before = api.model_info(repo_id, revision=branch, timeout=_TIMEOUT_S)
    if private and before.private is False:
        raise CheckpointError(
            f"{repo_id} exists and is public, so nothing was pushed; make it private in its settings first, or push "
            "without private=True",
            step="hub",
        )
    there = [file.rfilename for file in before.siblings or ()]
    operations: list[Any] = [hub.CommitOperationDelete(path_in_repo=name) for name in _stale(there, contents, repo_id)]
    operations += [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()
    ]
    done = api.create_commit(
        repo_id, operations, commit_message=message, revision=branch, parent_commit=before.sha, num_threads=1
    )
    _ask_back(api, repo_id, done.oid, contents)
    return Pushed(done.oid, done.commit_url)


def _stale(there: list[str], contents: _Contents, repo_id: str) -> list[str]:
    """The heads of an older ensemble, which the new one replaces; any other head file beside is refused."""
    others = [name for name in there if name.endswith(".safetensors") and name not in contents]
    replaced = LISTING in there and all(name.startswith(f"{HEADS}/") for name in others)
    if others and not replaced:
        raise CheckpointError(
            f"{repo_id} holds other head files: {some_of(others, _SHOWN)}; beside them the new one could not be loaded "
            "by the repository's name. Push to another repository or branch, or delete them there",
            step="hub",
        )
    return [*others, LISTING] if LISTING in there else others


def _ask_back(api: HfApi, repo_id: str, commit: str, contents: _Contents) -> None:
    """Compare what the hub holds in a commit with what was sent."""
    held = {
        file.rfilename: file for file in api.model_info(repo_id, revision=commit, files_metadata=True).siblings or ()
    }
    for name, content in contents.items():
        file: Any = held.get(name)
        large = getattr(file, "lfs", None)
        if large is not None:
            same = large.sha256 == _sha256(content)
        else:
            raw = content if isinstance(content, bytes) else content.read_bytes()
            blob = hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()  # git's name for it
            same = file is not None and file.blob_id == blob
        if not same:
            raise CheckpointError(
                f"the hub holds another {name} in commit {commit} of {repo_id} than was sent; look at it there and "
                "push again",
                step="hub",
            )


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_copy(source: HeadCheckpoint | str | os.PathLike[str], file: Path) -> HeadCheckpoint:
    """Lay the head where nobody else writes and read it there with all checks: what is sent was checked."""
    if isinstance(source, HeadCheckpoint):
        source.save(file)  # reads it back
        return source
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"{type(source).__name__} cannot be pushed; expected a HeadCheckpoint or its file")
    if not Path(source).is_file():
        HeadCheckpoint.load(Path(source).absolute())  # says what it is instead
    try:
        shutil.copyfile(source, file)
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error}") from error
    try:
        return HeadCheckpoint.load(file)
    except CheckpointError as error:
        raise CheckpointError(
            f"{source} was not pushed. {str(error).replace(str(file), str(source))}", step=error.step
        ) from None


def _pictures(figures: Iterable[str | os.PathLike[str]]) -> dict[str, bytes]:
    """The bytes of pictures by their names in the repository."""
    found: dict[str, bytes] = {}
    for figure in figures:
        path = Path(figure)
        name = f"{FIGURES}/{path.name}"
        marks: Sequence[bytes] = _PICTURES.get(path.suffix.lower(), ())
        if not marks or not _PLAIN_NAME.fullmatch(path.name):
            raise CheckpointError(
                f"{path} cannot be a figure: expected {', '.join(_PICTURES)} and a name of letters, digits, '_', '-' "
                "and '.'",
                step="hub",
            )
        if name in found:
            raise CheckpointError(f"two figures are called {path.name}", step="hub")
        try:
            if (size := path.stat().st_size) > _MAX_FIGURE_BYTES:
                raise CheckpointError(f"{path} has {size} bytes; a figure has at most {_MAX_FIGURE_BYTES}", step="hub")
            found[name] = path.read_bytes()
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the figure {path} cannot be read: {error}", step="hub") from error
        if not found[name].startswith(tuple(marks)):
            raise CheckpointError(f"{path} is no {path.suffix} picture", step="hub")
    return found


def _broke_off(error: Exception, repo_id: str, token: str | None) -> CheckpointError:
    """A push whose end is not known; one that was not begun says so."""
    import huggingface_hub as hub

    reason = unreachable(error, token)
    if hub.constants.HF_HUB_OFFLINE:
        return CheckpointError(f"nothing was pushed to {repo_id}: {reason}", step="hub")
    return CheckpointError(
        f"the push to {repo_id} broke off: {reason}. The hub holds all of it or nothing. Look there, or push again: "
        "what is there already is not sent twice",
        step="hub",
    )
