"""train_detector: a detector's losses, data and scores for the training engine, and the files of a run."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.configured import fields_of
from dinoneck.data.boxes import BoxImages, box_transforms, collate_boxes, to_original
from dinoneck.data.copies import find_copies, warn_of_changed_copies, warn_of_copies
from dinoneck.data.ground import warn_of_overlaps
from dinoneck.detection.detector import (
    Detector,
    best_of,
    trained_weights,
    with_trained_weights,
)
from dinoneck.detection.evaluation import score_boxes
from dinoneck.detection.head import DETRS, DetectionHead
from dinoneck.devices import local_device, send
from dinoneck.errors import ConfigError
from dinoneck.extras import check_installed
from dinoneck.necks.neck import Neck, neck_named
from dinoneck.registry import import_modules
from dinoneck.text import in_words
from dinoneck.training import folder as files
from dinoneck.training.config import TrainDetectorConfig
from dinoneck.training.earlier import check_same_backbone, log_backbone, start_lora
from dinoneck.training.engine import Batches, Engine, Row, gathered, own_random_numbers
from dinoneck.training.folds import Fold
from dinoneck.training.parameter_groups import FreezeSchedule, param_groups
from dinoneck.training.programs import check_class
from dinoneck.training.source import open_backbone
from dinoneck.training.tasks import start_from
from dinoneck.training.trained_images import write_trained_images
from dinoneck.version import versions

NECK = "spatial_tuning_adapter"
SIZE = (640, 640)  # (height, width), as in the recipes of D-FINE and RT-DETR
PLAN = {0: "all", 10: "last:4"}  # epoch -> what is frozen of the backbone, see FreezeSchedule
_logger = logging.getLogger(__name__)


def train_detector(
    config: TrainDetectorConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = True,
) -> dict[str, Any]:
    """Train a detector and write it with its scores.

    The folder gets ``detector.safetensors`` (the weights of the best held-out AP, for
    :meth:`Detector.load`), ``log.jsonl`` (a line per epoch), ``trained_on.csv`` (the training images
    with their hashes) and, last, ``report.json``. The same
    call after a kill continues the run, and writes what it would have written. Under ``torchrun``
    each process computes its share of every batch.

    Args:
        config: ``data.boxes`` and ``data.val_boxes`` name COCO files, ``detector`` the detector,
            ``head`` its neck.
        out: the folder: a new or empty one, or that of an earlier run.
        overwrite: replace the results of an earlier run in ``out``; until the new report is
            written they are in ``out/earlier``.
        resume: continue an interrupted run of the same config.

    Returns:
        what ``report.json`` holds: ``best`` (the log's best row: ``AP``, ``AP50``, ``AP75``,
        ``per_class``, ``epoch``), ``untrained`` (the scores of the first weights), ``images``,
        ``skipped`` boxes, ``parameters``, ``minutes``, ``config`` and ``versions``.

    Raises:
        ConfigError: if values contradict each other or have no effect on detectors.
        DataError: if the data cannot be used, the loss is not finite, ``out`` holds results and
            ``overwrite`` is off, or it holds other files than those of a run.
        CheckpointError: if ``out`` holds the state of another run; it names the values that differ.
    """
    check_class(config, TrainDetectorConfig)
    import_modules(config.imports)
    check_installed("pycocotools", "detection")
    folder = Path(out)
    files.check_folder(folder, overwrite=overwrite)
    train, val = open_images(config)
    detector = build_detector(config, train.classes).to(local_device(config.device))
    with own_random_numbers():
        run = _Run(config, folder, detector, train, val)
        run.run(resume=resume)
    history = run.engine.history
    if files.writes():
        for name in (files.LOG, files.DETECTOR):
            finished = folder / files.UNFINISHED / name
            if finished.exists():  # a run may stop between here and its report
                finished.replace(folder / name)
        all_trained: Fold = (np.arange(len(train)), np.arange(0))  # none is held out
        names = [str(path) for path in train.paths]
        write_trained_images(folder, train.paths, names, tokens=None, folds={None: all_trained})
    scored = [row for row in history if "AP" in row]
    report = {
        "best": max(scored, key=lambda row: row["AP"]),
        "untrained": run.engine.extra["untrained"],
        "images": {"train": len(train), "val": len(val)},
        "skipped": {"train": dict(train.skipped), "val": dict(val.skipped)},
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "minutes": round(sum(row["seconds"] for row in history) / 60, 2),
        "config": config.to_dict(),
        "versions": versions(),
    }
    return files.finish(folder, report)


class _Losses(nn.Module):
    """A detector's losses by name, and ``"loss"``, their sum."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the losses, in float32."""
        losses = {name: value.float() for name, value in self.detector(images, targets).items()}
        total = torch.stack([*losses.values()]).sum()
        return {"loss": total, **losses}


class _Run:
    """A training run.

    Args:
        config: the run.
        folder: of the results.
        detector: with its first weights.
        train: training images.
        val: held-out images.
    """

    def __init__(
        self,
        config: TrainDetectorConfig,
        folder: Path,
        detector: Detector,
        train: BoxImages,
        val: BoxImages,
    ) -> None:
        self.config = config
        self.folder = folder
        self.detector = detector
        self.train = train
        self.val = val
        optim = config.optim
        self.schedule = FreezeSchedule(optim.plan or PLAN)
        self.schedule.apply(detector, 0)
        groups = param_groups(detector, **optim.rates(), include_frozen=True)
        steps_per_epoch = math.ceil(len(train) / optim.batch_size)
        self.engine = Engine(detector, _Losses(detector), groups, optim, steps_per_epoch)
        if optim.batch_size % self.engine.count:
            raise ConfigError(
                f"batch_size is {optim.batch_size} for {self.engine.count} processes; take a "
                "multiple"
            )

    def run(self, *, resume: bool) -> None:
        """Train to the last epoch."""
        engine = self.engine
        identity = files.begin(self.folder, self._identity(), resume=resume)
        engine.keep(self.folder / files.UNFINISHED / files.STATE, identity, resume=resume)
        if not engine.extra:
            engine.extra = {"untrained": self._scores(), "tuned": []}
        self.detector.tuned = set(engine.extra["tuned"])
        engine.run(self._batches, self._validate, begin=self._begin, callbacks=[self._log])

    def _identity(self) -> dict[str, Any]:
        """What must be equal in a run and its continuation."""
        values = self.config.to_dict()
        del values["detector"]["workers"]
        datasets = [[*dataset.ids, dataset.ground_truth()] for dataset in (self.train, self.val)]
        content = json.dumps(datasets).encode()
        values["hash of images and boxes"] = hashlib.sha256(content).hexdigest()
        values["backbone record"] = self.detector.record
        return values

    def _begin(self, epoch: int) -> None:
        """Apply the plan of what is trained to a new epoch."""
        self.schedule.start_epoch(epoch, self.detector, self.engine.optimizer)
        self.detector.note_trained()
        self.engine.extra["tuned"] = sorted(self.detector.tuned)

    def _batches(self, epoch: int) -> Batches:
        """This process' batches of one epoch; the last is filled up from the start of the order."""
        batch_size = self.config.optim.batch_size
        rank = self.engine.rank
        num_processes = self.engine.count
        generator = np.random.default_rng([self.config.optim.seed, epoch])
        order = generator.permutation(len(self.train))
        num_batches = math.ceil(len(order) / batch_size)
        order = np.resize(order, num_batches * batch_size)
        shares = []
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            shares.append(batch[rank::num_processes].tolist())
        for images, targets in self._loader(self.train, batch_sampler=shares):
            yield batch_size, _to_device(images, targets, self.engine.device)

    def _loader(self, images: Any, **options: Any) -> Any:
        workers = self.config.detector.workers
        return DataLoader(images, num_workers=workers, collate_fn=collate_boxes, **options)

    def _validate(self) -> Row:
        """Return the scores of an epoch that is scored; write the best detector so far."""
        epoch = self.engine.epoch
        row: Row = {
            "epoch": epoch,
            "stage": self.schedule.stage(epoch),
            "lr": self.engine.optimizer.param_groups[-1]["lr"],
        }
        is_last = epoch + 1 >= self.config.optim.epochs
        if not is_last and (epoch + 1) % self.config.detector.eval_every:
            return row
        scores = self._scores()
        best_before = -1.0  # COCO's AP of no result
        for earlier in self.engine.history:
            if "AP" in earlier:
                best_before = max(best_before, earlier["AP"])
        if self.engine.rank == 0 and scores["AP"] > best_before:
            metrics = {name: scores[name] for name in ("AP", "AP50", "AP75", "F1")}
            training = {"epochs": epoch + 1, "metrics": metrics}
            self.detector.min_score = scores["min_score"] or self.detector.min_score
            # the folder of a run holds a finished detector or none
            self.detector.save(self.folder / files.UNFINISHED / files.DETECTOR, training=training)
        return row | scores

    @torch.no_grad()
    def _scores(self) -> Row:
        """Return the scores of the held-out images, of which each process predicts its share."""
        engine = self.engine
        self.detector.eval()
        share = Subset(self.val, range(engine.rank, len(self.val), engine.count))
        batch_size = self.config.optim.batch_size // engine.count
        predictions: dict[int, dict[str, Tensor]] = {}
        for images, targets in self._loader(share, batch_size=batch_size):
            outputs = self.detector(images.to(engine.device))
            for detections, target in zip(outputs, targets, strict=True):
                best = best_of(detections)
                boxes = to_original(best["boxes"], images.shape[-2:], target["size"])
                predictions[target["image_id"]] = {**best, "boxes": boxes}
        all_predictions: dict[int, dict[str, Tensor]] = {}
        for process_predictions in gathered(predictions):
            all_predictions |= process_predictions
        return score_boxes(self.val, all_predictions)

    def _log(self, epoch: int, row: Row) -> None:
        texts = []
        for key, value in row.items():
            if key == "per_class":
                continue
            texts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
        _logger.info("epoch %d: %s", epoch, ", ".join(texts))


def _to_device(
    images: Tensor, targets: list[dict[str, Any]], device: torch.device
) -> tuple[Tensor, list[dict[str, Any]]]:
    """A batch with its tensors on the device, where one transfer takes them all."""
    tensors = [images]
    for target in targets:
        tensors += [value for value in target.values() if isinstance(value, Tensor)]
    images_on_device, *others = send(tensors, device)
    remaining = iter(others)  # in the order in which they were collected
    targets_on_device = []
    for target in targets:
        moved = {}
        for key, value in target.items():
            moved[key] = next(remaining) if isinstance(value, Tensor) else value
        targets_on_device.append(moved)
    return images_on_device, targets_on_device


def open_images(config: TrainDetectorConfig) -> tuple[BoxImages, BoxImages]:
    """Return the training and the held-out images.

    Raises:
        DataError: if a file or a folder cannot be used, or there are too few images.
    """
    data = config.data
    augment = config.detector.augment
    size = data.size or SIZE
    # the detector normalises, not the transforms
    train_views = box_transforms(
        size,
        train=True,
        flip=None if augment == "none" else augment,
        photometric=augment != "none",
        mean=None,
        std=None,
    )
    val_views = box_transforms(size, train=False, mean=None, std=None)
    train = BoxImages(
        data.boxes,
        data.images,
        transform=train_views,
        classes=data.classes or None,
        bits=data.bits,
        crowd=data.crowd,
    )
    if data.val_boxes is None:
        return _hold_out_part(config, train, val_views)
    return train, _open_held_out(config, data.val_boxes, train, val_views)


def _open_held_out(
    config: TrainDetectorConfig, file: str, train: BoxImages, val_views: Any
) -> BoxImages:
    """Open the held-out images of a file of their own; warn of those that are trained on too."""
    data = config.data
    held_out = BoxImages(
        file,
        data.val_images or data.images,
        transform=val_views,
        classes=train.classes,
        crowd=data.crowd,
        bits=data.bits,
        allow_unlisted=True,
    )
    train.check_trainable("box")
    train.warn_of_turned_images()
    held_out.warn_of_turned_images()
    both = _held_out_and_trained(train, held_out)
    if both:
        folder_note = ""
        if data.val_images is None:
            folder_note = (
                ", or, if they are other images of the same names, name their folder: "
                "data.val_images (--val-images)"
            )
        _logger.warning(
            "%d of the %d held-out images of %s are training images too: %s ...; their scores are "
            "too high. Leave them out of one of the files%s",
            len(both),
            len(held_out),
            held_out.file,
            min(both),
            folder_note,
        )
    return held_out


def _hold_out_part(
    config: TrainDetectorConfig, train: BoxImages, val_views: Any
) -> tuple[BoxImages, BoxImages]:
    """Split the images at random: return those to train on, and the held-out ones.

    Raises:
        ConfigError: if none is left for one of them.
    """
    data = config.data
    order = np.random.default_rng(config.optim.seed).permutation(len(train)).tolist()
    count = len(train) // config.folds.count
    if not count:
        raise ConfigError(
            f"{data.boxes} has {len(train)} images, too few to hold out one in "
            f"{config.folds.count}; name held-out images with data.val_boxes (--val-boxes)"
        )
    if count == len(train):
        raise ConfigError(
            f"folds.count is {config.folds.count} (--folds): all images are held out and none is "
            "left to train on; take 2 or more, or name held-out images with data.val_boxes "
            "(--val-boxes)"
        )
    train.check_trainable("box")
    train.warn_of_turned_images()
    _warn_of_split_copies(train, held_out_rows=order[:count])
    val = train.take(sorted(order[:count]))
    val.transform = val_views
    remaining = train.take(sorted(order[count:]))
    remaining.check_part(train.class_counts, "box", "the images that are trained on")
    return remaining, val


def _warn_of_split_copies(images: BoxImages, held_out_rows: Sequence[int]) -> None:
    """Warn of pictures that exist twice, unchanged or changed: one of the two may be held out."""
    part_of: dict[Path, object] = dict.fromkeys(images.paths, "trained on")
    for row in held_out_rows:
        part_of[images.paths[row]] = "held out"
    copies = find_copies(images.paths)
    if copies:
        warn_of_copies(copies, part_of, {"the classes of their boxes": _classes_shown(images)})
    name_held_out = "name held-out images in a file of their own: data.val_boxes (--val-boxes)"
    warn_of_changed_copies(images.paths, part_of, f"Leave them out, or {name_held_out}")
    warn_of_overlaps(images.paths, part_of, f"For scores of other ground, {name_held_out}")


def _classes_shown(images: BoxImages) -> dict[Path, object]:
    """What each image shows, in words: the number of boxes of each class."""
    name_of = dict(zip(images.category_ids, images.classes, strict=True))
    counts = {image_id: Counter[str]() for image_id in images.ids}
    for box in images.ground_truth()["annotations"]:
        if not box["iscrowd"]:
            counts[box["image_id"]][name_of[box["category_id"]]] += 1
    shown: dict[Path, object] = {}
    for path, image_id in zip(images.paths, images.ids, strict=True):
        shown[path] = in_words(counts[image_id]) or "none"
    return shown


def _held_out_and_trained(train: BoxImages, held_out: BoxImages) -> set[Path]:
    """The held-out images that are trained on: the same files, or copies of them."""
    trained = set(train.paths)
    both = {path for path in held_out.paths if path in trained}
    for copy in find_copies([*train.paths, *held_out.paths]):
        if copy.first in trained and copy.second not in trained:
            both.add(copy.second)
    return both


def _spread_layers(count: int, depth: int) -> list[int]:
    """Return the indices of ``count`` blocks at equal distances, of which the last is the last block."""
    return [depth - 1 - i * depth // (count + 1) for i in reversed(range(count))]


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
    cls = neck_named(neck_arguments.pop("type", NECK))
    parameters = fields_of(cls)

    # the backbone, with as many layers as the neck takes
    backbone = open_backbone(config.backbone, config.device)
    if config.backbone.layers is None and "num_layers" in parameters:
        num_layers = int(neck_arguments.get("num_layers", 3))
        backbone = backbone.with_layers(_spread_layers(num_layers, backbone.depth))

    # the neck, with the arguments that backbone and detection head decide
    geometry = {
        "embed_dim": backbone.embed_dim,
        "patch_size": backbone.patch_size,
        "num_layers": len(backbone.layers),
    }
    derived = {name: value for name, value in geometry.items() if name in parameters}
    neck_arguments = {**derived, **neck_arguments}
    if spec.name in DETRS:
        from dinoneck.detection.detr import width_of

        width_name = "fpn_dim" if "fpn_dim" in parameters else "out_channels"
        neck_arguments.setdefault(width_name, width_of(spec.name, spec.variant))
        if "scales" in parameters:
            neck_arguments.setdefault("scales", (2.0, 1.0, 0.5))
    torch.manual_seed(config.optim.seed)
    neck: Neck = cls.from_config(neck_arguments)

    head = DetectionHead(
        spec.name,
        classes,
        neck,
        features_at=spec.features_at,
        variant=spec.variant,
        queries=spec.queries,
        encoder_layers=spec.encoder_layers,
    )
    has_lora = False
    if config.init is not None:
        start_from(head, config.init)
        checkpoint = HeadCheckpoint.load(config.init)
        trained = trained_weights(checkpoint)
        log_backbone(config, backbone.record(), has_tuned=bool(trained))
        if trained:
            check_same_backbone(backbone, checkpoint, config.init)
        has_lora = start_lora(backbone, checkpoint, config)
        if trained:
            backbone = with_trained_weights(backbone, trained)
    if config.backbone.lora is not None and not has_lora:
        backbone.add_lora(config.backbone.lora, seed=config.optim.seed)
    size = cast("tuple[int, int]", config.data.size or SIZE)
    detector = Detector(head, backbone, size, bits=config.data.bits)
    if spec.checkpointing:
        backbone.set_grad_checkpointing()
    return detector
