"""``dinoneck --print-completion SHELL``: the script that lets a shell complete verbs, options, names and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinoneck.backbones.known import KNOWN, TINY
from dinoneck.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")
_FILES = frozenset({"file", "heads", "head", "backbone_file", "patterns"})
"""Arguments that take files, though not as a Path: they may also be names."""


class PrintCompletion(argparse.Action):
    """Prints the script and ends; the library that writes it is imported only here."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Print and end."""
        try:
            print(script(parser, values))
        except ConfigError as error:
            parser.exit(1, f"error: {error}\n")
        parser.exit()


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Declare ``--print-completion``."""
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the script that makes a shell ({', '.join(SHELLS)}) complete this command, and exit",
    )


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of a shell; the parser is of no other use afterwards.

    Raises:
        ConfigError: if the library that writes it is missing.
    """
    try:
        import shtab
    except ImportError as error:
        raise ConfigError("completion scripts are written by shtab, which is missing: pip install shtab") from error
    for action in _actions(parser):
        if action.dest == "backbone":
            action.choices = [TINY, *(f"{model.name}.{tag}" for model in KNOWN for tag in model.hubs)]
        elif action.choices is None and (action.type is Path or action.dest in _FILES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its verbs."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _actions(verb)
        else:
            yield action
