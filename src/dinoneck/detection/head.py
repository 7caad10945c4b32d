"""DetectionHead: neck and detection head as one registered module, without the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dinoneck.checks import check_class_names
from dinoneck.configured import Configured
from dinoneck.detection import sizes
from dinoneck.detection.levels import Levels, Target, build_torchvision, count_fcos_cells
from dinoneck.errors import ConfigError
from dinoneck.necks.neck import Neck
from dinoneck.runtime.least_scores import check_thresholds
from dinoneck.training.recipe import Share, converted

if TYPE_CHECKING:
    from dinoneck.detection.rf_detr import RfDetr

Kind = Literal["fcos", "retinanet", "fasterrcnn", "dfine", "rtdetrv2"]
DETRS = ("dfine", "rtdetrv2")


class DetectionHead(Configured, nn.Module):
    """Neck and detection head: what a detector trains, and what its file holds.

    The detectors are those of torchvision and transformers. A :class:`dinoneck.detection.Detector`
    joins it with a backbone.

    Args:
        detector: ``fcos``, ``retinanet``, ``fasterrcnn`` (torchvision), ``dfine`` or ``rtdetrv2``
            (transformers).
        classes: names of the labels.
        neck: of the backbone's width and patch size. DETRs need three levels, each at twice the
            stride of the one before.
        features_at: as in :class:`dinoneck.interop.PyramidEncoder`.
        variant: size of D-FINE: ``stock`` (D-FINE-L as published), ``25m`` (25 million parameters
            with a ViT-S) or ``tiny``.
        queries: of a DETR; None = the variant's.
        encoder_layers: of a DETR's hybrid encoder; None = the variant's.
        tuned: name -> shape of the backbone's weights that were trained too; the file holds them.
        min_score: of the boxes that :meth:`dinoneck.detection.Detector.predict` gives; after a
            training the one with the best F1 on held-out images.
        thresholds: the same for the boxes of each class, in the place of ``min_score``; empty:
            ``min_score`` for all.
        device: of the weights.
        dtype: of the weights.

    Attributes:
        model: the library's detector.
        has_masks: False: it gives boxes alone.
        levels: the neck, and the backbone that is attached.

    Shape:
        normalised images (B, 3, H, W) -> losses by name with targets (``boxes`` (n, 4) XYXY in
        pixels, ``labels`` (n,) from 0), else per image ``boxes``, ``scores`` and ``labels``.

    Raises:
        ConfigError: if neck and detector do not fit, or there are no classes.
        ImportError: if a DETR is asked for and transformers is missing.

    Examples:
        >>> from dinoneck import STAPyramid
        >>> head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
        >>> head.levels.strides
        (8.0, 16.0, 32.0)

    Reference:
        Tian et al., 2019 (FCOS); Lin et al., 2017 (RetinaNet); Ren et al., 2015 (Faster R-CNN);
        Peng et al., 2024 (D-FINE); Lv et al., 2024 (RT-DETRv2).
    """

    has_masks = False
    _left_out_defaults = ("thresholds",)

    def __init__(
        self,
        detector: Kind,
        classes: tuple[str, ...],
        neck: Neck,
        features_at: float = 1.0,
        variant: Literal["stock", "25m", "tiny"] = "25m",
        queries: int | None = None,
        encoder_layers: int | None = None,
        tuned: dict[str, tuple[int, ...]] | None = None,
        min_score: float = 0.3,
        thresholds: tuple[float, ...] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_class_names(classes)
        converted("min_score", min_score, Share)
        check_thresholds(thresholds, len(classes))
        self.detector = detector
        self.classes = classes
        self.embed_dim = neck.embed_dim
        levels = Levels(neck, features_at)
        shapes = dict(sorted((tuned or {}).items()))
        with nullcontext() if device is None else torch.device(device):
            self.model = self._build(levels, variant, queries, encoder_layers)
            self.tuned = nn.ParameterList(torch.zeros(shape) for shape in shapes.values())
        self.tuned_names = tuple(shapes)
        self._aliases = _aliases(self.model)
        self.register_state_dict_post_hook(_without_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_tie)  # type: ignore[no-untyped-call]
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    def _build(
        self, levels: Levels, variant: str, queries: int | None, encoder_layers: int | None
    ) -> nn.Module:
        """The library's detector on these levels."""
        if self.detector in DETRS:
            from dinoneck.detection.detr import build_detr

            return build_detr(
                self.detector,
                levels,
                classes=self.classes,
                variant=variant,
                queries=queries,
                encoder_layers=encoder_layers,
            )
        if queries is not None or encoder_layers is not None:
            raise ConfigError(
                f"queries and encoder_layers are arguments of {' and '.join(DETRS)}, not "
                f"{self.detector}"
            )
        return build_torchvision(self.detector, levels, len(self.classes))

    @property
    def levels(self) -> Levels:
        """The neck, and the backbone that is attached."""
        return next(module for module in self.modules() if isinstance(module, Levels))

    def check_size(self, size: Sequence[int], patch: tuple[int, int]) -> None:
        """Reject a network size at which a level has a fraction of a cell, or fewer cells than queries.

        Args:
            size: (height, width) in pixels.
            patch: (height, width) of a patch of the backbone, in pixels of what it is given.

        Raises:
            ConfigError: naming the next size that fits, or the number of cells.
        """
        height, width = size
        sizes.check_size(
            size, patch, features_at=self.levels.features_at, strides=self.levels.strides
        )
        num_cells = 0
        for stride in self._strides():
            num_cells += int(height / stride) * int(width / stride)
        num_queries = 0  # of torchvision's detectors
        if self.detector in DETRS:
            model: Any = self.model
            num_queries = model.config.num_queries
        if num_cells < num_queries:
            raise ConfigError(
                f"size {height}x{width} gives {num_cells} cells; expected {num_queries} (queries) or "
                "more"
            )

    def _strides(self) -> list[Fraction]:
        """Pixels of the image per cell of each level, fine to coarse."""
        return [sizes.as_fraction(stride) for stride in self.levels.strides]

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Return losses by name with targets, else the detections of each image.

        Args:
            images: normalised, (B, 3, H, W).
            targets: per image ``boxes`` (n, 4) XYXY in pixels of ``images`` and ``labels`` (n,)
                from 0.
        """
        if self.detector in DETRS:
            from dinoneck.detection.detr import detr_detections, detr_losses

            if targets is None:
                return detr_detections(self.model, images)
            return detr_losses(self.model, images, targets)
        if targets is None:
            return self._torchvision_detections(images)
        return self._torchvision_losses(images, targets)

    def ranked(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (n, 4) XYXY in pixels, scores (n,) and labels (n,) of one image by falling score, for a trace.

        Args:
            images: of a DETR, one normalised image, (1, 3, H, W).
        """
        from dinoneck.detection.detr import best_boxes

        outputs: Any = self.model(pixel_values=images)
        boxes, scores, labels = best_boxes(outputs.logits, outputs.pred_boxes, images.shape[-2:])
        return boxes[0], scores[0], labels[0]

    def _torchvision_losses(self, images: Tensor, targets: Sequence[Target]) -> Any:
        """The losses of torchvision's detector by name."""
        torchvision_targets = []
        for target in targets:
            labels = target["labels"] + self._first_label
            torchvision_targets.append({"boxes": target["boxes"].float(), "labels": labels})
        return self.model(list(images), torchvision_targets)

    def _torchvision_detections(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Per image the boxes of torchvision's detector in pixels of ``images``, with labels from 0."""
        detections = []
        for image_detections in self.model(list(images)):
            labels = image_detections["labels"] - self._first_label
            detections.append({**image_detections, "labels": labels})
        return detections

    @property
    def _first_label(self) -> int:
        """The label of the first class in torchvision's detector; 0 is the background of Faster R-CNN."""
        if self.detector == "fasterrcnn":
            return 1
        return 0


def loss_counts(
    head: DetectionHead | RfDetr, targets: Sequence[Target], size: tuple[int, int]
) -> list[float]:
    """Return how much each image counts in the means that the losses of a batch are.

    The losses of FCOS are means over the cells that an object is assigned to, those of a DETR over
    boxes. Those of RF-DETR are means over the boxes of all its groups of queries, those of the
    others over images.

    Args:
        head: that is trained.
        targets: per image, see :meth:`DetectionHead.forward`.
        size: (height, width) of the images, in pixels.
    """
    if not isinstance(head, DetectionHead):
        return [float(head.num_groups * len(target["boxes"])) for target in targets]
    if head.detector in DETRS:
        return [float(len(target["boxes"])) for target in targets]
    if head.detector == "fcos":
        return count_fcos_cells(head.model, head.levels.strides, targets, size)
    return [1.0] * len(targets)


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of parameters that a library ties -> the first name."""
    first_names: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        name = f"model.{name}"
        first_name = first_names.setdefault(id(parameter), name)
        if first_name != name:
            aliases[name] = first_name
    return aliases


def _without_aliases(head: Any, state: Any, prefix: str, _: Any) -> None:
    """Leave the further names out of a state dict."""
    for alias in head._aliases:
        state.pop(prefix + alias, None)


def _with_aliases(head: Any, state: Any, prefix: str, *_: Any) -> None:
    """Add the further names to a state dict before it is loaded."""
    for alias, name in head._aliases.items():
        if prefix + name in state:
            state[prefix + alias] = state[prefix + name]


def _tie(head: Any, _: Any) -> None:
    """Tie the parameters again, of which loading with ``assign=True`` makes separate ones."""
    for alias, name in head._aliases.items():
        parent, _, last = alias.rpartition(".")
        setattr(head.get_submodule(parent), last, head.get_parameter(name))
