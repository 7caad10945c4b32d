"""What a verb is about to write, looked at before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dinoneck.checkpoint.file import HEAD_FILES, HEADS, LISTING
from dinoneck.errors import ConfigError


def check_output(
    out: Path, inputs: Iterable[str | Path | None], suffixes: Sequence[str] = (), option: str = "--out"
) -> None:
    """Refuse, before any work, an output that cannot be written or would replace an input.

    Args:
        out: the file to write.
        inputs: files that are read, and folders of heads; None is left out.
        suffixes: that the name may end in; none = any.
        option: that named the output.

    Raises:
        ConfigError: naming it.
    """
    if suffixes and out.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {out}: expected a file name that ends in {' or '.join(suffixes)}")
    place = os.path.realpath(out)  # unlike Path.resolve it bears links that lead to themselves
    folder = Path(place).parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {out}: the folder {out.parent} does not exist; create it first")
    if out.is_dir():
        raise ConfigError(f"{option} {out} is a folder; expected a file name")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {out}: the folder {out.parent} cannot be written to; choose another")
    for given in (file for path in inputs if path is not None for file in _files(Path(path))):
        if place == os.path.realpath(given) or (out.exists() and given.exists() and out.samefile(given)):
            raise ConfigError(f"{option} {out} is one of the inputs and would be replaced; choose another name")


def _files(given: Path) -> list[Path]:
    """A file; or what a folder of heads or an ensemble is read from."""
    if not given.is_dir():
        return [given]
    return [given / LISTING, *given.glob(HEAD_FILES), *given.glob(f"{HEADS}/{HEAD_FILES}")]
