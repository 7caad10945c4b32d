"""The ``dinoneck`` command: one file per verb, imported when it is used; torch only where a verb needs it."""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dinoneck.cli import answers
from dinoneck.cli.completion import add_completion
from dinoneck.errors import DinoneckError, did_you_mean, printable
from dinoneck.user_code import import_modules
from dinoneck.version import __version__

VERBS = (
    "demo",
    "backbones",
    "extract",
    "train",
    "predict",
    "inspect",
    "verify",
    "diff",
    "migrate",
    "import-legacy",
    "push",
    "pull",
    "card",
    "bench",
    "viz",
    "export",
    "serve",
    "doctor",
    "store",
)
EARLIER_NAMES: dict[str, str] = {"export-head": "export"}
"""Names that verbs had: they work, and the help does not list them."""
REFUSED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143
_CLEARING_S = 2.0
_WIDTH = 100
_EPILOG = """exit codes: 0 done, 1 refused, or no (damaged, different), 2 wrong usage, 130 interrupted, 141 broken pipe,
143 terminated
'dinoneck VERB --help' shows a verb's options and an example; a first look: dinoneck demo"""


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what a batch system says before it kills; cleaned up after like Ctrl-C."""


def _path(text: str) -> Path:
    """A path that was given; an empty one, as of an unset variable in a script, would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder ('.' for the current one)")
    return Path(text)


class _Parser(argparse.ArgumentParser):
    """Names the verb that was nearly spelled, and refuses empty paths."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # --backbone is not --backbone-file
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        """End with usage, message and code 2."""
        wrong = re.match(r"argument VERB: invalid choice: '(.*?)'", message)
        if wrong is not None:
            message = f"there is no verb {wrong[1]!r}.{did_you_mean(wrong[1], VERBS)} 'dinoneck --help' lists them"
        super().error(message)


def parser(*, whole: bool = True) -> argparse.ArgumentParser:
    """Build the parser of all verbs; ``whole=False`` leaves out the flags of ``train``, which parses its own."""
    top = _Parser(
        prog="dinoneck",
        description="Heads on DINOv2/DINOv3 backbones.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"dinoneck {__version__}")
    top.add_argument("--verbose", action="store_true", help="log what is done on the way")
    top.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="module or Python file to import first, such as one that registers heads of your own; may be repeated",
    )
    add_completion(top)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in (*VERBS, *EARLIER_NAMES):
        verb = import_module(f"dinoneck.cli.{EARLIER_NAMES.get(name, name).replace('-', '_')}")
        listed = {} if name in EARLIER_NAMES else {"help": verb.HELP}
        sub = verbs.add_parser(
            name,
            **listed,
            description=verb.HELP,
            epilog=f"example: {verb.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if whole or name != "train":
            verb.add_arguments(sub)
        sub.description = textwrap.fill(sub.description or "", _WIDTH)
        sub.set_defaults(run=verb.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: see ``docs/reference/command-line.md``."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file opened would take its place
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    _write_anything(sys.stdout)
    if not sys.stderr.isatty():  # bars of the hub's client in a log are noise
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with _terminable():
            try:
                return _run(_parsed(sys.argv[1:] if arguments is None else list(arguments)))
            finally:
                sys.stdout.flush()  # while a reader that is gone can still be told from other trouble
    except BrokenPipeError:  # the reader has seen enough
        _drop_stdout()
        return BROKEN_PIPE
    except OSError as error:  # what a verb raises is told by _run
        _drop_stdout()
        print(f"error: the output cannot be written: {error}", file=sys.stderr)
        return REFUSED
    except _Terminated:
        print("terminated", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a verb; ``train`` parses what follows its name."""
    place = arguments.index("train") if "train" in arguments else len(arguments)
    if any(word in (*VERBS, *EARLIER_NAMES) for word in arguments[:place]) or place == len(arguments):
        return parser(whole="--print-completion" in arguments).parse_args(arguments)
    train = import_module("dinoneck.cli.train")
    before = parser(whole=False).parse_args([*arguments[:place], "train"])
    try:
        own = train.parse(arguments[place + 1 :])
    except DinoneckError as error:
        own = argparse.Namespace(verb="train", json="--json" in arguments, answer=None, run=_refusing(error))
    return argparse.Namespace(**{**vars(before), **vars(own)})


def _refusing(error: Exception) -> Callable[[argparse.Namespace], int]:
    """A verb that is refused before it begins."""

    def refuse(options: argparse.Namespace) -> int:
        raise error

    return refuse


def _run(options: argparse.Namespace) -> int:
    """Run a verb; a refusal is told in a line, and with --json in the document too."""
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    refusal: Exception | None = None
    try:
        with answers.answering(options):
            import_modules(options.imports)
            code = int(options.run(options))
    except BrokenPipeError:
        raise
    except Exception as error:
        told = _told(error)
        if told is None and options.verbose:
            raise
        print(told or _unexpected(error), file=sys.stderr)
        code, refusal = REFUSED, error
    answers.close(options, code, refusal)
    return code


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the work like Ctrl-C, where nobody else handles it; forked workers just die of it.

    What comes within seconds of the first signal is let pass, so that what was begun can be cleared away.
    """
    owner, first = os.getpid(), -math.inf

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif time.monotonic() - first > _CLEARING_S:
            first = time.monotonic()
            raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt

    usual: dict[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    ours = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    try:
        for number in ours:
            signal.signal(number, end)
    except ValueError:  # not the main thread, which alone handles signals
        ours = []
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, usual[number])


def _drop_stdout() -> None:
    """What is left in the buffer goes nowhere, rather than into an error at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: Exception) -> str | None:
    """What is refused, in lines that a file cannot colour or wipe away; None if it was not meant to be refused."""
    if isinstance(error, DinoneckError | OSError) or (isinstance(error, ImportError) and "pip install" in str(error)):
        return printable(f"error: {error}", keep="\n")
    return None


def _unexpected(error: Exception) -> str:
    first = printable((str(error).strip().splitlines() or [""])[0])
    return f"error: unexpected {type(error).__name__}: {first} (--verbose shows where)"


def _write_anything(stream: object) -> None:
    """A terminal without R² prints R?, rather than nothing at all after the work."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
