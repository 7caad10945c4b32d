"""train_detector: a detector's losses, data and scores for the training engine, and the files of a run."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.configured import fields_of
from dinoneck.data import run_names
from dinoneck.data.boxes import BoxImages, Target, box_transforms, collate_boxes, to_original
from dinoneck.data.listed_images import parts_of
from dinoneck.data.summary import DataSummary, summarise_objects
from dinoneck.detection.box_tiles import BoxTiles
from dinoneck.detection.detector import (
    Detector,
    best_of,
    masks_in_image,
    trained_weights,
    with_trained_weights,
)
from dinoneck.detection.evaluation import class_thresholds, score_boxes, score_masks
from dinoneck.detection.fine_tuning import FROZEN_PLAN, InitialDetector, open_init
from dinoneck.detection.head import DETRS, DetectionHead, loss_counts
from dinoneck.detection.sizes import DEFAULT_SIZE
from dinoneck.devices import local_device, send
from dinoneck.errors import ConfigError
from dinoneck.extras import check_scores_of_boxes
from dinoneck.grid import patch_pair
from dinoneck.images.content import cached_hash_of
from dinoneck.inference.results import coco_objects
from dinoneck.inference.tiles import TrainedBoxes
from dinoneck.necks.neck import Neck, neck_named
from dinoneck.registry import import_modules
from dinoneck.training import folder as files
from dinoneck.training.config import TRAININGS, TrainDetectorConfig
from dinoneck.training.earlier import check_same_backbone, log_backbone, start_lora
from dinoneck.training.engine import (
    Engine,
    Row,
    highest_memory,
    restored_random_state,
)
from dinoneck.training.epoch_notes import EpochNotes
from dinoneck.training.folds import Fold
from dinoneck.training.new_head import log_start, start_from
from dinoneck.training.parameter_groups import FreezeSchedule, param_groups
from dinoneck.training.processes import gather
from dinoneck.training.run_tokens import open_backbone
from dinoneck.training.trained_images import (
    image_hashes,
    images_of_hashes,
    known_training_images,
    warn_of_seen_images,
    write_trained_images,
)
from dinoneck.version import versions

PLAN = {0: "all", 10: "last:4"}  # epoch -> what is frozen of the backbone, see FreezeSchedule
_logger = logging.getLogger(__name__)


def train_detector(
    config: TrainDetectorConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = True,
    stated: Collection[str] = (),
) -> dict[str, Any]:
    """Train a detector and write it with its scores.

    The folder gets ``detector.safetensors`` (the weights of the best held-out AP, for
    :meth:`Detector.load`), ``log.jsonl`` (a line per epoch), ``trained_on.csv`` (the training images
    with their hashes) and, last, ``report.json``. ``data.txt`` and ``data.json`` have what was read, and
    ``data.jpg`` shows some of the images with their labels. The same call after a kill continues the run, and
    writes what it would have written. Under ``torchrun`` each process computes its share of every
    batch.

    With ``init`` of an RF-DETR, published or fine-tuned before, that detector is trained: its
    projector and decoder, and the last blocks of its ViT that ``backbone.unfreeze_last`` or
    ``optim.freeze`` names, by default none. Of the class heads the rows of its own classes are kept.
    Where ``optim`` has the default ``lr``, ``weight_decay`` or ``clip_norm``, its publisher's is taken.

    With ``data.tile`` the training images are cut into tiles as :meth:`Detector.predict` cuts them.
    Each tile is a sample of its own, resized to ``data.size``. Boxes and masks are cut at the edges
    of the tile. An object of whose area less than a tenth is inside is not trained on there; tiles
    without objects are background. Images are held out whole, and are predicted in tiles. The file
    keeps the tile, and predicts with it. It also keeps the longest side of a box of the training
    images, in pixels of the image, by which tiles overlap.

    Args:
        config: ``data.boxes`` and ``data.val_boxes`` name COCO files, ``data.yaml`` files of YOLO
            or folders of VOC, ``detector`` the detector, ``head`` its neck.
        out: the folder: a new or empty one, or that of an earlier run.
        overwrite: replace the results of an earlier run in ``out``; until the new report is
            written they are in ``out/earlier``.
        resume: continue an interrupted run of the same config.
        stated: names of values of ``config.optim`` that are taken as they are with ``init`` of an
            RF-DETR, also where they equal a default, such as ``["lr"]``. :func:`dinoneck.train` and
            the command line name those that keywords, files and flags state.

    Returns:
        what ``report.json`` holds. ``best`` is the log's best row: ``AP``, ``AP50``, ``AP75``,
        ``per_class`` and ``epoch``; ``untrained`` has the scores of the first weights. The others
        are ``images``, ``skipped`` boxes, ``parameters``, ``minutes``, ``peak_memory_mb`` (as
        :func:`dinoneck.training.train` returns it), ``config`` and ``versions``. For an RF-DETR
        also ``init``: the name, licence and SHA-256 of what it started from. Of a detector of masks
        the scores are those of masks, and ``scored`` is ``masks``. With ``data.tile`` also
        ``tiles``, the number of training tiles, and of those without a box.

    Raises:
        ConfigError: if values contradict each other or have no effect on detectors.
        DataError: if the data cannot be used, the loss is not finite, ``out`` holds results and
            ``overwrite`` is off, or it holds other files than those of a run.
        CheckpointError: if ``out`` holds the state of another run; it names the values that differ.
    """
    trainer = prepare(config, Path(out), overwrite=overwrite, stated=stated)
    return trainer.train(resume=resume)


def prepare(
    config: TrainDetectorConfig,
    out: Path,
    *,
    overwrite: bool = False,
    stated: Collection[str] = (),
    initial: InitialDetector | None = None,
) -> DetectorTrainer:
    """Open the images and build the detector of a run; nothing is written.

    Other arguments, and errors, are those of :func:`train_detector`. ``initial`` is what
    ``config.init`` names, where that is open; None = it is opened here.
    """
    TRAININGS.check_class(config, TrainDetectorConfig)
    import_modules(config.imports)
    check_scores_of_boxes()
    files.check_folder(out, overwrite=overwrite)
    if initial is None:
        initial = open_init(config)
    if initial is not None:
        optim = config.optim
        config = initial.completed(config, stated)
        if files.writes():
            initial.log_recipe(optim, config.optim)
    with_masks = initial is not None and initial.model.has_masks
    train_images, val_images = open_images(config, masks=with_masks, antialias=initial is None)
    summary = summarise_objects({"train": train_images, "val": val_images})
    files.show_data(summary)
    if config.init is not None and files.writes():
        warn_of_seen_images(config.init, val_images.paths, stored=None)
    if initial is None:
        detector = build_detector(config, train_images.classes)
    else:
        detector = initial.build(config, train_images.classes)
        if files.writes():
            initial.log_start(detector)
    # the training images show a box, else they are refused
    longest_box = cast("float", train_images.longest_box)
    data = config.data
    tile = cast("tuple[int, int] | None", data.tile)
    detector.note_trained_boxes(TrainedBoxes(longest_box, tile, data.overlap))
    if tile is not None:
        _check_patch(tile, detector)
    return DetectorTrainer(
        config,
        out,
        detector=detector.to(local_device(config.device)),
        train_images=train_images,
        val_images=val_images,
        summary=summary,
        initial=initial,
    )


def read_data(config: TrainDetectorConfig) -> DataSummary:
    """Return what a training of :func:`train_detector` reads; no detector is built or loaded."""
    train_images, val_images = open_images(config)
    return summarise_objects({"train": train_images, "val": val_images})


class DetectorTrainer:
    """Trains a detector, chooses its weights by the AP on held-out images, and writes the files of the run.

    The methods stand in the order in which :meth:`train` calls them.

    Args:
        config: the run.
        folder: of the results.
        detector: with its first weights, on its device.
        train_images: what it learns from.
        val_images: the held-out images.
        summary: of both.
        initial: the RF-DETR that the detector started from; None of others.

    Raises:
        ConfigError: if the processes cannot share the batches equally.
    """

    def __init__(
        self,
        config: TrainDetectorConfig,
        folder: Path,
        *,
        detector: Detector,
        train_images: BoxImages,
        val_images: BoxImages,
        summary: DataSummary,
        initial: InitialDetector | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.detector = detector
        self.train_images = train_images
        self.val_images = val_images
        self.summary = summary
        self.initial = initial
        self.samples: BoxImages | BoxTiles = train_images
        if detector.tiling is not None:
            self.samples = BoxTiles(train_images, detector.tiling, train_images.transform)
            self._log_tiles(self.samples)
        optim = config.optim
        default_plan = PLAN if initial is None else FROZEN_PLAN
        self.schedule = FreezeSchedule(config.plan or default_plan)
        self.schedule.apply(detector, 0)
        groups = param_groups(detector, **optim.rates(), include_frozen=True)
        steps_per_epoch = math.ceil(len(self.samples) / optim.batch_size)
        self.engine = Engine(detector, _Losses(detector), groups, optim, steps_per_epoch)
        if optim.batch_size % self.engine.num_processes:
            raise ConfigError(
                f"batch_size is {optim.batch_size} for {self.engine.num_processes} processes; take a "
                "multiple"
            )

    def train(self, *, resume: bool = True) -> dict[str, Any]:
        """Train, score and write; return the report, see :func:`train_detector`."""
        engine = self.engine
        with restored_random_state():
            self._begin(resume=resume)
            self._start_or_continue()
            notes = EpochNotes(engine.recipe.epochs)
            notes.start_fold("")
            with engine.progress() as bar:
                while not engine.is_finished:
                    epoch = engine.start_epoch()
                    self._start_epoch(epoch)
                    batches = self._training_batches(epoch)
                    engine.model.train()
                    with closing(batches):
                        for images, targets in batches:
                            forwards = self._forwards(images, targets)
                            losses = engine.forward_backward(*forwards)
                            engine.step()
                            engine.add_losses(losses, self.config.optim.batch_size)
                            bar.update()
                    engine.add_row()
                    with engine.evaluating():
                        scores = self._score_epoch()
                        engine.add_scores(scores)
                    engine.end_epoch(callbacks=[notes])
            notes.end_fold()
            engine.finish()
        if files.writes():
            self._move_results()
            self._write_trained_images()
        return files.finish(self.folder, self._report())

    def _log_tiles(self, tiles: BoxTiles) -> None:
        """Say how many tiles there are, and how many of them are background."""
        if files.writes():
            _logger.warning(
                "%d of %d training images are cut: %d tiles, %d without a box; the longest box has %g px",
                tiles.num_cut,
                len(tiles.images),
                len(tiles),
                tiles.num_empty,
                tiles.images.longest_box,
            )

    # before the first epoch

    def _begin(self, *, resume: bool) -> None:
        """Keep what identifies the run, and what was read; restore the state of an interrupted one."""
        identity = files.begin(self.folder, self._identity(), resume=resume)
        files.write_data(self.folder, self.summary)
        state_file = self.folder / run_names.UNFINISHED / files.STATE
        self.engine.open_state(state_file, identity, resume=resume)

    def _identity(self) -> dict[str, Any]:
        """What must be equal in a run and its continuation."""
        values = self.config.to_dict()
        values["backbone"].pop("runtime", None)
        del values["detector"]["workers"]
        values.pop("weights", None)
        if self.initial is not None:
            values["init"] = self.initial.origin
        datasets = []
        for images in (self.train_images, self.val_images):
            datasets.append([*images.ids, images.ground_truth()])
        content = json.dumps(datasets).encode()
        values["hash of images and boxes"] = hashlib.sha256(content).hexdigest()
        values[files.IMAGE_FILES] = self._hash_of_images()
        values["backbone record"] = self.detector.record
        return values

    def _hash_of_images(self) -> str:
        """The SHA-256 of the contents of all images, which the first process reads.

        The hashes of the training images are kept for ``trained_on.csv``: no image is hashed twice.
        """
        digest = hashlib.sha256()
        if self.engine.rank == 0:
            for path in (*self.train_images.paths, *self.val_images.paths):
                digest.update(cached_hash_of(path).encode())
        of_first_process, *_ = gather(digest.hexdigest())
        return str(of_first_process)

    def _start_or_continue(self) -> None:
        """Score the first weights of a new run; tell the detector what was trained in an interrupted one."""
        is_new = not self.engine.extra
        if is_new:
            self.engine.extra = {"untrained": self._score_held_out(), "tuned": []}
        self.detector.tuned = set(self.engine.extra["tuned"])

    # in each epoch

    def _start_epoch(self, epoch: int) -> None:
        """Apply the plan of what is trained to a new epoch."""
        self.schedule.start_epoch(epoch, self.detector, self.engine.optimizer)
        self.detector.note_trained()
        self.engine.extra["tuned"] = sorted(self.detector.tuned)

    def _training_batches(self, epoch: int) -> Generator[tuple[Tensor, list[Target]], None, None]:
        """Yield this process' share of each batch of an epoch, on its device."""
        loader = DataLoader(
            self.samples,
            batch_sampler=self._rows_of_batches(epoch),
            num_workers=self.config.detector.workers,
            collate_fn=collate_boxes,
        )
        for images, targets in loader:
            yield _to_device(images, targets, self.engine.device)

    def _forwards(
        self, images: Tensor, targets: list[Target]
    ) -> list[Callable[[], dict[str, Tensor]]]:
        """Return the forward pass of each part of a batch, whose losses add up to those of the batch."""
        num_parts = min(self.config.optim.accumulate, len(images))
        if num_parts == 1:
            return [partial(self.engine.model, images, targets)]
        size = (images.shape[-2], images.shape[-1])
        counts = loss_counts(self.detector.head, targets, size)
        total = max(1.0, sum(counts))
        forwards: list[Callable[[], dict[str, Tensor]]] = []
        for rows in np.array_split(np.arange(len(images)), num_parts):
            samples = slice(int(rows[0]), int(rows[-1]) + 1)
            share = max(1.0, sum(counts[samples])) / total
            forwards.append(partial(self.engine.model, images[samples], targets[samples], share))
        return forwards

    def _rows_of_batches(self, epoch: int) -> list[list[int]]:
        """Rows of the training samples, a list for each batch: those of this process.

        The seed and the epoch decide the order. The last batch is filled up from its start.
        """
        batch_size = self.config.optim.batch_size
        generator = np.random.default_rng([self.config.optim.seed, epoch])
        if isinstance(self.samples, BoxTiles):
            order = np.array(self.samples.epoch_order(generator))
        else:
            order = generator.permutation(len(self.samples))
        num_batches = math.ceil(len(order) / batch_size)
        order = np.resize(order, num_batches * batch_size)
        rows_of_batches = []
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            share = batch[self.engine.rank :: self.engine.num_processes]
            rows_of_batches.append(share.tolist())
        return rows_of_batches

    def _score_epoch(self) -> Row:
        """Return what the log holds of an epoch next to its losses; write the best detector so far."""
        epoch = self.engine.epoch
        row: Row = {
            "epoch": epoch,
            "stage": self.schedule.stage(epoch),
            "lr": self.engine.optimizer.param_groups[-1]["lr"],
        }
        is_last = epoch + 1 >= self.config.optim.epochs
        if not is_last and (epoch + 1) % self.config.detector.eval_every:
            return row
        scores = self._score_held_out()
        if self.engine.rank == 0 and scores["AP"] > self._best_earlier_precision():
            self._write_detector(scores)
        return row | scores

    def _score_held_out(self) -> Row:
        """Return the scores of the held-out images, the same in all processes."""
        predictions: dict[int | str, Any] = {}
        for share in gather(self._predict_share()):
            predictions |= share
        if self.detector.has_masks:
            return score_masks(self.val_images, predictions)
        return score_boxes(self.val_images, predictions)

    @torch.no_grad()
    def _predict_share(self) -> dict[int | str, Any]:
        """Predict this process' share of the held-out images.

        Returns:
            image id -> ``boxes`` (n, 4) XYXY in pixels of the image itself, ``scores`` (n,) and
            ``labels`` (n,), by falling score, on the CPU; of a detector of masks the objects, as
            :func:`dinoneck.inference.coco_objects` returns them.
        """
        self.detector.eval()
        rows = range(self.engine.rank, len(self.val_images), self.engine.num_processes)
        if self.detector.tiling is not None:
            return self._predict_in_tiles(rows)
        loader = DataLoader(
            Subset(self.val_images, rows),
            batch_size=self.config.optim.batch_size // self.engine.num_processes,
            num_workers=self.config.detector.workers,
            collate_fn=collate_boxes,
        )
        predictions: dict[int | str, Any] = {}
        for images, targets in loader:
            outputs = self.detector(images.to(self.engine.device))
            for detections, target in zip(outputs, targets, strict=True):
                best = best_of(detections)
                if self.detector.has_masks:
                    best["masks"] = masks_in_image(best["masks"], target["size"])
                    predictions[target["image_id"]] = coco_objects(best)
                    continue
                boxes = to_original(best["boxes"], images.shape[-2:], target["size"])
                predictions[target["image_id"]] = {**best, "boxes": boxes}
        return predictions

    def _predict_in_tiles(self, rows: Sequence[int]) -> dict[int | str, Any]:
        """Predict held-out images whole, as ``predict`` and ``evaluate`` do; as :meth:`_predict_share`."""
        self.detector.note_trained()  # its weights are those of this epoch
        batch_size = self.config.optim.batch_size // self.engine.num_processes
        predictions: dict[int | str, Any] = {}
        for row in rows:
            image, _ = self.val_images.original(row)
            [prediction] = self.detector.predict(image, min_score=0.0, batch_size=batch_size)
            if self.detector.has_masks:
                predictions[self.val_images.ids[row]] = coco_objects(prediction)
            else:
                predictions[self.val_images.ids[row]] = prediction
        return predictions

    def _best_earlier_precision(self) -> float:
        """The highest AP of the epochs before this one; -1, COCO's AP of no result, if none was scored."""
        best = -1.0
        for row in self.engine.history:
            if "AP" in row:
                best = max(best, row["AP"])
        return best

    def _write_detector(self, scores: Row) -> None:
        """Write the detector of this epoch, which the folder of the run gets when the run is finished."""
        if scores["min_score"]:
            self.detector.min_score = scores["min_score"]
            self.detector.thresholds = class_thresholds(scores, self.detector.classes)
        metrics = {name: scores[name] for name in ("AP", "AP50", "AP75", "F1")}
        training = {"epochs": self.engine.epoch + 1, "metrics": metrics}
        record: dict[str, Any] = {"training": training}
        if self.config.record_images:
            images = images_of_hashes(image_hashes(self.train_images.paths))
            if self.config.init is not None:
                images |= known_training_images(self.config.init)
            record["training_images"] = images
        if self.config.license is not None:
            record["license"] = self.config.license
        file = self.folder / run_names.UNFINISHED / run_names.DETECTOR
        self.detector.save(file, **record)

    # after the last epoch

    def _move_results(self) -> None:
        """Move log and detector into the folder of the run."""
        for name in (files.LOG, run_names.DETECTOR):
            finished = self.folder / run_names.UNFINISHED / name
            if finished.exists():  # a run may stop between here and its report
                finished.replace(self.folder / name)

    def _write_trained_images(self) -> None:
        """Write the names and the hashes of the training images."""
        paths = self.train_images.paths
        names = [str(path) for path in paths]
        all_images = Fold.of_all_images(len(paths))
        write_trained_images(
            self.folder, names=names, hashes=image_hashes(paths), folds=[all_images]
        )

    def _report(self) -> dict[str, Any]:
        """What ``report.json`` holds, see :func:`train_detector`."""
        history = self.engine.history
        scored = [row for row in history if "AP" in row]
        train = self.train_images
        val = self.val_images
        facts: dict[str, Any] = {}  # of some runs
        if self.initial is not None:
            facts["init"] = self.initial.origin
        if self.detector.has_masks:
            facts["scored"] = "masks"
        if isinstance(self.samples, BoxTiles):
            facts["tiles"] = {"train": len(self.samples), "without_boxes": self.samples.num_empty}
        return {
            "best": max(scored, key=lambda row: row["AP"]),
            "untrained": self.engine.extra["untrained"],
            "data": self.summary.to_dict(),
            "images": {"train": len(train), "val": len(val)},
            "skipped": {"train": dict(train.skipped), "val": dict(val.skipped)},
            "parameters": sum(parameter.numel() for parameter in self.detector.parameters()),
            "minutes": round(sum(row["seconds"] for row in history) / 60, 2),
            **highest_memory(history, self.engine.device),
            **facts,
            "config": self.config.to_dict(),
            "versions": versions(),
        }


class _Losses(nn.Module):
    """A detector's losses by name, and ``"loss"``, their sum."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(
        self, images: Tensor, targets: list[Target], share: float | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of images (B, 3, H, W), in float32.

        Args:
            images: of a batch, or a part of it.
            targets: of the images.
            share: that the losses of a part have in those of the batch; None = all.
        """
        losses = {name: value.float() for name, value in self.detector(images, targets).items()}
        if share is not None:
            losses = {name: share * value for name, value in losses.items()}
        total = torch.stack([*losses.values()]).sum()
        return {"loss": total, **losses}


def _to_device(
    images: Tensor, targets: list[Target], device: torch.device
) -> tuple[Tensor, list[Target]]:
    """Return a batch with its tensors on the device; one transfer takes them all."""
    tensors = [images]
    entries = []  # (number of the target, key) of each further tensor
    for number, target in enumerate(targets):
        for key, value in target.items():
            if isinstance(value, Tensor):
                tensors.append(value)
                entries.append((number, key))
    images_on_device, *values_on_device = send(tensors, device)
    targets_on_device = [dict(target) for target in targets]
    for (number, key), value in zip(entries, values_on_device, strict=True):
        targets_on_device[number][key] = value
    return images_on_device, targets_on_device


def _check_patch(tile: tuple[int, int], detector: Detector) -> None:
    """Raise a ConfigError for a tile that is smaller than a patch."""
    patch = patch_pair(detector.preprocess.patch_size)
    if tile[0] < patch[0] or tile[1] < patch[1]:
        raise ConfigError(
            f"tile is {tile} px (height, width), smaller than a patch of {patch} px; take a larger one "
            "(--tile)"
        )


def open_images(
    config: TrainDetectorConfig, *, masks: bool = False, antialias: bool = True
) -> tuple[BoxImages, BoxImages]:
    """Return the training and the held-out images, resized; the training images are augmented.

    Held out are the images of ``data.val_boxes``; without it the part val of ``data.boxes``, of YOLO
    or VOC; without one some of the images, which are drawn.

    Args:
        config: of the run.
        masks: read the mask of every box too.
        antialias: of the resize, see :func:`dinoneck.data.box_transforms`.

    Raises:
        ConfigError: if no image is left to hold out or to train on, or held-out images are named
            twice.
        DataError: if a file or a folder cannot be used, or there are too few images.
    """
    data = config.data
    size = data.size or DEFAULT_SIZE
    train = BoxImages(
        data.boxes,
        data.images,
        transform=_train_transform(size, config.detector.augment, antialias=antialias),
        classes=data.classes or None,
        bits=data.bits,
        crowd=data.crowd,
        masks=masks,
    )
    # the detector normalises, not the transform
    val_transform = box_transforms(size, train=False, antialias=antialias, mean=None, std=None)
    if data.val_boxes is None and "val" not in parts_of(data.boxes):
        return _hold_out_some(config, train, val_transform)
    train.check_trainable("box")
    return train, _open_held_out(config, train, val_transform)


def _train_transform(
    size: int | tuple[int, int],
    augment: Literal["none", "horizontal", "both"],
    *,
    antialias: bool,
) -> v2.Compose:
    """The transform of training images; the detector normalises, not the transform."""
    flip = None
    if augment != "none":
        flip = augment
    return box_transforms(
        size,
        train=True,
        flip=flip,
        photometric=flip is not None,
        antialias=antialias,
        mean=None,
        std=None,
    )


def _open_held_out(
    config: TrainDetectorConfig, train: BoxImages, val_transform: v2.Compose
) -> BoxImages:
    """Open the held-out images: those of ``data.val_boxes``, or the part val of ``data.boxes``.

    Raises:
        ConfigError: if both name some.
    """
    data = config.data
    file = data.boxes if data.val_boxes is None else data.val_boxes
    if data.val_boxes is not None and "val" in parts_of(data.boxes):
        raise ConfigError(
            f"val_boxes is {data.val_boxes!r}, and {data.boxes} states held-out images itself; leave "
            "val_boxes (--val-boxes) out"
        )
    return BoxImages(
        file,
        data.val_images or data.images,
        part="val" if "val" in parts_of(file) else None,
        transform=val_transform,
        classes=train.classes,
        crowd=data.crowd,
        bits=data.bits,
        allow_unlisted=True,
        masks=train.masks,
    )


def _hold_out_some(
    config: TrainDetectorConfig, images: BoxImages, val_transform: v2.Compose
) -> tuple[BoxImages, BoxImages]:
    """Split the images at random: return those to train on, and the held-out ones.

    Raises:
        ConfigError: if none is left for one of them.
    """
    data = config.data
    num_held_out = len(images) // config.folds.count
    if not num_held_out:
        raise ConfigError(
            f"{data.boxes} has {len(images)} images, too few to hold out one in "
            f"{config.folds.count}; {_held_out_remedy(images)}"
        )
    if num_held_out == len(images):
        raise ConfigError(
            f"folds.count is {config.folds.count} (--folds): all images are held out and none is "
            f"left to train on; take 2 or more, or {_held_out_remedy(images)}"
        )
    images.check_trainable("box")
    order = np.random.default_rng(config.optim.seed).permutation(len(images)).tolist()
    held_out_rows = sorted(order[:num_held_out])
    train_rows = sorted(order[num_held_out:])
    held_out = images.take(held_out_rows)
    held_out.transform = val_transform
    train = images.take(train_rows)
    train.check_part(images.class_counts, "box", "the images that are trained on")
    return train, held_out


def _held_out_remedy(images: BoxImages) -> str:
    """How a message says to name held-out images; a training of objects has no option of its own for them."""
    if images.masks:
        return (
            "name the file of objects as data.boxes and held-out images with data.val_boxes (--boxes "
            "and --val-boxes, in the place of --instances)"
        )
    return "name held-out images with data.val_boxes (--val-boxes)"


def build_detector(config: TrainDetectorConfig, classes: tuple[str, ...]) -> Detector:
    """Return the detector of a config with its first weights, which the seed decides.

    With ``init`` it starts as the detector of that file, with what was trained of its ViT.

    Raises:
        ConfigError: if its parts do not fit.
        BackboneError: if the backbone cannot be loaded.
        CheckpointError: if weights of the ViT in the file of ``init`` are of another one.
    """
    spec = config.detector
    neck_arguments = dict(config.head)
    neck_class = neck_named(neck_arguments.pop("type", config.default_head))
    backbone = _open_backbone(config, neck_class, neck_arguments)
    neck_arguments = _with_geometry(neck_arguments, neck_class, backbone)
    if spec.name in DETRS:
        neck_arguments = _with_detr_levels(neck_arguments, neck_class, config)
    torch.manual_seed(config.optim.seed)
    neck: Neck = neck_class.from_config(neck_arguments)
    head = DetectionHead(
        spec.name,
        classes,
        neck,
        features_at=spec.features_at,
        variant=spec.variant,
        queries=spec.queries,
        encoder_layers=spec.encoder_layers,
    )
    if config.init is None:
        _add_lora(config, backbone)
    else:
        backbone = _start_from_file(config, config.init, head, backbone)
    size = cast("tuple[int, int]", config.data.size or DEFAULT_SIZE)
    detector = Detector(head, backbone, size, bits=config.data.bits)
    if spec.checkpointing:
        backbone.set_grad_checkpointing()
    return detector


def _open_backbone(
    config: TrainDetectorConfig, neck_class: type[Neck], neck_arguments: Mapping[str, Any]
) -> Backbone:
    """Load the backbone; without ``backbone.layers`` it gives as many layers as the neck takes."""
    # its tokens are computed in training, by torch
    backbone = open_backbone(config.backbone.changed(runtime=None), config.device)
    if config.backbone.layers is None and "num_layers" in fields_of(neck_class):
        num_layers = int(neck_arguments.get("num_layers", 3))
        backbone = backbone.with_layers(_spread_layers(num_layers, backbone.depth))
    return backbone


def _spread_layers(count: int, depth: int) -> list[int]:
    """Return the indices of ``count`` blocks at equal distances, of which the last is the last block."""
    return [depth - 1 - i * depth // (count + 1) for i in reversed(range(count))]


def _with_geometry(
    neck_arguments: Mapping[str, Any], neck_class: type[Neck], backbone: Backbone
) -> dict[str, Any]:
    """The arguments of a neck with those that its backbone decides, where the config has none."""
    geometry = {
        "embed_dim": backbone.embed_dim,
        "patch_size": backbone.patch_size,
        "num_layers": len(backbone.layers),
    }
    parameters = fields_of(neck_class)
    derived = {name: value for name, value in geometry.items() if name in parameters}
    return {**derived, **neck_arguments}


def _with_detr_levels(
    neck_arguments: Mapping[str, Any], neck_class: type[Neck], config: TrainDetectorConfig
) -> dict[str, Any]:
    """The arguments of a neck with channels and scales as a DETR reads them, where the config has none."""
    from dinoneck.detection.detr import width_of

    parameters = fields_of(neck_class)
    width_name = "fpn_dim" if "fpn_dim" in parameters else "out_channels"
    arguments = dict(neck_arguments)
    arguments.setdefault(width_name, width_of(config.detector.name, config.detector.variant))
    if "scales" in parameters:
        arguments.setdefault("scales", (2.0, 1.0, 0.5))
    return arguments


def _start_from_file(
    config: TrainDetectorConfig, file: str, head: DetectionHead, backbone: Backbone
) -> Backbone:
    """Copy the weights of an earlier detector into the head; return the backbone with what was trained of it."""
    start_from(head, file)
    if files.writes():
        log_start(head, file)
    checkpoint = HeadCheckpoint.load(file)
    trained = trained_weights(checkpoint)
    log_backbone(config, backbone.record(), has_tuned=bool(trained))
    if trained:
        check_same_backbone(backbone, checkpoint, file)
    has_lora = start_lora(backbone, checkpoint, config)
    if trained:
        backbone = with_trained_weights(backbone, trained)
    if not has_lora:
        _add_lora(config, backbone)
    return backbone


def _add_lora(config: TrainDetectorConfig, backbone: Backbone) -> None:
    """Add new LoRA weights to the backbone if the config has some."""
    if config.backbone.lora is not None:
        backbone.add_lora(config.backbone.lora, seed=config.optim.seed)
