"""``dinoneck push``, ``pull`` and ``card``: head files on the Hugging Face Hub, and their pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.atomic import write_text
from dinoneck.checkpoint.card import model_card
from dinoneck.cli.arguments import check_output
from dinoneck.cli.text import show


def push(
    file: Annotated[Path, Positional],
    repo: Annotated[str, Positional, arg(metavar="USER/NAME")],
    private: bool = False,
    revision: Annotated[str | None, arg(metavar="BRANCH")] = None,
    message: str | None = None,
    figure: tuple[Path, ...] = (),
    no_create: bool = False,
) -> dict[str, Any]:
    """Publish a head file on the Hugging Face Hub, with its page, in one commit.

    Log in with 'hf auth login', or set HF_TOKEN.

    Example: dinoneck push head.safetensors user/name --private

    Args:
        file: a head file, or the folder of an ensemble of version 0.1; checked before anything is sent.
        repo: the repository; it is created if it does not exist.
        private: make a new repository private; an existing public one is refused.
        revision: the branch (default: main).
        message: the first line of the commit.
        figure: pictures for the page.
        no_create: refuse if the repository or branch does not exist.
    """
    from dinoneck.checkpoint.hub import push_to_hub

    pushed = push_to_hub(
        file, repo, private=private, revision=revision, commit_message=message, create=not no_create, figures=figure
    )
    document = {"pushed": file, "repo": repo, "commit": pushed.commit, "page": pushed.url}
    show(document)
    return document


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


def card(
    file: Annotated[Path, Positional],
    repo: Annotated[str | None, arg(metavar="USER/NAME")] = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Write the README.md that describes a head file.

    Example: dinoneck card head.safetensors --out README.md

    Args:
        file: a head file, or the folder of an ensemble of version 0.1.
        repo: the Hub repository that the page is for.
        out: write it here (default: print it).
    """
    if out is not None:
        check_output(out, [file])
    source: Any = file
    if file.is_dir():  # the heads of an ensemble as one head, which needs torch
        from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

        source = HeadCheckpoint.load(file)
    page = model_card(source, repo)
    if out is None:
        print(page, end="")
    else:
        write_text(out, page)
        show({"written": out})
    return {"page": page, "written": out}
