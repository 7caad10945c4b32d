"""The ``dinoneck`` command: a table of verbs, whose files are imported when used; torch only where it is needed."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module  # noqa: TID251 - verbs of our own list
from pathlib import Path
from typing import Any, TextIO

from dinoneck.errors import DinoneckError
from dinoneck.registry import import_modules
from dinoneck.text import did_you_mean, first_line, printable
from dinoneck.version import __version__

VERBS = {
    "demo": "train, predict and draw maps on generated images, as a first look; no download needed",
    "list": "list the published backbones, or the registered head types",
    "extract": "run a backbone over images once and keep the tokens in a feature store",
    "train": "train cross-validated heads: numbers, classes or masks; or a detector: boxes",
    "evaluate": "score finished heads or detectors on images whose truth is known",
    "predict": "predict from images with trained heads; write a CSV, and pictures on request",
    "inspect": "print what a head file is, from its header alone",
    "verify": "check every byte of head files and feature stores",
    "push": "publish a head file on the Hugging Face Hub, with its page",
    "export": "write a head, alone or with its backbone, as ONNX model or torch program",
    "serve": "serve a head or a detector over HTTP: images in, predictions out, with limits for "
    "every resource",
    "viz": "draw the tokens of images; write a report to open in a browser",
    "paint": "write a page to paint classes in; of its strokes a head and masks",
    "doctor": "check this installation, and what to do about what does not work; no network",
}
"""Verb -> its line in the help. Its file holds a function, or a dict of sub-verbs, of its name."""
FILES = {
    "export": "deploy",
    "serve": "deploy",
    "list": "files",
    "inspect": "files",
    "verify": "files",
    "push": "files",
    "doctor": "files",
}
"""Verbs whose file has another name than theirs."""
_REMOVED = {
    "bench": "'dinoneck evaluate' prints a head's seconds per image, and 'python -m benchmarks "
    "images' in a checkout times this machine",
}
"""Verbs of 0.3 that are gone -> what to use instead."""

# exit codes; a process that a signal ends has 128 and the signal's number
REFUSED = 1
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143

_CHECK_NAME = "check the name and who may read and write there"
_REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "your share of the disk is used up; make room, or ask for more",
    errno.EFBIG: "files may not be that large here; 'ulimit -f' shows the limit",
}
"""What to do about errors of the system whose cause is neither a name nor a permission."""
_EPILOG = """verbs:
{verbs}

every verb takes --json, for programs: one JSON document on stdout, everything else on stderr;
and --import MODULE, as above

exit codes: 0 done, 1 refused, or no (damaged), 2 wrong usage, 130 interrupted, 141 broken pipe,
143 terminated
'dinoneck VERB --help' shows the options of a verb and an example; a first look: dinoneck demo"""


_PACKAGE = Path(__file__).parents[1]
_NEEDS_TORCH = (
    "error: this needs torch, which is not installed: pip install dinoneck brings it. Without it "
    "'dinoneck predict IMAGES --heads FILE.onnx' predicts with exported files"
)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send before they kill: the clean-up is that of Ctrl-C."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would stop the clean-up
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: see ``docs/reference/command-line.md``.

    Args:
        arguments: the command line; None: that of the process, which then also cleans up after
            SIGTERM and prints warnings of the library as one line each.
    """
    if arguments is None:
        signal.signal(signal.SIGTERM, _terminate)
        _show_warnings_as_lines()
        arguments = sys.argv[1:]
    _prepare_streams()
    try:
        try:
            return _run(list(arguments))
        finally:
            sys.stdout.flush()  # here a closed pipe can still be distinguished from other errors
    except OSError as error:  # those of a verb are printed by _run
        # what is left in the buffer goes nowhere, so that it raises no error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader closed the pipe
            return BROKEN_PIPE
        print(f"error: the output cannot be written: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt as end:
        print("interrupted", file=sys.stderr)
        return TERMINATED if isinstance(end, _Terminated) else INTERRUPTED


def _show_warnings_as_lines() -> None:
    """Print what the library warns of without the place in its source code."""
    show_with_place = warnings.showwarning

    def show_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning and Path(filename).is_relative_to(_PACKAGE):
            print(f"warning: {message}", file=file or sys.stderr)
        else:
            show_with_place(message, category, filename, lineno, file, line)

    warnings.showwarning = show_warning


def _prepare_streams() -> None:
    """Open streams that are closed, and let characters that the terminal lacks be printed as ``?``."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file that is opened would get its number
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without R² prints R?


def load(verb: str) -> Any:
    """Return the function of a verb, or its sub-verbs by name."""
    module = import_module(f"dinoneck.cli.{FILES.get(verb, verb)}")
    if verb == "list":  # a name of Python
        return module.LISTS
    return getattr(module, verb)


def _run(arguments: list[str]) -> int:
    """Parse, run and report: a refusal is one line on stderr, and with --json in the document too."""
    parser = _parser()
    options = parser.parse_args(arguments)
    verb = options.verb
    as_json = "--json" in options.words
    words = [word for word in options.words if word != "--json"]
    _check_verb(parser, verb)
    # such as an unset variable in a script: as a path it would mean the current folder
    if "" in words:
        parser.error("an argument is empty; name a file or a folder ('.' for the current one)")
    imports = list(options.imports)
    if verb != "train":  # which records them with the run
        words, modules = _split_imports(words)
        if modules is None:
            parser.error("--import names nothing; expected a module or a Python file")
        imports += modules
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
    )

    document: dict[str, Any] = {}
    is_silent = verb == "train" and os.environ.get("RANK", "0") != "0"
    output: TextIO = sys.stdout
    if is_silent:  # of the processes of torchrun the first one prints
        output = io.StringIO()
        logging.getLogger().setLevel(logging.ERROR)
    elif as_json:
        output = sys.stderr
    try:
        with contextlib.redirect_stdout(output):
            import_modules(imports)
            document = command(verb, words)() or {}
        is_ok = bool(document.pop("ok", True))
    except BrokenPipeError:
        raise
    except Exception as error:
        line = _refusal(error)
        if line is None:
            if options.verbose:
                raise
            line = _unexpected(error)
        print(line, file=sys.stderr)
        is_ok = False
        document = {"error": _error_entry(error)}
    if as_json and not is_silent:
        print(_json({"verb": verb, "ok": is_ok, "dinoneck": __version__, **document}))
    return 0 if is_ok else REFUSED


def _parser() -> argparse.ArgumentParser:
    """The parser of what stands before the words of a verb."""
    verbs = "\n".join(f"  {name:<14} {line}" for name, line in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="dinoneck",
        description="Heads on DINOv2/DINOv3 backbones.",
        epilog=_EPILOG.format(verbs=verbs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dinoneck {__version__}")
    parser.add_argument(
        "--verbose", action="store_true", help="log each step, and where an unexpected error arose"
    )
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="module or Python file to import first, such as one that registers heads of your "
        "own; may be repeated",
    )
    parser.add_argument("verb", metavar="VERB", nargs="?", help="see below")
    parser.add_argument("words", metavar="...", nargs=argparse.REMAINDER, help="its arguments")
    return parser


def _check_verb(parser: argparse.ArgumentParser, verb: str | None) -> None:
    """Exit with 2 for a verb that is missing, gone or unknown."""
    if not verb:
        parser.error("a verb is missing. 'dinoneck --help' lists them")
    if verb in _REMOVED:
        parser.error(f"the verb {verb!r} is gone: {_REMOVED[verb]}")
    if verb not in VERBS:
        hint = did_you_mean(verb, VERBS)
        parser.error(f"unknown verb {verb!r}.{hint} 'dinoneck --help' lists them")


def _split_imports(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Words without ``--import MODULE``, and the modules, one of each; None if one names nothing."""
    others: list[str] = []
    modules: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        flag, is_joined, module = word.partition("=")
        if flag != "--import":
            others.append(word)
            continue
        if not is_joined and remaining:
            module = remaining.pop(0)
        if not module or module.startswith("-"):
            return others, None
        modules.append(module)
    return others, modules


def command(verb: str, words: Sequence[str]) -> partial[Any]:
    """Return the call that the words of a verb describe."""
    from dinoneck.cli.arguments import parse

    if verb == "train":
        from dinoneck.cli.train import parse_training

        return parse_training(words)
    if verb == "evaluate":
        from dinoneck.cli.evaluate import parse_evaluation

        return parse_evaluation(words)
    return parse(load(verb), f"dinoneck {verb}", words)


def _refusal(error: Exception) -> str | None:
    """The line of an error that dinoneck or the system raises, control characters escaped; None for others."""
    is_ours = isinstance(error, DinoneckError)
    if isinstance(error, OSError) and not is_ours and error.filename is not None:
        line = f"error: {error.filename}: {error.strerror}"
        # sentences of dinoneck itself state their remedy
        if error.errno is not None and error.strerror == os.strerror(error.errno):
            line += f"; {_REMEDIES.get(error.errno, _CHECK_NAME)}"
        return printable(line)
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return _NEEDS_TORCH
    lacks_extra = isinstance(error, ImportError) and "pip install" in str(error)
    if is_ours or isinstance(error, OSError) or lacks_extra:
        return printable(f"error: {error}", keep="\n")
    return None


def _unexpected(error: Exception) -> str:
    """The line of an error that no part of dinoneck raises on purpose."""
    message = printable(first_line(error))
    return f"error: unexpected {type(error).__name__}: {message} (--verbose shows where)"


def _error_entry(error: Exception) -> dict[str, str]:
    """An error in the document of --json."""
    entry = {"type": type(error).__name__, "message": str(error)}
    if hasattr(error, "step"):
        entry["step"] = error.step
    return entry


def _json(document: Mapping[str, Any]) -> str:
    """A document as JSON; numbers that JSON lacks are null."""
    import msgspec

    plain = msgspec.json.decode(msgspec.json.encode(document, enc_hook=_to_plain))
    return json.dumps(plain, indent=2)


def _to_plain(value: Any) -> Any:
    """A value that msgspec does not encode, as one that it does."""
    if isinstance(value, float):  # of NumPy
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    return os.fspath(value)


if __name__ == "__main__":
    sys.exit(main())
