"""Where a predictor's heads come from, and what their files record of the tokens that they read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone, plain_backbone
from dinoneck.checkpoint.compare import check_rebuilt, check_records, check_rotary
from dinoneck.checkpoint.format import head_files
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.schema import need
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.grid import GridSize
from dinoneck.heads.ensemble import scores_places
from dinoneck.heads.head import Head
from dinoneck.inference.views import VIEWS
from dinoneck.published.loading import load_published
from dinoneck.published.table import is_published
from dinoneck.tasks import GATE, MAP, Task
from dinoneck.tokens import Tokens

HeadSource = str | os.PathLike[str] | HeadCheckpoint | nn.Module
Heads = HeadSource | Sequence[HeadSource]


class MaskRecord(NamedTuple):
    """How the training of a head read its class masks.

    Attributes:
        source: the file, as messages name it.
        class_values: the value of each class; empty = not recorded.
        nodata: values without a label; empty = not recorded.
    """

    source: str
    class_values: tuple[int, ...] = ()
    nodata: tuple[float, ...] = ()


class Reading(NamedTuple):
    """A head, and what its file records of what it reads.

    Attributes:
        head: several heads as one :class:`dinoneck.HeadEnsemble`; one that predicts objects as it
            is.
        layers: block indices; None = those of the backbone.
        norm: whether the final norm is applied; None = as by the backbone.
        backbone: the record of its backbone; None where it is not recorded.
        inputs: how its images are prepared; None where it is not recorded.
        views: the views that are averaged.
        checkpoint: its file; None for a module.
        mask_records: of the files of all its heads that record how masks were read.
        files: of all its heads, as they were named.
    """

    head: Head
    layers: tuple[int, ...] | None = None
    norm: bool | None = None
    backbone: Mapping[str, Any] | None = None
    inputs: Preprocessing | None = None
    views: str = "none"
    checkpoint: HeadCheckpoint | None = None
    mask_records: tuple[MaskRecord, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def objects(self) -> Task | None:
        """The task of the head whose objects are counted, if any."""
        return next((task for task in self.head.tasks if task.is_masks), None)

    def on(self, backbone: Backbone) -> Reading:
        """Return the same with the backbone's layers and norm where the file does not state them.

        Raises:
            CheckpointError: if there is a record, which does not state the layers.
        """
        layers = (
            self.layers or backbone.layers
            if self.backbone is None
            else tuple(need(self.backbone, "layers"))
        )
        return self._replace(layers=layers, norm=backbone.norm if self.norm is None else self.norm)

    def tokens(self, backbone: Backbone, tokens: Tokens) -> Tokens:
        """Return the layers that the head reads, with or without the norm, in its dtype."""
        own = tokens if self.layers in (None, tokens.layers) else tokens.select(self.layers)
        own = backbone.normalised(own) if self.norm else own
        return own.to(dtype=next(self.head.parameters()).dtype)

    def outputs(self, tokens: Tokens, maps: bool) -> dict[str, Tensor]:
        """Return what the head gives in original units, before what follows from other outputs is recomputed.

        Args:
            tokens: as :meth:`tokens` gives them.
            maps: with ``"task.map"`` of every task that has one, ``"gate"`` (B, 1, rows, cols), and
                ``"number:name"`` of :meth:`dinoneck.HeadEnsemble.member_outputs`.
        """
        outputs = self.head.predict_outputs(tokens, maps)
        named = {}
        for task in self.head.predicted:
            if task.is_map:
                named[task.name] = outputs.maps[task.name]
            elif task.name in outputs.values:
                named[task.name] = outputs.values[task.name]
        if not maps:
            return named
        named |= {name + MAP: cells for name, cells in outputs.maps.items()}
        for number, member in enumerate(outputs.members):
            named |= {f"{number}:{name}": output for name, output in member.items()}
        if outputs.gate is not None:
            named[GATE] = outputs.gate[:, None]
        return named

    def check_grid(self, seen: GridSize, turned: bool) -> None:
        """Refuse a view whose patches have other places than those that the head scores.

        Args:
            seen: the grid of the view.
            turned: whether it is the image turned by a quarter.

        Raises:
            CheckpointError: naming both grids.
        """
        if not scores_places(self.head):
            return
        expected = (self.inputs and self.inputs.grid()) or (
            GridSize(seen.cols, seen.rows) if turned else seen
        )
        if seen != expected:
            raise CheckpointError(
                f"a head with a gate of mode 'mlp' scores the places of one grid, {expected.rows} "
                f"rows x {expected.cols} cols; it is given {seen.rows} x {seen.cols}. Prepare "
                "images as in training (preprocess=), without views that turn them (tta=), or "
                "build the head with mode='resized' or 'query'",
                step="pairing",
            )


def opened(
    heads: Heads | Mapping[str, Heads],
    revision: str | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> dict[str, list[HeadCheckpoint | nn.Module]]:
    """Read and check heads by their keys; heads that are not in a mapping have an empty one.

    Args:
        heads: as a :class:`dinoneck.Predictor` takes them. A folder without ``head.safetensors``
            stands for all head files in it, sorted by name.
        revision: branch, tag or commit of the hub repositories among them.
        weights: the local file of the one published head among them.

    Raises:
        CheckpointError: if there are none, one cannot be read, a revision is given for a path, or
            ``weights`` and there is not one published head.
        ConfigError: for keys that are not texts, for what is neither a head nor a list, and for a
            detector among several.
    """
    given = heads if isinstance(heads, Mapping) else {"": heads}
    if given is heads and (not heads or not all(isinstance(key, str) and key for key in heads)):
        raise ConfigError(
            f"the keys of heads are {[*heads]}; expected at least one text, none of them empty"
        )
    sources = {key: _listed(own) for key, own in given.items()}
    published = [source for own in sources.values() for source in own if is_published(source)]
    if weights is not None and len(published) != 1:
        raise CheckpointError(
            f"{weights} is the file of one published head; the heads name {published or 'none'}"
        )
    read = {
        key: [_read(source, revision, weights) for source in own] for key, own in sources.items()
    }
    types = [getattr(one, "head_type", "") for own in read.values() for one in own]
    if "detector" in types and len(types) > 1:
        raise ConfigError(
            f"{len(types)} heads are given, a detector among them; expected a detector alone, or "
            "none"
        )
    return read


def _listed(heads: Any) -> list[HeadSource]:
    """One source per head."""
    if isinstance(heads, Mapping):
        raise ConfigError(
            f"heads are a mapping of {', '.join(map(str, heads))}; expected a list, or one head"
        )
    single = isinstance(heads, str | os.PathLike | HeadCheckpoint | nn.Module)
    if not single and not isinstance(heads, Iterable):
        raise ConfigError(
            f"heads are {heads!r}; expected a head, a head file, or a list or mapping of them"
        )
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


def load(source: HeadCheckpoint | nn.Module) -> Reading:
    """Load a head from a checkpoint or a module.

    Raises:
        CheckpointError: if it has no tasks to predict.
    """
    module = source.build(check_backbone=False) if isinstance(source, HeadCheckpoint) else source
    if not isinstance(module, Head):
        hint = (
            "; load a detector with dinoneck.detection.Detector"
            if getattr(module, "classes", ())
            else ""
        )
        raise CheckpointError(
            f"{type(module).__name__} has no tasks to predict{hint}", step="pairing"
        )
    own: dict[str, Any] = {"layers": getattr(module, "layer_indices", None)}
    if not isinstance(source, HeadCheckpoint):
        return Reading(module, **own)
    # as maps are; convolutions reorder other weights every call
    module.to(memory_format=torch.channels_last)
    record, views = source.meta["backbone"], (source.meta["tta"] or {"ops": "none"})["ops"]
    own = own if record is None else {key: record.get(key) for key in ("layers", "norm")}
    return Reading(
        module,
        **own,
        backbone=record,
        inputs=source.preprocess,
        views=views,
        checkpoint=source,
        mask_records=_mask_records(source),
        files=(source.source,) if source.source else (),
    )


def _mask_records(file: HeadCheckpoint) -> tuple[MaskRecord, ...]:
    """How the training of a file read its masks; empty where it is not recorded."""
    masks = (file.meta["training"] or {}).get("masks")
    if masks is None:
        return ()
    class_values = tuple(masks.get("class_values") or ())
    nodata = tuple(masks.get("nodata") or ())
    return (MaskRecord(file.source or "the head", class_values, nodata),)


def check_alike(loaded: Sequence[Reading], inputs: bool, views: bool) -> None:
    """Refuse heads of a list that are not of one type, configuration (apart from fitted transforms) and backbone.

    Args:
        loaded: the heads; what a file does not record is not compared.
        inputs: compare how images are prepared too.
        views: compare the recorded views too, which have to be known here.

    Raises:
        CheckpointError: naming the first difference, or a head that is in the list twice.
    """
    if views and (unknown := sorted({item.views for item in loaded} - VIEWS.keys())):
        raise CheckpointError(
            f"the heads record the views {unknown[0]!r}; expected one of {', '.join(VIEWS)}. "
            "Choose the views with tta= (--tta on the command line)",
            step="pairing",
        )
    facts = [_facts(item, inputs, views) for item in loaded]
    for number, other in enumerate(facts[1:], 2):
        known = {key: value for key, value in facts[0].items() if None not in (value, other[key])}
        if found := difference(known, {key: other[key] for key in known}, "heads"):
            remedy = (
                ", or average them with HeadEnsemble.from_heads; preprocess= and tta= (--tta) "
                "replace what the files record of inputs and views"
            )
            if found.startswith("heads.backbone"):
                remedy = ": each then has its own backbone, and their predictions can be averaged"
            raise CheckpointError(
                f"heads 1 and {number} of the list differ ({found}); a list is one ensemble of "
                "alike heads. Run different heads next to each other with a mapping, {'depth': a, "
                f"'classes': b}} (--heads depth=A --heads classes=B){remedy}",
                step="pairing",
            )
    files: dict[str, HeadCheckpoint] = {}
    for file in [item.checkpoint for item in loaded if item.checkpoint is not None]:
        same = files.setdefault(file.meta["digest"], file)
        if same is not file:
            raise CheckpointError(
                f"{same.source!r} and {file.source!r} hold the same head (equal digests), which "
                "would count twice; give each head once",
                step="pairing",
            )


def _facts(item: Reading, inputs: bool, views: bool) -> dict[str, Any]:
    """What the heads of a list have in common; None = unknown, or free to differ."""
    return {
        "head_type": type(item.head).__name__,
        "config": _unfitted(item.head.config),
        "backbone": None if item.backbone is None else without(item.backbone, "probe"),
        "inputs": item.inputs.record() if inputs and item.inputs is not None else None,
        "views": item.views if views else None,
    }


def _unfitted(config: Any) -> Any:
    """A configuration without the numbers of fitted transforms."""
    if isinstance(config, Mapping):
        own = without(config, "mean", "std") if config.get("$") == "TargetTransform" else config
        return {key: _unfitted(value) for key, value in own.items()}
    return [_unfitted(value) for value in config] if isinstance(config, list) else config


def without(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the other entries of a record."""
    return {key: value for key, value in record.items() if key not in names}


def difference(one: Any, other: Any, where: str) -> str | None:
    """Return the place and the values of the first difference of two plain values; None where they are equal."""
    if one == other:
        return None
    if (
        isinstance(one, list)
        and isinstance(other, list)
        and any(isinstance(entry, Mapping) for entry in one)
    ):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        parts = [(one.get(key), other.get(key), f"{where}.{key}") for key in sorted({*one, *other})]
        return next(filter(None, (difference(*part) for part in parts)), None)
    return f"{where}: {str(one)[:80]} / {str(other)[:80]}"


def check_pairing(loaded: Sequence[Reading], backbone: Backbone, probe: bool) -> None:
    """Refuse a backbone that is not the heads', see :meth:`dinoneck.HeadCheckpoint.check_backbone`.

    A file without a backbone record gives a warning: nothing can be compared.

    Raises:
        CheckpointError: naming what differs.
    """
    record = backbone.record() if any(item.backbone is not None for item in loaded) else {}
    for item in loaded:
        if item.checkpoint is not None and probe:
            item.checkpoint.check_backbone(backbone.with_layers(item.layers, item.norm), probe=True)
        elif item.backbone is not None:
            # applied per head
            check_records(item.backbone, {**record, "norm": item.norm}, layers=False)
            check_rotary(item.backbone, backbone)
            if record["weights"]["kind"] == "object":
                # models of the user's own may be changed in ways that weights do not hold
                own = plain_backbone(backbone).with_layers(item.layers, item.norm)
                check_rebuilt(item.backbone, own)
        elif item.checkpoint is not None:
            warnings.warn(
                f"the file of this {type(item.head).__name__} does not state its backbone, so "
                f"{backbone.name!r} is used unchecked; save the head again with backbone=",
                stacklevel=3,
            )
