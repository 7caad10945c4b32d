"""DetectionHead: neck and detection head as one registered module, without the backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinoneck.configured import Configured
from dinoneck.detection.levels import Levels, Target, build_torchvision
from dinoneck.errors import ConfigError
from dinoneck.necks.neck import Neck
from dinoneck.training.recipe import Share, converted

Kind = Literal["fcos", "retinanet", "fasterrcnn", "dfine", "rtdetrv2"]
DETRS = ("dfine", "rtdetrv2")
_LARGEST_DENOMINATOR = 64  # of strides and ratios that are written as decimals


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
        device: of the weights.
        dtype: of the weights.

    Attributes:
        model: the library's detector.
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not classes or len(set(classes)) < len(classes):
            raise ConfigError(f"classes are {classes}; expected one name or more, each once")
        converted("min_score", min_score, Share)
        self.detector = detector
        self.classes = classes
        self.embed_dim = neck.embed_dim
        levels = Levels(neck, features_at)
        with nullcontext() if device is None else torch.device(device):
            self.model = self._build(levels, variant, queries, encoder_layers)
            shapes = dict(sorted((tuned or {}).items()))
            self.tuned_names = tuple(shapes)
            self.tuned = nn.ParameterList(torch.zeros(shape) for shape in shapes.values())
        self._aliases = _aliases(self.model)
        self.register_state_dict_post_hook(_without_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_tie)  # type: ignore[no-untyped-call]
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)

    def _build(
        self, levels: Levels, variant: str, queries: int | None, encoder_layers: int | None
    ) -> nn.Module:
        if self.detector in DETRS:
            from dinoneck.detection.detr import build_detr

            return build_detr(self.detector, levels, self.classes, variant, queries, encoder_layers)
        if (queries, encoder_layers) != (None, None):
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
        """Reject a network size (height, width) at which a level has a fraction of a cell.

        Raises:
            ConfigError: naming the next sizes that fit.
        """
        strides = [_fraction(stride) for stride in self.levels.strides]
        whole_strides = math.lcm(*(stride.numerator for stride in strides))
        units = []  # a side must be a multiple of it
        for side in patch:
            patch_px = side / _fraction(self.levels.features_at)
            units.append(math.lcm(patch_px.numerator, whole_strides))
        if size[0] % units[0] or size[1] % units[1]:
            next_sides = [math.ceil(size[i] / units[i]) * units[i] for i in range(2)]
            near = f"{next_sides[0]}x{next_sides[1]}"
            raise ConfigError(
                f"size is {size[0]}x{size[1]} (height x width); this detector needs multiples of "
                f"{units[0]}x{units[1]}, such as {near}"
            )
        cells = sum(int(size[0] / stride) * int(size[1] / stride) for stride in strides)
        queries = getattr(getattr(self.model, "config", None), "num_queries", 0)
        if cells < queries:
            raise ConfigError(
                f"size {size[0]}x{size[1]} gives {cells} cells; expected {queries} (queries) or "
                "more"
            )

    def forward(self, images: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Return losses by name with targets, else the detections of each image."""
        if self.detector in DETRS:
            from dinoneck.detection.detr import detr_detections, detr_losses

            if targets is None:
                return detr_detections(self.model, images)
            return detr_losses(self.model, images, targets)
        first_label = 1 if self.detector == "fasterrcnn" else 0  # its label 0 is the background
        if targets is not None:
            shifted = []
            for target in targets:
                labels = target["labels"] + first_label
                shifted.append({"boxes": target["boxes"].float(), "labels": labels})
            return self.model(list(images), shifted)
        detections = []
        for of_image in self.model(list(images)):
            labels = of_image["labels"] - first_label
            detections.append({**of_image, "labels": labels})
        return detections


def _fraction(value: float) -> Fraction:
    return Fraction(value).limit_denominator(_LARGEST_DENOMINATOR)


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
