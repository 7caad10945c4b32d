"""Head files on the Hugging Face Hub: listed, downloaded, and published in one commit."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.atomic import read_regular
from dinoneck.checkpoint import contents
from dinoneck.checkpoint.card import (
    REPO_ID,
    check_repo_id,
    config_json,
    is_open,
    link_of,
    model_card,
)
from dinoneck.checkpoint.format import HEAD_NAME, is_file, only_head, read
from dinoneck.errors import CheckpointError
from dinoneck.hub_errors import refusal, unreachable, without_retries_logged
from dinoneck.text import reason_of
from dinoneck.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo as CommitInfo
    from huggingface_hub import HfApi, ModelInfo

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
# of a CheckpointError that a damaged file gives
_STEPS_OF_DAMAGE = ("file", "header", "json", "tensors", "digest", "finite")
_SHORT_DIGEST = len("sha256:") + 12  # characters in the message of a commit
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICTURES = ("PNG", "JPEG", "WEBP", "GIF")


def list_heads(search: str | None = None) -> list[ModelInfo]:
    """Return the Hub repositories with the tag ``dinoneck``, the last changed first.

    Each is a ``ModelInfo`` of huggingface_hub with ``id``, as :func:`load_head` takes it,
    ``last_modified`` and ``downloads`` of the last 30 days.

    :func:`dinoneck.checkpoint.push_to_hub` writes the tag. Private repositories that you may see
    are included if you are logged in.

    Args:
        search: a part of the names, such as ``user/``; None = all.

    Raises:
        CheckpointError: if the Hub refuses, or cannot be reached.
    """
    import huggingface_hub as hub

    try:
        models = list(
            hub.HfApi().list_models(
                filter="dinoneck", search=search, expand=["downloads", "lastModified"]
            )
        )
    except Exception as error:  # the client raises many unrelated types
        # the Hub's page /models is that list
        reason = refusal(error, "models") or unreachable(error)
        raise CheckpointError(
            f"the heads on the hub cannot be listed: {reason}", step="hub"
        ) from None
    return sorted(
        models,
        key=lambda head: head.last_modified.timestamp() if head.last_modified else 0.0,
        reverse=True,
    )


def names_a_repo(path_or_repo: str | os.PathLike[str]) -> bool:
    """Whether this is ``user/name`` and nothing local: no file or folder, no name of a head file in a local folder."""
    text = str(path_or_repo)
    if not REPO_ID.fullmatch(text) or text.endswith(".safetensors"):
        return False
    # os.path returns False for what may not be looked at, where Path raises; opening it gives the
    # reason
    return not os.path.exists(text) and not os.path.isdir(os.path.dirname(text))  # noqa: PTH110, PTH112, PTH120


def resolve(
    path_or_repo: str | os.PathLike[str], revision: str | None = None
) -> tuple[Path, str | None]:
    """Return the head file of a path, a folder with one, or a Hub repository, and the commit that it is of.

    Args:
        path_or_repo: as :meth:`dinoneck.HeadCheckpoint.load` takes it.
        revision: a branch, tag or commit of a repository.

    Raises:
        CheckpointError: if it is not a path, a folder holds no head or several, a revision is given
            for a path, or as :func:`download`.
    """
    if names_a_repo(path_or_repo):
        path = download(os.fspath(path_or_repo), revision)
        return path, path.parent.name
    if revision is not None:
        raise CheckpointError(
            f"revision={revision!r} is for hub repositories; {path_or_repo} is read as a file"
        )
    return only_head(path_or_repo), None


def download(repo_id: str, revision: str | None = None) -> Path:
    """Return the local path of ``head.safetensors`` of a Hub repository.

    A commit that is in the local cache needs no network. Without a network, a branch or tag gives
    the commit that it was when it was last loaded. ``config.json`` is fetched too, because the Hub
    counts downloads by it; it is never read.

    Args:
        repo_id: ``user/name``.
        revision: a branch, tag or commit; None = the main branch.

    Raises:
        CheckpointError: if the repository or revision does not exist, is private, gated or holds no
            head, the download breaks off, or it is neither reachable nor cached.
    """
    import huggingface_hub as hub

    patterns = [HEAD_NAME, _CONFIG]
    try:
        with without_retries_logged():
            folder = Path(
                hub.snapshot_download(repo_id, revision=revision, allow_patterns=patterns)
            )
    except Exception as error:  # the client raises many unrelated types
        reason = refusal(error, repo_id, revision) or (
            f"no file or folder {repo_id} exists, and {HEAD_NAME} of the hub repository {repo_id} "
            f"at {revision or 'main'!r} was not fetched: {unreachable(error)}. Check the name too"
        )
        raise CheckpointError(reason, step="hub") from None
    logger.info("%s: %r is commit %s", repo_id, revision or "main", folder.name)
    if not is_file(folder / HEAD_NAME):
        raise CheckpointError(
            f"the hub repository {repo_id} holds no {HEAD_NAME} at {folder.name}", step="hub"
        )
    return folder / HEAD_NAME


def blamed(error: CheckpointError, repo_id: object, path: Path) -> CheckpointError:
    """Return the refusal of a downloaded file with its origin and, of a damaged one, the remedy."""
    message = f"{repo_id} at {path.parent.name}: {error}"
    if error.step in _STEPS_OF_DAMAGE:
        message += (
            f". If the file in the local cache was damaged, delete {os.path.realpath(path)} and "
            "load again; else it was damaged before it was uploaded"
        )
    return CheckpointError(message, step=error.step)


def push_to_hub(
    file: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    figures: Iterable[str | os.PathLike[str]] = (),
    terms: str | os.PathLike[str] | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Publish a head file in a Hub repository: its page, figures and terms in one commit.

    The file is read with all checks, and the bytes that were checked are sent. README.md and
    config.json are derived from its header and replace those there. ``oid`` of the result is the
    revision that always gives this head.

    Args:
        file: the head file, or a folder with one.
        repo_id: ``user/name``; made if it is missing.
        private: a new repository is private, and an existing public one is refused; False leaves it
            to the account's default, which is public.
        revision: the branch; None = main. A missing one begins at main's commit.
        commit_message: the first line of the commit; None = the head's type and digest.
        figures: pictures (PNG, JPEG, WebP, GIF) for the page.
        terms: a text file with the licence of the backbone's weights, which becomes LICENSE.txt;
            required unless that is Apache-2.0, MIT, BSD, CC0 or CC-BY: other licences ask for a
            copy of themselves. One that is not stated counts as another one; seeded random weights
            need none.
        token: an access token that may write; None = the stored login.

    Raises:
        CheckpointError: if the head, a figure or the terms cannot be used, or the Hub refuses.
    """
    import huggingface_hub as hub

    check_repo_id(repo_id)
    if not isinstance(file, str | os.PathLike):
        raise CheckpointError(
            f"a {type(file).__name__} cannot be pushed; expected a head file. A head, or a "
            "HeadCheckpoint, publishes itself: head.push_to_hub(repo_id)",
            step="hub",
        )
    if revision is not None and _COMMIT.fullmatch(revision):
        raise CheckpointError(f"a push goes to a branch; {revision} is a commit", step="hub")
    pictures = _pictures(figures)
    head_file = read(only_head(file))
    contents.check(head_file)
    meta = head_file.header.meta
    terms_text = _terms(terms, meta)
    contents_of_files = {
        HEAD_NAME: b"".join([head_file.header.start(), *head_file.buffers]),
        _CONFIG: config_json(meta).encode(),
        "README.md": model_card(meta, repo_id, sorted(pictures)).encode(),
    }
    message = commit_message or f"{meta['head_type']}, {meta['digest'][:_SHORT_DIGEST]}"
    contents_of_files |= pictures
    if terms_text:
        contents_of_files["LICENSE.txt"] = terms_text
    api = hub.HfApi(token=token, library_name="dinoneck", library_version=__version__)
    try:
        commit = _commit(
            api,
            repo_id,
            contents_of_files,
            revision=revision,
            message=message,
            private=private,
        )
    except CheckpointError:
        raise
    except Exception as error:  # the client raises many unrelated types
        reason = refusal(error, repo_id, revision, token) or (
            f"the push to {repo_id} broke off: {unreachable(error, token)}. The hub holds all of "
            "it or nothing; files that arrived are not sent again by the next push"
        )
        raise CheckpointError(reason, step="hub") from None
    logger.info("%s is in commit %s of %s", message, commit.oid, repo_id)
    return commit


def _commit(
    api: HfApi,
    repo_id: str,
    contents_of_files: Mapping[str, bytes],
    *,
    revision: str | None,
    message: str,
    private: bool,
) -> CommitInfo:
    """Make the repository and the branch where they are missing, and commit."""
    from huggingface_hub import CommitOperationAdd

    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and api.model_info(repo_id).private is False:
        raise CheckpointError(
            f"{repo_id} exists and is public, so nothing was pushed; make it private in its "
            "settings first, or push without private=True",
            step="hub",
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations = []
    for name, content in contents_of_files.items():
        operations.append(CommitOperationAdd(name, content))
    return api.create_commit(
        repo_id, operations, commit_message=message, revision=revision, num_threads=1
    )


def _terms(file: str | os.PathLike[str] | None, meta: Mapping[str, Any]) -> bytes:
    """The text of the licence of the backbone's weights; empty where none is given and none is required."""
    licence = meta["licences"].get("backbone")
    try:
        text = b"" if file is None else read_regular(Path(file)).strip()
    except (OSError, ValueError) as error:
        problem = f"the terms {file} cannot be read: {reason_of(error)}"
        raise CheckpointError(problem, step="hub") from error
    if file is not None and not text:
        raise CheckpointError(
            f"the terms {file} are empty; expected the text of the licence of the backbone's "
            f"weights, {licence or 'which its record does not name'}",
            step="hub",
        )
    needs_none = is_open(licence) or (licence is None and _is_without_terms(meta))
    if text or needs_none:
        return text
    if licence is None:
        raise CheckpointError(
            "the record of the backbone states no licence of its weights; pass terms= (--terms "
            "FILE) with a text of the terms under which they may be passed on",
            step="hub",
        )
    link = link_of(licence)
    raise CheckpointError(
        f"the backbone's weights are under the licence {licence}, which is not an open one; pass "
        f"terms= (--terms FILE) with its text{f', {link}' if link else ''}",
        step="hub",
    )


def _is_without_terms(meta: Mapping[str, Any]) -> bool:
    """Whether a head names no backbone, or one whose weights are, or were made from, seeded random ones."""
    if meta["backbone"] is None:
        return True
    weights = meta["backbone"].get("weights")
    while weights is not None:
        if weights.get("kind") == "seeded":
            return True
        weights = weights.get("base")
    return False


def _pictures(figures: Iterable[str | os.PathLike[str]]) -> dict[str, bytes]:
    """The bytes of pictures by their names in the repository."""
    from PIL import Image, UnidentifiedImageError

    pictures: dict[str, bytes] = {}
    for figure in figures:
        path = Path(figure)
        name = f"figures/{path.name}"
        if name in pictures:
            raise CheckpointError(f"two figures are called {path.name}; rename one", step="hub")
        try:
            pictures[name] = read_regular(path)
            Image.open(io.BytesIO(pictures[name]), formats=_PICTURES).verify()
        except UnidentifiedImageError as error:
            expected = ", ".join(_PICTURES)
            raise CheckpointError(
                f"the figure {path} is not a picture of a known format; expected {expected}",
                step="hub",
            ) from error
        except Exception as error:  # Pillow raises many types for a damaged picture
            raise CheckpointError(
                f"the figure {path} cannot be read: {reason_of(error)}", step="hub"
            ) from error
    return pictures
