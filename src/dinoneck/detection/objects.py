"""train_instances: heads that predict the class and mask of every object, cross-validated, from a COCO file."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data import run_names
from dinoneck.data.boxes import BoxImages
from dinoneck.data.cells import IMAGES
from dinoneck.data.labels import DenseLabels
from dinoneck.data.listed_images import UNKNOWN, Ids
from dinoneck.data.summary import DataSummary, summarise
from dinoneck.data.table import Table
from dinoneck.detection.evaluation import (
    class_thresholds,
    count_objects,
    open_objects,
    score_masks,
    score_segments,
)
from dinoneck.detection.fine_tuning import detector_training, open_init
from dinoneck.detection.object_tiles import ObjectImages, ObjectTiles
from dinoneck.detection.training import prepare
from dinoneck.errors import DataError
from dinoneck.extras import check_installed
from dinoneck.heads.head import Head
from dinoneck.images.decoding import read_image_size
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.inference.resolution import objects_at_image_size
from dinoneck.inference.results import coco_objects
from dinoneck.inference.tile_merging import tiling_for_objects
from dinoneck.inference.tiled_objects import tiled_objects
from dinoneck.inference.tiles import Tiling, TrainedBoxes
from dinoneck.kinds import OBJECTS, Method
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.registry import import_modules
from dinoneck.tasks import Task
from dinoneck.training import folder as files
from dinoneck.training.config import TRAININGS, TrainInstancesConfig
from dinoneck.training.evaluators import FoldTokens, KeptHead, Logs
from dinoneck.training.folds import Fold, plain_folds
from dinoneck.training.new_head import head_type
from dinoneck.training.problem import Problem
from dinoneck.training.recipe import Recipe
from dinoneck.training.report import HEAD, Methods, summary
from dinoneck.training.run import Trainer
from dinoneck.training.run_runtime import continued_runtime, with_runtime
from dinoneck.training.run_tokens import RunTokens
from dinoneck.training.scored import ValueTarget

logger = logging.getLogger(__name__)

TASK = "objects"
FEWEST_STEPS = 500
_FEWEST_QUERIES = 20  # of a mask head
_MOST_QUERIES = 100
_NECK_CHANNELS = 64  # of a pyramid head, where the config has no head
_STRIDE = 4  # pixels of the prepared image per value of the targets
_MIN_SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of segments; the one with the best PQ is taken


def train_instances(
    config: TrainInstancesConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = True,
    stated: Collection[str] = (),
) -> dict[str, Any]:
    """Train heads that predict every object with its class and mask, and one head on all images.

    The folder gets ``heads/fold-K.safetensors``, ``logs``, ``out_of_fold.csv`` (known and predicted
    numbers of objects), ``head.safetensors``, trained on all images, and, last, ``report.json``.
    ``data.txt`` and ``data.json`` have what was read, and ``data.jpg`` shows some of the images with
    their labels; they are written before the first image is encoded.
    The score threshold with the best F1 of the held-out objects, or the best PQ of the panoptic
    segments, is the ``minimum`` of that head's task: objects of a lower score are left out. That of
    the objects of each class is in its ``thresholds``, which count in the place of ``minimum``; a
    class with fewer than five objects has the minimum. An interrupted run continues as in
    :func:`dinoneck.train`.

    With ``init`` of an RF-DETR of masks, published or fine-tuned before, that detector is trained
    without folds, as by :func:`dinoneck.detection.train_detector`, which describes files and report.

    Without a head in the config it is a pyramid head on ``dpt_neck``, of panoptic segments
    ``mask``. ``mask`` gets twice as many queries as an image has objects at most, 20 to 100; a
    class of stuff is one object. The default number of epochs is raised until 500 steps on all
    images are taken; another number, or the default if it is ``stated``, is taken as it is.

    With ``data.tile`` the images are cut into tiles as a :class:`dinoneck.Predictor` cuts them.
    Each tile is a sample of its own, resized to ``data.size``, or without it to the size of the
    largest sample. Masks are cut at the edges of the tile. The pixels of an object of which less
    than a tenth is inside, or which fills less than a tenth of a smaller tile, are unknown there
    and do not count; tiles without objects are background. Tiles are kept in memory next to their
    tokens, 3 bytes a pixel of 8 bits. Images are held out whole, and are predicted in tiles. The
    files keep the tile, and predict with it.

    Args:
        config: ``data.instances`` names the COCO file, or ``data.panoptic`` a folder and a COCO
            file of panoptic segments, and ``data.images`` the folder of the images.
        out: the folder: a new or empty one, or that of an earlier run.
        overwrite: replace the results of an earlier run in ``out``; until the new report is
            written they are in ``out/earlier``.
        resume: continue an interrupted run of the same config.
        stated: names of values of ``config.optim`` that are taken as they are, although they are
            the defaults: ``epochs``; with ``init`` of an RF-DETR see
            :func:`dinoneck.detection.train_detector`.

    Returns:
        What ``report.json`` holds: ``masks`` (``{"head": scores}`` of the held-out objects, see
        :func:`dinoneck.detection.score_masks`) or ``segments``
        (:func:`dinoneck.detection.score_segments`), ``scores`` of the numbers of objects,
        ``images``, ``parameters``, ``peak_memory_mb`` (as :func:`dinoneck.training.train` returns
        it), ``config`` and ``versions``. With ``data.tile`` also ``tiles``, their number, and that of
        those without an object.

    Raises:
        DataError: if the data cannot be used, images come to several sizes, or an image or tile
            shows 1000 objects of a class or more. Also if ``out`` holds results and ``overwrite``
            is off, or ``out`` holds other files than those of a run.
        ConfigError: if values contradict each other, or do not fit.
        CheckpointError: if ``out`` holds an unfinished run of another config or of other objects.
    """
    TRAININGS.check_class(config, TrainInstancesConfig)
    config.check_used()
    initial = open_init(config)
    if initial is not None:
        detector_trainer = prepare(
            detector_training(config, initial),
            Path(out),
            overwrite=overwrite,
            stated=stated,
            initial=initial,
        )
        return detector_trainer.train(resume=resume)
    data = config.data
    check_installed("pycocotools", "masks")
    check_installed("scipy", "masks")
    dataset = open_objects(
        data.objects, data.images, classes=data.classes or None, crowd=data.crowd
    )
    noun = "object" if data.panoptic is None else "segment"
    dataset.check_trainable(noun)
    tiles = ObjectTiles(dataset, tiling_of(config, dataset))
    _log_tiles(tiles)
    config = with_object_defaults(config, tiles, stated)
    trainer = prepare_instances(config, Path(out), tiles, overwrite=overwrite, resume=resume)
    for fold in trainer.folds:
        if not fold.is_of_all_images:
            train_images = dataset.take(fold.train.tolist())
            train_images.check_part(
                dataset.class_counts, noun, f"the training images of fold {fold.name}"
            )
    return trainer.train(resume=resume)


def read_data(config: TrainInstancesConfig) -> DataSummary:
    """Return what a training of :func:`train_instances` reads; nothing of a head or detector is loaded."""
    check_installed("pycocotools", "masks")
    data = config.data
    dataset = open_objects(
        data.objects, data.images, classes=data.classes or None, crowd=data.crowd
    )
    dataset.check_trainable("object" if data.panoptic is None else "segment")
    return summarise(dataset)


def tiling_of(config: TrainInstancesConfig, dataset: ObjectImages) -> Tiling | None:
    """Return how the images of a dataset are cut; None: they are not."""
    data = config.data
    tile = cast("tuple[int, int] | None", data.tile)
    return tiling_for_objects(tile, data.overlap, longest_box=dataset.longest_box)


def _log_tiles(tiles: ObjectTiles) -> None:
    """Say how many samples there are, and how many of them have no object."""
    if tiles.tiling is not None and files.writes():
        logger.warning(
            "%d of %d images are cut: %d samples, of which %d have no %s that is trained on there",
            tiles.num_cut,
            len(tiles.images),
            len(tiles),
            tiles.num_empty,
            "thing" if tiles.images.stuff else "object",
        )


def with_object_defaults(
    config: TrainInstancesConfig, tiles: ObjectTiles, stated: Collection[str] = ()
) -> TrainInstancesConfig:
    """Return the config with a head, its queries, the size and the number of epochs, where the config has none.

    Where images are cut, all samples are resized to the size of the largest one.

    Args:
        config: of the run.
        tiles: the samples.
        stated: names of values of ``config.optim`` that stay as they are, defaults too.

    Raises:
        DataError: if an image, or a tile of it, has more objects than the head has queries.
    """
    data = config.data
    if tiles.num_cut and data.size is None:
        data = data.changed(size=tiles.largest_size)
    head = _head_with_defaults(config, tiles.most_objects)
    num_queries: int = head.get("num_queries", tiles.most_objects)
    if tiles.most_objects > num_queries:
        sample = "an image" if tiles.tiling is None else "a tile"
        raise DataError(
            f"{tiles.images.file}: {sample} has {tiles.most_objects} objects; num_queries is "
            f"{num_queries}, expected {tiles.most_objects} or more"
        )
    optim = config.optim
    if "epochs" not in stated:
        optim = _recipe_with_epochs(optim, len(tiles))
    return config.changed(data=data, head=head, optim=optim)


def _head_with_defaults(config: TrainInstancesConfig, most_objects: int) -> dict[str, Any]:
    """The arguments of the head; a mask head has twice as many queries as an image has objects at most."""
    head = dict(config.head)
    if "type" not in head:
        head["type"] = config.default_head
        if head["type"] == "dpt_neck":
            head = {"out_channels": _NECK_CHANNELS} | head
    if head["type"] == "mask":
        num_queries = min(max(2 * most_objects, _FEWEST_QUERIES), _MOST_QUERIES)
        head = {"num_queries": num_queries} | head
    return head


def _recipe_with_epochs(optim: Recipe, num_images: int) -> Recipe:
    """The recipe with so many epochs that enough steps are taken, if the config leaves their number as it is."""
    if optim.epochs != type(optim)().epochs:
        return optim
    steps_per_epoch = math.ceil(num_images / optim.batch_size)
    epochs = max(optim.epochs, math.ceil(FEWEST_STEPS / steps_per_epoch))
    return optim.changed(epochs=epochs)


def prepare_instances(
    config: TrainInstancesConfig,
    out: Path,
    tiles: ObjectTiles,
    *,
    overwrite: bool = False,
    resume: bool = True,
) -> ObjectTrainer:
    """Return the trainer of heads that learn the objects of images, or of tiles of these.

    Raises:
        DinoneckError: as :func:`train_instances`.
    """
    files.check_folder(out, overwrite=overwrite)
    import_modules(config.imports)
    # a name that is not registered is refused before anything is read
    type_name = head_type(config)
    dataset = tiles.images
    data = summarise(dataset)
    files.show_data(data)
    table = _table_of_dataset(dataset)
    if resume:
        config = continued_runtime(config, out)
    tokens = RunTokens.from_backbone(config, table, type_name)
    config = with_runtime(config, tokens.runtime or "torch")
    tokens.check_start(config)
    if tiles.tiling is not None:
        # as a Predictor checks it, which would refuse the head
        tiles.tiling.check(tokens.preprocess)
        for size in dataset.sizes:
            if not tiles.tiling.fits(size):
                tiles.tiling.check_shown(size, tokens.preprocess)
        pictures = tiles.pictures(tokens.preprocess)
        tokens = tokens.cut(pictures, ids=tiles.names(), image_rows=tiles.rows)
    problem = object_problem(config, tiles, tokens.preprocess)
    folds = plain_folds(config, len(dataset))
    evaluator = ObjectEvaluator(
        table, tiles, problem=problem, folds=folds, preprocess=tokens.preprocess
    )
    return ObjectTrainer(
        config,
        out,
        tiles=tiles,
        table=table,
        tokens=tokens,
        problem=problem,
        folds=folds,
        evaluator=evaluator,
        summary=data,
    )


def _table_of_dataset(dataset: ObjectImages) -> Table:
    """The images of a dataset as a table, whose ids are paths below the folder that all lie in."""
    import pandas as pd

    folder = os.path.commonpath([path.parent for path in dataset.paths])
    names = [os.path.relpath(path, folder) for path in dataset.paths]
    frame = pd.DataFrame({IMAGES: [*dataset.paths]}, index=names, dtype=object)
    return Table.from_frame(frame)


def object_problem(
    config: TrainInstancesConfig, tiles: ObjectTiles, preprocess: Preprocessing
) -> Problem:
    """Return what heads learn of images, or of tiles of these: the ids of objects, a value per 4 x 4 pixels.

    Raises:
        DataError: if the prepared images have several sizes.
    """
    dataset = tiles.images
    labels = dataset.classes
    task = Task(TASK, dim=len(labels), kind="instances", labels=labels)
    if config.data.panoptic is not None:
        things = tuple(label for i, label in enumerate(labels) if i not in dataset.stuff)
        task = replace(task, kind="panoptic", things=things)
    maps = [_prepared_ids(ids, preprocess, len(labels)) for ids in tiles.tile_ids()]
    names = tiles.names()
    for name, ids in zip(names, maps, strict=True):
        if ids.shape != maps[0].shape:
            raise DataError(
                f"{name} comes to another size than {names[0]}; give one (size=, --size)"
            )
    numbers = np.array([*dataset.numbers.values()], np.float64)[:, None]
    scored = {TASK: ValueTarget(TASK, columns=(0,), truth=numbers)}
    return Problem([task], {TASK: torch.cat(maps)}, weights={}, compositions=[], scored=scored)


def _prepared_ids(pixels: Ids, preprocess: Preprocessing, num_classes: int) -> torch.Tensor:
    """The ids of objects (1, h, w) in a prepared image, a value per 4 x 4 pixels; -1 in crowd regions.

    Args:
        pixels: ids of the image's own pixels (H, W).
        preprocess: how the image is prepared.
        num_classes: of the objects.
    """
    reader = DenseLabels(classes=OBJECTS * (num_classes + 1), nodata=UNKNOWN)
    ids = reader.indices([pixels.clip(UNKNOWN)], preprocess)
    middle = _STRIDE // 2
    return ids[:, middle::_STRIDE, middle::_STRIDE]


def _shown_tile(
    tile: tuple[int, int], largest_size: tuple[int, int], overlap: int | None
) -> tuple[int, int]:
    """The (height, width) of a tile with which predictions have the scale of the training.

    Strips are shorter than the tile on one side, and so are their tiles, which are brought to the
    size of the head. In larger images tiles have to be as short.

    Args:
        tile: that the config states.
        largest_size: of the samples; as large as the tile unless all images are strips.
        overlap: that the config states, in pixels; None = a share of the tile.
    """
    if isinstance(overlap, int) and overlap >= min(largest_size):
        return tile  # tiles that are as short would not move on
    return largest_size


class ObjectTrainer(Trainer[TrainInstancesConfig]):
    """Trains heads that predict objects.

    Args:
        config: of the run.
        folder: of the results.
        tiles: the images, and how they are cut.
        table: as of :class:`dinoneck.training.run.Trainer`, as all that follow.
        tokens: of the images, or of their tiles.
        problem: of :func:`object_problem`.
        folds: of the run.
        evaluator: of the objects.
        summary: of the images.
    """

    def __init__(
        self,
        config: TrainInstancesConfig,
        folder: Path,
        *,
        tiles: ObjectTiles,
        table: Table,
        tokens: RunTokens,
        problem: Problem,
        folds: Sequence[Fold],
        evaluator: ObjectEvaluator,
        summary: DataSummary,
    ) -> None:
        super().__init__(
            config,
            folder,
            table=table,
            tokens=tokens,
            problem=problem,
            folds=folds,
            evaluator=evaluator,
            summary=summary,
        )
        self.tiles = tiles

    @property
    def tta(self) -> None:
        """None: the predictions of an object have no mean over views."""
        return None

    def loss(self, head: Head) -> TaskLoss:
        """Return the loss of a head; objects are one task."""
        return TaskLoss(head.tasks)

    def record_of_data(self) -> dict[str, Any]:
        """Return what predictions in tiles need; COCO files are read in one way."""
        data = self.config.data
        tile = cast("tuple[int, int] | None", data.tile)
        if tile is not None and self.tiles.num_cut:
            tile = _shown_tile(tile, self.tiles.largest_size, data.overlap)
        return TrainedBoxes(self.tiles.images.longest_box, tile, data.overlap).record()

    def _report(self) -> dict[str, Any]:
        """What is written as the report, with the number of tiles."""
        report = super()._report()
        if self.tiles.tiling is not None:
            report["tiles"] = {"train": len(self.tiles), "without_objects": self.tiles.num_empty}
        return report

    def _write_head_of_run(self, report: Mapping[str, Any]) -> None:
        """Write the head that predicts; one of all images has the thresholds of the held-out objects."""
        super()._write_head_of_run(report)
        has_head_of_all_images = len(self.folds) > 1
        if not has_head_of_all_images or self.config.data.panoptic is not None:
            return
        checkpoint = HeadCheckpoint.load(self.folder / run_names.HEAD_FILE)
        thresholds = class_thresholds(report["masks"][HEAD], self.problem.tasks[0].labels)
        if thresholds and TASK in checkpoint.configured_tasks:
            self._replace_head_of_run(checkpoint.with_thresholds({TASK: thresholds}))


class ObjectEvaluator:
    """Predicts and scores the objects of held-out images.

    Args:
        table: the images.
        tiles: the same images with their objects, and how they are cut.
        problem: of :func:`object_problem`.
        folds: of the run.
        preprocess: how images are prepared.

    Attributes:
        objects: smallest score -> image id -> the held-out predictions, see
            :func:`dinoneck.inference.coco_objects`.
        methods: ``head`` -> the predicted numbers of objects; empty until :meth:`report`.
    """

    has_baseline = False

    def __init__(
        self,
        table: Table,
        tiles: ObjectTiles,
        *,
        problem: Problem,
        folds: Sequence[Fold],
        preprocess: Preprocessing,
    ) -> None:
        self.table = table
        self.tiles = tiles
        self.dataset = tiles.images
        self.targets = problem.scored
        self.folds = folds
        self.preprocess = preprocess
        self.is_panoptic = problem.tasks[0].kind == "panoptic"
        min_scores = _MIN_SCORES if self.is_panoptic else (0.0,)
        self.objects: dict[float, dict[int | str, Any]] = {
            min_score: {} for min_score in min_scores
        }
        self.methods: Methods = {}

    def predict_fold(
        self, problem: Problem, fold: Fold, head: Head, tokens: FoldTokens
    ) -> dict[Method, KeptHead]:
        """Predict the objects of the held-out images; return the head of the fold."""
        for row in fold.valid.tolist():
            for min_score, objects in self.objects.items():
                predicted = self._predict_image(row, problem.tasks[0], head, tokens, min_score)
                objects[self.dataset.ids[row]] = coco_objects(predicted)
        facts = {} if fold.is_of_all_images else {"fold": fold.number}
        return {HEAD: KeptHead(head, facts)}

    def _predict_image(
        self, row: int, task: Task, head: Head, tokens: FoldTokens, min_score: float
    ) -> Any:
        """The objects of an image, as a Predictor gives them: those of its tiles are put together."""
        source = tokens.of_head
        device = next(head.parameters()).device
        size = read_image_size(self.dataset.paths[row])
        sample_rows = tokens.of_run.rows_of(np.array([row])).tolist()
        if len(sample_rows) == 1:
            image_tokens = source.batch([source.ids[sample_rows[0]]]).to(device)
            return objects_at_image_size(head, image_tokens, task, size, self.preprocess, min_score)
        tiles = self.tiles.tiles_of_image(row)
        whole = tiled_objects(task, tiles, size)
        for tile, sample_row in zip(tiles, sample_rows, strict=True):
            tile_tokens = source.batch([source.ids[sample_row]]).to(device)
            tile_size = (tile.height, tile.width)
            objects = objects_at_image_size(
                head, tile_tokens, task, tile_size, self.preprocess, min_score
            )
            if task.kind == "instances":
                objects["masks"] = CroppedMasks.of_masks(objects["masks"], size=tile_size)
            whole.add(tile, objects)
        return whole.merged()

    def final_problem(self, problem: Problem) -> Problem:
        """Return the problem with the smallest score that gives the best scores of held-out images."""
        scores = self._best_scores(self.dataset)
        task = replace(problem.tasks[0], minimum=scores["min_score"])
        return replace(problem, tasks=[task])

    def _best_scores(self, dataset: ObjectImages) -> dict[str, Any]:
        """The scores of held-out images, with the smallest score ``min_score`` that gives the best ones."""
        if isinstance(dataset, BoxImages):
            return score_masks(dataset, self.objects[0.0])
        candidates = []
        for min_score, objects in self.objects.items():
            candidates.append({"min_score": min_score, **score_segments(dataset, objects)})
        return max(candidates, key=lambda scores: scores["PQ"] or 0.0)

    def report(self, logs: Logs, units: Mapping[str, str]) -> dict[str, Any]:
        """Return the scores of the held-out objects, and of their numbers."""
        held_out: list[int] = []  # of all folds, or of the only one (folds.only)
        for fold in self.folds:
            held_out += fold.valid.tolist()
        scores: dict[str, Any] = {}
        if held_out:
            scores = self._best_scores(self.dataset.take(held_out))
        min_score = scores.get("min_score") or 0.0
        objects = self.objects.get(min_score if self.is_panoptic else 0.0, {})
        numbers = []
        for image_id in self.dataset.ids:
            numbers.append([float(count_objects(objects.get(image_id, ()), min_score))])
        self.methods = {HEAD: {TASK: np.array(numbers)}}
        valid_rows = [fold.valid for fold in self.folds]
        report = summary(self.table, self.targets, self.methods, valid_rows, units)
        report["verdict"] = None
        if held_out:
            report["segments" if self.is_panoptic else "masks"] = {HEAD: scores}
        return report
