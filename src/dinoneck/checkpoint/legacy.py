"""Older heads, saved by ``torch.save``: read without running anything, and put into dinoneck's own.

Such files say little. What they do not say (units, layers, the backbone, how photos were prepared) the caller gives;
every name in them is accounted for.
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

from torch import Tensor, nn

from dinoneck import registry
from dinoneck.checkpoint.read import check_finite, limited, on_meta
from dinoneck.configured import encode, fields_of
from dinoneck.errors import BackboneError, CheckpointError, RegistryError, some_of
from dinoneck.tasks import Task
from dinoneck.weight_files import check_held, read_any, without_wrapper

logger = logging.getLogger(__name__)

MAX_BYTES = 2 << 30
BIOMASS_TARGETS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g")
"""What the target indices 0 ... 4 of the design source's files mean."""
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_MLP_NAMES = {
    "network.0.weight": "mlps.0.hidden.weight",
    "network.0.bias": "mlps.0.hidden.bias",
    "network.2.weight": "mlps.0.out.weight",
    "network.2.bias": "mlps.0.out.bias",
}
_PLACEHOLDERS = {"target": r"(?P<target>\d+)", "name": r"(?P<name>[A-Za-z_][\w\-]*)", "fold": r"(?P<fold>\d+)"}
_SHOWN = 5


@dataclass(frozen=True)
class LegacyFile:
    """What an older head file holds.

    Attributes:
        where: its path, for messages.
        state: the tensors under their own names.
        meta: the plain values beside them, of a file ``{"state_dict": ..., "meta": ...}``; else empty.
        prefix: what stood before every name and was taken away: ``"module."``, ``"_orig_mod."``, both, or ``""``.
    """

    where: str
    state: dict[str, Tensor]
    meta: dict[str, Any]
    prefix: str = ""


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


def import_patch_mean(source: LegacyFile | str | os.PathLike[str], task: Task) -> nn.Module:
    """Return the PatchMeanHead that does what the design source's BiomassMLP with these weights does.

    The file holds ``network.0`` (C -> hidden) and ``network.2`` (hidden -> 1); width and hidden units are theirs. A
    ReLU stands on every patch.

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
    file = source if isinstance(source, LegacyFile) else read_legacy(source)
    _no_meta(file)
    state = _renamed(file, _MLP_NAMES)
    shape = tuple(state["mlps.0.hidden.weight"].shape)
    if len(shape) != 2:
        raise CheckpointError(
            f"{file.where}: network.0.weight has shape {shape}; expected (hidden, width)", step="tensors"
        )
    config = {"embed_dim": shape[1], "tasks": encode([task]), "hidden_dim": shape[0]}
    return _filled("patch_mean", config, state, file.where)


def import_biomass(
    folder: str | os.PathLike[str],
    pattern: str,
    *,
    unit: str,
    targets: Sequence[str] = BIOMASS_TARGETS,
    minimum: float | None = None,
) -> list[ImportedHead]:
    """Import the heads of several targets and folds: the 25 files of the design source, for example.

    Args:
        folder: holds them, and no other weights.
        pattern: their file names, with ``{fold}`` and ``{target}`` (an index into ``targets``) or ``{name}`` (one of
            them): ``"target{target}_fold{fold}.pth"``. The design source does not tell them, so there is no default.
        unit: of all targets; no file says it.
        targets: what the indices mean, in order.
        minimum: no prediction is below it; None = no limit.

    Returns:
        One entry per file, by target and fold.

    Raises:
        CheckpointError: if a file does not match the pattern, a fold is missing, or :func:`import_patch_mean` refuses.
    """
    found = matching_files(folder, pattern, targets)
    return [
        ImportedHead(name, fold, import_patch_mean(path, Task(name, activation="relu", unit=unit, minimum=minimum)))
        for (name, fold), path in found.items()
    ]


def matching_files(folder: str | os.PathLike[str], pattern: str, targets: Sequence[str]) -> dict[tuple[str, int], Path]:
    """Return ``{(target, fold): file}`` in the order of the targets; every weights file of the folder is in it.

    Raises:
        CheckpointError: if one does not match, or a target has not every fold.
    """
    room, compiled = Path(folder), _compiled(pattern)
    if not room.is_dir():
        raise CheckpointError(f"{room} is no folder; expected one with the files {pattern!r}")
    files = sorted(path for path in room.iterdir() if path.suffix in SUFFIXES)
    found: dict[tuple[str, int], Path] = {}
    for path in files:
        match = compiled.fullmatch(path.name)
        if match is None:
            raise CheckpointError(f"{path} does not match the pattern {pattern!r}; move it away, or change the pattern")
        key = _target_of(match.groupdict(), targets, path), int(match["fold"])
        if key in found:
            raise CheckpointError(f"{path} and {found[key].name} both are target {key[0]!r} of fold {key[1]}")
        found[key] = path
    folds = sorted({fold for _, fold in found})
    missing = [f"{name} fold {fold}" for name in targets for fold in folds if (name, fold) not in found]
    if missing or not found:
        raise CheckpointError(
            f"{room} lacks {some_of(missing, _SHOWN)}; it holds {len(found)} files like {pattern!r}"
            if found
            else f"{room} holds no file like {pattern!r} ({', '.join(SUFFIXES)})"
        )
    return {(name, fold): found[name, fold] for name in targets for fold in folds}


def import_described(
    source: LegacyFile | str | os.PathLike[str],
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
        arguments: of the head, beside those in meta.
        rename: beginnings of names in the file -> beginnings of the head's own names, the longest that fits first.
        notes: entries of meta that are no arguments and are handed back, to be kept under ``extra``.

    Returns:
        The head, and the entries that ``notes`` names.

    Raises:
        CheckpointError: if anything in the file has no place, is missing, or contradicts what was given.
    """
    file = source if isinstance(source, LegacyFile) else read_legacy(source)
    meta = _plain_meta(file)
    named = meta.pop("head_type", head_type)
    if named is None or (head_type is not None and named != head_type):
        raise CheckpointError(
            f"{file.where}: meta says head_type {file.meta.get('head_type')!r} and the caller {head_type!r}; expected "
            "one registered name",
            step="registry",
        )
    if lost := [key for key in notes if key not in meta]:
        raise CheckpointError(f"{file.where}: meta has no entry {some_of(lost, _SHOWN)} to keep", step="config")
    kept = {key: meta.pop(key) for key in notes}
    given = {**(arguments or {}), "embed_dim": embed_dim, "tasks": encode(list(tasks))}
    if twice := [key for key, value in given.items() if key in meta and meta[key] != encode(value)]:
        raise CheckpointError(
            f"{file.where}: meta says {', '.join(f'{key}={meta[key]!r}' for key in twice)}, which contradicts what was "
            "given",
            step="config",
        )
    _check_known(named, meta, file.where)
    state = _begun(file.state, rename or {}, file.where)
    return _filled(named, {**meta, **given}, state, file.where), kept


def _check_known(head_type: Any, meta: Mapping[str, Any], where: str) -> None:
    """Refuse entries of meta that are no arguments: something would be lost."""
    cls = _resolved(head_type, where)
    if strange := sorted(set(meta) - set(fields_of(cls))):
        raise CheckpointError(
            f"{where}: meta holds {some_of(strange, _SHOWN)}, which {head_type} has no argument for; what is to be "
            f"kept beside the head is named (notes=, --note {strange[0]})",
            step="config",
        )


def _resolved(head_type: Any, where: str) -> type[Any]:
    try:
        return registry.resolve(head_type)
    except RegistryError as error:
        raise CheckpointError(f"{where}: {error}", step="registry") from None


def _parts(loaded: Any, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain values of a file."""
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(
            f"{where} holds {type(loaded).__name__}; expected a state dict, or a dict of state_dict and meta",
            step="schema",
        )
    meta: Any = {}
    state: Any = loaded
    if "state_dict" in loaded:
        if strange := [str(key) for key in loaded if key not in ("state_dict", "meta")]:
            raise CheckpointError(
                f"{where} holds {some_of(strange, _SHOWN)} beside state_dict and meta; save a file without them",
                step="schema",
            )
        state, meta = loaded["state_dict"], loaded.get("meta", {})
    if not isinstance(state, Mapping) or not state or not isinstance(meta, Mapping):
        raise CheckpointError(
            f"{where}: state_dict is {type(state).__name__} and meta {type(meta).__name__}; expected dicts, the first "
            "not empty",
            step="schema",
        )
    strange = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(f"{where}: {some_of(strange, _SHOWN)} are no tensors", step="schema")
    return dict(state), dict(meta)


def _no_meta(file: LegacyFile) -> None:
    if file.meta:
        raise CheckpointError(
            f"{file.where}: meta holds {some_of(map(str, file.meta), _SHOWN)}; expected a state dict alone",
            step="schema",
        )


def _plain_meta(file: LegacyFile) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(file.meta, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.where}: meta holds more than plain values ({error})", step="schema") from None
    if set(plain) != set(file.meta):
        raise CheckpointError(f"{file.where}: meta has keys that are no text", step="schema")
    return cast("dict[str, Any]", plain)


def _renamed(file: LegacyFile, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under our names; exactly those that ``names`` lists."""
    missing, unknown = set(names) - set(file.state), set(file.state) - set(names)
    if missing or unknown:
        told = [f"lacks {some_of(missing, _SHOWN)}"] if missing else []
        told += [f"holds {some_of(unknown, _SHOWN)}, which has no place"] if unknown else []
        raise CheckpointError(f"{file.where} {' and '.join(told)}; expected {', '.join(names)}", step="tensors")
    return {ours: file.state[theirs] for theirs, ours in names.items()}


def _begun(state: Mapping[str, Tensor], rename: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """The tensors with the beginnings of their names replaced; every replacement is used."""
    found: dict[str, Tensor] = {}
    used = set()
    for key, value in state.items():
        begin = max((old for old in rename if key.startswith(old)), key=len, default=None)
        used.add(begin)
        ours = key if begin is None else rename[begin] + key.removeprefix(begin)
        if ours in found:
            raise CheckpointError(f"{where}: rename gives two tensors the name {ours}", step="tensors")
        found[ours] = value
    if idle := set(rename) - used:
        raise CheckpointError(f"{where}: no name begins with {some_of(idle, _SHOWN)}", step="tensors")
    return found


def _filled(head_type: Any, config: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Build a registered head and give it these weights, all of them and no others."""
    cls = _resolved(head_type, where)
    try:
        with limited(len(state)):
            normal = cls.from_config(config, device="meta").config
    except Exception as error:  # whatever a constructor makes of values from a file
        raise CheckpointError(
            f"{where}: {head_type} refuses what the file and the caller say: {error}", step="config"
        ) from error
    with limited(len(state)):
        head = on_meta(cls, normal, where)
    expected = head.state_dict()
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unknown:
        told = [f"lacks {some_of(missing, _SHOWN)}"] if missing else []
        told += [f"holds {some_of(unknown, _SHOWN)}, which this head has not"] if unknown else []
        raise CheckpointError(f"{where} {' and '.join(told)} (rename= gives other names)", step="tensors")
    _check_alike(state, expected, where)
    check_finite(state, where)
    head.load_state_dict({key: value.clone().contiguous() for key, value in state.items()}, strict=True, assign=True)
    return head.eval().requires_grad_(True)


def _check_alike(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    for key, value in state.items():
        floats = expected[key].is_floating_point()
        fits = value.is_floating_point() if floats else value.dtype == expected[key].dtype
        if value.shape != expected[key].shape or not fits:
            raise CheckpointError(
                f"{where}: {key} is {value.dtype} {tuple(value.shape)}; expected {tuple(expected[key].shape)} of "
                f"{expected[key].dtype}",
                step="tensors",
            )
    dtypes = sorted({str(value.dtype) for value in state.values() if value.is_floating_point()})
    if len(dtypes) > 1:
        raise CheckpointError(
            f"{where} mixes {', '.join(dtypes)}; expected one floating-point dtype in all", step="tensors"
        )


def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w*)\}", pattern)
    fields = parts[1::2]
    if sorted(fields) not in (["fold", "target"], ["fold", "name"]) or "/" in pattern or "}{" in pattern:
        raise CheckpointError(
            f"the pattern {pattern!r} is no file name with {{fold}} and either {{target}} or {{name}}, and something "
            "between them"
        )
    return re.compile(
        "".join(_PLACEHOLDERS[part] if i % 2 else re.escape(part) for i, part in enumerate(parts)), re.ASCII
    )


def _target_of(match: Mapping[str, str], targets: Sequence[str], path: Path) -> str:
    named = match.get("name")
    if named is not None:
        if named not in targets:
            raise CheckpointError(f"{path}: {named!r} is none of the targets {', '.join(targets)}")
        return named
    index = int(match["target"])
    if index >= len(targets):
        raise CheckpointError(f"{path}: target {index} of {len(targets)} ({', '.join(targets)}), counted from 0")
    return targets[index]
