"""Older heads, saved by ``torch.save``: read without running anything, and converted to registered heads.

Such files hold little more than weights. The caller gives the rest (units, layers, the backbone, how images were
prepared); every name in a file is used or refused. ``legacy.json`` holds the published names of columns and tensors.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dinoneck import registry
from dinoneck.checkpoint.read import check_finite, limited
from dinoneck.configured import encode, fields_of, normal
from dinoneck.errors import BackboneError, CheckpointError, RegistryError, some_of
from dinoneck.tasks import Task
from dinoneck.weight_files import check_held, read_any, without_wrapper

logger = logging.getLogger(__name__)

MAX_BYTES = 2 << 30
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_PUBLISHED = json.loads(Path(__file__).with_name("legacy.json").read_text(encoding="utf-8"))
BIOMASS_TARGETS: tuple[str, ...] = tuple(_PUBLISHED["biomass-mlp"]["targets"])
"""What the target indices 0 ... 4 of published biomass-mlp files mean."""
_SHOWN = 5


@dataclass(frozen=True)
class LegacyFile:
    """What an older head file holds.

    Attributes:
        where: its path, for messages.
        state: the tensors under their own names.
        meta: the plain values next to them, of a file ``{"state_dict": ..., "meta": ...}``; else empty.
        prefix: what stood before every name and was taken away: ``"module."``, ``"_orig_mod."``, both, or ``""``.
    """

    where: str
    state: dict[str, Tensor]
    meta: dict[str, Any]
    prefix: str = ""


Source = LegacyFile | Mapping[str, Tensor] | str | os.PathLike[str]


class ImportedHead(NamedTuple):
    """One of several heads that were imported together."""

    output: str
    fold: int
    head: nn.Module


def read_legacy(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> LegacyFile:
    """Read an older head file: a state dict, or ``{"state_dict": ..., "meta": ...}``.

    Pickles go through torch's weights-only loader alone. For files of strangers take torch 2.10 or later: the loader of
    older ones had a hole (CVE-2026-24747).

    Args:
        path: ``.pt``, ``.pth``, ``.bin`` or ``.safetensors``.
        max_bytes: larger files are refused.

    Raises:
        CheckpointError: if the file is missing, damaged, too large, would run code, or holds anything else.
    """
    where = str(path)
    try:
        loaded = read_any(path, max_bytes)
        state, meta = _parts(loaded, where)
        check_held(state, where)
        state, prefix = without_wrapper(state, where)
    except BackboneError as error:
        raise CheckpointError(str(error)) from error
    if prefix:
        logger.warning("%s was saved from a wrapped module: %r is taken from all its names", where, prefix)
    return LegacyFile(where, state, meta, prefix)


def import_patch_mean(source: Source, task: Task) -> nn.Module:
    """Return the PatchMeanHead that computes what the published BiomassMLP with these weights does.

    The file holds ``network.0`` (C -> hidden) and ``network.2`` (hidden -> 1); width and hidden units are theirs. A
    ReLU follows on every patch.

    Args:
        source: the file.
        task: what it predicts, with its unit; one output with ``activation="relu"``.

    Raises:
        CheckpointError: if a name is missing or unknown, or shapes, dtypes or values do not fit.
    """
    if task.activation != "relu" or task.dim != 1 or task.kind != "regression":
        raise CheckpointError(
            f"task {task.name!r} is {task.kind} of dim {task.dim} with activation {task.activation!r}; a BiomassMLP "
            'ends in one ReLU: Task(name, activation="relu", unit=...)',
            step="config",
        )
    file = _without_meta(source)
    hidden_dim, embed_dim = _sides(file, "network.0.weight")
    config = {"embed_dim": embed_dim, "tasks": encode([task]), "hidden_dim": hidden_dim}
    return _built("patch_mean", config, file, _PUBLISHED["biomass-mlp"]["names"])


def cls_gating_tasks() -> tuple[Task, ...]:
    """Return the tasks of the published CLS-gating module: main, state, height and aux, with losses and weights."""
    return cast("tuple[Task, ...]", normal(tuple[Task, ...], _PUBLISHED["cls-gating"]["tasks"], "legacy.json"))


def import_cls_gating(source: Source, dropout: float = 0.1) -> nn.Module:
    """Return the head that computes what the published module with these weights does; weights stay bit-identical.

    Args:
        source: its state dict, or the file of it.
        dropout: of the hidden units, which a state dict does not record.

    Returns:
        A CLSGatingHead of mode ``mlp`` in eval mode, with :func:`cls_gating_tasks`, in the dtype of the weights.

    Raises:
        CheckpointError: if the file cannot be read, or a name is missing or unknown, or shapes, dtypes or values do
            not fit.
    """
    file = _without_meta(source)
    config = {
        "embed_dim": _sides(file, "gate_mlp.0.weight")[1],
        "tasks": encode(list(cls_gating_tasks())),
        "num_patches": _sides(file, "gate_mlp.2.weight")[0],
        "hidden_dim": _sides(file, "shared_mlp.0.weight")[0],
        "dropout": dropout,
    }
    return _built("cls_gating", config, file, _PUBLISHED["cls-gating"]["names"])


def import_biomass(
    folder: str | os.PathLike[str],
    pattern: str,
    *,
    unit: str,
    targets: Sequence[str] = BIOMASS_TARGETS,
    minimum: float | None = None,
) -> list[ImportedHead]:
    """Import the heads of several targets and folds, one file each.

    Args:
        folder: holds them, and no other weights.
        pattern: their file names, with ``{fold}`` and ``{target}`` (an index into ``targets``) or ``{name}`` (one of
            them): ``"target{target}_fold{fold}.pth"``.
        unit: of all targets; no file states it.
        targets: what the indices mean, in order.
        minimum: no prediction is below it; None = no limit.

    Returns:
        One entry per file, by target and fold.

    Raises:
        CheckpointError: if a file does not match the pattern, a fold is missing, or :func:`import_patch_mean` refuses.
    """
    return [
        ImportedHead(name, fold, import_patch_mean(path, Task(name, activation="relu", unit=unit, minimum=minimum)))
        for (name, fold), path in _matching_files(Path(folder), pattern, targets).items()
    ]


def import_described(
    source: Source,
    *,
    tasks: Sequence[Task],
    embed_dim: int,
    head_type: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    rename: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> tuple[nn.Module, dict[str, Any]]:
    """Import a file ``{"state_dict": ..., "meta": ...}`` whose meta names a head, such as ``fpn``, and its arguments.

    Args:
        source: the file.
        tasks: what the head predicts, with units and transforms.
        embed_dim: channels of the tokens.
        head_type: a registered name, where meta has none.
        arguments: of the head, in addition to those in meta.
        rename: beginnings of names in the file -> beginnings of the head's own names, the longest that fits first.
        notes: entries of meta that are not arguments and are returned, to be kept under ``extra``.

    Returns:
        The head, and the entries that ``notes`` names.

    Raises:
        CheckpointError: if anything in the file has no place, is missing, or contradicts what was given.
    """
    file = _opened(source)
    meta = _plain_meta(file)
    named = meta.pop("head_type", head_type)
    if named is None or (head_type is not None and named != head_type):
        found = f"meta names head_type {file.meta.get('head_type')!r} and the call {head_type!r}"
        raise CheckpointError(f"{file.where}: {found}; expected one registered name", step="registry")
    if lost := [key for key in notes if key not in meta]:
        raise CheckpointError(f"{file.where}: meta has no entry {some_of(lost, _SHOWN)} to keep", step="config")
    kept = {key: meta.pop(key) for key in notes}
    given = {**(arguments or {}), "embed_dim": embed_dim, "tasks": encode(list(tasks))}
    if twice := [f"{key}={meta[key]!r}" for key in given if key in meta and meta[key] != encode(given[key])]:
        raise CheckpointError(f"{file.where}: meta holds {', '.join(twice)}, which contradicts the call", step="config")
    if strange := sorted(set(meta) - set(fields_of(_resolved(named, file.where)))):  # it would be lost
        raise CheckpointError(
            f"{file.where}: meta holds {some_of(strange, _SHOWN)}, which {named} has no argument for; name what is to "
            f"be kept with the head (notes=, --note {strange[0]})",
            step="config",
        )
    return _built(named, {**meta, **given}, file, rename or {}), kept


def _resolved(head_type: Any, where: str) -> type[Any]:
    try:
        return registry.resolve(head_type)
    except RegistryError as error:
        raise CheckpointError(f"{where}: {error}", step="registry") from None


def _parts(loaded: Any, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain values of a file."""
    parts = dict(loaded) if isinstance(loaded, Mapping) and "state_dict" in loaded else {"state_dict": loaded}
    state, meta = parts.pop("state_dict"), parts.pop("meta", {})
    if not isinstance(state, Mapping) or not state or not isinstance(meta, Mapping):
        found = f"holds {type(state).__name__} with {type(meta).__name__} as meta"
        raise CheckpointError(f"{where} {found}; expected a dict of tensors, or of state_dict and meta", step="schema")
    if parts:
        found = f"holds {some_of(map(str, parts), _SHOWN)} next to state_dict and meta"
        raise CheckpointError(f"{where} {found}; save a file without them", step="schema")
    if odd := [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]:
        raise CheckpointError(f"{where} holds {some_of(odd, _SHOWN)}; expected tensors by name", step="schema")
    return dict(state), dict(meta)


def _opened(source: Source) -> LegacyFile:
    if isinstance(source, Mapping):
        return LegacyFile("the state dict", *_parts(source, "the state dict"))
    return source if isinstance(source, LegacyFile) else read_legacy(source)


def _without_meta(source: Source) -> LegacyFile:
    file = _opened(source)
    if file.meta:
        found = f"meta holds {some_of(map(str, file.meta), _SHOWN)}"
        raise CheckpointError(f"{file.where}: {found}; expected a state dict alone", step="schema")
    return file


def _plain_meta(file: LegacyFile) -> dict[str, Any]:
    try:
        if odd := [key for key in file.meta if not isinstance(key, str)]:
            raise TypeError(f"the key {odd[0]!r}")
        return dict(json.loads(json.dumps(file.meta, allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.where}: meta holds more than plain values ({error})", step="schema") from None


def _sides(file: LegacyFile, key: str) -> tuple[int, int]:
    """The shape of a matrix, from which the sizes of a head follow."""
    if key not in file.state:
        raise CheckpointError(f"{file.where} lacks {key}; it holds {some_of(file.state, _SHOWN)}", step="tensors")
    shape = tuple(file.state[key].shape)
    if len(shape) != 2 or not all(shape):
        raise CheckpointError(f"{file.where}: {key} has shape {shape}; expected (outputs, inputs)", step="tensors")
    return shape[0], shape[1]


def _renamed(file: LegacyFile, rename: Mapping[str, str]) -> dict[str, str]:
    """Our name of every tensor -> its name in the file; every replacement of a beginning is used."""
    names: dict[str, str] = {}
    used = set()
    for theirs in file.state:
        begin = max((old for old in rename if theirs.startswith(old)), key=len, default="")
        used.add(begin)
        ours = rename.get(begin, "") + theirs.removeprefix(begin)
        if ours in names:
            raise CheckpointError(f"{file.where}: {theirs} and {names[ours]} both become {ours}", step="tensors")
        names[ours] = theirs
    if idle := set(rename) - used:
        raise CheckpointError(f"{file.where}: no name begins with {some_of(idle, _SHOWN)}", step="tensors")
    return names


def _built(head_type: Any, config: Mapping[str, Any], file: LegacyFile, rename: Mapping[str, str]) -> nn.Module:
    """Build a registered head and give it the weights of the file, all of them and no others."""
    names, cls = _renamed(file, rename), _resolved(head_type, file.where)
    try:
        with limited(len(names)), torch.device("meta"):
            head: nn.Module = cls.from_config(config)
    except Exception as error:  # whatever a constructor makes of values from a file
        raise CheckpointError(f"{file.where}: {head_type} refuses its arguments: {error}", step="config") from error
    expected = head.state_dict()
    missing, unknown = expected.keys() - names.keys(), {names[ours] for ours in names.keys() - expected.keys()}
    if missing or unknown:
        begins = {ours: theirs for theirs, ours in rename.items()}
        parts = [f"lacks {some_of((_theirs(name, begins) for name in missing), _SHOWN)}"] if missing else []
        parts += [f"holds {some_of(unknown, _SHOWN)}, which this head has no place for"] if unknown else []
        raise CheckpointError(f"{file.where} {' and '.join(parts)} (rename= gives other names)", step="tensors")
    for ours, theirs in names.items():
        value, like = file.state[theirs], expected[ours]
        fits = value.is_floating_point() if like.is_floating_point() else value.dtype == like.dtype
        if value.shape != like.shape or not fits:
            found, wanted = f"{value.dtype} {tuple(value.shape)}", f"{tuple(like.shape)} of {like.dtype}"
            raise CheckpointError(f"{file.where}: {theirs} is {found}; expected {wanted}", step="tensors")
    dtypes = sorted({str(value.dtype) for value in file.state.values() if value.is_floating_point()})
    if len(dtypes) > 1:
        raise CheckpointError(
            f"{file.where} mixes {', '.join(dtypes)}; expected one floating-point dtype", step="tensors"
        )
    check_finite(file.state, file.where)
    copies = {ours: file.state[theirs].clone().contiguous() for ours, theirs in names.items()}
    head.load_state_dict(copies, strict=True, assign=True)
    return head.eval().requires_grad_(True)


def _theirs(name: str, begins: Mapping[str, str]) -> str:
    """The name that a file would have for one of ours."""
    begin = max((ours for ours in begins if name.startswith(ours)), key=len, default="")
    return begins.get(begin, "") + name.removeprefix(begin)


def _matching_files(folder: Path, pattern: str, targets: Sequence[str]) -> dict[tuple[str, int], Path]:
    """``{(target, fold): file}`` in the order of the targets; every weights file of the folder is in it."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; expected one with the files {pattern!r}")
    compiled = _compiled(pattern, targets)
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES):
        match = compiled.fullmatch(path.name)
        if match is None:
            raise CheckpointError(f"{path} does not match the pattern {pattern!r}; move it away, or change the pattern")
        groups = match.groupdict()
        index = int(groups.get("target", 0))
        if index >= len(targets):
            raise CheckpointError(f"{path}: target {index} of {len(targets)} ({', '.join(targets)}), counted from 0")
        key = groups.get("name", targets[index]), int(groups["fold"])
        if key in found:
            raise CheckpointError(f"{path} and {found[key].name} both are target {key[0]!r} of fold {key[1]}")
        found[key] = path
    folds = sorted({fold for _, fold in found})
    if not found:
        raise CheckpointError(f"{folder} holds no file like {pattern!r} ({', '.join(SUFFIXES)})")
    if missing := [f"{name} fold {fold}" for name in targets for fold in folds if (name, fold) not in found]:
        has = f"it holds {len(found)} files like {pattern!r}"
        raise CheckpointError(f"{folder} lacks {some_of(missing, _SHOWN)}; {has}")
    return {(name, fold): found[name, fold] for name in targets for fold in folds}


def _compiled(pattern: str, targets: Sequence[str]) -> re.Pattern[str]:
    """The pattern with the groups fold, and target or name."""
    parts = re.split(r"\{(\w*)\}", pattern)
    fields = sorted(parts[1::2])
    if fields not in (["fold", "target"], ["fold", "name"]) or "/" in pattern or "}{" in pattern:
        expected = "{fold}, {target} or {name}, and something between them"
        raise CheckpointError(f"the pattern {pattern!r} is not a file name with {expected}")
    names = "|".join(map(re.escape, targets))
    groups = {"fold": r"(?P<fold>\d+)", "target": r"(?P<target>\d+)", "name": f"(?P<name>{names})"}
    return re.compile("".join(groups[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)), re.ASCII)
