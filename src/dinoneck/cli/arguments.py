"""How a verb's function becomes its command line, and the arguments that several verbs share."""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from dinoneck.cli.text import show
from dinoneck.errors import ConfigError, DataError, counted, printable

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

Verb = Callable[..., Any]
_IN_WORDS = {  # errors of Python and tyro -> in words
    r"no type matching (?:\{None\}\|)?\{?(.+?)\}? could be instantiated from (\[.*?\])\..*": r"expected \1, got \2",
    r"Could not find valid parse for arguments: (\[.*\])": r"\1 cannot be read",
    r"invalid literal for int\(\) with base 10: ('.*')": r"\1 is not a whole number",
    r"could not convert string to float: ('.*')": r"\1 is not a number",
    r"\[+(\w+) \[\1 \.\.\.\]+": r"\1 ...",
    r"'None', |, 'None'": "",
    r"^Error parsing (?:[a-z][\w.]*: )?": "",
}
_UNWRAPPED = "10000"  # columns: an error is one sentence, however long its paths


def parse(
    verb: Verb | Mapping[str, Verb], prog: str, words: Sequence[str], *, pairs: bool = False
) -> functools.partial[Any]:
    """Return the call of a verb's function, or of one of its sub-verbs, that a command line describes.

    Args:
        verb: its function, whose signature and docstring are the flags and their help; or sub-verb -> function.
        prog: what stands before the words.
        words: the command line.
        pairs: whether every switch has its opposite too (``--x`` and ``--no-x``).

    Raises:
        SystemExit: 0 after the help, 2 after a sentence on stderr about what is wrong.
    """
    asks_help = bool({"-h", "--help"} & set(words))
    config = (OmitArgPrefixes, OmitSubcommandPrefixes, *(() if pairs else (FlagCreatePairsOff,)))
    call: functools.partial[Any]
    out, err = io.StringIO(), io.StringIO()
    columns = os.environ.get("COLUMNS")
    if not asks_help:
        os.environ["COLUMNS"] = _UNWRAPPED
    try:
        with redirect_stdout(out), redirect_stderr(err):
            if isinstance(verb, Mapping):
                verbs = {name: _later(function) for name, function in verb.items()}
                call = tyro.extras.subcommand_cli_from_dict(verbs, prog=prog, args=words, config=config)
            else:
                call = tyro.cli(_later(verb), prog=prog, args=words, config=config)
    except SystemExit as end:
        if not end.code:
            print(plain(out.getvalue()).strip())
        if end.code:
            print(f"error: {_sentence(err.getvalue())}; see {prog} --help", file=sys.stderr)
        raise
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ.update({} if columns is None else {"COLUMNS": columns})
    for name, parameter in inspect.signature(call.func).parameters.items():
        if call.keywords.get(name) == () != parameter.default:
            print(f"error: {name.replace('_', '-')}: none given; name one or more, see {prog} --help", file=sys.stderr)
            raise SystemExit(2)
    return call


def _later(function: Verb) -> Verb:
    """The function with its signature, which returns its call in place of making it."""

    @functools.wraps(function)
    def bound(*values: Any, **options: Any) -> functools.partial[Any]:
        return functools.partial(function, *values, **options)

    return bound


def plain(text: str) -> str:
    """Return the help of tyro without rules, empty defaults and the word for a value that is left out."""
    text = re.sub(r"\{None\}\|\{([^{}]*)\}( *)", r"\1\2         ", text)
    text = re.sub(r"\{None\}\|(\S+)(  +)", r"\1\2       ", text).replace("{None}|", "").replace("{None,", "{")
    text = re.sub(r"\[+(\w+) \[\1 \.\.\.\]+", r"\1 ...", text)
    text = re.sub(r" +$|^ *-{3,} *$|^  \(required\) *$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^ (\S.*)$", r"\1:", text, flags=re.MULTILINE)
    text = re.sub(r"\s*\(default:\s*(None|none|False|True|''|'\{\}')?\)", "", text)
    text = re.sub(r"\n{2,}", "\n\n", text).replace(":\n\n  ", ":\n  ")
    width = shutil.get_terminal_size().columns
    return "\n".join(line if line.startswith(" ") else textwrap.fill(line, width) for line in text.splitlines()) + "\n"


def _sentence(text: str) -> str:
    """What an error of tyro states first, on one line: its parts stand between rules, below a title."""
    missing = re.findall(r"^ {6}(\S.*?) *\n {10}(\S.*?) \(required\)", text, re.MULTILINE | re.DOTALL)
    if "Missing from" in text and missing:
        names = [
            name if name.startswith("-") else f"{name} ({' '.join(what.split()).rstrip('.')})" for name, what in missing
        ]
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
    parts = re.split(r"^ *-{3,} *$", text, flags=re.MULTILINE)
    sentence = " ".join(parts[1 if len(parts) > 1 else 0].split()).replace(" (required)", "").rstrip(". ")
    for pattern, words in _IN_WORDS.items():
        sentence = re.sub(pattern, words, sentence)
    if hint := re.search(r"Perhaps you meant:\s+(--[\w-]+)", text):
        sentence += f". Did you mean {hint[1]}?"
    if verbs := re.search(r"Available subcommands: (.+?) *$", text, re.MULTILINE):
        sentence += f"; expected one of {verbs[1]}"
    return printable(sentence)


def whole(low: int, high: int = 1_000_000) -> PrimitiveConstructorSpec[Any]:
    """Return the argument of a whole number in a range."""

    def read(words: list[str]) -> int:
        if not (words[0].isascii() and words[0].isdecimal() and low <= int(words[0]) <= high):
            raise ValueError(f"{words[0]!r} is not a whole number {low} ... {high}")
        return int(words[0])

    return PrimitiveConstructorSpec(
        nargs=1, metavar="N", instance_from_str=read, is_instance=lambda _: True, str_from_instance=lambda n: [str(n)]
    )


Count = Annotated[int, whole(1)]
CountOrNone = Annotated[int | None, whole(1)]
Images = Annotated[tuple[Path, ...], Positional, arg(metavar="IMAGES ...")]
Paths = Annotated[tuple[Path, ...], Positional, arg(metavar="PATHS ...")]


@dataclass(frozen=True)
class Views:
    """How images are predicted.

    Attributes:
        tta: views to average (default: as recorded in the heads, else none).
        revision: branch, tag or commit of the Hub repositories (default: main).
        batch_size: images or tiles at once.
        probe: accept a backbone whose outputs match, even if the hash of its weights differs.
        min_score: of detectors: smallest score of a box (default: 0.3).
        device: such as cpu or cuda:1 (default: a GPU if there is one).
    """

    tta: Literal["none", "flip4", "d6"] | None = None
    revision: str | None = None
    batch_size: Count = 8
    probe: bool = False
    min_score: float | None = None
    device: str | None = None

    @property
    def of_boxes(self) -> dict[str, Any]:
        """The arguments of :meth:`dinoneck.detection.Detector.predict`."""
        return {"batch_size": self.batch_size, "min_score": 0.3 if self.min_score is None else self.min_score}


@dataclass(frozen=True)
class HeadBackbone:
    """The backbone of a head, by default the one that its file names.

    Attributes:
        backbone_file: weights on disk, or a transformers folder.
        random_backbone: seeded random weights without download, equal on every machine.
    """

    backbone_file: str | None = None
    random_backbone: bool = False

    def given(self, head: HeadCheckpoint) -> Backbone | None:
        """Return the backbone, or None where neither option is given, for callers that follow the file."""
        return self.load(head) if self.backbone_file or self.random_backbone else None

    def load(self, head: HeadCheckpoint) -> Backbone:
        """Return the backbone with the LoRA weights of the head; callers compare it with the head.

        Raises:
            ConfigError: if the options contradict each other, or the head does not name its backbone.
            CheckpointError: if its record cannot be followed.
            BackboneError: if the weights cannot be loaded, or do not fit.
        """
        from dinoneck.inference.sources import rebuild

        if self.backbone_file and self.random_backbone:
            raise ConfigError("--backbone-file and --random-backbone exclude each other; give one of them")
        record = head.meta["backbone"]
        if record is None:
            raise ConfigError(
                f"the {head.head_type} head does not state which backbone it needs, so none can be loaded for it; "
                "save it with save_head(..., backbone=backbone)"
            )
        backbone = rebuild(record, self.backbone_file, random=self.random_backbone)
        if head.adapter_state:
            head.apply_adapter(backbone)
        return backbone


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
    target = os.path.realpath(out)  # unlike Path.resolve it accepts links that lead to themselves
    folder = Path(target).parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {out}: the folder {out.parent} does not exist; create it first")
    if out.is_dir():
        raise ConfigError(f"{option} {out} is a folder; expected a file name")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {out}: the folder {out.parent} cannot be written to; choose another")
    for given in (file for path in inputs if path is not None for file in _files(Path(path))):
        if target == os.path.realpath(given) or (out.exists() and given.exists() and out.samefile(given)):
            raise ConfigError(f"{option} {out} is one of the inputs and would be replaced; choose another name")


def _files(given: Path) -> list[Path]:
    """A file; or the head files in a folder."""
    if not given.is_dir():
        return [given]
    from dinoneck.checkpoint.format import HEAD_FILES

    return [*given.glob(HEAD_FILES)]


def list_images(given: Sequence[Path]) -> list[Path]:
    """Return images, and those in folders with their subfolders; name files that dinoneck does not read.

    Args:
        given: images and folders.

    Raises:
        ConfigError: if a head file is among them.
        DataError: if a folder holds no images.
    """
    from dinoneck.data.loading import SUFFIXES, images_below, other_images_below

    if heads := [path for path in given if path.suffix == ".safetensors"]:
        raise ConfigError(f"{heads[0]} is not an image; name head files after --heads, and images before the options")
    if others := [file for path in given for file in other_images_below(path)]:
        kinds = ", ".join(sorted({file.suffix.lower() for file in others}))
        show(
            f"left out: {counted(len(others), 'file')} of other formats ({kinds}), the first {others[0]}; convert them"
        )
    files: list[Path] = []
    for path in given:
        inside = images_below(path)
        if not inside:
            raise DataError(f"the folder {path} holds no images ({', '.join(SUFFIXES)})")
        files += inside
    return files
