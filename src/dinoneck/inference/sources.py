"""Where a predictor's heads come from, and the backbone and image preparation that their files agree on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.format import canonical, head_files
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.pairing import check_records, need
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.heads.head import Head
from dinoneck.inference.tiles import VIEWS
from dinoneck.published.loading import load_published
from dinoneck.published.table import is_published

HeadSource = str | os.PathLike[str] | HeadCheckpoint | nn.Module
Heads = HeadSource | Sequence[HeadSource]


class LoadedHead(NamedTuple):
    """A head with what its file records: its backbone, its inputs and its views."""

    head: Head
    backbone: Mapping[str, Any] | None = None
    inputs: Preprocessing | None = None
    views: str = "none"
    checkpoint: HeadCheckpoint | None = None


def opened(
    heads: Heads | Mapping[str, Heads], revision: str | None = None, weights: str | os.PathLike[str] | None = None
) -> dict[str, list[HeadCheckpoint | nn.Module]]:
    """Read and check heads by their keys; heads that are not in a mapping have an empty one.

    Args:
        heads: as a :class:`dinoneck.Predictor` takes them. A folder without ``head.safetensors`` stands for all head
            files in it, sorted by name.
        revision: branch, tag or commit of the hub repositories among them.
        weights: the local file of the one published head among them.

    Raises:
        CheckpointError: if there are none, one cannot be read, two of a mean are the same head, a revision is given for
            a path, or ``weights`` and there is not one published head.
        ConfigError: for keys that are not texts, and for what is neither a head nor a list.
    """
    given = heads if isinstance(heads, Mapping) else {"": heads}
    if given is heads and (not heads or not all(isinstance(key, str) and key for key in heads)):
        raise ConfigError(f"the keys of heads are {[*heads]}; expected at least one text, none of them empty")
    sources = {key: _listed(own) for key, own in given.items()}
    every = [source for own in sources.values() for source in own]
    published = [source for source in every if is_published(source)]
    if weights is not None and len(published) != 1:
        raise CheckpointError(f"{weights} is the file of one published head; the heads name {published or 'none'}")
    read = {key: [_read(source, revision, weights) for source in own] for key, own in sources.items()}
    for own in read.values():
        _refuse_copies(own)
    return read


def _listed(heads: Any) -> list[HeadSource]:
    """One source per head."""
    if isinstance(heads, Mapping):
        raise ConfigError(f"heads are a mapping of {', '.join(map(str, heads))}; expected a list, or one head")
    single = isinstance(heads, str | os.PathLike | HeadCheckpoint | nn.Module)
    if not single and not isinstance(heads, Iterable):
        raise ConfigError(f"heads are {heads!r}; expected a head, a head file, or a list or mapping of them")
    found: list[HeadSource] = []
    for source in [heads] if single else heads:
        is_folder = isinstance(source, str | os.PathLike) and os.path.isdir(source)  # noqa: PTH112 - never raises
        found += head_files(source) if is_folder else [source]
    if not found:
        raise CheckpointError("no heads were given")
    return found


def _read(
    source: HeadSource, revision: str | None, weights: str | os.PathLike[str] | None
) -> HeadCheckpoint | nn.Module:
    """A path, a published head or a hub repository as a checkpoint; others as they are."""
    if not isinstance(source, str | os.PathLike):
        return source
    if is_published(source):
        return load_published(str(source), weights=weights, revision=revision)
    return HeadCheckpoint.load(source, revision=revision)


def _refuse_copies(heads: Sequence[HeadCheckpoint | nn.Module]) -> None:
    """Refuse a head that is twice in a mean, such as a copied file in a folder: it would count twice."""
    first: dict[str, int] = {}
    for number, head in enumerate(heads):
        if isinstance(head, HeadCheckpoint) and (other := first.setdefault(head.meta["digest"], number)) != number:
            names = [getattr(heads[i], "source", "") or f"head {i}" for i in (other, number)]
            raise CheckpointError(
                f"{' and '.join(names)} hold the same head (equal digests), which would count twice; give each head "
                "once",
                step="pairing",
            )


def load(source: HeadCheckpoint | nn.Module) -> LoadedHead:
    """Load a head from a checkpoint or a module.

    Raises:
        CheckpointError: if it has no tasks to predict, or its file names views that are not known here.
    """
    module = source.build(check_backbone=False) if isinstance(source, HeadCheckpoint) else source
    if not isinstance(module, Head):
        hint = "; load a detector with dinoneck.detection.Detector" if getattr(module, "classes", ()) else ""
        raise CheckpointError(f"{type(module).__name__} has no tasks to predict{hint}", step="pairing")
    if not isinstance(source, HeadCheckpoint):
        return LoadedHead(module)
    module = module.to(memory_format=torch.channels_last)  # as maps are; convolutions reorder other weights every call
    views = (source.meta["tta"] or {"ops": "none"})["ops"]
    return LoadedHead(module, source.meta["backbone"], source.preprocess, views, source)


def check_alike(loaded: Sequence[LoadedHead], inputs: bool, views: bool) -> None:
    """Refuse heads of a list that are not of one type, configuration (apart from fitted transforms) and backbone.

    Args:
        loaded: the heads; what a file does not record is not compared.
        inputs: compare how images are prepared too.
        views: compare the recorded views too, which have to be known here.

    Raises:
        CheckpointError: naming the first difference.
    """
    if views and (unknown := sorted({item.views for item in loaded} - VIEWS.keys())):
        raise CheckpointError(
            f"the heads record the views {unknown[0]!r}; expected one of {', '.join(VIEWS)}. Choose the views with "
            "tta= (--tta on the command line)",
            step="pairing",
        )
    facts = [_facts(item, inputs, views) for item in loaded]
    for number, other in enumerate(facts[1:], 2):
        both = [key for key, value in facts[0].items() if value is not None and other[key] is not None]
        if found := next(filter(None, (difference(facts[0][key], other[key], key) for key in both)), None):
            raise CheckpointError(
                f"heads 1 and {number} of the list differ ({found}); a list is one ensemble of alike heads. "
                "Run different heads next to each other with a mapping, {'depth': a, 'classes': b} (--heads depth=A "
                "--heads classes=B), or average them with HeadEnsemble.from_heads; preprocess= and tta= (--tta) "
                "replace what the files record of inputs and views",
                step="pairing",
            )


def _facts(item: LoadedHead, inputs: bool, views: bool) -> dict[str, Any]:
    """What the heads of a list have in common; None = unknown, or free to differ."""
    return {
        "head_type": type(item.head).__name__,
        "config": _unfitted(item.head.config),
        "backbone": None if item.backbone is None else _without(item.backbone, "probe"),
        "inputs": item.inputs.record() if inputs and item.inputs is not None else None,
        "views": item.views if views else None,
    }


def _unfitted(config: Any) -> Any:
    """A configuration without the numbers of fitted transforms."""
    if isinstance(config, Mapping):
        own = _without(config, "mean", "std") if config.get("$") == "TargetTransform" else config
        return {key: _unfitted(value) for key, value in own.items()}
    return [_unfitted(value) for value in config] if isinstance(config, list) else config


def _without(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in names}


def difference(one: Any, other: Any, where: str) -> str | None:
    """Return the place and the values of the first difference of two plain values; None where they are equal."""
    if one == other:
        return None
    if isinstance(one, list) and isinstance(other, list) and any(isinstance(entry, Mapping) for entry in one):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        parts = [(one.get(key), other.get(key), f"{where}.{key}") for key in sorted({*one, *other})]
        return next(filter(None, (difference(*part) for part in parts)), None)
    return f"{where}: {str(one)[:80]} / {str(other)[:80]}"


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
    if item.checkpoint is None or item.backbone is None:
        raise CheckpointError(
            "the heads do not name the backbone that they need; pass backbone=, or save them with it", step="pairing"
        )
    return item.checkpoint.load_backbone()


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
