"""How a verb's function becomes its command line, and the arguments that several verbs share."""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import tyro
from tyro.conf import (
    DisallowNone,
    FlagCreatePairsOff,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    arg,
)
from tyro.constructors import PrimitiveConstructorSpec

from dinoneck.cli.help import verb_help, verbs_help
from dinoneck.cli.options import options_of
from dinoneck.errors import ConfigError, DataError
from dinoneck.kinds import RUNTIMES, AnyRuntime, Precision, Runtime
from dinoneck.registry import WITH_OWN_VIT
from dinoneck.text import counted_first, did_you_mean
from dinoneck.training.config import FrozenBackbone

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

logger = logging.getLogger(__name__)
Verb = Callable[..., Any]
AnyBackbone = TypeVar("AnyBackbone", bound=FrozenBackbone)
_STYLE = (OmitArgPrefixes, OmitSubcommandPrefixes, DisallowNone)
_WRONG_USAGE = 2  # the exit code
_HELP = ("-h", "--help")
RUNTIME_VARIABLE = "DINONECK_RUNTIME"
"""The environment variable that names the runtime where a command line does not."""
NO_IMAGES = "no images are named; name images, or folders of them, before the options"
"""The message for a command line without images; a remedy of the verb may follow."""
# of truths, which people name in the place of images
_TRUTH_SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx", ".json")
Words = Annotated[tuple[str, ...], tyro.conf.Fixed, tyro.conf.Suppress]
"""A verb's argument ``words``, which :func:`parse` fills with its command line."""


class RunKind(NamedTuple):
    """A kind of run, and the options that have no effect on it.

    Attributes:
        name: follows "without effect on" in the message.
        unused: the options, in the order of the message.
    """

    name: str
    unused: tuple[str, ...]


PREDICT_FROM_STORE = RunKind(
    "a feature store",
    unused=(
        "--maps",
        "--geojson",
        "--overlay",
        "--truth",
        "--image-column",
        "--decimal",
        "--subfolders",
        "--skip-unusable",
        "--tile",
        "--overlap",
        "--runtime",
        "--precision",
    ),
)
PREDICT_WITH_HEADS = RunKind("heads", unused=("--min-score",))
PREDICT_WITH_DETECTOR = RunKind(
    "a detector",
    unused=(
        "--tta",
        "--probe",
        "--image-column",
        "--decimal",
        "--maps",
        "--no-tokens",
        "--store",
        "--subfolders",
        "--precision",
    ),
)
_OF_HEAD_FILES = (  # without effect on an exported file
    "--tta",
    "--probe",
    "--tile",
    "--overlap",
    "--store",
    "--revision",
    "--weights",
    "--backbone-file",
    "--random-backbone",
    "--device",
    "--precision",
)
_EXPORTED_FILE = "an exported file, which has its backbone, one view and no tiles"
EVALUATE_FILE = RunKind(_EXPORTED_FILE, unused=_OF_HEAD_FILES)
PREDICT_WITH_FILE = RunKind(
    _EXPORTED_FILE, unused=(*_OF_HEAD_FILES, "--image-column", "--subfolders", "--decimal")
)
PREDICT_WITH_EXPORTED_DETECTOR = RunKind(
    "an exported detector, which takes one image at a time", unused=("--batch-size",)
)
PREDICT_WITHOUT_OVERLAY = RunKind(
    "predictions without --overlay",
    unused=("--truth", "--image-column", "--subfolders", "--decimal"),
)
EVALUATE = RunKind("scores, which count boxes of all scores", unused=("--min-score",))
PREDICT_WITHOUT_TRUTH = RunKind(
    "predictions without --truth", unused=("--image-column", "--subfolders", "--decimal")
)
REPORT_WITHOUT_TRUTH = RunKind(
    "a report without --truth",
    unused=(
        "--image-column",
        "--subfolders",
        "--decimal",
        "--mask-suffix",
        "--skip-unpaired",
        "--nodata",
        "--class-values",
        "--class-colors",
        "--classes",
    ),
)
EXPORT_HEAD_ALONE = RunKind(
    "the export of a head without --with-backbone",
    unused=("--size", "--maps", "--backbone-file", "--random-backbone", "--precision"),
)
EXPORT_WHOLE_MODEL = RunKind("the export of a whole model", unused=("--grid",))
EXPORT_DETECTOR = RunKind(
    "the export of a detector, which is always whole",
    unused=("--grid", "--maps", "--with-backbone", "--precision"),
)


def parse(
    verb: Verb | Mapping[str, Verb],
    prog: str,
    words: Sequence[str],
    *,
    pairs: bool = False,
    explain: Callable[[str], str] = lambda flag: "",
    candidates: Iterable[str] = (),
    first: Sequence[str] = (),
) -> functools.partial[Any]:
    """Return the call of a verb's function, or of one of its sub-verbs, that a command line describes.

    Args:
        verb: its function, whose signature and docstring are the flags and their help; or sub-verb
            -> function.
        prog: what stands before the words.
        words: the command line.
        pairs: whether every switch has its opposite too (``--x`` and ``--no-x``).
        explain: an unknown flag -> a sentence on what it is; empty = it is nothing.
        candidates: flags that an unknown one may be a misspelling of, beside those of the function.
        first: flags that the help begins with, in their order.

    Raises:
        SystemExit: 0 after the help, 2 after the reason on stderr. A reason is also an option of
            several values that is given twice, of which the parser would keep the last ones alone.
    """
    style = _STYLE if pairs else (*_STYLE, FlagCreatePairsOff)
    if isinstance(verb, Mapping):
        if words and words[0] in _HELP:
            print(verbs_help(prog, verb))
            raise SystemExit(0)
        if not words or words[0].startswith("-"):  # no sub-verb is named
            tyro.extras.subcommand_cli_from_dict(dict(verb), prog=prog, args=words, config=style)
        if words[0] not in verb:
            raise SystemExit(_wrong_usage(_unknown(words[0], verb, prog)))
        return parse(verb[words[0]], f"{prog} {words[0]}", words[1:])

    if any(_count(flag, words) for flag in _HELP):
        print(verb_help(prog, verb, pairs=pairs, first=first))
        raise SystemExit(0)

    @functools.wraps(verb)
    def bind(*values: Any, **options: Any) -> functools.partial[Any]:
        return functools.partial(verb, *values, **options)

    call, unknown = tyro.cli(bind, prog=prog, args=words, config=style, return_unknown_args=True)
    if unknown:
        unknown_flags = [word for word in unknown if word.startswith("-")]
        first_unknown = unknown_flags[0] if unknown_flags else unknown[0]
        explanation = explain(flag_of(first_unknown))
        if explanation:
            raise SystemExit(_wrong_usage(f"{first_unknown!r} is unknown here. {explanation}"))
        raise SystemExit(_wrong_usage(_unknown(first_unknown, [*flags(verb), *candidates], prog)))
    for option in options_of(verb):
        if option.is_list and _count(option.flag, words) > 1:
            raise SystemExit(
                _wrong_usage(
                    f"{option.flag} is given twice; give it once, with all its values after it"
                )
            )
    if "words" in call.keywords:
        call.keywords["words"] = tuple(words)
    return call


def _wrong_usage(message: str) -> int:
    """Print why a command line is refused, and return the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return _WRONG_USAGE


def _unknown(word: str, known: Iterable[str], prog: str) -> str:
    """The message for an unknown word, with the known one that begins like it or is near it."""
    names = list(known)
    hint = did_you_mean(word.partition("=")[0], names)
    if flag_of(word) in names:  # of an argument that is known by its place
        hint = " Its value stands alone, without it."
    elif len(word) > len("--"):
        for name in names:
            if name.startswith(word):
                hint = f" Did you mean {name!r}?"
                break
    return f"{word!r} is unknown.{hint} '{prog} --help' lists what there is"


def _count(flag: str, words: Iterable[str]) -> int:
    """How often an option is given."""
    count = 0
    for word in words:
        if word == "--":  # what follows are no options
            break
        if flag_of(word) == flag:
            count += 1
    return count


def flag_of(word: str) -> str:
    """Return the option of a word such as ``--class_values=1``, as the help spells it."""
    return word.partition("=")[0].replace("_", "-")


def flags(owner: Any) -> list[str]:
    """Return the flags of a verb's function, or of the class of a group of options."""
    return [option.flag for option in options_of(owner)]


def refuse_unused(run: RunKind, words: Iterable[str]) -> None:
    """Refuse options that are given and have no effect on this kind of run.

    Raises:
        ConfigError: naming them.
    """
    given_flags = {flag_of(word) for word in words}
    unused = [flag for flag in run.unused if flag in given_flags]
    if unused:
        raise ConfigError(f"without effect on {run.name}, so leave out {', '.join(unused)}")


def whole(low: int, high: int = 1_000_000) -> PrimitiveConstructorSpec[Any]:
    """Return the argument of a whole number in a range."""

    def read(words: list[str]) -> int:
        [word] = words
        is_number = word.isascii() and word.isdecimal()
        if not is_number or not low <= int(word) <= high:
            raise ValueError(f"{word!r} is not a whole number {low} ... {high}")
        return int(word)

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="N",
        instance_from_str=read,
        is_instance=lambda value: True,  # of a default, which is None or a whole number
        str_from_instance=lambda number: [str(number)],
    )


Count = Annotated[int, whole(1)]
CountOrNone = Annotated[int | None, whole(1)]
# FEWEST_BITS and FILE_BITS of dinoneck.images.bit_depth, which imports torch
Bits = Annotated[int | None, whole(8, 16)]
Images = Annotated[tuple[Path, ...], Positional, arg(metavar="IMAGES ...")]
Paths = Annotated[tuple[Path, ...], Positional, arg(metavar="PATHS ...")]


@dataclass(frozen=True)
class HeadBackbone:
    """The file of a published head or detector, and the backbone of a head, by default the one that its file names.

    Attributes:
        backbone_file: weights on disk, or a transformers folder.
        random_backbone: seeded random weights without download, equal on every machine.
        weights: the local file of a published head or detector, or its folder as the Hub has it.
    """

    backbone_file: str | None = None
    random_backbone: bool = False
    weights: str | None = None

    def load_backbone(
        self, head: HeadCheckpoint, precision: Precision | None = None
    ) -> Backbone | None:
        """Return the backbone of a head, with its LoRA weights; None if no option changes the one that it names.

        Args:
            head: of a file.
            precision: of the weights and tokens; None = that of the training.

        Raises:
            ConfigError: if the options contradict each other.
            CheckpointError: if the head does not name its backbone, or its record cannot be
                followed.
            BackboneError: if the weights cannot be loaded, or do not fit.
        """
        if self.backbone_file and self.random_backbone:
            raise ConfigError(
                "--backbone-file and --random-backbone exclude each other; give one of them"
            )
        if not (self.backbone_file or self.random_backbone) and precision is None:
            return None
        if head.head_type in WITH_OWN_VIT:
            raise _no_backbone_needed()
        dtype = None
        if precision is not None:
            from dinoneck.dtypes import WEIGHT_DTYPES

            dtype = WEIGHT_DTYPES[precision]
        return head.load_backbone(self.backbone_file, random=self.random_backbone, dtype=dtype)

    def refuse_with_own_vit(self) -> None:
        """Raise a ConfigError if an option gives a backbone to a detector that holds its own."""
        if self.backbone_file or self.random_backbone:
            raise _no_backbone_needed()


def _no_backbone_needed() -> ConfigError:
    """The error for a backbone that is given to a detector with its own."""
    return ConfigError(
        "this detector holds its own ViT; leave --backbone-file and --random-backbone out"
    )


@dataclass(frozen=True)
class PredictionOptions(HeadBackbone):
    """How images are predicted, and where the weights come from.

    Attributes:
        tta: views to average (default: as recorded in the heads, else none).
        revision: branch, tag or commit of the Hub repositories (default: main).
        batch_size: images or tiles at once.
        probe: accept a backbone whose outputs match, even if the hash of its weights differs.
        min_score: for detectors: smallest score of a box (default: those of the file, for each
            class the one with the best F1 on held-out images).
        bits: how many bits images of 16 bits use, such as 12; 16 reads them as they are (default:
            as recorded in the heads).
        device: such as cpu or cuda:1 (default: a GPU if there is one).
        runtime: what computes the tokens: torch; openvino (extra [fast], on a CPU); or auto, the
            faster of both for each size of images (default: DINONECK_RUNTIME, else auto). For an
            exported file: what runs it, onnxruntime (default) or openvino.
        precision: dtype of the backbone's weights and tokens, for heads, not for detectors
            (default: as in training).
    """

    tta: Literal["none", "flip4", "d6"] | None = None
    revision: str | None = None
    batch_size: Count = 8
    probe: bool = False
    min_score: float | None = None
    bits: Bits = None
    device: str | None = None
    runtime: AnyRuntime | None = None
    precision: Precision | None = None


@dataclass(frozen=True)
class ScoringOptions(PredictionOptions):
    """How images are predicted whose predictions are scored, and where the weights come from.

    Attributes:
        min_score: is no option of theirs, as scores count boxes of all scores.
    """

    min_score: Annotated[float | None, tyro.conf.Suppress] = None


def default_runtime() -> Runtime:
    """Return what computes the tokens where a command line names nothing: DINONECK_RUNTIME, else ``auto``.

    Raises:
        ConfigError: if the variable names no runtime.
    """
    runtime = os.environ.get(RUNTIME_VARIABLE) or "auto"
    for known in RUNTIMES:
        if runtime == known:
            return known
    expected = " or ".join(map(repr, RUNTIMES))
    raise ConfigError(f"{RUNTIME_VARIABLE} is {runtime!r}; expected {expected}, or unset it")


def with_default_runtime(backbone: AnyBackbone) -> AnyBackbone:
    """Return the options of a backbone with the runtime of commands, if they name none; torch is not stated."""
    runtime = default_runtime()
    if backbone.runtime is not None or runtime == "torch":
        return backbone
    return backbone.changed(runtime=runtime)


def check_backbone_name(name: str | None, source: str | None = None) -> None:
    """Refuse, before torch is imported, a name that cannot be that of a published ViT of timm.

    Raises:
        BackboneError: with the nearest known name.
    """
    from dinoneck.backbones.known import KNOWN, TINY, is_supported, resolve_name, unknown_backbone

    if name is None or name == TINY or source == "transformers":
        return
    full_name = resolve_name(name)
    is_path_or_repository = "/" in full_name
    if not is_path_or_repository and not is_supported(full_name):
        raise unknown_backbone(name, [model.name for model in KNOWN])


def check_output(
    out: Path,
    inputs: Iterable[str | Path | None],
    suffixes: Sequence[str] = (),
    *,
    option: str = "--out",
) -> None:
    """Refuse, before any work, a file to write that cannot be written or would replace an input.

    Args:
        out: the file to write.
        inputs: files that are read, and folders of heads; None is left out.
        suffixes: that the name may end in; none: any.
        option: that names it.

    Raises:
        ConfigError: naming it.
    """
    if out.is_dir():
        raise ConfigError(f"{option} {out} is a folder; name a file")
    if suffixes and out.suffix.lower() not in suffixes:
        raise ConfigError(
            f"{option} {out}: expected a file name that ends in {' or '.join(suffixes)}"
        )
    check_can_be_written(option, out)
    if not out.exists():
        return
    for name in inputs:
        if name is None:
            continue
        path = Path(name)
        files = path.glob("*.safetensors") if path.is_dir() else [path]
        if any(file.exists() and out.samefile(file) for file in files):
            raise ConfigError(
                f"{option} {out} is one of the inputs and would be replaced; choose another name"
            )


def check_can_be_written(option: str, path: Path) -> None:
    """Refuse, before any work, a file that cannot be replaced, and a file or folder that cannot be made.

    Raises:
        ConfigError: naming it.
    """
    from dinoneck.atomic import check_target

    target = Path(os.path.realpath(path))
    try:
        if not path.is_dir():
            check_target(target)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written: {error.strerror or error}") from None


def list_images(paths: Sequence[Path], *, skip_unusable: bool = False) -> list[Path]:
    """Return images, and those in folders with their subfolders; a line counts what else is in a folder.

    Args:
        paths: images and folders.
        skip_unusable: whether files that are no images are left out later, so that a table among
            the images is no error.

    Raises:
        ConfigError: if there are none, or a head file or a table is among them.
        DataError: if one does not exist, a folder holds no images, or a name is not Unicode.
    """
    from dinoneck.data.listing import check_any_pictures, list_files
    from dinoneck.data.names import check_encodable
    from dinoneck.progress import announce

    if not paths:
        raise ConfigError(NO_IMAGES)
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images or folders do not exist, the first is "
            f"{missing[0]}"
        )
    for path in paths:
        if path.suffix == ".safetensors":
            raise ConfigError(
                f"{path} is not an image; name head files after --heads, and images before the "
                "options"
            )
        if path.suffix.lower() in _TRUTH_SUFFIXES and not skip_unusable and path.is_file():
            raise ConfigError(
                f"{path} is a {path.suffix} file, not an image; name images, or the folder that they "
                "are in"
            )
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        listing = list_files(path, without_masks=True)
        check_any_pictures(path, listing.files)
        files += listing.files
        if listing.left_out:
            counts = ", ".join(
                counted_first(count, words) for words, count in listing.left_out.items()
            )
            announce(f"{path}: left out: {counts}")
    for file in files:
        check_encodable(file, file)
    return files


def check_exist(paths: Iterable[Path | None]) -> None:
    """Refuse, before any work, files and folders that do not exist; None is left out.

    Raises:
        DataError: naming the first.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise DataError(
                f"{path} does not exist; check the name, which is relative to this folder"
            )


def warn_of_picture_among_images(picture: Path, images: Sequence[Path]) -> None:
    """Warn that a picture was written into a folder of images, of which it is one from now on."""
    from dinoneck.data.listing import SUFFIXES

    if picture.suffix.lower() not in SUFFIXES:
        return
    for folder in images:
        if folder.is_dir() and picture.resolve().is_relative_to(folder.resolve()):
            logger.warning(
                "%s is inside %s, whose files are images: it is read as one from now on; move it",
                picture,
                folder,
            )
            return


def names_below(files: Sequence[Path]) -> list[str]:
    """Return the names of images below the folder that they share, without ``..``: outputs are called so."""
    folder = shared_folder(files)
    return [str(_absolute(file).relative_to(folder)) for file in files]


def shared_folder(files: Sequence[Path]) -> Path:
    """Return the folder that all files are in or below."""
    return Path(os.path.commonpath([_absolute(file).parent for file in files]))


def _absolute(file: Path) -> Path:
    """The path from the root, with ``..`` resolved by its text."""
    return Path(os.path.abspath(file))  # noqa: PTH100 - a link keeps its own name
