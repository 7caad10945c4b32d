"""One pass of the backbone over images, and the heads that read its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone
from dinoneck.data.decoding import ImageInput, read_image_size
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.devices import fetch, send
from dinoneck.errors import BackboneError, CheckpointError, ConfigError
from dinoneck.grid import GridSize, PreparedImages
from dinoneck.heads.ensemble import HeadEnsemble, scores_places
from dinoneck.inference.results import GATE, BatchPredictions
from dinoneck.inference.tiles import VIEWS, Assembly, TileAxis, Tiling, View
from dinoneck.tokens import Tokens

Rows = dict[str, list[dict[str, Any]]]


class Reading(NamedTuple):
    """Heads, and what they read of a pass.

    Attributes:
        heads: several as one ensemble.
        layers: block indices.
        norm: whether the final norm is applied.
        inputs: how its images are prepared; None where it is not recorded.
    """

    heads: HeadEnsemble
    layers: tuple[int, ...]
    norm: bool
    inputs: Preprocessing | None

    def tokens(self, backbone: Backbone, tokens: Tokens) -> Tokens:
        """Return the layers that the heads read, with or without the norm, in their dtype."""
        own = tokens if tokens.layers == self.layers else tokens.select(self.layers)
        own = backbone.normalised(own) if self.norm else own
        return own.to(dtype=next(self.heads.parameters()).dtype)

    def check_grid(self, seen: GridSize, turned: bool) -> None:
        """Refuse a view whose patches have other places than those that one of the heads scores.

        Args:
            seen: the grid of the view.
            turned: whether it is the image turned by a quarter.

        Raises:
            CheckpointError: naming both grids.
        """
        if not scores_places(self.heads):
            return
        expected = (self.inputs and self.inputs.grid()) or (GridSize(seen.cols, seen.rows) if turned else seen)
        if seen != expected:
            raise CheckpointError(
                f"a head with a gate of mode 'mlp' scores the places of one grid, {expected.rows} rows x "
                f"{expected.cols} cols; it is given {seen.rows} x {seen.cols}. Prepare images as in training "
                "(preprocess=), without views that turn them (tta=), or build the head with mode='resized' or 'query'",
                step="pairing",
            )


class Pass:
    """A backbone, how its images are prepared, and the heads that read its tokens, by their keys.

    Args:
        readings: key -> heads.
        backbone: with the weights that the heads need; its layers and norm follow from them.
        preprocess: how images are prepared.
        tta: the views that are averaged.
        tiling: how large images are cut; None = they are not.
        batch_size: images or tiles at once.

    Raises:
        ConfigError: if views or tiles do not fit the patch.
    """

    def __init__(
        self,
        readings: Mapping[str, Reading],
        backbone: Backbone,
        preprocess: Preprocessing,
        tta: str,
        tiling: Tiling | None,
        batch_size: int | None,
    ) -> None:
        self.readings, self.preprocess, self.tiling = dict(readings), preprocess, tiling
        self.tta, self.views = tta, VIEWS[tta]
        self.batch_size = batch_size or (4 if next(backbone.parameters()).device.type == "cpu" else 8)
        if tiling is not None:
            tiling.check(preprocess)
        if not isinstance(backbone.patch_size, int) and any(view.turns % 2 for view in self.views):
            raise ConfigError(
                f"tta={tta!r} turns images by 90 degrees; patches of {backbone.patch_size} px are not square"
            )
        union = tuple(sorted({layer for reading in readings.values() for layer in reading.layers}))
        norm = all(reading.norm for reading in readings.values())
        same = (union, norm) == (backbone.layers, backbone.norm)
        self.backbone = backbone if same else backbone.with_layers(union, norm)
        self._watch = weight_hashes.Watch(backbone.adapter)

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that run."""
        return [self.backbone, *(reading.heads for reading in self.readings.values())]

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return next(self.backbone.parameters()).device

    def check_weights(self) -> None:
        """Compare the backbone's weights with those at construction.

        Raises:
            BackboneError: if they changed.
        """
        if not self._watch.is_same(self.backbone.adapter):
            raise BackboneError(
                f"the weights of {self.backbone.name!r} changed after this Predictor was made, or its LoRA was "
                "switched off or on, so its heads do not fit them; load the backbone again, train heads on the new "
                "weights, or make a new Predictor of heads that were trained along"
            )

    def ready(self, pixels: Tensor) -> PreparedImages | Tensor:
        """Prepare a decoded image, unless it is cut into tiles; called by threads."""
        return pixels if self.is_cut(pixels) else self._prepared(pixels)

    def recipe(self, image: ImageInput) -> Preprocessing:
        """Return how this image is prepared."""
        return self.preprocess if self.tiling is None else self.tiling.recipe(image_size(image), self.preprocess)

    def is_cut(self, image: ImageInput) -> bool:
        """Whether this image is cut into tiles."""
        return self.tiling is not None and not self.tiling.fits(image_size(image))

    def cut(self, pixels: Tensor) -> tuple[Tensor, tuple[TileAxis, TileAxis]]:
        """Return a large image, prepared as a whole (1, 3, H, W), and where its tiles lie."""
        prepared = self._prepared(pixels)
        return prepared.images, cast("Tiling", self.tiling).axes(prepared.grid, self.preprocess)

    def predict(self, images: Sequence[PreparedImages | Tensor], maps: bool) -> Rows:
        """Return key -> the row of every image; those of one size are one batch."""
        rows: dict[str, list[Any]] = {key: [None] * len(images) for key in self.readings}
        prepared = {place: image for place, image in enumerate(images) if not isinstance(image, Tensor)}
        for places in _by_shape({place: image.images for place, image in prepared.items()}):
            batch = torch.cat([prepared[place].images for place in places])
            valid = torch.stack([prepared[place].valid[None] for place in places]).to(batch.dtype)
            batch, valid = send([batch, valid], self.device)
            for key, averages in self._averages(batch, valid, maps).items():
                found = averages.derived(self.readings[key].heads.predicted).rows(maps)
                for place, row in zip(places, found, strict=True):
                    rows[key][place] = row
        for place, image in enumerate(images):
            if isinstance(image, Tensor):
                for key, whole in self._tiled(image, maps).items():
                    rows[key][place] = whole.rows(maps)[0]
        return rows

    def stored(self, batches: Sequence[tuple[View, Tokens]], maps: bool) -> Rows:
        """Return key -> the row of every image, from its tokens under every view."""
        found = {key: _Views({}, {}) for key in self.readings}
        for view, tokens in batches:
            self._read(tokens.to(device=self.device), [view], None, maps, found)
        averages = _averages_of(found)
        return {key: one.derived(self.readings[key].heads.predicted).rows(maps) for key, one in averages.items()}

    def _prepared(self, pixels: Tensor) -> PreparedImages:
        recipe = self.recipe(pixels)
        return recipe.finished([recipe.fitted(pixels)])

    def _tiled(self, pixels: Tensor, maps: bool) -> dict[str, BatchPredictions]:
        """The predictions for an image that is larger than a tile, a batch of tiles at a time."""
        image, (rows, cols) = self.cut(pixels)
        by_cells = {key: reading.heads.by_cells() for key, reading in self.readings.items()}
        wholes = {
            key: Assembly(rows, cols, reading.heads.predicted, by_cells[key]) for key, reading in self.readings.items()
        }
        places = next(iter(wholes.values())).places
        for begin in range(0, len(places), self.batch_size):
            part = places[begin : begin + self.batch_size]
            [tiles] = send([next(iter(wholes.values())).cut(image, part)], self.device)
            valid = tiles.new_ones(len(part), 1, rows.length, cols.length)
            for key, averages in self._averages(tiles, valid, maps or any(by_cells.values())).items():
                wholes[key].add(part, averages)
        return {key: whole.whole() for key, whole in wholes.items()}

    def _averages(self, images: Tensor, valid: Tensor, maps: bool) -> dict[str, BatchPredictions]:
        """Values (and maps) of a batch of prepared images of one size, averaged over views."""
        found = {key: _Views({}, {}) for key in self.readings}
        at_once = max(1, self.batch_size // len(images)) if images.device.type == "cpu" else len(self.views)
        for views in _alike(self.views, at_once):
            tokens = self.backbone(torch.cat([view.apply(images) for view in views]), self._watch.fingerprint)
            self._read(tokens, views, torch.cat([view.apply(valid) for view in views]), maps, found)
        return _averages_of(found)

    def _read(
        self, tokens: Tokens, views: Sequence[View], valid: Tensor | None, maps: bool, found: Mapping[str, _Views]
    ) -> None:
        """Take what the heads read of the tokens of these views, a batch each; ``valid`` None: every cell counts."""
        for key, reading in self.readings.items():
            reading.check_grid(tokens.grid, turned=bool(views[0].turns % 2))
            own = reading.tokens(self.backbone, tokens)
            for name, output in reading.heads.averaged(own).items():
                value = output if output.ndim == 2 else _mean_of_cells(output, valid)
                found[key].values.setdefault(name, []).extend(value.chunk(len(views)))
            if maps:
                gate = reading.heads.gate(own)
                pictures = reading.heads.predict_maps(own) | ({} if gate is None else {GATE: gate[:, None]})
                for name, picture in pictures.items():
                    found[key].maps.setdefault(name, []).extend(_upright(picture, views))


class _Views(NamedTuple):
    """Predictions of every view: task name -> values, and task name (or :data:`GATE`) -> maps."""

    values: dict[str, list[Tensor]]
    maps: dict[str, list[Tensor]]


def _averages_of(found: Mapping[str, _Views]) -> dict[str, BatchPredictions]:
    """The means over views on the CPU; the host waits for the device here only."""
    groups = [group for own in found.values() for group in own]
    read = iter(fetch([torch.stack(parts).mean(dim=0) for group in groups for parts in group.values()]))
    return {
        key: BatchPredictions(*({name: next(read) for name in group} for group in own)) for key, own in found.items()
    }


def image_size(image: ImageInput) -> tuple[int, int]:
    """(height, width) in pixels, upright."""
    if isinstance(image, Tensor) and image.ndim == 3:
        return image.shape[-2], image.shape[-1]
    return read_image_size(image)


def _mean_of_cells(maps: Tensor, valid: Tensor | None) -> Tensor:
    """(B, dim): means of maps over the cells that show the image and no padding, valid (B, 1, rows, cols)."""
    if valid is None:
        return maps.mean(dim=(2, 3))
    counts = nn.functional.interpolate(valid, size=maps.shape[-2:], mode="nearest").to(maps.dtype)
    return (maps * counts).sum(dim=(2, 3)) / counts.sum(dim=(2, 3))


def _upright(pictures: Tensor, views: Sequence[View]) -> list[Tensor]:
    """Maps of several views, a batch each, in the orientation of the image."""
    return [view.undo(part) for view, part in zip(views, pictures.chunk(len(views)), strict=True)]


def _alike(views: Sequence[View], at_once: int) -> list[list[View]]:
    """Views that keep the image's size, then those that swap its sides, at most so many together."""
    kept = [view for view in views if view.turns % 2 == 0]
    swapped = [view for view in views if view.turns % 2]
    return [part[i : i + at_once] for part in (kept, swapped) for i in range(0, len(part), at_once)]


def _by_shape(images: Mapping[int, Tensor]) -> list[list[int]]:
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in images.items():
        places.setdefault(tuple(image.shape), []).append(place)
    return list(places.values())
