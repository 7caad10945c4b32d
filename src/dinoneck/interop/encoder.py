"""PyramidEncoder: backbone and neck as one module, from images to maps; built from plain values, or without storage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.backbones.load import Source, load_backbone
from dinoneck.codec import normal
from dinoneck.configured import fields_of
from dinoneck.errors import ConfigError, GridError
from dinoneck.grid import patch_pair
from dinoneck.necks.neck import Neck, neck_named
from dinoneck.tokens import FeaturePyramid

_LARGEST_DENOMINATOR = 64  # of features_at as a fraction
_FRACTION_TOLERANCE = 1e-6  # 0.333333 is 1/3
# of a sketch, whose strides and channels are read: the width does not change them
_ANY_WIDTH = 768
_ANY_PATCH_SIZE = 16


def strides_in_image(neck: Neck, features_at: float) -> tuple[float, ...]:
    """Return the pixels of the full-size image per cell of a neck's levels.

    Args:
        neck: its own strides are in pixels of what the backbone is given.
        features_at: what the backbone is given, as a share of the image's sides.
    """
    # the levels of a spatial tuning adapter may follow the image, which it gets at full size
    if getattr(neck, "grid_from", None) == "image":
        return neck.strides
    return tuple(stride / features_at for stride in neck.strides)


class PyramidEncoder(nn.Module):
    """A backbone and the neck that fits it: normalised images in, a :class:`dinoneck.FeaturePyramid` out.

    All detectors share it, and it is the module to export. For a library of detectors use its own
    form: :class:`dinoneck.interop.TorchvisionBackbone`, :class:`dinoneck.interop.DinoneckBackbone`.
    Where tokens come from a store, or several heads share a backbone, call the two yourself:
    ``neck(backbone(images), images)``.

    Args:
        backbone: frozen or not.
        neck: of the backbone's width, patch size and number of layers.
        features_at: the backbone gets the images resized by this factor (bilinear, with
            antialiasing), the neck gets them at full size. With 0.5 and images of 640 px the ViT
            computes 320 px and an adapter reads 640 px (``SpatialTuningAdapter(...,
            grid_from="image")``), in about a fifth of the time. Other necks' strides grow by 1 /
            features_at.

    Attributes:
        backbone: the backbone.
        neck: the neck.
        out_channels: channels of every level.
        strides: pixels of the full-size images per cell of every level, fine to coarse.

    Shape:
        images (B, 3, H, W) -> levels (B, out_channels, rows_i, cols_i).

    Raises:
        ConfigError: if the neck was built for another backbone, or features_at is out of range.
        GridError: if ``features_at`` times the image is not a whole number of patches.

    Examples:
        >>> from dinoneck import SimplePyramid, load_backbone
        >>> neck = SimplePyramid(embed_dim=64, out_channels=32, scales=(2.0, 1.0, 0.5))
        >>> encoder = PyramidEncoder(load_backbone("dinoneck_tiny"), neck)
        >>> encoder(torch.zeros(1, 3, 64, 96))
        FeaturePyramid((1, 32, 8, 12) stride 8, (1, 32, 4, 6) stride 16, (1, 32, 2, 3) stride 32)
    """

    def __init__(self, backbone: Backbone, neck: Neck, features_at: float = 1.0) -> None:
        super().__init__()
        _check_pair(checked_backbone(backbone), neck)
        self.ratio = _ratio(features_at)
        self.backbone = backbone
        self.neck = neck
        self.features_at = float(features_at)
        self.out_channels = neck.out_channels
        self.strides = strides_in_image(neck, self.features_at)

    def extra_repr(self) -> str:
        """Show the channels and the strides of the levels."""
        strides = ", ".join(f"{stride:g}" for stride in self.strides)
        return (
            f"out_channels={self.out_channels}, strides=({strides}), "
            f"features_at={self.features_at:g}"
        )

    def forward(self, images: Tensor) -> FeaturePyramid:
        """Return the pyramid of normalised images."""
        tokens = self.backbone(self._resized(images))
        if not self.neck.needs_images:
            return FeaturePyramid(self.neck(tokens).maps, self.strides)
        # as the backbone does: cast to the weights' dtype
        dtype = next(self.neck.parameters()).dtype
        return FeaturePyramid(self.neck(tokens, images.to(dtype)).maps, self.strides)

    def _resized(self, images: Tensor) -> Tensor:
        """Resize images (B, 3, H, W) to the backbone's size: (B, 3, ratio * H, ratio * W)."""
        if self.ratio.numerator == self.ratio.denominator:
            return images
        if not isinstance(images, Tensor) or images.ndim != 4:
            return images  # the backbone rejects anything but a batch
        image_height, image_width = images.shape[-2:]
        up = self.ratio.numerator
        down = self.ratio.denominator
        height = image_height * up // down
        width = image_width * up // down
        if not torch.compiler.is_compiling():
            patch_height, patch_width = patch_pair(self.backbone.patch_size)
            is_whole = height * down == image_height * up and width * down == image_width * up
            is_empty = not height or not width
            if not is_whole or is_empty or height % patch_height or width % patch_width:
                raise GridError(
                    f"images are {image_height}x{image_width} px; {self.features_at:g} times that "
                    f"is not a multiple of {patch_height}x{patch_width} patches. Pad or resize "
                    f"them to multiples of {patch_height * down}x{patch_width * down} px"
                )
        wide = images if images.dtype in (torch.float32, torch.float64) else images.float()
        resized = F.interpolate(
            wide, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
        return resized.to(images.dtype)


@dataclass(frozen=True)
class EncoderByName:
    """The configuration of a :class:`dinoneck.interop.PyramidEncoder` in plain values, as a file holds it.

    Args:
        backbone: name, as in :func:`dinoneck.load_backbone`.
        neck: a registered neck.
        neck_config: its arguments; ``embed_dim``, ``num_layers`` and ``patch_size`` come from the
            backbone.
        layers: as in ``load_backbone``.
        pretrained: as there.
        seed: as there.
        features_at: as in PyramidEncoder.
        source: as in ``load_backbone``.
        norm: as there.
        frozen: as there.

    Examples:
        >>> encoder = EncoderByName("dinoneck_tiny", "vit_fpn", {"fpn_dim": 32}, layers=3).build()
        >>> encoder(torch.zeros(1, 3, 64, 64))
        FeaturePyramid((1, 32, 4, 4) stride 16, (1, 32, 2, 2) stride 32, (1, 32, 1, 1) stride 64)
    """

    backbone: str
    neck: str
    neck_config: Mapping[str, Any] = field(default_factory=dict)
    layers: int | Sequence[int] | None = None
    pretrained: bool = True
    seed: int | None = None
    features_at: float = 1.0
    source: Source = "timm"
    norm: bool = True
    frozen: bool = True

    def build(self, *, weights: bool = True) -> PyramidEncoder:
        """Return the encoder.

        Args:
            weights: load the published weights if ``pretrained`` is True; else the weights are
                placeholders.

        Raises:
            ConfigError: if the neck is unknown, or its arguments contradict the backbone or
                themselves.
            BackboneError: as :func:`dinoneck.load_backbone` does.
        """
        backbone = load_backbone(
            self.backbone,
            source=self.source,
            pretrained=weights and self.pretrained,
            layers=self.layers,
            norm=self.norm,
            frozen=self.frozen,
            seed=self.seed,
        )
        return PyramidEncoder(
            backbone, self._neck(backbone.embed_dim, backbone.patch_size), self.features_at
        )

    def sketch(self) -> Neck:
        """Return the neck on the meta device for an arbitrary width: its strides and channels are those of the model.

        Raises:
            ConfigError: if the neck is unknown, or its arguments do not fit it.
        """
        return self._neck(_ANY_WIDTH, _ANY_PATCH_SIZE, device=torch.device("meta"))

    def _neck(self, embed_dim: int, patch_size: Any, device: Any = None) -> Neck:
        cls = neck_named(self.neck)
        if isinstance(self.layers, Sequence):
            num_layers = len(self.layers)
        else:
            num_layers = self.layers or 1
        geometry = {"embed_dim": embed_dim, "num_layers": num_layers, "patch_size": patch_size}
        parameters = fields_of(cls)
        arguments = {name: value for name, value in geometry.items() if name in parameters}
        arguments |= self.neck_config
        neck: Neck = cls.from_config(arguments, device=device)
        return neck


def find_encoder(model: nn.Module) -> PyramidEncoder:
    """Return the encoder inside a detector, to freeze its ``.backbone`` or to save its ``.neck``.

    Args:
        model: any module that contains exactly one :class:`PyramidEncoder`, wrapped
            (DistributedDataParallel, compiled) or not.

    Raises:
        ConfigError: if it contains none, or several.

    Examples:
        >>> from dinoneck import SimplePyramid, load_backbone
        >>> from dinoneck.interop import TorchvisionBackbone
        >>> body = TorchvisionBackbone(load_backbone("dinoneck_tiny"), SimplePyramid(64, 32))
        >>> find_encoder(nn.ModuleDict({"detector": body})) is body.encoder
        True
    """
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    encoders = {name: module for name, module in modules if isinstance(module, PyramidEncoder)}
    if len(encoders) != 1:
        raise ConfigError(
            f"{type(model).__name__} holds {len(encoders)} encoders: "
            f"{', '.join(encoders) or 'none'}; expected one: a detector built on "
            "TorchvisionBackbone, DinoneckBackboneConfig or attach_to_detr, or one of these parts"
        )
    (encoder,) = encoders.values()
    return encoder


def _check_pair(backbone: Backbone, neck: Neck) -> None:
    if not isinstance(neck, Neck):
        raise ConfigError(
            f"neck is {neck!r:.80}; expected a neck such as "
            f"SimplePyramid(embed_dim={backbone.embed_dim})"
        )
    patch_size = patch_pair(backbone.patch_size)
    pairs = [
        ("embed_dim", backbone.embed_dim, neck.embed_dim),
        ("patch_size", patch_size, patch_pair(neck.patch_size)),
        ("num_layers", len(backbone.layers), neck.num_layers),
    ]
    wrong = []
    for name, needed, actual in pairs:
        if actual is not None and actual != needed:
            wrong.append(f"{name}={needed} (it has {actual})")
    if wrong:
        raise ConfigError(
            f"this {type(neck).__name__} was built for another backbone than {backbone.name}, "
            f"which gives blocks {backbone.layers}; it would need {', '.join(wrong)}"
        )


def _ratio(features_at: float) -> Fraction:
    """Return the factor as a fraction, so that sizes are integer arithmetic on the tensors' shapes."""
    if not 0 < normal(float, features_at, "features_at") <= 1:
        raise ConfigError(
            f"features_at is {features_at!r}; expected a factor above 0 and at most 1, such as 0.5"
        )
    ratio = Fraction(features_at).limit_denominator(_LARGEST_DENOMINATOR)
    if abs(float(ratio) - features_at) > _FRACTION_TOLERANCE:
        raise ConfigError(
            f"features_at is {features_at!r}; expected a simple fraction such as 1/2, 2/3 or 3/4"
        )
    return ratio


class DeferredEncoder:
    """Builds an encoder whose parameters have no storage; :meth:`complete` restores what a state dict does not hold.

    A state dict lacks non-persistent buffers, such as rotary frequencies, and which parameters are
    frozen. Both are recorded when the encoder is built.

    Args:
        recipe: what to build.

    Attributes:
        encoder: its parameters are on the meta device, its buffers are real.
    """

    def __init__(self, recipe: EncoderByName) -> None:
        self.recipe = recipe
        with torch.device("cpu"), _parameters_on_meta():
            self.encoder = recipe.build(weights=False)
        stored = self.encoder.state_dict().keys()
        self.unstored = {}
        for name, buffer in self.encoder.named_buffers():
            if name not in stored:
                self.unstored[name] = buffer.clone()
        self.frozen = set()
        for name, parameter in self.encoder.named_parameters():
            if not parameter.requires_grad:
                self.frozen.add(name)

    @torch.no_grad()
    def complete(self, encoder: PyramidEncoder, is_loaded: Callable[[Tensor], bool]) -> None:
        """Complete an encoder whose tensors have storage by now.

        Tensors that were not loaded get the values of a new build: seeded or published weights, a
        neck's initial ones.

        Args:
            encoder: the one built in the constructor, or its copy.
            is_loaded: whether the values of a parameter or buffer come from the file.
        """
        for name, value in self.unstored.items():
            encoder.get_buffer(name).copy_(value)
        state = encoder.state_dict(keep_vars=True)
        missing = {name: value for name, value in state.items() if not is_loaded(value)}
        if missing:
            needs_weights = any(name.startswith("backbone.") for name in missing)
            initial = self.recipe.build(weights=needs_weights).state_dict()
            for name, value in missing.items():
                value.copy_(initial[name])
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        weight_hashes.note_original(encoder.backbone.adapter, {"kind": "file"})
        encoder.backbone.train(encoder.training)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Give modules that this thread builds in the ``with`` block parameters without storage, and real buffers."""
    this_thread = threading.get_ident()

    def without_storage(
        _: nn.Module, __: str, parameter: nn.Parameter | None
    ) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != this_thread:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(without_storage)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
