"""``dinoneck import-legacy``: older ``.pt`` heads into head files; what they do not state, the options do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import check_output
from dinoneck.errors import ConfigError, counted
from dinoneck.regular_files import read_regular
from dinoneck.training.config import BackboneConfig
from dinoneck.training.config_flags import SIZE

if TYPE_CHECKING:
    from dinoneck.checkpoint.legacy import ImportedHead
    from dinoneck.heads.head import Head

_OWN = "own"
_NONE = "none"


@dataclass(frozen=True)
class Mlps:
    """For biomass-mlp.

    Attributes:
        pattern: file names with {fold} and {target} (an index) or {name}.
        unit: of all targets, such as g.
        minimum: smallest value of a prediction.
        targets: names of the indices (default: the five of the published notebook).
        form: one ensemble file, or a folder with one file per head.
    """

    pattern: str | None = None
    unit: str | None = None
    minimum: float | None = None
    targets: tuple[str, ...] = ()
    form: Literal["ensemble", "files"] = "ensemble"


@dataclass(frozen=True)
class Described:
    """For described.

    Attributes:
        tasks: JSON file: [{"name": "total", "unit": "g", ...}, ...].
        head_type: where meta has none.
        argument: of the head, NAME=JSON, in addition to those in meta.
        rename: OLD=NEW beginnings of the names of weights.
        note: entries of meta to keep, never interpreted.
    """

    tasks: Path | None = None
    head_type: str | None = None
    argument: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    note: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """What no older file states: all of it is needed, with --backbone and --layers, unless --like is given.

    Attributes:
        norm: the final norm was applied to these layers.
        no_norm: it was not.
        size: pixels of the prepared images, HEIGHTxWIDTH, or own.
        fit: resize mode.
        interpolation: of the resize.
        blur: kernel of the blur after that, or none.
    """

    norm: bool = False
    no_norm: bool = False
    size: Annotated[str | None, arg(metavar=f"HxW|{_OWN}")] = None
    fit: Literal["stretch", "keep", "crop", "pad"] | None = None
    interpolation: Literal["bilinear", "bicubic", "area"] | None = None
    blur: Annotated[str | None, arg(metavar=f"KERNEL|{_NONE}")] = None


def import_legacy(
    format: Annotated[Literal["biomass-mlp", "cls-gating", "described"], Positional],
    source: Annotated[Path, Positional],
    out: Path,
    mlps: Annotated[Mlps, arg(name="")] = Mlps(),
    described: Annotated[Described, arg(name="")] = Described(),
    like: Path | None = None,
    backbone: Annotated[BackboneConfig, arg(name="")] = BackboneConfig(),
    recorded: Annotated[Recorded, arg(name="")] = Recorded(),
) -> dict[str, Any]:
    """Convert older .pt heads into head files; nothing in them is run.

    Example: dinoneck import-legacy biomass-mlp models/ --pattern 'target{target}_fold{fold}.pth' --unit g
    --like head.safetensors --out biomass.safetensors

    Args:
        format: biomass-mlp: a folder of patch MLPs (network.0, network.2), one per target and fold; cls-gating: a state
            dict (gate_mlp, shared_mlp, ...); described: {state_dict, meta} with head_type and arguments in meta.
        source: the file, or for biomass-mlp the folder.
        out: the head file, or the folder.
        mlps: for biomass-mlp.
        described: for described.
        like: a head file of the same backbone and image preparation.
        backbone: of the heads.
        recorded: what no older file states.
    """
    in_folder = format == "biomass-mlp" and mlps.form == "files"
    if in_folder and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} exists and is not an empty folder; choose another name, or remove it")
    if not in_folder:
        inside = source.iterdir() if source.is_dir() else ()
        check_output(out, [source, *inside, like, described.tasks, backbone.file])
    _check(format, mlps, described, like, backbone, recorded)
    record, preprocess = _records(like, backbone, recorded)
    heads, notes = _heads(format, source, mlps, described, record)
    from dinoneck.atomic import write_folder
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.heads.ensemble import HeadEnsemble

    extra: dict[str, Any] = {"imported": {"format": format, "source": source.name}, **notes}
    records = {"backbone": record, "preprocess": preprocess}
    if in_folder:
        with write_folder(out) as folder:  # all of them or none
            for output, fold, head in heads:
                made = HeadCheckpoint.from_module(head, extra=extra, **records)
                made.save(folder / f"{output}-fold{fold}.safetensors")
                records["backbone"] = made.meta["backbone"]  # with the probe, which is then computed once
    elif format == "biomass-mlp":
        extra["members"] = [[output, fold] for output, fold, _ in heads]
        ensemble = HeadEnsemble.from_heads([cast("Head", head) for _, _, head in heads])
        HeadCheckpoint.from_module(ensemble, extra=extra, **records).save(out)
    else:
        HeadCheckpoint.from_module(heads[0].head, extra=extra, **records).save(out)
    print(f"{counted(len(heads), 'head')} imported; written: {out}")
    return {"written": out, "heads": [{"output": output, "fold": fold} for output, fold, _ in heads]}


def _check(
    format: str, mlps: Mlps, described: Described, like: Path | None, backbone: BackboneConfig, recorded: Recorded
) -> None:
    """Refuse, before any work, options that are missing or that would be ignored."""
    needed: dict[str, dict[str, Any]] = {
        "biomass-mlp": {"--pattern": mlps.pattern, "--unit": mlps.unit},
        "cls-gating": {},
        "described": {"--tasks": described.tasks},
    }
    if lacking := [flag for flag, value in needed[format].items() if value is None]:
        raise ConfigError(f"{format} needs {', '.join(lacking)}, which no such file states")
    about: dict[str, Any] = {"--backbone": backbone.name, "--layers": backbone.layers}
    about |= {"--norm or --no-norm": True if recorded.norm != recorded.no_norm else None, "--size": recorded.size}
    about |= {"--fit": recorded.fit, "--interpolation": recorded.interpolation, "--blur": recorded.blur}
    given = [flag for flag, value in about.items() if value is not None]
    if like is not None and given:
        raise ConfigError(f"{', '.join(given)}: --like takes it from the other head file; give one or the other")
    if like is None and (lacking := [flag for flag in about if flag not in given]):
        raise ConfigError(f"older files do not state how they were trained: give --like, or {', '.join(lacking)}")
    if recorded.blur not in (None, _NONE) and not str(recorded.blur).isdecimal():
        raise ConfigError(f"--blur is {recorded.blur!r}; expected an odd kernel such as 5, or {_NONE}")


def _heads(
    format: str, source: Path, mlps: Mlps, described: Described, backbone: Any
) -> tuple[list[ImportedHead], dict[str, Any]]:
    """The heads, and what to keep next to them."""
    from dinoneck.checkpoint import legacy

    if format == "biomass-mlp":
        options: dict[str, Any] = {"unit": mlps.unit, "minimum": mlps.minimum}
        targets = mlps.targets or legacy.BIOMASS_TARGETS
        return legacy.import_biomass(source, str(mlps.pattern), targets=targets, **options), {}
    if format == "cls-gating":
        return [legacy.ImportedHead("head", 0, legacy.import_cls_gating(source))], {}
    arguments = _pairs(described.argument, "--argument")
    head, notes = legacy.import_described(
        source,
        tasks=_tasks(cast("Path", described.tasks)),
        embed_dim=backbone.get("embed_dim", 0) if isinstance(backbone, dict) else backbone.embed_dim,
        head_type=described.head_type,
        arguments={key: _json(value, f"--argument {key}") for key, value in arguments.items()},
        rename=_pairs(described.rename, "--rename"),
        notes=described.note,
    )
    return [legacy.ImportedHead("head", 0, head)], {"meta": notes} if notes else {}


def _records(like: Path | None, own: BackboneConfig, recorded: Recorded) -> tuple[Any, Any]:
    """The backbone, or its record, and how its images are prepared."""
    if like is not None:
        from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

        meta = HeadCheckpoint.load(like).meta
        if meta["backbone"] is None or meta["inputs"] is None:
            raise ConfigError(f"{like} does not state its backbone and how images are prepared; name another file")
        return meta["backbone"], meta["inputs"]
    from dinoneck.training.inputs import open_backbone

    size = None if recorded.size == _OWN else SIZE.instance_from_str([str(recorded.size)])
    blur = None if recorded.blur == _NONE else int(str(recorded.blur))
    backbone = open_backbone(own, "cpu", norm=recorded.norm)
    return backbone, backbone.preprocess.changed(
        size=size, resize=recorded.fit, interpolation=recorded.interpolation, blur=blur
    )


def _tasks(path: Path) -> Any:
    from dinoneck.configured import TAG, decode
    from dinoneck.tasks import Task

    def tagged(entry: dict[str, Any]) -> dict[str, Any]:
        return {TAG: "Task" if "name" in entry else "TargetTransform", **entry}

    return decode(tuple[Task, ...], _json(read_regular(path).decode("utf-8"), str(path), tagged), str(path))


def _json(text: str, where: str, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    try:
        return json.loads(text, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {text[:80]!r} is not valid JSON ({error}); put text in double quotes") from None


def _pairs(given: Sequence[str], option: str) -> dict[str, str]:
    if wrong := [text for text in given if not all(text.partition("=")[:2])]:
        raise ConfigError(f"{option} {wrong[0]!r}: expected NAME=VALUE")
    return dict(text.split("=", 1) for text in given)
