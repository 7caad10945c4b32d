"""How a verb's function becomes its command line, and the arguments that several verbs share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from dinoneck.cli.text import show
from dinoneck.errors import ConfigError, DataError, counted, did_you_mean

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

Verb = Callable[..., Any]
_STYLE = (OmitArgPrefixes, OmitSubcommandPrefixes, DisallowNone)
_WHOLE_MODEL = "--size --maps --backbone-file --random-backbone"
NO_EFFECT = {
    "images that are named": "--image-folder --image-column",
    "a feature store": "--csv --image-folder --image-column --maps --overlay --skip-unusable",
    "heads": "--min-score",
    "a detector": "--tta --probe --tile --overlap --weights --image-column --maps --no-tokens",
    "the export of weights": f"--grid --with-backbone --half {_WHOLE_MODEL}",
    "the export of a head without --with-backbone": _WHOLE_MODEL,
    "the export of a whole model": "--grid",
    "the export of a detector": "--grid --maps --half",
    "the time of a head file": "--backbone --backbone-source --backbone-seed --layers",
}
"""Kind of run -> the options without effect on it."""


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
        SystemExit: 0 after the help, 2 after the reason on stderr.
    """
    if isinstance(verb, Mapping) and words and not words[0].startswith("-"):
        if words[0] not in verb:
            raise SystemExit(_wrong(words[0], verb, prog))
        return parse(verb[words[0]], f"{prog} {words[0]}", words[1:])
    style = _STYLE if pairs else (*_STYLE, FlagCreatePairsOff)
    if isinstance(verb, Mapping):  # no sub-verb is named
        tyro.extras.subcommand_cli_from_dict(dict(verb), prog=prog, args=words, config=style)
    function = typing.cast("Verb", verb)

    @functools.wraps(function)
    def bound(*values: Any, **options: Any) -> functools.partial[Any]:
        return functools.partial(function, *values, **options)

    call, unknown = tyro.cli(bound, prog=prog, args=words, config=style, return_unknown_args=True)
    if not unknown:
        return call
    word = next((each for each in unknown if each.startswith("-")), unknown[0])
    raise SystemExit(_wrong(word, flags(call.func, _defaults(call.func)), prog))


def _wrong(word: str, known: Iterable[str], prog: str) -> int:
    """Print that a word is unknown, with the known one that begins like it or is near it."""
    longer = [each for each in known if each.startswith(word) and len(word) > len("--")]
    hint = f" Did you mean {longer[0]!r}?" if longer else did_you_mean(word.partition("=")[0], known)
    print(f"error: {word!r} is unknown.{hint} '{prog} --help' lists what there is", file=sys.stderr)
    return 2


def _defaults(verb: Verb) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(verb).parameters.items()}


def flags(owner: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flag -> value of a verb or a group of options.

    Args:
        owner: the function, or the class of the group.
        values: its arguments by name; those that are groups hold their own flags.
    """
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(owner, include_extras=True).items():
        if name == "return":
            continue
        value = values[name]
        if dataclasses.is_dataclass(value) or isinstance(value, msgspec.Struct):
            inner = typing.get_type_hints(type(value))
            found |= flags(type(value), {own: getattr(value, own, None) for own in inner})
        else:
            names = [extra.name for extra in getattr(hint, "__metadata__", ()) if getattr(extra, "name", None)]
            found["--" + (names or [name])[0].replace("_", "-")] = value
    return found


def refuse_unused(verb: Verb, kind: str, options: Mapping[str, Any]) -> None:
    """Refuse options that are given and have no effect on this kind of run, see ``NO_EFFECT``.

    Args:
        verb: the verb.
        kind: of the run.
        options: the verb's arguments.

    Raises:
        ConfigError: naming them.
    """
    usual, given = flags(verb, _defaults(verb)), flags(verb, options)
    unused = [flag for flag in NO_EFFECT[kind].split() if flag in given and given[flag] != usual[flag]]
    if unused:
        raise ConfigError(f"without effect on {kind}, so leave out {', '.join(unused)}")


def whole(low: int, high: int = 1_000_000) -> PrimitiveConstructorSpec[Any]:
    """Return the argument of a whole number in a range."""

    def read(words: list[str]) -> int:
        if not (words[0].isascii() and words[0].isdecimal() and low <= int(words[0]) <= high):
            raise ValueError(f"{words[0]!r} is not a whole number {low} ... {high}")
        return int(words[0])

    return PrimitiveConstructorSpec(1, "N", read, lambda _: True, lambda number: [str(number)])


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
        min_score: of detectors: smallest score of a box (default: that of the file, the one
            with the best F1 on held-out images).
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
        return {"batch_size": self.batch_size, "min_score": self.min_score}


@dataclass(frozen=True)
class HeadBackbone:
    """The file of a published head, and the backbone of a head, by default the one that its file names.

    Attributes:
        backbone_file: weights on disk, or a transformers folder.
        random_backbone: seeded random weights without download, equal on every machine.
        weights: the publisher's file of a published head.
    """

    backbone_file: str | None = None
    random_backbone: bool = False
    weights: str | None = None

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
        from dinoneck.checkpoint.pairing import rebuild

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


def check_backbone_name(name: str | None, source: str | None = None) -> None:
    """Refuse, before torch is imported, a name that cannot be that of a DINOv2 or DINOv3 ViT of timm.

    Raises:
        BackboneError: with the nearest known name.
    """
    from dinoneck.backbones.known import KNOWN, TINY, is_supported, refuse, resolve_name

    if name is None or name == TINY or source == "transformers" or "/" in (full := resolve_name(name)):
        return
    if not is_supported(full):
        raise refuse(name, [model.name for model in KNOWN])


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
    return [*given.glob("*.safetensors")] if given.is_dir() else [given]


def list_images(given: Sequence[Path]) -> list[Path]:
    """Return images, and those in folders with their subfolders; name files that dinoneck does not read.

    Args:
        given: images and folders.

    Raises:
        ConfigError: if a head file is among them.
        DataError: if one does not exist, or a folder holds no images.
    """
    from dinoneck.data.loading import SUFFIXES, images_below, other_images_below

    if not given:
        raise ConfigError("no images are named; name images, or folders of them, before the options")
    if heads := [path for path in given if path.suffix == ".safetensors"]:
        raise ConfigError(f"{heads[0]} is not an image; name head files after --heads, and images before the options")
    if missing := [path for path in given if not path.exists()]:
        raise DataError(f"{len(missing)} of {len(given)} images or folders do not exist, the first is {missing[0]}")
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


def names_below(files: Sequence[Path]) -> list[str]:
    """Return the names of images below the folder that they share."""
    shared = os.path.commonpath([file.absolute().parent for file in files])
    return [str(file.absolute().relative_to(shared)) for file in files]
