"""Predictor: images in, values in natural units out; several heads, views and tiles over one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.adapter import evaluating
from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.checkpoint.pairing import check_patch
from dinoneck.data.decoding import ImageInput, as_list, read_image_size, read_pixels
from dinoneck.data.loading import in_threads
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.devices import fetch, local_device, send
from dinoneck.errors import BackboneError, ConfigError
from dinoneck.grid import PreparedImages
from dinoneck.heads.head import recompute_derived
from dinoneck.inference.combined import CombinedHeads, Reduce, check_weights
from dinoneck.inference.results import BatchPredictions
from dinoneck.inference.sources import (
    HeadSource,
    check_pairing,
    listed,
    load,
    opened,
    rebuilt_backbone,
    recorded_views,
    revisions_of,
    shared_inputs,
)
from dinoneck.inference.tiles import TTA, VIEWS, Assembly, TileAxis, Tiling, View
from dinoneck.tokens import Tokens


class Predictor:
    """Predicts from images with one or several heads.

    Heads that know the same task are averaged in natural units (an ensemble counts as the one head it is), as
    are the views of test-time augmentation. All views of equal size go through the backbone as one batch (on a CPU,
    where large passes cost more than they save, as many as ``batch_size`` allows), and all heads read its one pass.
    Given modules are used, not copied: they are put into eval mode for the call and back after it.

    Threads may call one predictor at once, and several predictors that share a backbone or heads: each call returns
    what it returns alone, bit for bit, and the modules get their modes back when the last of the calls ends. Do not
    train, move or convert these modules meanwhile, or switch LoRA off. Threads that ask for single images share passes
    through a :class:`dinoneck.inference.MicroBatcher`.

    Images larger than ``tile`` are cut into tiles, which are predicted one by one as images of the heads' size. Maps
    fade into each other where tiles overlap, with weights that add up to one at every cell. The value of a ``density``
    task that adds up is the sum of the whole map: every cell counts exactly once, so it is the mass or count of the
    whole image. Tasks of kind ``dense``, ``segmentation`` and ``density`` with ``aggregate="mean"``, regressions with
    ``from_cells`` and PatchMeanHead's regressions are the mean of the whole map. Composed parts add up to the total of
    the whole image. Pooled regressions, ratios and classes are the mean of the tiles' predictions, weighted by the area
    each stands for: a regression in grams per image gives **grams per tile**. ``minimum`` is applied to the whole
    image's value too. A tile knows nothing of its neighbours.

    Args:
        heads: head files, folders of head files, hub repositories (``"user/name"``), HeadCheckpoints or head modules;
            one or several.
        backbone: the backbone; None rebuilds it from the record in the files. It is checked against them.
        tta: ``"none"`` (the image alone), ``"flip4"`` (original, left-right, up-down, both) or ``"d6"`` (those and two
            quarter turns). None = as the files of the heads record, which must agree; modules record none.
        device: where to run; None = where the backbone is.
        tile: (height, width) in pixels of the image (times ``tile_scale``), one number for both, or None: no tiles.
            Where the heads have a size of their own, a tile is brought to it: give the size of the training images at
            their own resolution, so that things look as large as they did. Else it is a multiple of the patch. A
            image that fits a tile is predicted as without tiles; one that is smaller on one side only is not cut along
            it and shows less than a tile there.
        overlap: by how much tiles overlap at least: an int in the same pixels, or a float, the share of a tile (0.25).
        tile_scale: images' sides are multiplied by it before they are cut: 0.5 for images of twice the training
            images' resolution. 1 = their own resolution.
        weights: one number of 0 or more per head, in the order given (files of a folder sorted by name); None = equal.
        reduce: ``"mean"`` or ``"median"`` over the heads that know a task; views and tiles are always averaged.
        blur: odd kernel of a Gaussian blur with fixed sigma, instead of that of the files; None keeps it.
        preprocess: how images are prepared, instead of the records of the files.
        batch_size: images or tiles per pass; on a CPU, views of images or tiles. None = 8, on a CPU 4.
        probe: let what the backbone does decide whether it is the heads', in place of names and digests: for the same
            weights in another library or dtype, see :meth:`dinoneck.HeadCheckpoint.check_backbone`.
        revision: branch, tag or commit of the hub repositories among the heads.

    Attributes:
        revisions: hub repository -> the commit its heads are of; empty for local heads.
        tta: the name of the views that are averaged.

    Raises:
        BackboneError: when called, if the backbone's weights changed meanwhile, or LoRA was switched off or on.
        CheckpointError: if the files disagree, hold one head twice, or do not fit the backbone, or no backbone can be
            rebuilt; when called, if a head that scores the places of one patch grid is given another.
        ConfigError: for an unknown ``tta``, one that does not fit the patch, tiles or weights that do not fit, or heads
            that disagree about a task.
        DataError: when called, if a prediction is not finite.

    Examples:
        >>> from dinoneck import PatchMeanHead, Task, load_backbone
        >>> head = PatchMeanHead(64, [Task("total", unit="g")])
        >>> predictor = Predictor(head, load_backbone("dinoneck_tiny"), tile=32, overlap=16)
        >>> [result] = predictor(torch.rand(3, 32, 96), maps=True)
        >>> result["maps"]["total"].shape
        (1, 2, 6)
    """

    def __init__(
        self,
        heads: HeadSource | Sequence[HeadSource],
        backbone: Backbone | None = None,
        tta: TTA | None = None,
        device: torch.device | str | None = None,
        *,
        tile: int | tuple[int, int] | None = None,
        overlap: int | float = 0,
        tile_scale: float = 1.0,
        weights: Sequence[float] | None = None,
        reduce: Reduce = "mean",
        blur: int | None = None,
        preprocess: Preprocessing | None = None,
        batch_size: int | None = None,
        probe: bool = False,
        revision: str | None = None,
    ) -> None:
        if tta is not None and tta not in VIEWS:
            raise ConfigError(f"tta is {tta!r}; expected one of {', '.join(VIEWS)}, or None")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; expected 1 or more, or None")
        self.tiling = _tiling(tile, overlap, tile_scale)
        sources = listed(heads)
        check_weights(weights, len(sources), reduce)
        read = opened(sources, revision)
        loaded = [load(source) for source in read]
        self.revisions = revisions_of(sources, read)
        self.tta = recorded_views(read) if tta is None else tta
        self.views = VIEWS[self.tta]
        backbone = rebuilt_backbone(loaded) if backbone is None else checked_backbone(backbone)
        check_pairing(loaded, backbone, probe)
        self._watch = weight_hashes.Watch(backbone.adapter)
        self.preprocess = (preprocess or shared_inputs(loaded) or backbone.preprocess).changed(blur=blur)
        check_patch(self.preprocess.patch_size, backbone.adapter.patch_size)
        if self.tiling is not None:
            self.tiling.check(self.preprocess)
        if not isinstance(backbone.patch_size, int) and any(view.turns % 2 for view in self.views):
            raise ConfigError(
                f"tta={self.tta!r} turns images by 90 degrees; patches of {backbone.patch_size} px are not square"
            )
        self._combined = CombinedHeads(loaded, backbone.layers, weights, reduce)
        self.tasks, union = self._combined.tasks, self._combined.layers
        self.backbone = backbone if union == backbone.layers else backbone.with_layers(union)
        if device is not None:
            self.backbone.to(local_device(device))
        self.device = next(self.backbone.parameters()).device
        for head in self._combined.heads:
            head.to(self.device)
        self.batch_size = batch_size or (4 if self.device.type == "cpu" else 8)

    @torch.no_grad()
    def __call__(self, images: ImageInput | Sequence[ImageInput], maps: bool = False) -> list[dict[str, Any]]:
        """Predict.

        Args:
            images: paths, PIL images, arrays or tensors, see :class:`dinoneck.data.Preprocessing`.
            maps: add ``"maps": {task: (dim, rows, cols)}``, the prediction of every patch, in the orientation of the
                image; and ``"gate": (rows, cols)``, where heads have one: what they looked at, adding up to one.

        Returns:
            One dict per image: task name -> a float, or an array (dim,) for tasks of several outputs and compositions;
            for dense and segmentation tasks the mean of what ``maps`` shows over the cells that hold image, not
            padding, of which a task with ``from_cells`` is one.
        """
        results: list[dict[str, Any]] = []
        if not self._watch.is_same(self.backbone.adapter):
            raise BackboneError(
                f"the weights of {self.backbone.name!r} changed after this Predictor was made, or its LoRA was "
                "switched off or on, so its heads do not fit them; load the backbone again, train heads on the new "
                "weights, or make a new Predictor of heads that were trained along"
            )
        ready = in_threads(self._ready, as_list(images))
        with evaluating(self.backbone, *self._combined.heads):
            while batch := list(islice(ready, self.batch_size)):
                results += self._predict_batch(batch, maps)
        return results

    def picture(self, image: ImageInput) -> Tensor:
        """Return an image as its maps lie on it: (3, H, W) RGB in 0 ... 1, sized, cropped or padded, but not cut."""
        return self._recipe(image).picture(image)

    def tiles(self, image: ImageInput) -> tuple[int, int]:
        """Return how many tiles (down, across) an image is cut into; (1, 1) for one that is not cut."""
        if not self._is_cut(image):
            return 1, 1
        rows, cols = self._cut(image)[1]
        return len(rows.starts), len(cols.starts)

    def _ready(self, image: ImageInput) -> PreparedImages | Tensor:
        """Decode an image, and prepare it unless it is cut into tiles; called by threads."""
        pixels = read_pixels(image)
        return pixels if self._is_cut(pixels) else self._recipe(pixels).prepare(pixels)

    def _predict_batch(self, images: Sequence[PreparedImages | Tensor], maps: bool) -> list[dict[str, Any]]:
        """Images of one batch may have different sizes: those of one size go together."""
        batch: list[dict[str, Any] | None] = [None] * len(images)
        waiting: dict[int, PreparedImages] = {}
        for place, image in enumerate(images):
            if isinstance(image, Tensor):
                batch[place] = self._tiled(image, maps).rows(maps)[0]
            else:
                waiting[place] = image
        for place, row in zip(waiting, self._predicted(list(waiting.values()), maps), strict=True):
            batch[place] = row
        return cast("list[dict[str, Any]]", batch)

    def _predicted(self, prepared: Sequence[PreparedImages], maps: bool) -> list[dict[str, Any]]:
        """The predictions for prepared images that are not cut, in their order; those of one size are one pass."""
        rows: list[dict[str, Any] | None] = [None] * len(prepared)
        for places in _by_shape([one.images for one in prepared]):
            images = torch.cat([prepared[place].images for place in places])
            valid = torch.stack([prepared[place].valid[None] for place in places]).to(images.dtype)
            images, valid = send([images, valid], self.device)
            for place, row in zip(places, self._predictions(images, valid, maps).rows(maps), strict=True):
                rows[place] = row
        return cast("list[dict[str, Any]]", rows)

    def _tiled(self, image: ImageInput, maps: bool) -> BatchPredictions:
        """The predictions for an image that is larger than a tile, a batch of tiles at a time."""
        images, (rows, cols) = self._cut(image)
        by_cells = self._combined.by_cells()
        whole = Assembly(rows, cols, self.tasks, by_cells)
        for begin in range(0, len(whole.places), self.batch_size):
            places = whole.places[begin : begin + self.batch_size]
            [tiles] = send([whole.cut(images, places)], self.device)
            valid = tiles.new_ones(len(places), 1, rows.length, cols.length)
            whole.add(places, self._predictions(tiles, valid, maps or bool(by_cells)))
        return whole.whole()

    def _cut(self, image: ImageInput) -> tuple[Tensor, tuple[TileAxis, TileAxis]]:
        """A large image, prepared as a whole (1, 3, H, W), and where its tiles lie."""
        prepared = self._recipe(image).prepare(image)
        return prepared.images, cast("Tiling", self.tiling).axes(prepared.grid, self.preprocess)

    def _is_cut(self, image: ImageInput) -> bool:
        return self.tiling is not None and not self.tiling.fits(_size(image))

    def _recipe(self, image: ImageInput) -> Preprocessing:
        return self.preprocess if self.tiling is None else self.tiling.recipe(_size(image), self.preprocess)

    def _predictions(self, images: Tensor, valid: Tensor, maps: bool) -> BatchPredictions:
        """Values (and maps) of a batch of prepared images of one size, averaged over views."""
        values: dict[str, list[Tensor]] = {}
        pictures: dict[str, list[Tensor]] = {}
        gates: list[Tensor] = []
        at_once = max(1, self.batch_size // len(images)) if images.device.type == "cpu" else len(self.views)
        for views in _alike(self.views, at_once):
            tokens: Tokens = self.backbone(torch.cat([view.apply(images) for view in views]))
            self._combined.check_grid(tokens.grid, turned=bool(views[0].turns % 2))
            for name, output in self._combined.values(tokens).items():
                value = output
                if output.ndim == 4:
                    value = _mean_of_cells(output, torch.cat([view.apply(valid) for view in views]))
                values.setdefault(name, []).extend(value.chunk(len(views)))
            if not maps:
                continue
            for name, picture in self._combined.maps(tokens).items():
                pictures.setdefault(name, []).extend(_upright(picture, views))
            gate = self._combined.gate(tokens)
            gates += [] if gate is None else _upright(gate, views)
        means = [torch.stack(parts).mean(dim=0) for parts in (*values.values(), *pictures.values(), gates) if parts]
        read = iter(fetch(means))  # the host waits for the device here only
        return BatchPredictions(
            recompute_derived(self.tasks, {name: next(read) for name in values}),
            {name: next(read) for name in pictures},
            next(read) if gates else None,
        )


def _tiling(tile: int | tuple[int, int] | None, overlap: int | float, scale: float) -> Tiling | None:
    if tile is not None:
        return Tiling(cast("tuple[int, int]", tile), overlap, scale)
    if overlap != 0 or scale != 1:
        raise ConfigError(f"overlap is {overlap!r} and tile_scale {scale!r}, but tile is None; give the size of a tile")
    return None


def _size(image: ImageInput) -> tuple[int, int]:
    """(height, width) in pixels, upright."""
    if isinstance(image, Tensor) and image.ndim == 3:
        return image.shape[-2], image.shape[-1]
    return read_image_size(image)


def _mean_of_cells(maps: Tensor, valid: Tensor) -> Tensor:
    """(B, dim): means of maps over the cells that show the image and no padding, valid (B, 1, rows, cols)."""
    counts = torch.nn.functional.interpolate(valid, size=maps.shape[-2:], mode="nearest").to(maps.dtype)
    return (maps * counts).sum(dim=(2, 3)) / counts.sum(dim=(2, 3))


def _upright(pictures: Tensor, views: Sequence[View]) -> list[Tensor]:
    """Maps of several views, a batch each, in the orientation of the image."""
    return [view.undo(part) for view, part in zip(views, pictures.chunk(len(views)), strict=True)]


def _alike(views: Sequence[View], at_once: int) -> list[list[View]]:
    """Views that keep the image's size, then those that swap its sides, at most so many together."""
    kept = [view for view in views if view.turns % 2 == 0]
    swapped = [view for view in views if view.turns % 2]
    return [part[i : i + at_once] for part in (kept, swapped) for i in range(0, len(part), at_once)]


def _by_shape(images: Sequence[Tensor]) -> list[list[int]]:
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(tuple(image.shape), []).append(place)
    return list(places.values())
