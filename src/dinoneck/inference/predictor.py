"""Predictor: photos in, values in natural units out; several heads and views over one backbone pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.tuning import evaluating
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.header import head_files
from dinoneck.checkpoint.pairing import check_records
from dinoneck.checkpoint.records import need
from dinoneck.data.photos import Photo, Preprocessing, as_list
from dinoneck.errors import CheckpointError, ConfigError, DataError
from dinoneck.heads.ensemble import HeadEnsemble, shared_tasks
from dinoneck.heads.head import Head
from dinoneck.inference.rebuild import rebuild
from dinoneck.inference.tta import TTA, VIEWS, View
from dinoneck.tokens import Tokens

HeadSource = str | os.PathLike[str] | HeadCheckpoint | nn.Module


class _Loaded(NamedTuple):
    """A head with what its file says about backbone and inputs."""

    head: Head
    backbone: Mapping[str, Any] | None
    inputs: Preprocessing | None
    checkpoint: HeadCheckpoint | None = None


class _Voice(NamedTuple):
    """A head, or plain heads of the same layers as one, and how many heads stand behind each task."""

    layers: tuple[int, ...]
    head: Head
    votes: dict[str, int]


class Predictor:
    """Predicts from photos with one or several heads.

    Heads that know the same task are averaged in natural units (an ensemble counts as the one head it is), as
    are the views of test-time augmentation; all views of equal size go through the backbone as one batch. Given
    modules are used, not copied: they are put into eval mode for the call and back after it.

    Args:
        heads: head files, a folder of them, HeadCheckpoints or head modules; one or several.
        backbone: the backbone; None rebuilds it from the record in the files. It is checked against them.
        tta: ``"none"``, ``"flip4"`` (original, left-right, up-down, both) or ``"d6"`` (those and two quarter
            turns).
        device: where to run; None = where the backbone is.
        blur: odd kernel of a Gaussian blur with fixed sigma, instead of what the files say; None keeps that.
        preprocess: how photos are prepared, instead of what the files say.
        batch_size: photos per pass.
        probe: let what the backbone does decide whether it is the heads', in place of names and digests: for the same
            weights in another library or dtype, see :meth:`dinoneck.HeadCheckpoint.check_backbone`.

    Raises:
        CheckpointError: if the files disagree, or do not fit the backbone, or no backbone can be rebuilt.
        ConfigError: for an unknown ``tta``, one that does not fit the patch, or heads that disagree about a task.
        DataError: when called, if a prediction is not finite.

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
        probe: bool = False,
    ) -> None:
        if tta not in VIEWS:
            raise ConfigError(f"tta is {tta!r}; expected one of {', '.join(VIEWS)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
        loaded = [_load(source) for source in _sources(heads)]
        backbone = _rebuilt(loaded) if backbone is None else _checked(backbone)
        _check_pairing(loaded, backbone, probe)
        self.preprocess = (preprocess or _shared_inputs(loaded) or backbone.preprocess).changed(blur=blur)
        if not isinstance(backbone.patch_size, int) and any(view.turns % 2 for view in VIEWS[tta]):
            raise ConfigError(
                f"tta={tta!r} turns photos by 90 degrees; patches of {backbone.patch_size} px are not square"
            )
        self.tasks = shared_tasks([item.head for item in loaded])
        self._voices = _voices(loaded, backbone.layers)
        union = tuple(sorted({layer for voice in self._voices for layer in voice.layers}))
        self.backbone = backbone if union == backbone.layers else backbone.with_layers(union)
        if device is not None:
            self.backbone.to(usable_device(device))
        self.device = next(self.backbone.parameters()).device
        for voice in self._voices:
            voice.head.to(self.device)
        self.tta, self.views, self.batch_size = tta, VIEWS[tta], batch_size

    @torch.no_grad()
    def __call__(self, photos: Photo | Sequence[Photo], maps: bool = False) -> list[dict[str, Any]]:
        """Predict.

        Args:
            photos: paths, PIL images, arrays or tensors, see :class:`dinoneck.data.Preprocessing`.
            maps: add ``"maps": {task: (dim, rows, cols)}``, what every patch says, in the orientation of the
                photo.

        Returns:
            One dict per photo: task name -> a float, or an array (dim,) for tasks of several outputs; for dense and
            segmentation tasks the mean of what ``maps`` shows over the cells that hold photo, not padding.
        """
        results: list[dict[str, Any]] = []
        waiting = as_list(photos)
        with evaluating(self.backbone, *(voice.head for voice in self._voices)):
            self._predict_all(waiting, maps, results)
        return results

    def _predict_all(self, waiting: list[Photo], maps: bool, results: list[dict[str, Any]]) -> None:
        """Photos of one batch may have different sizes: those of one size go together."""
        for begin in range(0, len(waiting), self.batch_size):
            prepared = [self.preprocess.prepare(photo) for photo in waiting[begin : begin + self.batch_size]]
            batch: list[dict[str, Any] | None] = [None] * len(prepared)
            for places in _by_shape([one.images for one in prepared]):
                images = torch.cat([prepared[place].images for place in places]).to(self.device)
                valid = torch.stack([prepared[place].valid[None] for place in places]).to(self.device, images.dtype)
                for place, row in zip(places, self._predict(images, valid, maps), strict=True):
                    batch[place] = row
            results.extend(cast("list[dict[str, Any]]", batch))

    def _predict(self, images: Tensor, valid: Tensor, maps: bool) -> list[dict[str, Any]]:
        """Values (and maps) of a batch of prepared images of one size, averaged over views."""
        values: dict[str, list[Tensor]] = {task.name: [] for task in self.tasks}
        pictures: dict[str, list[Tensor]] = {task.name: [] for task in self.tasks}
        for views in _alike(self.views):
            tokens = self.backbone(torch.cat([view.apply(images) for view in views]))
            for name, answer in self._averaged(tokens, lambda head, x: head.predict(x)).items():
                value = answer
                if answer.ndim == 4:
                    value = _mean_of_cells(answer, torch.cat([view.apply(valid) for view in views]))
                values[name].extend(value.chunk(len(views)))
            drawn = self._averaged(tokens, lambda head, x: head.predict_maps(x)) if maps else {}
            for name, picture in drawn.items():
                parts = picture.chunk(len(views))
                pictures[name].extend(view.undo(part) for view, part in zip(views, parts, strict=True))
        means = {name: torch.stack(parts).mean(dim=0).cpu() for name, parts in values.items()}
        for name, mean in means.items():
            if not bool(mean.isfinite().all()):
                raise DataError(
                    f"the prediction of {name!r} is {mean[~mean.isfinite()][0].item()}; the head or photo is unfit"
                )
        shown = {name: torch.stack(parts).mean(dim=0).cpu() for name, parts in pictures.items() if parts}
        rows: list[dict[str, Any]] = []
        for i in range(len(images)):
            row: dict[str, Any] = {
                name: mean[i].item() if mean.shape[1] == 1 else mean[i].numpy() for name, mean in means.items()
            }
            rows.append(row | {"maps": {name: picture[i].numpy() for name, picture in shown.items()}} if maps else row)
        return rows

    def _averaged(self, tokens: Tokens, ask: Callable[[Head, Tokens], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What the heads say, averaged per task over all heads that say something."""
        sums: dict[str, Tensor] = {}
        votes: dict[str, int] = {}
        for voice in self._voices:
            own = next(voice.head.parameters()).dtype
            said = ask(voice.head, _selected(tokens, voice.layers).to(dtype=own))
            for name, answer in said.items():
                count = voice.votes[name]
                sums[name] = sums[name] + count * answer if name in sums else count * answer
                votes[name] = votes.get(name, 0) + count
        return {task.name: sums[task.name] / votes[task.name] for task in self.tasks if task.name in sums}


def _mean_of_cells(maps: Tensor, valid: Tensor) -> Tensor:
    """(B, dim): means of maps over the cells that show the photo and no padding, valid (B, 1, rows, cols)."""
    counts = torch.nn.functional.interpolate(valid, size=maps.shape[-2:], mode="nearest").to(maps.dtype)
    return (maps * counts).sum(dim=(2, 3)) / counts.sum(dim=(2, 3))


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device on which tensors can be made.

    Raises:
        ConfigError: if there is none by this name here.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise ConfigError("device 'meta' holds no values; use cpu or cuda")
    return found


def _sources(heads: HeadSource | Sequence[HeadSource]) -> Iterator[HeadSource]:
    """One source per head; a folder stands for the head files in it."""
    single = isinstance(heads, str | os.PathLike | HeadCheckpoint | nn.Module)
    listed = [cast("HeadSource", heads)] if single else list(cast("Sequence[HeadSource]", heads))
    if not listed:
        raise CheckpointError("no heads were given")
    for source in listed:
        if isinstance(source, str | os.PathLike):
            yield from head_files(source)
        else:
            yield source


def _load(source: HeadSource) -> _Loaded:
    if isinstance(source, str | os.PathLike):
        source = HeadCheckpoint.load(source)
    module = source.build() if isinstance(source, HeadCheckpoint) else source
    if not isinstance(module, Head):
        raise CheckpointError(f"{type(module).__name__} is no head with tasks; it cannot predict", step="pairing")
    if isinstance(source, HeadCheckpoint):
        return _Loaded(module, source.meta["backbone"], source.preprocess, source)
    return _Loaded(module, None, None)


def _rebuilt(loaded: Sequence[_Loaded]) -> Backbone:
    """Load the backbone that the files name, with the LoRA weights that travel with them."""
    tuned = {(item.backbone.get("adapter") or {}).get("sha256") for item in loaded if item.backbone is not None}
    if len(tuned) > 1:
        raise CheckpointError(
            "the heads were trained with different LoRA weights, which one backbone cannot have at once; predict with "
            "them one by one",
            step="pairing",
        )
    record = next((item.backbone for item in loaded if item.backbone is not None), None)
    if record is None:
        raise CheckpointError("the heads do not say which backbone they need; pass backbone=", step="pairing")
    backbone = rebuild(record)
    for item in loaded:
        if item.checkpoint is not None and item.checkpoint.adapter_state:
            item.checkpoint.apply_adapter(backbone)
            break
    return backbone


def _checked(backbone: Backbone) -> Backbone:
    """A Backbone, or one that torch.compile wraps."""
    if isinstance(getattr(backbone, "_orig_mod", backbone), Backbone):
        return backbone
    raise ConfigError(f"backbone is {type(backbone).__name__}; expected a Backbone: pass wrap_backbone(model)")


def _check_pairing(loaded: Sequence[_Loaded], backbone: Backbone, probe: bool) -> None:
    if probe:
        for item in loaded:
            if item.checkpoint is not None:
                layers = need(item.checkpoint.meta["backbone"] or {}, "layers")
                item.checkpoint.check_backbone(backbone.with_layers(layers), probe=True)
        return
    own = backbone.record() if any(item.backbone is not None for item in loaded) else {}
    for item in loaded:
        if item.backbone is not None:
            check_records(item.backbone, own, layers=False)


def _shared_inputs(loaded: Sequence[_Loaded]) -> Preprocessing | None:
    found = [item.inputs for item in loaded if item.inputs is not None]
    for other in found[1:]:
        if other != found[0]:
            one, two = found[0].record(), other.record()
            differ = ", ".join(f"{key} {one[key]!r} / {two[key]!r}" for key in one if one[key] != two[key])
            raise CheckpointError(
                f"the heads need photos prepared differently ({differ}); predict with them one by one, or pass "
                "preprocess=",
                step="pairing",
            )
    return found[0] if found else None


def _voices(loaded: Sequence[_Loaded], default: tuple[int, ...]) -> list[_Voice]:
    """Plain heads of the same layers and dtype answer together; an ensemble answers as it is."""
    plain: dict[tuple[tuple[int, ...], torch.dtype], list[Head]] = {}
    voices = []
    for item in loaded:
        own = getattr(item.head, "layer_indices", None) or default
        layers = own if item.backbone is None else tuple(need(item.backbone, "layers"))
        if isinstance(item.head, HeadEnsemble):
            voices.append(_Voice(layers, item.head, {task.name: 1 for task in item.head.tasks}))
        else:
            plain.setdefault((layers, next(item.head.parameters()).dtype), []).append(item.head)
    for (layers, _), heads in plain.items():
        names = [task.name for head in heads for task in head.tasks]
        voices.append(_Voice(layers, HeadEnsemble.from_heads(heads), {name: names.count(name) for name in names}))
    return voices


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
