"""``dinoneck import-legacy``: older ``.pt`` heads into head files; what they do not say, the options do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dinoneck.cli import backbone_options
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.outputs import check_output
from dinoneck.errors import ConfigError, counted

if TYPE_CHECKING:
    from dinoneck.checkpoint.legacy import ImportedHead
    from dinoneck.heads.head import Head
    from dinoneck.tasks import Task

HELP = "bring older .pt heads into head files; nothing in them is run"
EXAMPLE = (
    "dinoneck import-legacy biomass-mlp models/ --pattern 'target{target}_fold{fold}.pth' --unit g "
    "--like head.safetensors --out biomass.safetensors"
)
FORMATS = ("biomass-mlp", "cls-gating", "described")
_PHOTOS = ("layers", "norm", "size", "fit", "interpolation", "blur")
_OWN = "own"
_NONE = "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "format",
        choices=FORMATS,
        help="biomass-mlp: a folder of patch MLPs (network.0, network.2), one per target and fold; cls-gating: a state "
        "dict (gate_mlp, shared_mlp, ...); described: {state_dict, meta} whose meta names head_type and arguments",
    )
    parser.add_argument("source", type=Path, help="the file, or for biomass-mlp the folder")
    parser.add_argument("--out", type=Path, required=True, help="the head file, or the folder")
    _add_heads(parser)
    _add_described(parser)
    parser.add_argument("--like", type=Path, metavar="HEAD", help="a head file of the same backbone and photos")
    backbone_options.add_backbone(parser)
    _add_inputs(parser)
    add_json(parser)


def _add_heads(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("biomass-mlp")
    group.add_argument("--pattern", help="file names with {fold} and {target} (an index) or {name}")
    group.add_argument("--unit", help="of all targets, such as g")
    group.add_argument("--minimum", type=float, metavar="X", help="no prediction is below it")
    group.add_argument(
        "--targets", nargs="+", metavar="NAME", help="what the indices mean (default: the source's five)"
    )
    group.add_argument(
        "--form",
        choices=("ensemble", "files"),
        default="ensemble",
        help="one file with an ensemble of all heads (default), or a folder with one file per head",
    )


def _add_described(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("described")
    group.add_argument("--tasks", type=Path, metavar="JSON", help='[{"name": "total", "unit": "g", ...}, ...]')
    group.add_argument("--head-type", metavar="NAME", help="where meta has none")
    group.add_argument(
        "--argument", nargs="+", default=[], metavar="NAME=JSON", help="of the head, beside those in meta"
    )
    group.add_argument("--rename", nargs="+", default=[], metavar="OLD=NEW", help="beginnings of names")
    group.add_argument(
        "--note", nargs="+", default=[], metavar="KEY", help="entries of meta to keep, never interpreted"
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what no older file says (all of it, unless --like does)")
    group.add_argument("--layers", type=int, nargs="+", metavar="BLOCK", help="backbone blocks the heads read")
    group.add_argument("--norm", action=argparse.BooleanOptionalAction, help="final norm on these layers")
    group.add_argument("--size", metavar="HxW", help=f"pixels of the prepared photos, or {_OWN}")
    group.add_argument("--fit", choices=("stretch", "keep", "crop", "pad"), help="how photos came to it")
    group.add_argument("--interpolation", choices=("area", "bicubic", "bilinear"), help="how they were resampled")
    group.add_argument("--blur", metavar="KERNEL", help=f"kernel of the blur after that, or {_NONE}")


def run(options: argparse.Namespace) -> int:
    """Import and write."""
    _check(options)
    heads, extra = _heads(options)
    backbone, preprocess = _records(options)
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.heads.ensemble import HeadEnsemble

    records: dict[str, Any] = {"backbone": backbone, "preprocess": preprocess, "extra": extra}
    if _is_folder(options):
        _save_files(heads, options.out, records)
    elif options.format == "biomass-mlp":
        names = [[output, fold] for output, fold, _ in heads]
        records["extra"] = {**extra, "members": names}
        ensemble = HeadEnsemble.from_heads([cast("Head", head) for _, _, head in heads])
        HeadCheckpoint.from_module(ensemble, **records).save(options.out)
    else:
        HeadCheckpoint.from_module(heads[0].head, **records).save(options.out)
    answer(options, written=options.out, heads=[{"output": output, "fold": fold} for output, fold, _ in heads])
    print(f"{counted(len(heads), 'head')} imported; written: {options.out}")
    return 0


def _is_folder(options: argparse.Namespace) -> bool:
    """Whether --out names a folder for several files."""
    return bool(options.format == "biomass-mlp" and options.form == "files")


def _check(options: argparse.Namespace) -> None:
    """Refuse, before any work, options that are missing or that would be ignored, and folders that are in use."""
    is_folder = _is_folder(options)
    if is_folder and options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise ConfigError(f"--out {options.out} is there and not an empty folder; choose another name, or remove it")
    if not is_folder:
        inside = options.source.iterdir() if options.source.is_dir() else ()
        check_output(options.out, [options.source, *inside, options.like, options.tasks, options.backbone_file])
    wanted = {"biomass-mlp": ("pattern", "unit"), "cls-gating": (), "described": ("tasks",)}[options.format]
    if lacking := [name for name in wanted if getattr(options, name) is None]:
        raise ConfigError(f"{options.format} needs {_spelled(lacking)}; no such file says it")
    told = [name for name in (*_PHOTOS, "backbone") if getattr(options, name) is not None]
    if options.like is not None and told:
        raise ConfigError(f"--like says what {_spelled(told)} would; give one or the other")
    if options.like is None and (lacking := [name for name in ("backbone", *_PHOTOS) if name not in told]):
        raise ConfigError(f"older files do not say what they were trained on: give --like, or also {_spelled(lacking)}")
    if options.blur not in (None, _NONE) and not options.blur.isdecimal():
        raise ConfigError(f"--blur is {options.blur!r}; expected an odd kernel such as 5, or {_NONE}")


def _spelled(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _heads(options: argparse.Namespace) -> tuple[list[ImportedHead], dict[str, Any]]:
    """The heads, and what to keep beside them."""
    from dinoneck.checkpoint.legacy import (
        BIOMASS_TARGETS,
        ImportedHead,
        import_biomass,
        import_cls_gating,
        import_described,
    )

    extra = {"imported": {"format": options.format, "source": options.source.name}}
    if options.format == "biomass-mlp":
        targets = options.targets or BIOMASS_TARGETS
        found = import_biomass(
            options.source, options.pattern, unit=options.unit, targets=targets, minimum=options.minimum
        )
        return found, extra
    if options.format == "cls-gating":
        return [ImportedHead("head", 0, import_cls_gating(options.source))], extra
    head, notes = import_described(
        options.source,
        tasks=_tasks(options.tasks),
        embed_dim=_width(options),
        head_type=options.head_type,
        arguments={key: _json(value, key) for key, value in _pairs(options.argument, "--argument").items()},
        rename=_pairs(options.rename, "--rename"),
        notes=options.note,
    )
    return [ImportedHead("head", 0, head)], {**extra, **({"meta": notes} if notes else {})}


def _records(options: argparse.Namespace) -> tuple[Any, Any]:
    """The backbone and how its photos are prepared."""
    if options.like is not None:
        from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

        meta = HeadCheckpoint.load(options.like).meta
        if meta["backbone"] is None or meta["inputs"] is None:
            raise ConfigError(
                f"{options.like} does not say its backbone and how photos are prepared; take another file"
            )
        return meta["backbone"], meta["inputs"]
    backbone = _loaded(options)
    side = None if options.size == _OWN else backbone_options.size(options.size)
    blur = None if options.blur == _NONE else int(options.blur)
    return backbone, backbone.preprocess.changed(
        size=side, fit=options.fit, interpolation=options.interpolation, blur=blur
    )


def _loaded(options: argparse.Namespace) -> Any:
    return backbone_options.load(options, layers=options.layers, norm=options.norm)


def _width(options: argparse.Namespace) -> int:
    if options.like is None:
        return int(_loaded(options).embed_dim)
    from dinoneck.checkpoint.file import read_header

    return int((read_header(options.like).meta["backbone"] or {}).get("embed_dim", 0))


def _tasks(path: Path) -> tuple[Task, ...]:
    from dinoneck.configured import TAG, decode
    from dinoneck.tasks import Task

    rows = _json(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: expected a list of tasks, objects with a name each")
    tagged = [{TAG: "Task", **row} for row in rows]
    for row in tagged:
        if isinstance(row.get("transform"), dict):
            row["transform"] = {TAG: "TargetTransform", **row["transform"]}
    found: tuple[Task, ...] = decode(tuple[Task, ...], tagged, str(path))
    return found


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {text[:80]!r} is no JSON ({error}); a text stands in double quotes") from None


def _pairs(given: Sequence[str], option: str) -> dict[str, str]:
    parts = [text.partition("=") for text in given]
    if wrong := [text for text, (key, sign, _) in zip(given, parts, strict=True) if not key or not sign]:
        raise ConfigError(f"{option} {wrong[0]!r}: expected NAME=VALUE")
    if len({key for key, _, _ in parts}) < len(parts):
        raise ConfigError(f"{option} names a key twice: {', '.join(given)}")
    return {key: value for key, _, value in parts}


def _save_files(heads: Sequence[ImportedHead], folder: Path, records: dict[str, Any]) -> None:
    """Write one file per head, for ``dinoneck predict --heads FOLDER``: all of them or none."""
    from dinoneck.atomic import write_folder
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    with write_folder(folder) as new:
        for output, fold, head in heads:
            made = HeadCheckpoint.from_module(head, **records)
            made.save(new / f"{output}-fold{fold}.safetensors")
            records["backbone"] = made.meta["backbone"]  # with the probe, which then is made once
