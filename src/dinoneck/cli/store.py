"""``dinoneck store``: feature stores to and from older layouts, and their check."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.atomic import write_folder
from dinoneck.cli import backbone_options, numbers
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.one_by_one import Rows, refused
from dinoneck.cli.stores import is_store
from dinoneck.cli.text import say
from dinoneck.cli.verify import check_store
from dinoneck.errors import ConfigError, counted

if TYPE_CHECKING:
    from dinoneck.store.feature_store import FeatureStore

HELP = "convert a feature store from and to .npz or .pt files, or check every byte of it"
EXAMPLE = "dinoneck store verify store"

_CONVERT = "bring .npz or .pt features into a store, or write a store's features as such files"
_VERIFY = "check every byte of feature stores; exit 1 if one is damaged"
_EXAMPLES = {
    "convert": (
        "dinoneck store convert features/ --format npz --grid 30x60 --patch-size 16 --out store\n"
        "         dinoneck store convert store --format pt --out features"
    ),
    "verify": "dinoneck store verify store",
}
_INTO = {"npz": ("grid", "patch_size", "patterns", "dtype"), "pt": ("grid", "patch_size", "dtype")}
_OUT_OF = {"npz": ("layer", "overwrite"), "pt": ("layer", "pattern", "overwrite")}
_NEEDED = {"npz": ("grid", "patch_size"), "pt": ("patch_size",)}
_OPTIONS = ("grid", "patch_size", "patterns", "dtype", "layer", "pattern", "overwrite")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be done with stores, and the arguments of each."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, told, add in (("convert", _CONVERT, _add_convert), ("verify", _VERIFY, _add_verify)):
        sub = actions.add_parser(
            name,
            help=told,
            description=told,
            epilog=f"example: {_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(sub)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a folder of feature files, or a feature store")
    parser.add_argument("--out", type=Path, required=True, help="the new store, or the folder for the files")
    parser.add_argument(
        "--format",
        choices=tuple(_INTO),
        required=True,
        help="of the files: npz holds cls_i (C,) and patches_i (N, C) per pattern i, pt one tensor (C, rows, cols)",
    )
    into = parser.add_argument_group("from files into a store (they say none of this)")
    into.add_argument("--grid", type=backbone_options.size, metavar="ROWSxCOLS", help="patches; needed for npz")
    into.add_argument("--patch-size", type=backbone_options.size, metavar="PX", help="pixels of a patch, such as 16")
    into.add_argument(
        "--patterns", metavar="NAME", help="what pattern i was, as for extract; default by number: 1 none, 4 flips4, "
        "20 color20"
    )  # fmt: skip
    into.add_argument("--dtype", choices=("fp16", "bf16", "int8"), help="of the store (default fp16)")
    out = parser.add_argument_group("from a store into files")
    out.add_argument("--layer", type=int, metavar="BLOCK", help="which, of a store of several layers")
    out.add_argument("--pattern", type=numbers.whole, metavar="I", help="which, for pt (default 0)")
    out.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")
    add_json(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", type=Path, nargs="+", metavar="STORE", help="folders of feature stores")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, or check."""
    return _convert(options) if options.action == "convert" else _verify(options)


def _verify(options: argparse.Namespace) -> int:
    rows: Rows = []
    bad = sum(refused(path, partial(check_store, path, rows), rows) for path in options.stores)
    answer(options, checked=rows)
    return 1 if bad else 0


def _convert(options: argparse.Namespace) -> int:
    from_store = is_store(options.source)
    _check(options, from_store)
    from dinoneck.store.feature_store import FeatureStore

    if not from_store:
        store = _store_of(options)
        answer(options, written=options.out, images=len(store), patterns=len(store.patterns))
        say(f"{counted(len(store), 'image')} in {store}")
        return 0
    store = FeatureStore.open(options.source)
    if options.out.exists():
        count = _files_of(store, options, options.out)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with write_folder(options.out) as new:  # else one that was interrupted looks like all of it
            count = _files_of(store, options, new)
    answer(options, written=options.out, files=count)
    say(f"{counted(count, f'.{options.format} file')} written: {options.out}")
    return 0


def _files_of(store: FeatureStore, options: argparse.Namespace, folder: Path) -> int:
    if options.format == "npz":
        return store.to_npz(folder, options.layer)
    return store.to_pt(folder, options.layer, options.pattern or 0)


def _store_of(options: argparse.Namespace) -> FeatureStore:
    from dinoneck.store.feature_store import FeatureStore

    shared: dict[str, Any] = {"patch_size": options.patch_size, "grid": options.grid, "dtype": options.dtype or "fp16"}
    if options.format == "npz":
        return FeatureStore.from_npz(options.source, options.out, patterns=options.patterns, **shared)
    return FeatureStore.from_pt(options.source, options.out, **shared)


def _check(options: argparse.Namespace, from_store: bool) -> None:
    """Refuse, before any work, options that are missing or that would be ignored, and a folder that is in use."""
    if not options.source.is_dir():
        raise ConfigError(f"{options.source} is no folder; expected a folder of feature files, or a feature store")
    used = (_OUT_OF if from_store else _INTO)[options.format]
    given = [name for name in _OPTIONS if getattr(options, name) not in (None, False)]
    what = f"a store into {options.format} files" if from_store else f"{options.format} files into a store"
    if odd := [name for name in given if name not in used]:
        raise ConfigError(f"{_spelled(odd)} has no meaning when {what} is converted; leave it out")
    if from_store:
        if options.out.suffix == f".{options.format}":
            raise ConfigError(f"--out {options.out}: a file per image is written into a folder; expected its name")
        if options.source.resolve() in (options.out.resolve(), *options.out.resolve().parents):
            raise ConfigError(f"--out {options.out} lies in the store {options.source}; choose a folder beside it")
        if not options.overwrite and options.out.is_dir() and any(options.out.iterdir()):
            raise ConfigError(f"--out {options.out} holds something; choose another folder, or give --overwrite")
    elif missing := [name for name in _NEEDED[options.format] if name not in given]:
        raise ConfigError(f"{options.format} files do not say {_spelled(missing)}; give it")


def _spelled(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
