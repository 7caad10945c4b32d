"""Where a predictor's heads come from, and the backbone and image preparation that their files agree on."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.load import load_backbone
from dinoneck.checkpoint.format import canonical, head_files
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.hub import names_a_repo
from dinoneck.checkpoint.pairing import NAMED, check_records, need
from dinoneck.checkpoint.schema import describe_weights
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.heads.head import Head
from dinoneck.inference.tiles import TTA, VIEWS

HeadSource = str | os.PathLike[str] | HeadCheckpoint | nn.Module
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_PART = r"[A-Za-z0-9][\w.\-]{0,95}"
# a model's name, or a hub repository: a path below the working folder at most
_NAME = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)


class LoadedHead(NamedTuple):
    """A head with its file's records of backbone and inputs."""

    head: Head
    backbone: Mapping[str, Any] | None
    inputs: Preprocessing | None
    checkpoint: HeadCheckpoint | None = None


def listed(heads: HeadSource | Sequence[HeadSource]) -> list[HeadSource]:
    """Return one source per head; a folder stands for the head files in it, sorted by name.

    Raises:
        CheckpointError: if there are none.
        ConfigError: for a mapping, and for what is neither a head nor a list.
    """
    if isinstance(heads, Mapping):
        raise ConfigError(f"heads are a mapping of {', '.join(map(str, heads))}; expected a list, or one head")
    single = isinstance(heads, str | os.PathLike | HeadCheckpoint | nn.Module)
    if not single and not isinstance(heads, Iterable):
        raise ConfigError(f"heads are {heads!r}; expected a head, a head file, or a list or mapping of them")
    given = [cast("HeadSource", heads)] if single else list(cast("Sequence[HeadSource]", heads))
    if not given:
        raise CheckpointError("no heads were given")
    found: list[HeadSource] = []
    for source in given:
        is_folder = isinstance(source, str | os.PathLike) and os.path.isdir(source)  # noqa: PTH112 - never raises
        found += head_files(cast("Path", source)) if is_folder else [source]
    return found


def opened(
    sources: Sequence[HeadSource], revision: str | None = None, keys: Sequence[str] | None = None
) -> list[HeadSource]:
    """Read and check every source that is a path or a hub repository; others are as they were.

    Args:
        sources: one per head, see :func:`listed`.
        revision: branch, tag or commit of the hub repositories among them.
        keys: of a mapping, one per source: heads of one key are averaged; None = all are.

    Raises:
        CheckpointError: if one cannot be read, two of a mean are the same head, or a revision is given and none is a
            repository.
    """
    repos = [source for source in sources if names_a_repo(source)]
    if revision is not None and not repos:
        raise CheckpointError(
            f"revision={revision!r} is for hub repositories (user/name); the heads given are none", step="hub"
        )
    read: list[HeadSource] = [
        HeadCheckpoint.load(source, revision=revision if source in repos else None)
        if isinstance(source, str | os.PathLike)
        else source
        for source in sources
    ]
    _refuse_copies(sources, read, keys or [""] * len(sources))
    return read


def _refuse_copies(sources: Sequence[HeadSource], read: Sequence[HeadSource], keys: Sequence[str]) -> None:
    """Refuse a head that is twice in a mean, such as a copied file in a folder: it would count twice."""
    names = [str(one) if isinstance(one, str | os.PathLike) else f"head {i}" for i, one in enumerate(sources)]
    first: dict[tuple[str, str], str] = {}
    for name, head, key in zip(names, read, keys, strict=True):
        if isinstance(head, HeadCheckpoint):
            digest = key, head.meta["digest"]
            if digest in first:
                raise CheckpointError(
                    f"{first[digest]} and {name} hold the same head (equal digests), which would count twice; give "
                    "each head once",
                    step="pairing",
                )
            first[digest] = name


def load(source: HeadSource) -> LoadedHead:
    """Load a head from a checkpoint or a module.

    Raises:
        CheckpointError: if it has no tasks to predict.
    """
    module = source.build(check_backbone=False) if isinstance(source, HeadCheckpoint) else source
    if not isinstance(module, Head):
        hint = "; load a detector with dinoneck.detection.Detector" if getattr(module, "classes", ()) else ""
        raise CheckpointError(f"{type(module).__name__} has no tasks to predict{hint}", step="pairing")
    if isinstance(source, HeadCheckpoint):  # maps are channels-last; convolutions reorder other weights at every call
        module = module.to(memory_format=torch.channels_last)
        return LoadedHead(module, source.meta["backbone"], source.preprocess, source)
    return LoadedHead(module, None, None)


def revisions_of(sources: Sequence[HeadSource], read: Sequence[object]) -> dict[str, str]:
    """Return hub repository -> the commit its heads are of."""
    pairs = [
        (str(source), checkpoint.revision)
        for source, checkpoint in zip(sources, read, strict=True)
        if isinstance(source, str | os.PathLike) and isinstance(checkpoint, HeadCheckpoint)
    ]
    return {repo: commit for repo, commit in pairs if commit is not None}


def check_alike(loaded: Sequence[LoadedHead]) -> None:
    """Refuse heads of a list that are not of one type, configuration (apart from fitted transforms) and backbone.

    Raises:
        CheckpointError: naming the first difference.
    """
    first = loaded[0]
    for number, item in enumerate(loaded[1:], 2):
        pairs: list[tuple[str, Any, Any]] = [("head_type", type(first.head).__name__, type(item.head).__name__)]
        pairs += [("config", _unfitted(first.head.config), _unfitted(item.head.config))]
        if first.backbone is not None and item.backbone is not None:
            pairs += [("backbone", _without(first.backbone, "probe"), _without(item.backbone, "probe"))]
        for name, one, other in pairs:
            if found := _difference(one, other, name):
                raise CheckpointError(
                    f"heads 1 and {number} of the list differ ({found}); a list is averaged as one ensemble of alike "
                    "heads. Run different heads next to each other with a mapping, {'depth': a, 'classes': b} "
                    "(--heads depth=A --heads classes=B), or average them with HeadEnsemble.from_heads",
                    step="pairing",
                )


def _unfitted(config: Any) -> Any:
    """A configuration without the numbers of fitted transforms."""
    if isinstance(config, Mapping):
        own = _without(config, "mean", "std") if config.get("$") == "TargetTransform" else config
        return {key: _unfitted(value) for key, value in own.items()}
    return [_unfitted(value) for value in config] if isinstance(config, list) else config


def _without(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in names}


def _difference(one: Any, other: Any, where: str) -> str | None:
    """The place and the values of the first difference of two plain values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        parts = [(one.get(key), other.get(key), f"{where}.{key}") for key in sorted({*one, *other})]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, list) and isinstance(other, list):
        return f"{where}: {len(one)} / {len(other)} entries"
    else:
        return None if one == other else f"{where}: {str(one)[:80]} / {str(other)[:80]}"
    return next((found for part in parts if (found := _difference(*part))), None)


def same_backbone(record: Mapping[str, Any] | None) -> str | None:
    """Return what heads have in common that can read one pass: their backbone record without layers and norm."""
    return None if record is None else canonical(_without(record, "layers", "norm", "probe")).decode()


def reads(item: LoadedHead, backbone: Backbone) -> tuple[tuple[int, ...], bool]:
    """Return the layers that a head reads, and whether with the final norm; of a module without record, the backbone's.

    Raises:
        CheckpointError: if its record does not state the layers.
    """
    own = getattr(item.head, "layer_indices", None)
    if item.backbone is None:
        return own or backbone.layers, backbone.norm
    norm = item.backbone.get("norm")
    return tuple(need(item.backbone, "layers")), backbone.norm if norm is None else norm


def rebuilt_backbone(item: LoadedHead) -> Backbone:
    """Load the backbone that a head's file names, with the LoRA weights that travel with it.

    Raises:
        CheckpointError: if it names none.
    """
    if item.backbone is None:
        raise CheckpointError(
            "the heads do not name the backbone that they need; pass backbone=, or save them with it", step="pairing"
        )
    backbone = rebuild(item.backbone)
    if item.checkpoint is not None and item.checkpoint.adapter_state:
        item.checkpoint.apply_adapter(backbone)
    return backbone


def check_pairing(loaded: Sequence[LoadedHead], backbone: Backbone, probe: bool) -> None:
    """Refuse a backbone that is not the heads', see :meth:`dinoneck.HeadCheckpoint.check_backbone`.

    A file without a backbone record gives a warning: nothing can be compared.

    Raises:
        CheckpointError: naming what differs.
    """
    if probe:
        for item in loaded:
            if item.checkpoint is not None:
                record = item.checkpoint.meta["backbone"] or {}
                own_layers = backbone.with_layers(need(record, "layers"), record.get("norm"))
                item.checkpoint.check_backbone(own_layers, probe=True)
        return
    own = backbone.record() if any(item.backbone is not None for item in loaded) else {}
    for item in loaded:
        if item.backbone is not None:
            check_records(item.backbone, {**own, "norm": item.backbone.get("norm")}, layers=False)  # applied per head
        elif item.checkpoint is not None:
            warnings.warn(
                f"the file of this {type(item.head).__name__} does not state its backbone, so {backbone.name!r} is "
                "used unchecked; save the head again with backbone=",
                stacklevel=3,
            )


def shared_inputs(loaded: Sequence[LoadedHead]) -> Preprocessing | None:
    """Return how the heads' images are prepared; None if no file records it.

    Raises:
        CheckpointError: if the files differ.
    """
    found = [item.inputs for item in loaded if item.inputs is not None]
    for other in found[1:]:
        if other != found[0]:
            raise CheckpointError(
                f"the heads need images prepared differently ({differing(found[0].record(), other.record())}); predict "
                "with them one by one, or pass preprocess=",
                step="pairing",
            )
    return found[0] if found else None


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the entries of two records that differ, with both values."""
    return ", ".join(f"{key} {one[key]!r} / {other[key]!r}" for key in one if one[key] != other[key])


def rebuild(record: Mapping[str, Any], file: str | os.PathLike[str] | None = None, *, random: bool = False) -> Backbone:
    """Load the backbone of a record: by name, with the weights of a local file, or with random ones.

    Nothing in a record is imported or run, and no folder that it names is opened. Weights that come from elsewhere are
    compared by who asks for this.

    Args:
        record: the backbone record of a head file.
        file: its weights, where they are not seeded or published; for transformers also a model folder.
        random: seeded random weights instead of those of the record: its own seed, or 0 where it names other weights.

    Raises:
        CheckpointError: if the record is incomplete or contradicts itself.
        BackboneError: if the weights cannot be had.
    """
    name, origin = str(need(record, "name")), need(record, "weights")
    if file is None and not random and origin.get("kind") not in NAMED:
        raise CheckpointError(
            f"the heads were trained on {name!r} with {describe_weights(origin)}, which cannot be found by name: load "
            "them yourself and pass backbone= (--backbone-file on the command line)",
            step="pairing",
        )
    if "/" in name and origin.get("kind") == "hub" and origin.get("repo") != name:
        raise CheckpointError(
            f"the record names the model {name!r} and weights of {origin.get('repo')!r}: these do not belong together",
            step="pairing",
        )
    dtype = record.get("dtype") or "float32"
    if dtype not in _DTYPES:
        raise CheckpointError(f"the record has dtype {dtype!r}; expected one of {', '.join(_DTYPES)}", step="pairing")
    folder = file is not None and Path(file).is_dir()
    if not folder:
        _check_name(name, record.get("source"))
    own = origin.get("kind") == "seeded"
    seeded = file is None and (random or own)
    try:
        return load_backbone(
            str(file) if folder else name,
            pretrained=not seeded,
            checkpoint=None if folder else file,
            seed=(need(origin, "seed") if own else 0) if seeded else None,
            layers=need(record, "layers"),
            norm=need(record, "norm"),
            source=record.get("source") or "timm",
            pos_embed=record.get("pos_embed") or "native",
            dtype=_DTYPES[dtype],
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the backbone record of this head cannot be followed: {error}", step="pairing"
        ) from error


def _check_name(name: str, source: Any) -> None:
    """Refuse a name that would lead into a local folder: the library transformers takes both for the same argument."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"the record names the model {name[:200]!r}; expected a name such as 'vit_small_patch16_dinov3', or a hub "
            "repository 'user/name'. A head file names no path: load the backbone yourself and pass backbone=",
            step="pairing",
        )
    if source == "transformers" and os.path.isdir(name):  # noqa: PTH112 - never raises
        raise CheckpointError(
            f"the record names the model {name!r}, and the working folder holds a folder of that name, which would be "
            "loaded in its place: start elsewhere, or load the backbone yourself and pass backbone=",
            step="pairing",
        )


def recorded_views(heads: Sequence[LoadedHead]) -> TTA:
    """Return the views that the files of these heads record; ``"none"`` for modules and files without a record.

    Raises:
        CheckpointError: if they differ, or are not known here.
    """
    records = [item.checkpoint.meta["tta"] if item.checkpoint is not None else None for item in heads]
    recorded = {"none" if record is None else str(record["ops"]) for record in records}
    if len(recorded) > 1 or not recorded <= VIEWS.keys():
        raise CheckpointError(
            f"the heads record the views {', '.join(map(repr, sorted(recorded)))}; expected the same of all heads, one "
            f"of {', '.join(VIEWS)}. Choose the views with tta= (--tta on the command line)",
            step="pairing",
        )
    return cast("TTA", recorded.pop())
