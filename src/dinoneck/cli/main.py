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
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module  # noqa: TID251 - verbs of our own list
from typing import Any

from dinoneck.errors import DinoneckError, did_you_mean, first_line, printable
from dinoneck.registry import import_modules
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
    "doctor": "check this installation, and what to do about what does not work; no network",
}
"""Verb -> its line in the help. Its file holds a function, or a dict of sub-verbs, of its name."""
FILES = {
    "evaluate": "predict",
    "export": "deploy",
    "serve": "deploy",
}
FILES |= dict.fromkeys(("list", "inspect", "verify", "push", "doctor"), "files")
"""Verbs whose file has another name than theirs."""
_REMOVED = {
    "bench": "'dinoneck evaluate' prints a head's seconds per image, and 'python -m benchmarks "
    "images' in a checkout times this machine",
}
"""Verbs of 0.3 that are gone -> what to use instead."""
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


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send before they kill: the same clean-up as after Ctrl-C."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would stop the clean-up
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: see ``docs/reference/command-line.md``.

    Args:
        arguments: the command line; None = that of the process, which then also cleans up after
            SIGTERM.
    """
    if arguments is None:
        signal.signal(signal.SIGTERM, _terminate)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: the next file that is opened would get its number
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without R² prints R?
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
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


def load(verb: str) -> Any:
    """Return the function of a verb, or its sub-verbs by name."""
    module = import_module(f"dinoneck.cli.{FILES.get(verb, verb)}")
    if verb == "list":  # a name of Python
        return module.LISTS
    return getattr(module, verb)


def _run(arguments: list[str]) -> int:
    """Parse, run and report: a refusal is one line on stderr, and with --json in the document too."""
    top = argparse.ArgumentParser(
        prog="dinoneck",
        description="Heads on DINOv2/DINOv3 backbones.",
        epilog=_EPILOG.format(
            verbs="\n".join(f"  {name:<14} {line}" for name, line in VERBS.items())
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"dinoneck {__version__}")
    top.add_argument(
        "--verbose", action="store_true", help="log each step, and where an unexpected error arose"
    )
    top.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="module or Python file to import first, such as one that registers heads of your "
        "own; may be repeated",
    )
    top.add_argument("verb", metavar="VERB", nargs="?", help="see below")
    top.add_argument("words", metavar="...", nargs=argparse.REMAINDER, help="its arguments")
    options = top.parse_args(arguments)
    verb, words = options.verb, [word for word in options.words if word != "--json"]
    if verb in _REMOVED:
        top.error(f"the verb {verb!r} is gone: {_REMOVED[verb]}")
    if verb not in VERBS:
        what = (
            f"unknown verb {verb!r}.{did_you_mean(verb, VERBS)}" if verb else "a verb is missing."
        )
        top.error(f"{what} 'dinoneck --help' lists them")
    # such as an unset variable in a script: as a path it would mean the current folder
    if "" in words:
        top.error("an argument is empty; name a file or a folder ('.' for the current one)")
    imports = [*options.imports]
    if verb != "train":  # which records them with the run
        words, modules = _split_imports(words)
        if modules is None:
            top.error("--import names nothing; expected a module or a Python file")
        imports += modules
    as_json = "--json" in options.words
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
    )
    document: dict[str, Any] = {}
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            import_modules(imports)
            document = command(verb, words)() or {}
        code = 0 if document.pop("ok", True) else REFUSED
    except BrokenPipeError:
        raise
    except Exception as error:
        line = _refusal(error)
        if line is None and options.verbose:
            raise
        kind, first = type(error).__name__, printable(first_line(error))
        print(line or f"error: unexpected {kind}: {first} (--verbose shows where)", file=sys.stderr)
        step = {"step": error.step} if hasattr(error, "step") else {}
        code, document = (
            REFUSED,
            {"error": {"type": type(error).__name__, "message": str(error), **step}},
        )
    if as_json:
        print(_json({"verb": verb, "ok": code == 0, "dinoneck": __version__, **document}))
    return code


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

    function = load(verb)
    if verb == "train" and words and not words[0].startswith("-"):
        from dinoneck.training.config import TrainConfig

        function, words = partial(function, run=TrainConfig.read(words[0])), words[1:]
    return parse(function, f"dinoneck {verb}", words, pairs=verb == "train")


def _refusal(error: Exception) -> str | None:
    """The message, without signs that steer a terminal; None for an error that dinoneck does not raise itself."""
    if (
        isinstance(error, OSError)
        and error.filename is not None
        and not isinstance(error, DinoneckError)
    ):
        line = f"error: {error.filename}: {error.strerror}"
        # sentences of dinoneck's own state their remedy
        if error.errno is not None and error.strerror == os.strerror(error.errno):
            line += f"; {_REMEDIES.get(error.errno, _CHECK_NAME)}"
        return printable(line)
    if isinstance(error, DinoneckError | OSError) or (
        isinstance(error, ImportError) and "pip install" in str(error)
    ):
        return printable(f"error: {error}", keep="\n")
    return None


def _json(document: Mapping[str, Any]) -> str:
    """A document as JSON; numbers that JSON lacks are null."""
    import msgspec

    plain = msgspec.json.decode(msgspec.json.encode(document, enc_hook=_plain))
    return json.dumps(plain, indent=2)


def _plain(value: Any) -> Any:
    """A value that is neither plain nor a path of the standard library, as one that is."""
    if isinstance(value, float):
        return float(value)
    return dict(value) if isinstance(value, Mapping) else os.fspath(value)


if __name__ == "__main__":
    sys.exit(main())
