"""``dinoneck card``: the page of a head file, from its header alone, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.atomic import write_text
from dinoneck.checkpoint.card import model_card
from dinoneck.cli.arguments import check_output
from dinoneck.cli.text import show


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
