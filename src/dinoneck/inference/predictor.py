"""Predictor: photos in, values in natural units out; several heads and views over one backbone pass."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.load import load_backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.pairing import check_records
from dinoneck.data.photos import Photo, Preprocessing, as_list
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.inference.tta import TTA, VIEWS, View
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens

HeadSource = str | os.PathLike[str] | HeadCheckpoint | nn.Module
HEAD_FILES = "*.safetensors"


class _Loaded(NamedTuple):
    """A head with what its file says about backbone and inputs."""

    head: Head
    backbone: Mapping[str, Any] | None
    inputs: Preprocessing | None


class _Group(NamedTuple):
    """Heads that read the same layers."""

    layers: tuple[int, ...]
    heads: HeadEnsemble


class Predictor:
    """Predicts from photos with one or several heads.

    Heads that know the same task are averaged in natural units, as are the views of test-time augmentation; all
    views of equal size go through the backbone as one batch.

    Args:
        heads: head files, a folder of them, HeadCheckpoints or head modules; one or several.
        backbone: the backbone; None rebuilds it from the record in the files. It is checked against them.
        tta: ``"none"``, ``"flip4"`` (original, left-right, up-down, both) or ``"d6"`` (those and two quarter
            turns).
        device: where to run; None = where the backbone is.
        blur: odd kernel of a Gaussian blur with fixed sigma, instead of what the files say; None keeps that.
        preprocess: how photos are prepared, instead of what the files say.
        batch_size: photos per pass.

    Raises:
        CheckpointError: if the files disagree, or do not fit the backbone, or no backbone can be rebuilt.
        ConfigError: for an unknown ``tta``.

    Examples:
        >>> from dinoneck import PatchMeanHead, Task, load_backbone
        >>> head = PatchMeanHead(64, [Task("total", unit="g")])
        >>> predictor = Predictor(head, load_backbone("dinoneck_tiny"))
        >>> [result] = predictor(torch.rand(3, 32, 48), maps=True)
        >>> result["maps"]["total"].shape
        (1, 2, 3)
    """

    def __init__(
        self,
        heads: HeadSource | Sequence[HeadSource],
        backbone: Backbone | None = None,
        tta: TTA = "none",
        device: torch.device | str | None = None,
        *,
        blur: int | None = None,
        preprocess: Preprocessing | None = None,
        batch_size: int = 8,
    ) -> None:
        if tta not in VIEWS:
            raise ConfigError(f"tta is {tta!r}; expected one of {', '.join(VIEWS)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
        loaded = [_load(source) for source in _sources(heads)]
        backbone = backbone or _rebuild(loaded)
        _check_pairing(loaded, backbone)
        self.preprocess = (preprocess or _shared_inputs(loaded) or backbone.preprocess).changed(blur=blur)
        self._groups = _grouped(loaded, backbone.layers)
        union = tuple(sorted({layer for group in self._groups for layer in group.layers}))
        self.backbone = (backbone if union == backbone.layers else backbone.with_layers(union)).eval()
        if device is not None:
            self.backbone.to(device)
        self.device = next(self.backbone.parameters()).device
        for group in self._groups:
            group.heads.to(self.device).eval()
        self.tasks = _union_tasks(self._groups)
        self.tta, self.views, self.batch_size = tta, VIEWS[tta], batch_size

    @torch.no_grad()
    def __call__(self, photos: Photo | Sequence[Photo], maps: bool = False) -> list[dict[str, Any]]:
        """Predict.

        Args:
            photos: paths, PIL images, arrays or tensors, see :class:`dinoneck.data.Preprocessing`.
            maps: add ``"maps": {task: (dim, rows, cols)}``, what every patch says, in the orientation of the
                photo.

        Returns:
            One dict per photo: task name -> a float, or an array (dim,) for tasks of several outputs.
        """
        results: list[dict[str, Any]] = []
        waiting = as_list(photos)
        for begin in range(0, len(waiting), self.batch_size):
            prepared = [self.preprocess(photo) for photo in waiting[begin : begin + self.batch_size]]
            batch: list[dict[str, Any] | None] = [None] * len(prepared)
            for places in _by_shape(prepared):
                images = torch.cat([prepared[place] for place in places]).to(self.device)
                for place, row in zip(places, self._predict(images, maps), strict=True):
                    batch[place] = row
            results.extend(cast("list[dict[str, Any]]", batch))
        return results

    def _predict(self, images: Tensor, maps: bool) -> list[dict[str, Any]]:
        """Values (and maps) of a batch of prepared images of one size, averaged over views."""
        values: dict[str, list[Tensor]] = {task.name: [] for task in self.tasks}
        pictures: dict[str, list[Tensor]] = {task.name: [] for task in self.tasks}
        for views in _alike(self.views):
            tokens = self.backbone(torch.cat([view.apply(images) for view in views]))
            for name, answer in self._answers(tokens).items():
                values[name].extend(answer.chunk(len(views)))
            for name, picture in (self._maps(tokens) if maps else {}).items():
                parts = picture.chunk(len(views))
                pictures[name].extend(view.undo(part) for view, part in zip(views, parts, strict=True))
        means = {name: torch.stack(parts).mean(dim=0).cpu() for name, parts in values.items()}
        shown = {name: torch.stack(parts).mean(dim=0).cpu() for name, parts in pictures.items() if parts}
        rows: list[dict[str, Any]] = []
        for i in range(len(images)):
            row: dict[str, Any] = {
                name: mean[i].item() if mean.shape[1] == 1 else mean[i].numpy() for name, mean in means.items()
            }
            rows.append(row | {"maps": {name: picture[i].numpy() for name, picture in shown.items()}} if maps else row)
        return rows

    def _answers(self, tokens: Tokens) -> dict[str, Tensor]:
        """Natural units per task, averaged over all heads."""
        if len(self._groups) == 1:
            return self._groups[0].heads.predict(_selected(tokens, self._groups[0].layers))
        answers = [group.heads.members_predict(_selected(tokens, group.layers)) for group in self._groups]
        return {
            task.name: torch.cat([row[task.name] for row in answers if task.name in row]).mean(dim=0)
            for task in self.tasks
        }

    def _maps(self, tokens: Tokens) -> dict[str, Tensor]:
        found = [group.heads.predict_maps(_selected(tokens, group.layers)) for group in self._groups]
        names = {name for row in found for name in row}
        return {name: torch.stack([row[name] for row in found if name in row]).mean(dim=0) for name in sorted(names)}


def _sources(heads: HeadSource | Sequence[HeadSource]) -> Iterator[HeadSource]:
    """One source per head; a folder stands for the head files in it."""
    single = isinstance(heads, str | os.PathLike | HeadCheckpoint | nn.Module)
    listed = [cast("HeadSource", heads)] if single else list(cast("Sequence[HeadSource]", heads))
    if not listed:
        raise CheckpointError("no heads were given")
    for source in listed:
        if isinstance(source, str | os.PathLike) and Path(source).is_dir():
            files = sorted(Path(source).glob(HEAD_FILES))
            if not files:
                raise CheckpointError(f"the folder {source} holds no head files ({HEAD_FILES})")
            yield from files
        else:
            yield source


def _load(source: HeadSource) -> _Loaded:
    if isinstance(source, str | os.PathLike):
        source = HeadCheckpoint.load(source)
    module = source.build() if isinstance(source, HeadCheckpoint) else source
    if not isinstance(module, Head):
        raise CheckpointError(f"{type(module).__name__} is no head with tasks; it cannot predict", step="pairing")
    if isinstance(source, HeadCheckpoint):
        return _Loaded(module, source.meta["backbone"], source.preprocess)
    return _Loaded(module, None, None)


def _rebuild(loaded: Sequence[_Loaded]) -> Backbone:
    """Load the backbone that the files name."""
    record = next((item.backbone for item in loaded if item.backbone is not None), None)
    if record is None:
        raise CheckpointError("the heads do not say which backbone they need; pass backbone=", step="pairing")
    origin = record["weights"]
    if origin["kind"] not in ("seeded", "hub"):
        raise CheckpointError(
            f"the heads were trained on {record['name']!r} with weights from a file or an object, which cannot be "
            "found by name: load it yourself and pass backbone=",
            step="pairing",
        )
    seeded = origin["kind"] == "seeded"
    return load_backbone(
        record["name"],
        pretrained=not seeded,
        seed=origin["seed"] if seeded else None,
        layers=record["layers"],
        norm=record["norm"],
    )


def _check_pairing(loaded: Sequence[_Loaded], backbone: Backbone) -> None:
    own = backbone.record() if any(item.backbone is not None for item in loaded) else {}
    for item in loaded:
        if item.backbone is not None:
            check_records(item.backbone, own, layers=False)


def _shared_inputs(loaded: Sequence[_Loaded]) -> Preprocessing | None:
    found = [item.inputs for item in loaded if item.inputs is not None]
    for other in found[1:]:
        if other != found[0]:
            raise CheckpointError(
                f"the heads need photos prepared differently: {found[0]} and {other}; predict with them one by one, "
                "or pass preprocess=",
                step="pairing",
            )
    return found[0] if found else None


def _grouped(loaded: Sequence[_Loaded], default: tuple[int, ...]) -> list[_Group]:
    by_layers: dict[tuple[int, ...], list[Head]] = {}
    for item in loaded:
        layers = default if item.backbone is None else tuple(item.backbone["layers"])
        by_layers.setdefault(layers, []).append(item.head)
    return [_Group(layers, _together(heads)) for layers, heads in by_layers.items()]


def _together(heads: list[Head]) -> HeadEnsemble:
    if len(heads) == 1 and isinstance(heads[0], HeadEnsemble):
        return heads[0]
    return HeadEnsemble.from_heads(heads)


def _union_tasks(groups: Sequence[_Group]) -> tuple[Task, ...]:
    return tuple({task.name: task for group in groups for task in group.heads.tasks}.values())


def _selected(tokens: Tokens, layers: tuple[int, ...]) -> Tokens:
    return tokens if tokens.layers == layers else tokens.select(layers)


def _alike(views: Sequence[View]) -> list[list[View]]:
    """Views that keep the image's size, then those that swap its sides."""
    kept = [view for view in views if view.turns % 2 == 0]
    swapped = [view for view in views if view.turns % 2]
    return [part for part in (kept, swapped) if part]


def _by_shape(prepared: Sequence[Tensor]) -> list[list[int]]:
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(prepared):
        places.setdefault(tuple(image.shape), []).append(place)
    return list(places.values())
