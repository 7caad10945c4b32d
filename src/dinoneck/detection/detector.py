"""Detector: a backbone and a detection head; images in, boxes in their pixels out."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.backbones import rotary
from dinoneck.backbones.backbone import Backbone, callable_backbone, plain_backbone
from dinoneck.backbones.lora import base_name
from dinoneck.backbones.weight_hashes import Watch, base_state
from dinoneck.checkpoint.backbone_part import (
    MODEL,
    BackbonePart,
    base_record,
    name_in_model,
    part_for_detector,
)
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint, checkpoint_of_detector
from dinoneck.checkpoint.lora_weights import check_takes_lora
from dinoneck.checkpoint.training_images import NO_IMAGES
from dinoneck.checks import check_minimum
from dinoneck.data.boxes import to_original
from dinoneck.detection.head import DetectionHead
from dinoneck.detection.levels import Target
from dinoneck.dtypes import WEIGHT_DTYPES
from dinoneck.errors import BackboneError, CheckpointError, ConfigError, DataError
from dinoneck.grid import patch_pair
from dinoneck.heads.instances import LeastScore, reach_score
from dinoneck.images.bands import read_channels
from dinoneck.images.decoding import ImageInput
from dinoneck.images.pixels import in_threads
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.inference.cropped_masks import CropMemory, CroppedMasks
from dinoneck.inference.images import CalledImages
from dinoneck.inference.tile_merging import (
    Detections,
    Tile,
    copy_to_keep,
    merge_tiles,
    no_tiles_to_overlap,
    tiles_of,
    tiling_for_objects,
)
from dinoneck.inference.tiles import Tiling, TrainedBoxes
from dinoneck.kinds import Runtime, TileSize
from dinoneck.published.detectors import VIT_NAME
from dinoneck.published.loading import load_published
from dinoneck.published.table import is_published
from dinoneck.registry import DETECTORS, WITH_OWN_VIT
from dinoneck.runtime.least_scores import LeastScores
from dinoneck.runtime.names import MOST_BOXES
from dinoneck.training.recipe import Share, converted

if TYPE_CHECKING:
    from dinoneck.checkpoint.hub import CommitInfo
    from dinoneck.detection.onnx import BoxParity
    from dinoneck.detection.rf_detr import RfDetr
    from dinoneck.training.parameter_groups import OwnVit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _NetworkInput:
    """An image, or a tile of a large one, as the network takes it.

    Attributes:
        pixels: (3, H, W) in 0 ... 1, of the detector's ``size``.
        image_size: (height, width) of the image before it was resized.
        tile: the part that it shows.
        is_last: whether no other tile of the image follows.
    """

    pixels: Tensor
    image_size: tuple[int, int]
    tile: Tile
    is_last: bool


class _DetectionsOfTiles:
    """The detections of an image, tile by tile; an image that is not cut is one tile.

    Attributes:
        memory: for the masks.
    """

    def __init__(self) -> None:
        self.memory = CropMemory()
        self._tiles: list[Tile] = []
        self._detections: list[Detections] = []

    def add(self, tile: Tile, detections: Detections) -> None:
        """Take the detections of the next tile, in pixels of the image."""
        self._tiles.append(tile)
        self._detections.append(detections)

    def merged(self, image_size: tuple[int, int]) -> Detections:
        """Return those of the whole image, without those that two tiles found."""
        if len(self._tiles) == 1:
            return self._detections[0]
        return merge_tiles(self._detections, self._tiles, image_size)


@dataclass(frozen=True)
class Publication:
    """What is known of the weights that a detector was published with, or was fine-tuned from.

    Attributes:
        license: of the weights; None if none is known.
        extra: their origin: name, address and hash.
    """

    license: str | None
    extra: Mapping[str, Any]


class Detector(LeastScores, nn.Module):
    """A detector on a DINO backbone.

    As a module it takes images (B, 3, H, W) in 0 ... 1 of its ``size``. With targets it returns
    losses by name. A target has ``boxes`` (n, 4) XYXY in pixels of these images and ``labels`` (n,)
    from 0; for a model of masks it also has ``masks`` (n, H, W). Without targets the module returns
    ``boxes``, ``scores`` and ``labels`` of each image, and a model of masks also ``masks``
    (logits). :meth:`predict` takes images of any size.

    Args:
        head: neck and detection head; or a published :class:`dinoneck.detection.RfDetr`, which
            has a backbone of its own.
        backbone: of the neck's width and patch size; what of it is trained is saved with the head.
            None of an RfDetr.
        size: (height, width) in pixels that images are resized to.
        record: of the backbone before its training; None = of the backbone as it was loaded.
        bits: how many bits images of 16 bits use, see :class:`dinoneck.data.Preprocessing`.

    Attributes:
        head: the :class:`dinoneck.detection.DetectionHead` or :class:`dinoneck.detection.RfDetr`.
        backbone: the backbone; None of an RfDetr.
        preprocess: resizing and normalisation of images.
        classes: names of the labels.
        record: of the backbone before its training.
        tuned: names of the backbone's weights that were trained; :meth:`save` finds those that it
            does not name.
        min_score: the smallest score of predicted boxes; a training sets the one with the best F1
            on held-out images. To set it removes the thresholds.
        thresholds: the smallest score of the boxes of each class, in the place of ``min_score``; a
            training sets those with the best F1 on held-out images. Empty: there are none.
        tiling: how large images are cut into tiles, see :meth:`use_tiles`; None = they are not. Of a
            file that was trained on tiles, these tiles.
        training_images: short hashes of the images that it was trained on, as far as its file holds
            them.
        trained_boxes: the longest box of its training, and the tiles that its images were cut into,
            which its file keeps; None where they are unknown.
        source: the file or repository that it was read from; empty for one that was built.
        publication: of an RfDetr the :class:`Publication` of its weights, which its file keeps; None
            of others, and of one that was built.

    Raises:
        ConfigError: if backbone, neck and size do not fit.

    Examples:
        >>> from dinoneck import STAPyramid, load_backbone
        >>> head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
        >>> detector = Detector(head, load_backbone("dinoneck_tiny"), size=(64, 96)).eval()
        >>> [prediction] = detector.predict(torch.rand(3, 120, 200), min_score=0.5)
        >>> sorted(prediction)
        ['boxes', 'labels', 'names', 'scores']
    """

    def __init__(
        self,
        head: DetectionHead | RfDetr,
        backbone: Backbone | None,
        size: tuple[int, int],
        *,
        record: Mapping[str, Any] | None = None,
        bits: int | None = None,
    ) -> None:
        super().__init__()
        if backbone is not None:
            backbone = callable_backbone(backbone)
        self.preprocess = _preprocessing(head, backbone, size, bits=bits)
        head.check_size(self.size, patch_pair(self.preprocess.patch_size))
        if not isinstance(head, DetectionHead):
            _warn_of_other_size(head, self.size)
        elif backbone is not None:
            head.levels.attach(backbone)
        self.backbone = backbone
        self.head = head
        self.record: dict[str, Any] = {}
        if record is not None:
            self.record = dict(record)
        elif backbone is not None:
            self.record = base_record(plain_backbone(backbone))
        self._is_record_given = record is not None
        self.source = ""
        self._num_expected = 0
        self.tuned = set(head.config.get("tuned") or ())
        self.min_score = head.config["min_score"]
        self.thresholds = head.config.get("thresholds", ())
        self.tiling: Tiling | None = None
        self.trained_boxes: TrainedBoxes | None = None
        self.training_images = NO_IMAGES
        self.publication: Publication | None = None
        # None: the weights may have been trained since the last prediction
        self._watch: Watch | None = None
        self.register_load_state_dict_post_hook(_forget_watch)  # type: ignore[no-untyped-call]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that the network takes."""
        return cast("tuple[int, int]", self.preprocess.size)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.head.classes

    @property
    def has_masks(self) -> bool:
        """Whether predictions hold a mask for each box."""
        return self.head.has_masks

    @property
    def backbone_name(self) -> str:
        """Name of the backbone; of an RfDetr that of its ViT."""
        if self.backbone is None:
            return VIT_NAME
        return self.backbone.name

    @property
    def vit(self) -> nn.Module:
        """The backbone, or the ViT of an RfDetr."""
        if self.backbone is None:
            return cast("RfDetr", self.head).vit
        return self.backbone

    @property
    def runtime_backbone(self) -> Backbone | None:
        """The backbone whose runtime computes tokens; None of an RfDetr without one."""
        if self.backbone is None:
            return cast("RfDetr", self.head).runtime_backbone
        return cast("Backbone", plain_backbone(self.backbone))

    @property
    def own_vit(self) -> OwnVit | None:
        """The ViT of an RfDetr, for what trains it; None of others."""
        if self.backbone is None:
            return cast("RfDetr", self.head).own_vit
        return None

    @property
    def device(self) -> torch.device:
        """Where the detector is."""
        return next(self.head.parameters()).device

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Return losses by name with targets, else the detections of each image in pixels of ``images``.

        Args:
            images: (B, 3, H, W) in 0 ... 1, of the detector's ``size``.
            targets: per image ``boxes`` (n, 4) XYXY in pixels of ``images``, ``labels`` (n,) from 0
                and, of a model for masks, ``masks`` (n, H, W).
        """
        is_training = targets is not None and torch.is_grad_enabled()
        backbone_weights = () if self.backbone is None else self.backbone.parameters()
        if is_training and any(weight.requires_grad for weight in backbone_weights):
            self._watch = None
        return self.head(self.normalised(images), targets)

    def normalised(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in 0 ... 1 as the backbone takes them."""
        mean = images.new_tensor(self.preprocess.mean)[:, None, None]
        std = images.new_tensor(self.preprocess.std)[:, None, None]
        return (images - mean) / std

    @torch.no_grad()
    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        min_score: float | None = None,
        max_boxes: int = MOST_BOXES,
        batch_size: int = 8,
        tile: TileSize = "auto",
        overlap: int | float | None = None,
    ) -> list[dict[str, Any]]:
        """Detect objects in images of any size; the detector is put into eval mode.

        Images larger than ``tile`` are cut into tiles, each of which is resized to the detector's
        size. An object that two tiles see counts once, see
        :func:`dinoneck.inference.tile_merging.merge_tiles`.
        Objects longer than the overlap may be cut at a seam.

        Args:
            images: one or several paths, PIL images, arrays (H, W, 3) or tensors (3, H, W). Or the
                path of a folder: all images in it and below, sorted.
            min_score: leave out boxes of a lower score, 0 ... 1; None = :attr:`thresholds`, without
                any :attr:`min_score`. FCOS gives none below 0.2, RetinaNet and Faster R-CNN none
                below 0.05.
            max_boxes: per image or tile, those with the highest scores. FCOS and Faster R-CNN give
                100 at most, RetinaNet 300, D-FINE, RT-DETRv2 and RF-DETR as many as they have
                queries.
            batch_size: images or tiles in a forward pass.
            tile: (height, width) in pixels of the image, or one number for both: such as the size
                of the training images, so that objects look as large as there. An image that fits
                a tile is predicted as a whole; one that is shorter on one side is not cut along it,
                and a tile of it stretched. None: no tiles; ``"auto"``: as :meth:`use_tiles` says, at first
                the tiles of the training, or none.
            overlap: by how much tiles overlap at least: an int in the same pixels, or a float, the
                share of a tile; None = as :meth:`use_tiles` says. Without that it is 0.2, and at
                least the longest box of the training, up to half a tile, if the file knows it.

        Returns:
            per image ``boxes`` (n, 4) float32, ``scores`` (n,), ``labels`` (n,) and ``names``, by
            falling score, on the CPU. Boxes are XYXY in pixels of the image, upright by its EXIF
            tag. A model of masks adds ``masks`` (n, height, width), bool in the same pixels; with
            tiles they are :class:`dinoneck.inference.CroppedMasks`. For a folder ``image`` comes
            first: the path of the image, which begins with that of the folder.

        Raises:
            BackboneError: if the backbone's weights were changed since the detector was loaded or
                predicted last, by anything but its own training.
            ConfigError: if ``max_boxes`` or ``batch_size`` is below 1, ``min_score`` is outside
                0 ... 1, or tiles are no tiles.
            DataError: if an image cannot be read, a folder holds none, or a score is not finite.
        """
        check_minimum(1, max_boxes=max_boxes, batch_size=batch_size)
        least_score = self._least_score(min_score)
        tiling = self._tiling(tile, overlap)
        called = CalledImages.of_call(images)
        self.check_weights()
        self.eval()
        if self._num_expected < len(called.images):
            self.expect_images(len(called.images))
        predictions = []
        whole = _DetectionsOfTiles()
        inputs = self._inputs(called.images, tiling)
        for network_input, detections in self._detect(inputs, batch_size, max_boxes=max_boxes):
            of_tile = self._in_image(detections, network_input, least_score, memory=whole.memory)
            whole.add(network_input.tile, of_tile)
            if network_input.is_last:
                merged = whole.merged(network_input.image_size)
                predictions.append(self._named(merged, are_masks_cropped=tiling is not None))
                self._num_expected -= 1
                whole = _DetectionsOfTiles()
        return called.named(predictions)

    def _detect(
        self, inputs: Iterator[_NetworkInput], batch_size: int, *, max_boxes: int
    ) -> Iterator[tuple[_NetworkInput, dict[str, Tensor]]]:
        """Yield each image or tile with its best detections, in pixels of the network's input.

        Raises:
            DataError: if a score is not finite.
        """
        batch = list(islice(inputs, batch_size))
        while batch:
            pixels = torch.stack([network_input.pixels for network_input in batch]).to(self.device)
            for network_input, detections in zip(batch, self(pixels), strict=True):
                best = best_of(detections, max_boxes)
                self._check_finite(best["scores"])
                yield network_input, best
            batch = list(islice(inputs, batch_size))

    def _least_score(self, min_score: float | None) -> LeastScore:
        """The smallest score of boxes: that of a call, else those of the classes, else that of all.

        Raises:
            ConfigError: if it is outside 0 ... 1.
        """
        if min_score is None and self.thresholds:
            return self.thresholds
        if min_score is None:
            min_score = self.min_score
        least_score: float = converted("min_score", min_score, Share)
        return least_score

    def use_tiles(self, tile: TileSize, overlap: int | float | None = None) -> None:
        """Cut large images of later predictions and evaluations into tiles; None = do not.

        Args:
            tile: as of :meth:`predict`; ``"auto"``: as before.
            overlap: as of :meth:`predict`.

        Raises:
            ConfigError: as :meth:`predict`.
        """
        self.tiling = self._tiling(tile, overlap)

    def _tiling(self, tile: TileSize, overlap: int | float | None) -> Tiling | None:
        """How large images are cut; None = they are not. An overlap alone is one of the tiles that are used."""
        if tile == "auto":
            if overlap is None:
                return self.tiling
            if self.tiling is None:
                if overlap:
                    raise no_tiles_to_overlap(overlap)
                return None
            tile = self.tiling.tile
        longest_box = None if self.trained_boxes is None else self.trained_boxes.longest_box
        return tiling_for_objects(tile, overlap, longest_box=longest_box)

    def note_trained_boxes(self, boxes: TrainedBoxes) -> None:
        """Keep what is known of the boxes of the training, and cut images as they were cut there.

        Args:
            boxes: of the training.

        Raises:
            ConfigError: as :meth:`use_tiles`.
        """
        self.trained_boxes = boxes
        self.use_tiles(boxes.tile, boxes.overlap)

    def _check_finite(self, scores: Tensor) -> None:
        """Raise a DataError for scores that are not finite: they are no detections, and not none either."""
        if not scores.isfinite().all():
            dtype = next(self.head.parameters()).dtype
            raise DataError(
                f"scores are not finite, computed in {dtype}; expected numbers in 0 ... 1. Compute "
                "in float32 (detector.float()), or check the weights"
            )

    def expect_images(self, count: int) -> None:
        """State how many images will be predicted in several calls; the runtime ``auto`` decides by that.

        A call states its own number where no larger one was stated.

        Args:
            count: of images.

        Raises:
            ConfigError: if it is negative.
        """
        check_minimum(0, count=count)
        self._num_expected = count
        backbone = self.runtime_backbone
        if backbone is None:
            return
        height, width = self.size
        if self.backbone is not None:
            features_at = cast("DetectionHead", self.head).levels.features_at
            height = round(height * features_at)
            width = round(width * features_at)
        backbone.expect_images({(height, width): count})

    def _inputs(
        self, images: Sequence[ImageInput], tiling: Tiling | None
    ) -> Iterator[_NetworkInput]:
        """Decode, cut and resize images; one tile after the other, for the memory of large images."""
        for prepared in in_threads(partial(self._prepare, tiling=tiling), images):
            if isinstance(prepared, _NetworkInput):
                yield prepared
                continue
            image_size = (prepared.shape[-2], prepared.shape[-1])
            tiles = tiles_of(image_size, cast("Tiling", tiling))
            for number, tile in enumerate(tiles):
                shown = prepared[
                    :, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width
                ]
                yield _NetworkInput(
                    pixels=self.preprocess.fitted(shown),
                    image_size=image_size,
                    tile=tile,
                    is_last=number == len(tiles) - 1,
                )

    def _prepare(self, image: ImageInput, tiling: Tiling | None) -> _NetworkInput | Tensor:
        """Decode and resize an image; one that is going to be cut is only decoded."""
        pixels = read_channels(image, self.preprocess.channels, self.preprocess.bits)
        height, width = pixels.shape[-2:]
        if tiling is not None and not tiling.fits((height, width)):
            return pixels
        return _NetworkInput(
            pixels=self.preprocess.fitted(pixels),
            image_size=(height, width),
            tile=Tile(top=0, left=0, height=height, width=width),
            is_last=True,
        )

    def _in_image(
        self,
        detections: dict[str, Tensor],
        network_input: _NetworkInput,
        least_score: LeastScore,
        *,
        memory: CropMemory,
    ) -> Detections:
        """Leave out low scores, bring the boxes to pixels of the image and cut them at the edge of the tile.

        Args:
            detections: ``boxes`` (n, 4) XYXY in pixels of the network's input, ``scores``,
                ``labels``, and ``masks``, logits (n, h, w), if there are any.
            network_input: whose detections they are.
            least_score: of the boxes that stay, or of those of each class.
            memory: for their masks.
        """
        is_sure = reach_score(detections["scores"], detections["labels"], least_score)
        top, left, height, width = network_input.tile
        boxes = to_original(detections["boxes"][is_sure], self.size, (height, width)).clamp(min=0)
        boxes = boxes.minimum(boxes.new_tensor([width, height, width, height]))
        masks = None
        if "masks" in detections:
            logits = detections["masks"][is_sure]
            of_tile = CroppedMasks.of_masks(
                _masks_one_by_one(logits, (height, width)), size=(height, width), memory=memory
            )
            masks = of_tile.moved((top, left), network_input.image_size)
        return Detections(
            boxes=copy_to_keep(boxes + boxes.new_tensor([left, top, left, top])),
            scores=copy_to_keep(detections["scores"][is_sure]),
            labels=copy_to_keep(detections["labels"][is_sure]),
            masks=masks,
        )

    def _named(self, detections: Detections, are_masks_cropped: bool) -> dict[str, Any]:
        """Return the prediction of an image, with the names of its labels."""
        named: dict[str, Any] = {
            "boxes": detections.boxes,
            "scores": detections.scores,
            "labels": detections.labels,
            "names": [self.classes[label] for label in detections.labels.tolist()],
        }
        if detections.masks is not None:
            named["masks"] = detections.masks
            if not are_masks_cropped:
                named["masks"] = torch.from_numpy(np.asarray(detections.masks))
        return named

    def check_weights(self) -> None:
        """Compare the backbone's weights with those at the last prediction, or when the detector was loaded.

        Weights that ``load_state_dict`` put into the whole detector are taken as they are.
        Writes to frozen weights through ``.data`` are not noticed, since torch does not count them.

        Raises:
            BackboneError: if they changed, and the detector did not train in between.
        """
        if self.backbone is None:
            return  # the head holds all weights
        if self._watch is None:
            self._watch = Watch(plain_backbone(self.backbone).adapter)
        elif self._was_changed():
            raise BackboneError(
                f"the weights of {self.backbone.name!r} changed after this detector was loaded or "
                "predicted last, or its LoRA was switched off or on, so its head may not fit them; "
                "load the detector again, or call detector.note_trained() if head and backbone were "
                "changed together, as by a training loop or an average of weights (AveragedModel)"
            )

    def _was_changed(self) -> bool:
        """Whether other weights run now than at the last prediction, and the detector did not train in between."""
        if self._watch is None or self.backbone is None:
            return False
        adapter = plain_backbone(self.backbone).adapter
        if self._watch.is_untouched(adapter):
            return False
        return not self._watch.is_same(adapter)

    def note_trained(self) -> None:
        """Take the backbone as it is now: it was trained along.

        :meth:`save` finds what was changed, and writes those weights too that are trainable now;
        :meth:`predict` compares its weights with these from now on.
        """
        self._watch = None
        self._add_trainable_names()

    def _check_recipe(self, recipe: Preprocessing) -> None:
        """Compare how a file prepares images with what a detector does: it stretches them to its size.

        Raises:
            CheckpointError: naming the first difference.
        """
        for name in ("resize", "pad_to", "interpolation", "blur"):
            in_file = getattr(recipe, name)
            of_detector = getattr(self.preprocess, name)
            if in_file != of_detector:
                raise CheckpointError(
                    f"the file prepares images with {name}={in_file!r}, a detector with "
                    f"{of_detector!r}; save it with Detector.save, or with the preprocess= of the "
                    "detector that was trained",
                    step="pairing",
                )

    def _add_trainable_names(self) -> None:
        """Add the names of trainable weights to :attr:`tuned`; LoRA weights have a place of their own."""
        if self.backbone is None:
            return
        for name, parameter in plain_backbone(self.backbone).named_parameters():
            weight_name = base_name(name)
            if parameter.requires_grad and weight_name is not None:
                self.tuned.add(weight_name)

    def checkpoint(self, **record: Any) -> HeadCheckpoint:
        """Return the head file: neck, detection head, and what of the backbone is not as it was loaded.

        The backbone's present weights are hashed and compared with those that it was loaded with.
        What differs goes into the file, however and whenever it was trained, with its LoRA weights. A
        warning names weights that :meth:`predict` would refuse. The entry ``training`` gets what is
        known of the boxes of the training, :attr:`trained_boxes`.

        Args:
            **record: ``training``, ``license`` and ``extra`` as in
                :meth:`dinoneck.HeadCheckpoint.from_module`.

        Raises:
            CheckpointError: if a weight is not finite, or the backbone has another dtype than the
                head.
        """
        if self.trained_boxes is not None:
            record["training"] = {**self.trained_boxes.record(), **(record.get("training") or {})}
        record.setdefault("training_images", self.training_images)
        if self.backbone is None:
            if self.publication is not None:
                record.setdefault("license", self.publication.license)
                record.setdefault("extra", self.publication.extra)
            return checkpoint_of_detector(
                self._head_with({}),
                BackbonePart(record=None, lora={}, weights={}),
                preprocess=self.preprocess,
                **record,
            )
        if self._was_changed():
            logger.warning(
                "the weights of %r changed after this detector was loaded or predicted last, or its "
                "LoRA was switched off or on, and the file gets them as they are now: its head may "
                "not fit them. Save it before they change, or call detector.note_trained() if head "
                "and backbone were changed together",
                self.backbone.name,
            )
        self._add_trainable_names()
        backbone_part = part_for_detector(
            plain_backbone(self.backbone),
            trained=[name_in_model(name) for name in self.tuned],
            record=self.record if self._is_record_given else None,
        )
        tuned = {MODEL + name: value for name, value in backbone_part.tuned.items()}
        self.tuned = set(tuned)
        self._check_dtypes(tuned)
        backbone_record = {
            **backbone_part.record,
            # backbone.preprocess may have been set to others since
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
        }
        return checkpoint_of_detector(
            self._head_with(tuned),
            BackbonePart(record=backbone_record, lora=backbone_part.lora, weights={}),
            preprocess=self.preprocess,
            **record,
        )

    def _head_with(self, tuned: Mapping[str, Tensor]) -> DetectionHead | RfDetr:
        """A copy of the head that also holds these weights of the backbone, as its file does."""
        config = {**self.head.config, "min_score": self.min_score}
        config.pop("thresholds", None)  # those of the head may have been removed since
        if self.thresholds:
            config["thresholds"] = list(self.thresholds)
        if self.backbone is not None:
            shapes = {name: list(value.shape) for name, value in tuned.items()}
            config["tuned"] = shapes or None
        state = {}
        for key, value in self.head.state_dict().items():
            if not key.startswith("tuned."):
                state[key] = value
        for i, value in enumerate(tuned.values()):
            state[f"tuned.{i}"] = value.detach().clone()
        head = type(self.head).from_config(config, device="meta")
        head.load_state_dict(state, assign=True)
        return head

    def _check_dtypes(self, tuned: Mapping[str, Tensor]) -> None:
        """Raise a CheckpointError if weights of the backbone that go into the file have another dtype than the head."""
        dtype = next(self.head.parameters()).dtype
        for name, value in tuned.items():
            if value.dtype != dtype:
                raise CheckpointError(
                    f"{name} is {value.dtype}, the detection head is {dtype}; a file of a detector "
                    "has one dtype: convert both, as with detector.float()",
                    step="write",
                )

    def save(self, path: str | os.PathLike[str], **record: Any) -> None:
        """Write the detector as a head file, whole or not at all.

        Args:
            path: the file, ``.safetensors``.
            **record: as for :meth:`checkpoint`.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        self.checkpoint(**record).save(path)

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Publish the detector with its page in one commit, see :meth:`dinoneck.HeadCheckpoint.push_to_hub`.

        Args:
            repo_id: ``user/name``.
            **options: as there.

        Raises:
            CheckpointError: as there.
        """
        return self.checkpoint().push_to_hub(repo_id, **options)

    def export_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        size: tuple[int, int] | None = None,
        half: bool = False,
        check: bool = True,
    ) -> BoxParity | None:
        """Put the detector into eval mode and write it as an ONNX file; all but Faster R-CNN have one.

        Its input ``image`` is (1, 3, H, W) RGB in 0 ... 1, resized to the one size that the file
        takes. Its outputs, by falling score, are ``boxes`` (n, 4) float32 XYXY in pixels of that
        input, ``scores`` (n,) and ``labels`` (n,) int64. A model of masks adds ``masks`` (n, H / 4,
        W / 4), the probability that a cell belongs to the object. Rows of score 0 are empty. Maps
        are read, and boxes suppressed, in operators that runtimes compute alike: the file holds no
        ``GridSample`` and no ``NonMaxSuppression``. The metadata entry ``dinoneck_detector`` is
        JSON with ``format``, ``classes``, ``size``, ``preprocess``, ``min_score``, ``detector``,
        ``half`` and ``has_masks``, and ``thresholds`` if there are any. ``parity`` is what this
        method returns, with its tolerance; ``digest`` is that of the head file, and ``dinoneck``
        the version. LoRA weights are merged into the weights.

        Args:
            path: the file.
            size: (height, width) of the input; None = the detector's own.
            half: a file about half as large: products of matrices and convolutions are computed in
                float16. All else is in float32, also inputs, outputs, and the layers that give
                scores, boxes and the places that a decoder samples.
            check: compare ONNX Runtime with the detector on random images before anything is
                written.

        Returns:
            How far the file's boxes are from the detector's, of boxes with a score of 0.05 or more;
            None without the check. In float32 all have a counterpart within 0.1 px and a score of
            0.001; with ``half`` 98 % have one within 1 px and 0.02, and the others lie at the edge
            of a choice, such as between overlapping boxes.

        Raises:
            ConfigError: for Faster R-CNN, whose second stage has no fixed shape, a size that does
                not fit, or ``half`` and a detector of another dtype than float32.
            CheckpointError: if the export fails, or the check finds other boxes.
            ImportError: if the extra ``export`` is missing.
        """
        from dinoneck.detection.onnx import export

        if self.head.detector == "fasterrcnn":
            raise ConfigError(
                "fasterrcnn has no ONNX export: its second stage has no fixed shape. Take fcos or "
                "dfine"
            )
        self.check_weights()
        if size is None:
            size = self.size
        self.head.check_size(size, patch_pair(self.preprocess.patch_size))
        self.eval()
        with self._computed_by_torch():
            return export(self, path, size, half=half, check=check)

    def _computed_by_torch(self) -> AbstractContextManager[None]:
        """Let no other runtime compute the ViT of an RfDetr in the ``with`` block."""
        if self.backbone is None:
            return cast("RfDetr", self.head).with_plain_vit()
        return nullcontext()

    @classmethod
    def load(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        weights: str | os.PathLike[str] | None = None,
        backbone: Backbone | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Load a detector, in eval mode.

        Args:
            path_or_repo: a head file, a folder with one, a Hub repository ``user/name``, or a
                published detector (``"rf_detr_small"``).
            revision: branch, tag or commit of a repository.
            weights: the local file or folder of a published detector, see
                :func:`dinoneck.load_published`.
            backbone: the one it was trained on, before its training; None = the one that the file
                names. Trained weights and LoRA weights of the file are put into a copy of it, which
                is not compiled. A file without such weights uses it itself: it is put into eval
                mode, and moved to ``device``.
            device: where to run; None = where ``backbone`` is, the CPU without one.

        Raises:
            CheckpointError: if the file is damaged, is not a detector's, or names another backbone,
                ``backbone`` is of a dtype that would round weights, or is given to a detector that
                holds its own ViT.
            BackboneError: if the backbone cannot be loaded.
        """
        checkpoint: HeadCheckpoint
        if is_published(path_or_repo, has_weights=weights is not None):
            checkpoint = load_published(str(path_or_repo), weights=weights, revision=revision)
        elif weights is not None:
            raise CheckpointError(
                f"{weights} is the file of a published detector, and {str(path_or_repo)!r} is not "
                "the name of one"
            )
        else:
            checkpoint = HeadCheckpoint.load(path_or_repo, revision=revision)
        return cls.from_checkpoint(checkpoint, backbone, device)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: HeadCheckpoint,
        backbone: Backbone | None = None,
        device: torch.device | str | None = None,
        *,
        runtime: Runtime | None = None,
    ) -> Self:
        """Return the detector of a head file that is read already, as :meth:`load`.

        ``runtime`` computes the tokens, see :meth:`dinoneck.Backbone.with_runtime`; None = that of
        the backbone, and torch for the ViT of an RfDetr. Another runtime freezes that.
        """
        recipe = checkpoint.preprocess
        has_own_vit = checkpoint.head_type in WITH_OWN_VIT
        has_backbone = has_own_vit or checkpoint.meta["backbone"] is not None
        if (
            checkpoint.head_type not in DETECTORS
            or not has_backbone
            or recipe is None
            or recipe.size is None
        ):
            raise CheckpointError(
                f"the file holds a head of type {checkpoint.head_type!r}; expected a detector "
                "with its backbone and image size, as Detector.save writes it. Load other heads "
                "with dinoneck.load_head",
                step="registry",
            )
        head: DetectionHead | RfDetr
        if has_own_vit:
            _check_no_backbone(backbone)
            head = cast("RfDetr", checkpoint.build())
            head.trained_size = recipe.size
            if runtime not in (None, "torch"):
                head.use_runtime(runtime, recipe.size)
        else:
            head = cast("DetectionHead", checkpoint.build())
            head.tuned = nn.ParameterList()  # they are the backbone's now
            backbone = _backbone_of(checkpoint, backbone)
            if runtime is not None:
                backbone = backbone.with_runtime(runtime)
            if device is None:
                head = head.to(plain_backbone(backbone).adapter.weight.device)
        detector = cls(head, backbone, recipe.size, bits=recipe.bits).eval()
        detector.preprocess = detector.preprocess.changed(mean=recipe.mean, std=recipe.std)
        if device is not None:
            detector = detector.to(device)
        detector.source = checkpoint.source
        if has_own_vit:
            detector.publication = Publication(
                license=checkpoint.meta["license"], extra=checkpoint.meta["extra"]
            )
        detector._check_recipe(recipe)
        detector.check_weights()
        trained_boxes = TrainedBoxes.from_record(checkpoint.meta["training"])
        if trained_boxes is not None:
            detector.note_trained_boxes(trained_boxes)
        detector.training_images = checkpoint.training_images or NO_IMAGES
        return detector


def _check_no_backbone(backbone: Backbone | None) -> None:
    """Raise a CheckpointError for a backbone that is given to a detector that holds its own ViT."""
    if backbone is not None:
        raise CheckpointError(
            "this detector holds its own ViT; leave backbone= out", step="pairing"
        )


def _preprocessing(
    head: DetectionHead | RfDetr,
    backbone: Backbone | None,
    size: tuple[int, int],
    *,
    bits: int | None,
) -> Preprocessing:
    """How images are prepared.

    Raises:
        ConfigError: if the head needs a backbone and there is none, or has one of its own.
    """
    if isinstance(head, DetectionHead):
        if backbone is None:
            raise ConfigError("backbone is None; this detection head reads one: pass it")
        return backbone.preprocess.changed(
            size=size, resize="stretch", pad_to="corner", interpolation="bilinear", bits=bits
        )
    if backbone is not None:
        raise ConfigError(
            f"backbone is {backbone.name!r}, and an RfDetr has a ViT of its own; pass None"
        )
    return Preprocessing(
        patch_size=head.patch_size,
        size=size,
        resize="stretch",
        interpolation="bilinear_aliased",
        bits=bits,
    )


def _warn_of_other_size(head: RfDetr, size: tuple[int, int]) -> None:
    """Warn of a size in pixels other than that which an RF-DETR was trained on."""
    if size != head.trained_size:
        logger.warning(
            "RF-DETR was trained on images of %dx%d; for %dx%d the positions of its patches are "
            "resampled",
            *head.trained_size,
            *size,
        )


def masks_in_image(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks (n, height, width) bool in the pixels of an image of a size, from logits (n, h, w) of all of it."""
    masks = torch.zeros((len(logits), *size), dtype=torch.bool, device=logits.device)
    for i in range(len(logits)):  # one after the other, for their memory
        resized = F.interpolate(logits[i][None, None], size=size, mode="bilinear")
        masks[i] = resized[0, 0] > 0
    return masks


def _masks_one_by_one(logits: Tensor, size: tuple[int, int]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield masks (height, width) bool in the pixels of a tile of a size, from logits (n, h, w) of all of it."""
    for i in range(len(logits)):
        [mask] = masks_in_image(logits[i : i + 1], size)
        yield mask.numpy()


def _forget_watch(detector: Detector, _: object) -> None:
    """Accept the weights that load_state_dict has put into a detector: its head came with them."""
    detector._watch = None


def _backbone_of(checkpoint: HeadCheckpoint, backbone: Backbone | None) -> Backbone:
    """Return the backbone of a file, with its trained weights and LoRA weights.

    Args:
        checkpoint: of the file.
        backbone: the caller's, which is copied if the file holds weights of it; None = it is loaded.

    Raises:
        CheckpointError: if it is not the one that the detector was trained on.
    """
    trained = trained_weights(checkpoint)
    if backbone is None:
        backbone = checkpoint.load_backbone()
        checkpoint.check_backbone(backbone)
    elif trained or checkpoint.adapter_state:
        unwrapped: Backbone = plain_backbone(backbone)
        if trained:
            _check_dtype(unwrapped, checkpoint)
        backbone = _checked_copy(checkpoint, unwrapped)
    else:
        checkpoint.check_backbone(backbone)
    if trained:
        backbone = with_trained_weights(backbone, trained)
    return backbone


def _checked_copy(checkpoint: HeadCheckpoint, backbone: Backbone) -> Backbone:
    """Return a copy of the caller's backbone, which others may use, with the LoRA weights of a file, if it holds any.

    Raises:
        CheckpointError: if it is not the one that the detector was trained on.
    """
    if not checkpoint.adapter_state:
        checkpoint.check_backbone(backbone)
        return copy.deepcopy(backbone)
    check_takes_lora(backbone, checkpoint.meta["backbone"])
    copied = copy.deepcopy(backbone)
    checkpoint.apply_adapter(copied)
    return copied


def _check_dtype(backbone: Backbone, checkpoint: HeadCheckpoint) -> None:
    """Reject a caller's backbone whose dtype does not hold the values of the dtype in which it was trained.

    Its untrained weights were rounded, which no conversion takes back.

    Raises:
        CheckpointError: naming both dtypes.
    """
    dtype = backbone.adapter.weight.dtype
    trained_dtype = WEIGHT_DTYPES[checkpoint.meta["backbone"]["dtype"]]
    if torch.promote_types(dtype, trained_dtype) != dtype:
        raise CheckpointError(
            f"the backbone is in {dtype} and was in {trained_dtype} when the detector was trained; "
            f"load it with dtype={trained_dtype}",
            step="pairing",
        )


def trained_weights(checkpoint: HeadCheckpoint) -> dict[str, Tensor]:
    """Return the weights of the backbone in a detector's file, by their names; its LoRA weights are not among them."""
    if checkpoint.head_type != "detector":
        return {}
    names = sorted(checkpoint.config["tuned"] or {})
    return {name: checkpoint.state_dict[f"tuned.{i}"] for i, name in enumerate(names)}


@torch.no_grad()
def with_trained_weights(backbone: Backbone, trained: Mapping[str, Tensor]) -> Backbone:
    """Copy weights of a detector's file into its backbone, and convert it to their dtype.

    Raises:
        CheckpointError: if the backbone has no such weight.
    """
    [dtype] = {value.dtype for value in trained.values()}  # a file has one dtype
    backbone = backbone.to(dtype=dtype)  # before the copy, which would round them otherwise
    state = base_state(backbone.adapter) | rotary.buffers_of(backbone.adapter.model)
    for name, value in trained.items():
        weight = state.get(name_in_model(name))
        if weight is None or weight.shape != value.shape:
            raise CheckpointError(
                f"the backbone has no weight {name} of shape {tuple(value.shape)}", step="pairing"
            )
        weight.copy_(value)
    return backbone


def best_of(detections: Mapping[str, Tensor], max_boxes: int = MOST_BOXES) -> dict[str, Tensor]:
    """Return the detections of an image with the highest scores, best first, on the CPU.

    Args:
        detections: ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,), and ``masks`` of some.
        max_boxes: how many; ``boxes`` and ``scores`` come back in float32.
    """
    by_score = detections["scores"].argsort(descending=True)
    best = by_score[:max_boxes]
    best_detections = {
        "boxes": detections["boxes"][best].cpu().float(),
        "scores": detections["scores"][best].cpu().float(),
        "labels": detections["labels"][best].cpu(),
    }
    if "masks" in detections:
        best_detections["masks"] = detections["masks"][best].cpu().float()
    return best_detections
