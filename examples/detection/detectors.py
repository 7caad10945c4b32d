"""Detectors of torchvision and transformers around a dinoneck backbone and neck, behind one small interface."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from dinoneck import Backbone, HeadCheckpoint
from dinoneck.atomic import write_text
from dinoneck.backbones.known import TINY
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.interop import EncoderByName, PyramidEncoder, TorchvisionBackbone, find_encoder
from examples.detection.options import HGNET, TRANSFORMERS, Design

DESIGN, WEIGHTS, NECK = "detector.json", "model.safetensors", "neck.safetensors"
ASPECTS = (0.5, 1.0, 2.0)
FCOS_GROUPS = 32  # of its group norms

Target = Mapping[str, Any]


class Detector(nn.Module, ABC):
    """A detector of some library: losses in training, boxes otherwise.

    Attributes:
        model: the library's module.
        design: what it is made of.
    """

    def __init__(self, model: nn.Module, design: Design) -> None:
        super().__init__()
        self.model, self.design = model, design

    @property
    @abstractmethod
    def encoder(self) -> PyramidEncoder | None:
        """The backbone and neck; None for a convolutional baseline."""

    @property
    def backbone(self) -> Backbone | None:
        """The backbone, where the freeze schedule and the parameter groups look for it."""
        return None if self.encoder is None else self.encoder.backbone

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Return losses by name, weighted so that their sum is the loss; without targets :meth:`detect`.

        Args:
            images: (B, 3, H, W) in 0 ... 1.
            targets: per image ``boxes`` (n, 4) as x, y, x, y in pixels of ``images``, and ``labels`` (n,) from 0.
        """
        return self.detect(images) if targets is None else self.losses(images, targets)

    @abstractmethod
    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return every component of the loss."""

    @abstractmethod
    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return ``boxes`` (x, y, x, y in pixels of ``images``), ``scores`` and ``labels`` per image."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the weights in the library's own format."""

    def save(self, folder: Path, **extra: Any) -> None:
        """Write the detector, its design, and the neck as a head file of its own; an older folder is replaced whole."""
        fresh, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        self.write(fresh)
        if self.encoder is not None:
            backbone = self.encoder.backbone
            HeadCheckpoint.from_module(
                self.encoder.neck, backbone=backbone, preprocess=backbone.preprocess, extra=extra
            ).save(fresh / NECK)
        write_text(fresh / DESIGN, self.design.to_json())
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


class TorchvisionDetector(Detector):
    """FCOS, RetinaNet or Faster R-CNN."""

    @property
    def encoder(self) -> PyramidEncoder:
        """The backbone and neck."""
        return find_encoder(self.model)

    @property
    def first_label(self) -> int:
        """Faster R-CNN keeps 0 for the background."""
        return 1 if self.design.detector == "fasterrcnn" else 0

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return every component of the loss."""
        own = [{"boxes": t["boxes"].float(), "labels": t["labels"] + self.first_label} for t in targets]
        found: dict[str, Tensor] = self.model(list(images), own)
        return found

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return the boxes of every image."""
        return [{**found, "labels": found["labels"] - self.first_label} for found in self.model(list(images))]

    def write(self, folder: Path) -> None:
        """Write ``model.safetensors``: the module's state dict."""
        save_model(self.model, str(folder / WEIGHTS))


class TransformersDetector(Detector):
    """D-FINE or RT-DETRv2."""

    def __init__(self, model: nn.Module, design: Design, mean: Sequence[float], std: Sequence[float]) -> None:
        from transformers import RTDetrImageProcessor

        super().__init__(model, design)
        self.mean, self.std = tuple(mean), tuple(std)
        height, width = design.size
        self.processor = RTDetrImageProcessor(
            size={"height": height, "width": width}, do_normalize=True, image_mean=self.mean, image_std=self.std
        )

    @property
    def encoder(self) -> PyramidEncoder | None:
        """The backbone and neck; None for HGNetV2."""
        return None if self.design.backbone.startswith(HGNET) else find_encoder(self.model)

    @property
    def convolutions(self) -> nn.Module:
        """The backbone as transformers knows it."""
        found: nn.Module = self.model.model.backbone  # type: ignore[union-attr,assignment]
        return found

    def losses(self, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return every component of the loss, those of auxiliary and denoising outputs added to their kind."""
        height, width = images.shape[-2:]
        scale = images.new_tensor((width, height, width, height))
        labels = [{"class_labels": t["labels"], "boxes": _centred(t["boxes"].float() / scale)} for t in targets]
        parts: dict[str, Tensor] = {}
        for name, value in self.model(pixel_values=self._normalised(images), labels=labels).loss_dict.items():
            kind = "_".join(name.split("_")[:2])  # loss_vfl of loss_vfl_aux_0, loss_vfl_dn_1, ...
            parts[kind] = parts[kind] + value if kind in parts else value
        return parts

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return the boxes of every image: all queries, by falling score."""
        outputs = self.model(pixel_values=self._normalised(images))
        sizes = [tuple(images.shape[-2:])] * len(images)
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        found: list[dict[str, Tensor]] = self.processor.post_process_object_detection(
            outputs, threshold=-1.0, target_sizes=sizes
        )
        return found

    def write(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` by ``save_pretrained``, and the image processor."""
        self.model.save_pretrained(folder)  # type: ignore[operator]
        self.processor.save_pretrained(folder)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - images.new_tensor(self.mean)[:, None, None]) / images.new_tensor(self.std)[:, None, None]


def build(design: Design) -> Detector:
    """Return a detector with first weights; the seed decides all that are drawn.

    Raises:
        ConfigError: if its parts do not fit.
    """
    torch.manual_seed(design.seed)
    if design.detector in TRANSFORMERS:
        from examples.detection.transformers_models import built

        return TransformersDetector(*built(design))
    return TorchvisionDetector(_torchvision(design), design)


def load(folder: Path) -> Detector:
    """Return a saved detector, in eval mode.

    Raises:
        DataError: if the folder holds none.
        CheckpointError: if its weights are missing or do not fit.
    """
    design = Design.read(folder / DESIGN)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}; expected a detector that this example saved")
    if design.detector in TRANSFORMERS:
        from examples.detection.transformers_models import restored

        return TransformersDetector(*restored(design, folder)).eval()
    detector = TorchvisionDetector(_torchvision(design, weights=False), design)
    try:
        load_model(detector.model, str(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {folder / DESIGN}: {error}") from error
    return detector.eval()


def recipe(design: Design, width: int) -> EncoderByName:
    """Return what the encoder is built from, with levels of ``width`` channels.

    Raises:
        ConfigError: for a convolutional baseline, which is no encoder of tokens.
    """
    if design.backbone.startswith(HGNET):
        raise ConfigError(f"{HGNET} is the baseline of dfine and rtdetrv2, not of {design.detector}")
    own = {"scales": [2.0, 1.0, 0.5]} if design.neck == "simple_pyramid" else {}
    pretrained = design.pretrained and design.backbone != TINY
    return EncoderByName(
        backbone=design.backbone,
        source="timm",
        layers=design.layers,
        norm=True,
        frozen=True,
        pretrained=pretrained,
        seed=None if pretrained else design.seed,
        neck=design.neck,
        neck_config={"fpn_dim" if design.neck == "vit_fpn" else "out_channels": width, **own, **design.neck_config},
        features_at=design.features_at,
    )


def _torchvision(design: Design, *, weights: bool = True) -> nn.Module:
    from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    found = recipe(design, design.out_channels).build(weights=weights)
    body = TorchvisionBackbone(found.backbone, found.neck, features_at=design.features_at)
    picture = {
        "min_size": min(design.size),
        "max_size": max(design.size),
        "image_mean": body.backbone.preprocess.mean,
        "image_std": body.backbone.preprocess.std,
        "size_divisible": body.size_divisible,
    }
    count, strides = len(design.classes), body.strides
    if design.detector == "fcos":
        if body.out_channels % FCOS_GROUPS:
            raise ConfigError(f"the levels have {body.out_channels} channels; fcos needs a multiple of {FCOS_GROUPS}")
        anchors = AnchorGenerator(tuple((int(stride),) for stride in strides), ((1.0,),) * len(strides))
        return FCOS(body, count, anchor_generator=anchors, **picture)
    octaves = tuple(tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in strides)
    if design.detector == "retinanet":
        return RetinaNet(body, count, anchor_generator=AnchorGenerator(octaves, (ASPECTS,) * len(strides)), **picture)
    if any(int(stride) & (int(stride) - 1) for stride in strides):
        raise ConfigError(
            f"the levels have strides {strides}; fasterrcnn pools as if they were powers of two. Take fcos or "
            "retinanet, or a backbone of patch 16"
        )
    anchors = AnchorGenerator(tuple((int(4 * stride),) for stride in strides), (ASPECTS,) * len(strides))
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], 7, 2)
    return FasterRCNN(body, count + 1, rpn_anchor_generator=anchors, box_roi_pool=pool, **picture)


def _centred(boxes: Tensor) -> Tensor:
    """(x, y, x, y) -> (centre x, centre y, width, height)."""
    low, high = boxes.reshape(-1, 4).split(2, dim=1)
    return torch.cat(((low + high) / 2, high - low), dim=1)
