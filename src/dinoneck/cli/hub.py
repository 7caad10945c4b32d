"""``dinoneck push``: a head file on the Hugging Face Hub, with its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli.text import show


def push(
    file: Annotated[Path, Positional],
    repo: Annotated[str, Positional, arg(metavar="USER/NAME")],
    private: bool = False,
    revision: Annotated[str | None, arg(metavar="BRANCH")] = None,
    message: str | None = None,
    figure: tuple[Path, ...] = (),
) -> dict[str, Any]:
    """Publish a head file on the Hugging Face Hub, with its page, in one commit.

    Log in with 'hf auth login', or set HF_TOKEN.

    Example: dinoneck push head.safetensors user/name --private

    Args:
        file: a head file; checked before anything is sent.
        repo: the repository; it is created if it does not exist.
        private: make a new repository private; an existing public one is refused.
        revision: the branch (default: main).
        message: the first line of the commit.
        figure: pictures for the page.
    """
    from dinoneck.checkpoint.hub import push_to_hub

    pushed = push_to_hub(file, repo, private=private, revision=revision, commit_message=message, figures=figure)
    document = {"pushed": file, "repo": repo, "commit": pushed.commit, "page": pushed.url}
    show(document)
    return document
