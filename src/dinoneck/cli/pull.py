"""``dinoneck pull``: the head file of a Hub repository into a file, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli.text import show


def pull(
    repo: Annotated[str, Positional, arg(metavar="USER/NAME")], out: Path, revision: str | None = None
) -> dict[str, Any]:
    """Fetch the head file of a Hugging Face Hub repository and check every byte.

    Example: dinoneck pull user/name --out head.safetensors

    Args:
        repo: the repository.
        out: the file; written whole and checked, or not at all.
        revision: branch, tag or commit (default: main).
    """
    from dinoneck.checkpoint.hub import pull_from_hub

    document = {"written": out, "repo": repo, "commit": pull_from_hub(repo, out, revision)}
    show(document)
    return document
