"""The ``dinoneck`` command: one file per verb, imported when it is used; torch only where a verb needs it."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from dinoneck.errors import DinoneckError, printable
from dinoneck.version import __version__

VERBS = (
    "demo",
    "train",
    "extract",
    "predict",
    "inspect",
    "verify",
    "diff",
    "migrate",
    "card",
    "push",
    "pull",
    "backbones",
    "import-legacy",
    "export-head",
)
INTERRUPTED = 130
BROKEN_PIPE = 141


def parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs."""
    top = argparse.ArgumentParser(prog="dinoneck", description="Heads on DINOv2/DINOv3 backbones.")
    top.add_argument("--version", action="version", version=f"dinoneck {__version__}")
    top.add_argument("--verbose", action="store_true", help="tell what is done on the way")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        verb = import_module(f"dinoneck.cli.{name.replace('-', '_')}")
        sub = verbs.add_parser(
            name,
            help=verb.HELP,
            description=verb.HELP,
            epilog=f"example: {verb.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(sub)
        sub.set_defaults(run=verb.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: 0 done, 1 refused, 2 wrong usage, 130 interrupted, 141 broken pipe."""
    _write_anything(sys.stdout)
    if not sys.stderr.isatty():  # bars of the hub's client in a log are noise
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return int(options.run(options))
    except DinoneckError as error:
        print(_told(error), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        print(_told(error), file=sys.stderr)
        return 1
    except Exception as error:
        if options.verbose:
            raise
        told = printable((str(error).strip().splitlines() or [""])[0])
        print(f"error: unexpected {type(error).__name__}: {told} (--verbose shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _told(error: Exception) -> str:
    """What is refused, in lines that a file cannot colour or wipe away."""
    return printable(f"error: {error}", keep="\n")


def _write_anything(stream: object) -> None:
    """A terminal without R² prints R?, rather than nothing at all after the work."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
