"""One pass of the backbone over images, and the heads that read its tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone, plain_backbone
from dinoneck.checkpoint.compare import check_records
from dinoneck.devices import fetch, send
from dinoneck.errors import BackboneError, CheckpointError, ConfigError
from dinoneck.grid import PreparedImages
from dinoneck.heads.ensemble import (
    tasks_by_cells,
    with_interval,
    without_intervals_of_other_views,
)
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.recipe import Placement, Size
from dinoneck.inference.alike import difference
from dinoneck.inference.cropped_masks import CropMemory, CroppedMasks
from dinoneck.inference.loaded_head import LoadedHead
from dinoneck.inference.predictions import Prediction, predictions_of
from dinoneck.inference.resolution import objects_at_image_size
from dinoneck.inference.tile_merging import Tile, tiles_of
from dinoneck.inference.tiled_objects import TiledObjects, tiled_objects
from dinoneck.inference.tiles import Assembly, Tiling, cut_tiles, tile_positions
from dinoneck.inference.views import (
    VIEWS,
    AveragedOutputs,
    ViewAverage,
    ViewBatch,
    swaps_sides,
    views_that_swap_alike,
)
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens

if TYPE_CHECKING:
    from dinoneck.store.feature_store import FeatureStore

_BATCH_SIZE = 8
_BATCH_SIZE_ON_CPU = 4  # larger batches cost more there than they save


@dataclass(frozen=True)
class WholeImage:
    """An image that a pass takes as a whole.

    Attributes:
        size: (height, width) of the upright image.
        prepared: the image as the backbone takes it.
    """

    size: Size
    prepared: PreparedImages


@dataclass(frozen=True)
class TiledImage:
    """An image that a pass cuts into tiles.

    Attributes:
        size: (height, width) of the upright image.
        pixels: (channels, height, width), not yet prepared, since that takes several times the
            memory: the image is prepared as a whole when its turn comes, then cut; for objects it
            is cut, then tile by tile prepared.
        tiling: how it is cut.
        object_tiling: how it is cut for objects.
    """

    size: Size
    pixels: Tensor
    tiling: Tiling
    object_tiling: Tiling

    def part(self, tile: Tile) -> Tensor:
        """Return the pixels of a tile, (channels, h, w)."""
        rows = slice(tile.top, tile.top + tile.height)
        cols = slice(tile.left, tile.left + tile.width)
        return self.pixels[:, rows, cols]


PassImage = WholeImage | TiledImage


class Pass:
    """A backbone, how its images are prepared, and the heads that read its tokens, by their keys.

    A pass calls its backbone for every batch of images or tiles, and for some views at a time.

    Args:
        heads: key -> heads.
        backbone: with the weights that the heads need; its layers and norm follow from them.
        preprocess: how images are prepared.
        tta: the name of the views that are averaged.
        tiling: how large images are cut; None = they are not.
        object_tiling: how they are cut for objects; None = they are not.
        batch_size: images or tiles per call of the backbone, with all views of one size; on a CPU,
            images or tiles times views. None = 8, on a CPU 4.
        interval: the level of the intervals of predictions; None: they have none.

    Raises:
        ConfigError: if views or tiles do not fit the patch, or views do not go with objects.
    """

    def __init__(
        self,
        *,
        heads: Mapping[str, LoadedHead],
        backbone: Backbone,
        preprocess: Preprocessing,
        tta: str,
        tiling: Tiling | None,
        object_tiling: Tiling | None,
        batch_size: int | None,
        interval: float | None = None,
    ) -> None:
        if tiling is not None:
            tiling.check(preprocess)
        if tta == "d6" and not isinstance(backbone.patch_size, int):
            raise ConfigError(
                f"tta={tta!r} turns images by 90 degrees; patches of {backbone.patch_size} px are "
                "not square"
            )
        self.preprocess = preprocess
        self.tta = tta
        self.views = VIEWS[tta]
        self.tiling = tiling
        self.object_tiling = object_tiling
        self.interval = interval
        self.heads: dict[str, LoadedHead] = {}
        self.tasks: dict[str, tuple[Task, ...]] = {}
        self.object_tasks: dict[str, Task] = {}
        for key, loaded_head in heads.items():
            self.heads[key] = loaded_head.completed_from(backbone)
            self.tasks[key] = tuple(map(self._with_valid_interval, loaded_head.head.predicted))
            if loaded_head.object_task is not None:
                self.object_tasks[key] = loaded_head.object_task
        self._check_objects_have_one_view()
        self.backbone = _backbone_for(self.heads.values(), backbone)
        self.device = next(self.backbone.parameters()).device
        default_batch_size = _BATCH_SIZE_ON_CPU if self.device.type == "cpu" else _BATCH_SIZE
        self.batch_size = batch_size or default_batch_size
        self.num_expected = 0
        self._watch = weight_hashes.Watch(backbone.adapter)

    def _with_valid_interval(self, task: Task) -> Task:
        """A task, without intervals that do not hold for predictions of this pass."""
        if self.tiling is not None:  # intervals are of images like those of the training
            return with_interval(task, ())
        return without_intervals_of_other_views(task, self.tta)

    @property
    def modules(self) -> list[nn.Module]:
        """The backbone, then the heads."""
        return [self.backbone, *(loaded_head.head for loaded_head in self.heads.values())]

    def check_weights(self) -> None:
        """Compare the backbone's weights with those at construction.

        Raises:
            BackboneError: if they changed.
        """
        if not self._watch.is_same(self.backbone.adapter):
            raise BackboneError(
                f"the weights of {self.backbone.name!r} changed after this Predictor was made, or "
                "its LoRA was switched off or on, so its heads do not fit them; load the backbone "
                "again, train heads on the new weights, or make a new Predictor of heads that "
                "were trained along"
            )

    def check_store(self, store: FeatureStore) -> None:
        """Refuse tokens that are not those of this pass.

        Raises:
            CheckpointError: if they are of another backbone, other layers, or of images that were
                prepared differently.
            ConfigError: if a view is not stored, and for maps of padded images: a store does not
                record which patches show the image.
        """
        expected = self.backbone.record()
        stored = dict(store.backbone_record)
        stored.setdefault("norm", None)
        stored.setdefault("layers", None)
        if stored["norm"] is False:
            stored["norm"] = expected["norm"]  # the norm can still be applied
        if set(expected["layers"]) <= set(stored["layers"] or ()):
            stored["layers"] = expected["layers"]  # the layers can be selected
        check_records(expected, stored)

        text = difference(self.preprocess.record(), store.preprocess.record(), "inputs")
        if text is not None:
            raise CheckpointError(
                f"the heads need images prepared differently than those of {store.path} "
                f"({text}); extract a store with the preprocessing of the heads, or pass "
                "preprocess=",
                step="pairing",
            )
        for view in self.views.views:
            if view not in store.views.views:
                raise ConfigError(
                    f"{store.path} does not hold the view {view}; extract with views='flips4' "
                    "or 'd6', or predict with tta='none' (--tta none)"
                )
        has_padding = store.preprocess.resize == "pad"
        for loaded_head in self.heads.values():
            for task in loaded_head.head.tasks:
                if task.is_masks or (task.is_map and has_padding):
                    raise ConfigError(
                        f"{store.path} records neither the sizes of the images nor which patches "
                        f"are padding, which {task.name!r} needs; predict from the images"
                    )

    def count_images(self, count: int) -> Counter[Size]:
        """Return how many inputs of each size the backbone gets of so many images; empty where that depends on them."""
        size = self.preprocess.prepared_size()
        if size is None or self.tiling is not None:
            return Counter()
        return self._count_inputs(size, count)

    def recipe(self, size: Size) -> Preprocessing:
        """Return how an image of this (height, width) is prepared."""
        if self.tiling is None:
            return self.preprocess
        return self.tiling.recipe(size, self.preprocess)

    def prepare(self, pixels: Tensor) -> PassImage:
        """Prepare a decoded image, unless it is cut into tiles: see :class:`TiledImage`."""
        size = (pixels.shape[-2], pixels.shape[-1])
        if self.tiling is not None and self.object_tiling is not None:
            if not self.tiling.fits(size):
                return TiledImage(
                    size=size,
                    pixels=pixels,
                    tiling=self.tiling,
                    object_tiling=self.object_tiling,
                )
        return WholeImage(size=size, prepared=self._prepare_pixels(pixels))

    def predict_images(
        self, images: Sequence[PassImage], with_maps: bool, min_score: float | None = None
    ) -> list[dict[str, Prediction]]:
        """Return the predictions for every image, by the keys of the heads.

        Images of one prepared size are one batch.

        Args:
            images: of :meth:`prepare`.
            with_maps: with maps per patch.
            min_score: leave out objects of a lower score; None = as recorded in the heads.
        """
        predictions: dict[int, dict[str, Prediction]] = {}
        batches: dict[torch.Size, dict[int, WholeImage]] = defaultdict(dict)
        for i, image in enumerate(images):
            if isinstance(image, TiledImage):
                predictions[i] = self._predict_tiles(image, with_maps, min_score)
            else:
                batches[image.prepared.images.shape][i] = image
        for batch in batches.values():
            batch_predictions = self._predict_batch(list(batch.values()), with_maps, min_score)
            predictions.update(zip(batch.keys(), batch_predictions, strict=True))
        return [predictions[i] for i in range(len(images))]

    def predict_stored(
        self, store: FeatureStore, ids: list[str], with_maps: bool
    ) -> list[dict[str, Prediction]]:
        """Return the predictions for images of one grid from their tokens under every view, by keys."""
        batches = []
        for i, view in enumerate(self.views.views):
            stored_view = store.views.views.index(view)
            tokens = store.batch(ids, stored_view).to(device=self.device)
            # check_store refuses maps of padded images
            batches.append(ViewBatch(views=[i], tokens=tokens, placements=None))
        outputs = self._average_views(batches, with_maps)
        return self._to_predictions(outputs, with_maps, count=len(ids))

    def _check_objects_have_one_view(self) -> None:
        if len(self.views) == 1:
            return
        for task in self.object_tasks.values():
            raise ConfigError(
                f"task {task.name!r} predicts objects, which have no mean; pass tta='none'"
            )

    def _prepare_pixels(self, pixels: Tensor) -> PreparedImages:
        recipe = self.recipe((pixels.shape[-2], pixels.shape[-1]))
        return recipe.finished([recipe.fitted(pixels)])

    def _predict_batch(
        self, images: Sequence[WholeImage], with_maps: bool, min_score: float | None
    ) -> list[dict[str, Prediction]]:
        """Predict images of one prepared size."""
        pixels = torch.cat([image.prepared.images for image in images])
        [pixels] = send([pixels], self.device)
        placements = None
        if self.preprocess.resize == "pad":
            placements = [self.preprocess.placement(image.size) for image in images]
        if not self.object_tasks:
            outputs = self._average_views(self._run_views(pixels, placements), with_maps)
            return self._to_predictions(outputs, with_maps, count=len(images))
        [batch] = self._run_views(pixels, placements)  # objects have one view
        outputs = self._average_views([batch], with_maps)
        predictions = self._to_predictions(outputs, with_maps, count=len(images))
        self._add_objects(predictions, batch.tokens, images, min_score)
        return predictions

    def _add_objects(
        self,
        predictions: Sequence[Mapping[str, Prediction]],
        tokens: Tokens,
        images: Sequence[WholeImage],
        min_score: float | None,
        *,
        memory: CropMemory | None = None,
    ) -> None:
        """Add the objects of every image to its predictions, head by head and image by image."""
        for key, task in self.object_tasks.items():
            loaded_head = self.heads[key]
            head_tokens = loaded_head.select(tokens, self.backbone)
            for i, image in enumerate(images):
                objects = objects_at_image_size(
                    head=loaded_head.head,
                    tokens=head_tokens[i : i + 1],
                    task=task,
                    size=image.size,
                    preprocess=self.preprocess,
                    min_score=min_score,
                )
                if self.object_tiling is not None and task.kind == "instances":
                    objects["masks"] = CroppedMasks.of_masks(
                        objects["masks"], size=image.size, memory=memory
                    )
                predictions[i][key].objects[task.name] = objects

    def _predict_tiles(
        self, image: TiledImage, with_maps: bool, min_score: float | None
    ) -> dict[str, Prediction]:
        """Predict an image that is larger than a tile, a batch of tiles at a time."""
        predictions = {key: Prediction(values={}) for key in self.heads}
        if any(_has_values(loaded_head) for loaded_head in self.heads.values()):
            predictions = self._predict_joined_tiles(image, with_maps)
        if self.object_tasks:
            for key, objects in self._predict_objects_of_tiles(image, min_score).items():
                task = self.object_tasks[key]
                predictions[key].objects[task.name] = objects.merged()
        return predictions

    def _predict_objects_of_tiles(
        self, image: TiledImage, min_score: float | None
    ) -> dict[str, TiledObjects]:
        """The objects of the tiles of an image, by the keys of the heads that predict objects."""
        image.object_tiling.check_shown(image.size, self.preprocess)
        tiles = tiles_of(image.size, image.object_tiling)
        memory = CropMemory()
        objects = {}
        for key, task in self.object_tasks.items():
            objects[key] = tiled_objects(task, tiles, image.size)
        for begin in range(0, len(tiles), self.batch_size):
            batch = tiles[begin : begin + self.batch_size]
            parts = []
            for tile in batch:
                prepared = self._prepare_pixels(image.part(tile))
                parts.append(WholeImage(size=(tile.height, tile.width), prepared=prepared))
            if begin == 0:
                count = len(tiles) * max(1, self.num_expected)
                self._expect_tiles(parts[0].prepared.images, count)
            [pixels] = send([torch.cat([part.prepared.images for part in parts])], self.device)
            [views] = self._run_views(pixels, placements=None)  # objects have one view
            of_tiles = [{key: Prediction(values={}) for key in self.object_tasks} for _ in batch]
            self._add_objects(of_tiles, views.tokens, parts, min_score, memory=memory)
            for tile, predictions in zip(batch, of_tiles, strict=True):
                for key, task in self.object_tasks.items():
                    objects[key].add(tile, predictions[key].objects[task.name])
        return objects

    def _predict_joined_tiles(self, image: TiledImage, with_maps: bool) -> dict[str, Prediction]:
        """Predict the values and maps of an image from those of its tiles."""
        prepared = self._prepare_pixels(image.pixels)
        rows, cols = image.tiling.axes(prepared.grid, self.preprocess)
        by_cells = {
            key: tasks_by_cells(loaded_head.head) for key, loaded_head in self.heads.items()
        }
        needs_maps = with_maps or any(by_cells.values())
        assemblies = {key: Assembly(rows=rows, cols=cols) for key in self.heads}

        positions = tile_positions(rows, cols)
        first_tile = cut_tiles(prepared.images, rows, cols, positions[:1])
        # the images to come are taken for as large as this one
        self._expect_tiles(first_tile, len(positions) * max(1, self.num_expected))
        for begin in range(0, len(positions), self.batch_size):
            batch = positions[begin : begin + self.batch_size]
            [tiles] = send([cut_tiles(prepared.images, rows, cols, batch)], self.device)
            # of maps the mean is taken of the whole image's, so no padding of tiles is left out
            outputs = self._average_views(self._run_views(tiles, placements=None), needs_maps)
            for key, assembly in assemblies.items():
                # raw outputs are left out: in tiles maps of patches are joined, then resampled
                assembly.add(batch, outputs[key].mean)

        placement = self.recipe(image.size).placement(image.size)
        whole = {}
        for key, assembly in assemblies.items():
            tasks = self.heads[key].head.tasks
            mean = assembly.outputs(tasks, by_cells[key], placement)
            whole[key] = AveragedOutputs(mean=mean)
        [prediction] = self._to_predictions(whole, with_maps, count=1)
        return prediction

    def _expect_tiles(self, tile: Tensor, count: int) -> None:
        """State how many tiles like this one (1, C, H, W) the backbone gets."""
        height, width = tile.shape[-2:]
        plain_backbone(self.backbone).expect_images(self._count_inputs((height, width), count))

    def _count_inputs(self, size: Size, count: int) -> Counter[Size]:
        """How many inputs of each size so many images of a prepared size are under all views."""
        height, width = size
        counts: Counter[Size] = Counter()
        for number in range(len(self.views)):
            if swaps_sides(self.views, number):
                counts[width, height] += count
            else:
                counts[height, width] += count
        return counts

    def _run_views(
        self, images: Tensor, placements: Sequence[Placement] | None
    ) -> Iterator[ViewBatch]:
        """Run the backbone on a batch of prepared images of one size under all views.

        Args:
            images: (B, channels, height, width).
            placements: of :class:`ViewBatch`.
        """
        views_at_once = len(self.views)
        if images.device.type == "cpu":
            # images times views are at most batch_size
            views_at_once = max(1, self.batch_size // len(images))
        for views in views_that_swap_alike(self.views):
            for begin in range(0, len(views), views_at_once):
                batch_views = views[begin : begin + views_at_once]
                pixels = torch.cat([self.views.place(images, view) for view in batch_views])
                tokens = self.backbone(pixels, self._watch.fingerprint)
                yield ViewBatch(views=batch_views, tokens=tokens, placements=placements)

    def _average_views(
        self, batches: Iterable[ViewBatch], with_maps: bool
    ) -> dict[str, AveragedOutputs]:
        """The outputs of all heads on the CPU, averaged over views."""
        averages = {}
        for key, loaded_head in self.heads.items():
            averages[key] = ViewAverage(
                tasks=loaded_head.head.predicted, views=self.views, with_maps=with_maps
            )
        for batch in batches:
            is_turned = swaps_sides(self.views, batch.views[0])
            for key, loaded_head in self.heads.items():
                loaded_head.check_grid(batch.tokens.grid, is_turned)
                head_tokens = loaded_head.select(batch.tokens, self.backbone)
                outputs = loaded_head.head.predict_outputs(head_tokens, with_maps)
                averages[key].add(outputs, batch)
        return _fetch_outputs({key: average.mean() for key, average in averages.items()})

    def _to_predictions(
        self, outputs: Mapping[str, AveragedOutputs], with_maps: bool, count: int
    ) -> list[dict[str, Prediction]]:
        """The predictions for every image, of outputs that are averaged over views and tiles."""
        predictions: list[dict[str, Prediction]] = [{} for _ in range(count)]
        for key in self.heads:
            of_head = predictions_of(
                outputs[key],
                tasks=self.tasks[key],
                with_maps=with_maps,
                interval=self.interval,
                count=count,
            )
            for i, prediction in enumerate(of_head):
                predictions[i][key] = prediction
        return predictions


def grids_of(store: FeatureStore, ids: Sequence[str], at_once: int) -> Iterator[list[str]]:
    """Yield the ids in their order, in batches of neighbours whose images have one grid.

    Raises:
        DataError: if an id is not in the store.
    """
    grids = [entry.grid for _, entry in store.entries.find(ids)]
    for _, group in groupby(zip(ids, grids, strict=True), key=lambda pair: pair[1]):
        neighbours = [image_id for image_id, _ in group]
        for begin in range(0, len(neighbours), at_once):
            yield neighbours[begin : begin + at_once]


def _backbone_for(heads: Iterable[LoadedHead], backbone: Backbone) -> Backbone:
    """The backbone with the layers that any head reads, normalised where all heads read them so."""
    layers: set[int] = set()
    norm = True
    for loaded_head in heads:
        layers.update(loaded_head.layers or ())
        norm = norm and bool(loaded_head.norm)
    ordered = tuple(sorted(layers))
    if (ordered, norm) == (backbone.layers, backbone.norm):
        return backbone
    return backbone.with_layers(ordered, norm)


def _has_values(loaded_head: LoadedHead) -> bool:
    """Whether a head predicts more than objects."""
    return any(not task.is_masks for task in loaded_head.head.tasks)


def _fetch_outputs(outputs: Mapping[str, AveragedOutputs]) -> dict[str, AveragedOutputs]:
    """The outputs of all heads on the CPU, read at once: the only device-to-host synchronisation."""
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    for of_head in outputs.values():
        of_head.map_tensors(collect)
    on_cpu = iter(fetch(tensors))
    fetched = {}
    for key, of_head in outputs.items():
        fetched[key] = of_head.map_tensors(lambda _: next(on_cpu))
    return fetched
