"""``DINOv3Backbone`` for the D-FINE and DEIM repositories: images to [P8, P16, P32], configured by their YAML keys.

Copy this file to ``src/nn/backbone/`` of a D-FINE checkout; its README.md has the lines that
register it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck import (
    Backbone,
    ConfigError,
    DataError,
    SpatialTuningAdapter,
    STAPyramid,
    load_backbone,
)
from dinoneck.text import did_you_mean
from dinoneck.training import FreezeSchedule
from dinoneck.training.parameter_groups import FreezeReport

NECKS = ("sta_pyramid", "spatial_tuning_adapter")
# names that go around for these models, none of which timm knows
OTHER_NAMES = {}
for other_name in ("dinov3_{size}", "dinov3_vit{letter}16", "vit_{size}_patch14_dinov3"):
    for size in ("small", "base", "large"):
        OTHER_NAMES[other_name.format(size=size, letter=size[0])] = f"vit_{size}_patch16_dinov3"
# how far values of an image may lie beyond 0 ... 1
SLACK = 0.01
LARGEST_NORMALISED = 10.0  # normalised images lie within -3 ... 3


class DINOv3Backbone(nn.Module):
    """A DINO ViT and a neck in the place of HGNetv2: three maps with the channels and strides the encoder expects.

    Parameters are named ``backbone.vit.*`` and ``backbone.neck.*`` in a D-FINE model, so that
    optimizer groups can tell the pretrained part from the new one; a group on ``backbone`` alone
    would train the new neck at the pretrained part's learning rate.

    Args:
        model_name: of :func:`dinoneck.load_backbone`; ``dinov3_small`` and the like are taken with
            a warning.
        pretrained: the published weights; else seeded random ones.
        checkpoint_path: a local official ``.pth`` or ``.safetensors`` file instead.
        out_channels: of the three maps, all alike: ``HybridEncoder.in_channels``.
        feat_strides: of the three maps: ``HybridEncoder.feat_strides``. The ViT's patch gives them;
            others than its own (8, 16, 32 of patch 14) are for ``sta_pyramid`` to resample to.
        freeze_backbone: the ViT never learns (until ``freeze_backbone_epochs``, if that is given).
        freeze_backbone_epochs: the ViT learns nothing in that many epochs, then what ``unfreeze``
            says; needs :meth:`start_epoch` at the start of every epoch.
        unfreeze: ``last:n`` blocks or ``none`` (nothing stays frozen), see
            :class:`dinoneck.training.FreezeSchedule`.
        neck: ``spatial_tuning_adapter`` (reads the image too) or ``sta_pyramid`` (tokens only).
        neck_options: further arguments of the neck, such as ``{norm: group}``.
        layers: blocks whose tokens the neck reads; None = the last for ``sta_pyramid``, and those
            at 1/2, 3/4 and the end for ``spatial_tuning_adapter``.
        normalize: images come in 0 ... 1, as D-FINE's loader gives them, and are normalised here as
            the ViT expects; False where the loader does it.
        seed: of all random weights; the neck's are drawn with it too. None = torch's generator for
            the neck.

    Raises:
        ConfigError: naming the key that does not fit and the remedy.
    """

    def __init__(
        self,
        model_name: str = "vit_small_patch16_dinov3",
        pretrained: bool = True,
        checkpoint_path: str | None = None,
        out_channels: Sequence[int] = (256, 256, 256),
        feat_strides: Sequence[int] = (8, 16, 32),
        freeze_backbone: bool = False,
        freeze_backbone_epochs: int = 0,
        unfreeze: str = "last:4",
        neck: str = "spatial_tuning_adapter",
        neck_options: Mapping[str, Any] | None = None,
        layers: Sequence[int] | None = None,
        normalize: bool = True,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        if neck not in NECKS:
            raise ConfigError(
                f"neck is {neck!r}; expected {' or '.join(NECKS)}.{did_you_mean(neck, NECKS)}"
            )
        self.schedule = _schedule(freeze_backbone, freeze_backbone_epochs, unfreeze)
        self.vit = _loaded(model_name, pretrained, checkpoint_path, seed)
        if layers is not None:
            self.vit = self.vit.with_layers(tuple(layers))
        elif neck == "spatial_tuning_adapter":
            self.vit = self.vit.with_layers(_spread(self.vit.depth))
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.neck = _neck(neck, self.vit, out_channels, feat_strides, dict(neck_options or {}))
        self.normalize = normalize
        self._range_checked = False
        mean = torch.tensor(self.vit.preprocess.mean).view(3, 1, 1)
        std = torch.tensor(self.vit.preprocess.std).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self._awaits_epoch = len(self.schedule.plan) > 1
        # with a plan the ViT stays trainable until the first start_epoch: optimizers are built
        # before, and D-FINE's takes in what is trainable then; groups that know all parameters
        # never have to change
        if self._awaits_epoch:
            self.vit.unfreeze()
        else:
            self.schedule.apply(self.vit, 0)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W), sides multiples of 32 -> maps of the three strides, fine to coarse."""
        if self.training and self._awaits_epoch:
            raise ConfigError(
                "freeze_backbone_epochs is set and nobody called start_epoch(epoch), so nothing "
                "was frozen; call it at the start of every epoch (README.md has the lines for "
                "D-FINE's loop), or set freeze_backbone_epochs: 0"
            )
        if self.training and not self._range_checked and not torch.compiler.is_compiling():
            if self.normalize:
                _check_unit_range(images)
            self._range_checked = True
        # no change to images; the uninitialised memory that FLOP profilers feed becomes images
        images = images.nan_to_num()
        if self.normalize:
            images = images.clamp(-SLACK, 1 + SLACK)
            images = (images - self.mean) / self.std
        else:
            images = images.clamp(-LARGEST_NORMALISED, LARGEST_NORMALISED)
        return list(self.neck(self.vit(images), images).maps)

    def start_epoch(self, epoch: int) -> FreezeReport:
        """Freeze and thaw the ViT as planned; call it at the start of every epoch, in all processes alike.

        Where the report says ``changed``, DistributedDataParallel around the model must be made
        anew: it averages the gradients of those parameters that were trainable when it was built,
        and of no others. The optimizer stays: build it before the first call, and it holds all
        parameters from the start.
        """
        self._awaits_epoch = False
        return self.schedule.apply(self.vit, epoch)


def _schedule(freeze: bool, epochs: int, unfreeze: str) -> FreezeSchedule:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise ConfigError(
            f"freeze_backbone_epochs is {epochs!r}; expected a number of epochs, 0 for none"
        )
    plan = {0: "all" if freeze or epochs else "none"}
    if epochs:
        plan[epochs] = unfreeze
    return FreezeSchedule(plan)


def _loaded(name: str, pretrained: bool, checkpoint: str | None, seed: int | None) -> Backbone:
    if name in OTHER_NAMES:
        warnings.warn(
            f"model_name is {name!r}, which no library knows; taken for {OTHER_NAMES[name]!r} "
            "(DINOv3's patches are 16 px). Write that into the YAML",
            stacklevel=3,
        )
        name = OTHER_NAMES[name]
    random = checkpoint is None and not pretrained
    return load_backbone(
        name, pretrained=pretrained, checkpoint=checkpoint, seed=seed if random else None
    )


def _spread(depth: int) -> tuple[int, int, int]:
    """Blocks at 1/2, 3/4 and the end: 5, 8, 11 of 12."""
    return depth // 2 - 1, depth * 3 // 4 - 1, depth - 1


def _neck(
    name: str,
    vit: Backbone,
    out_channels: Sequence[int],
    feat_strides: Sequence[int],
    options: dict[str, Any],
) -> STAPyramid | SpatialTuningAdapter:
    strides = tuple(feat_strides)
    patch = vit.patch_size
    if len(out_channels) != 3 or len(set(out_channels)) != 1:
        raise ConfigError(
            f"out_channels is {list(out_channels)}; expected three equal numbers, such as [256, "
            "256, 256]: the encoder projects every map to its own width anyway"
        )
    if not isinstance(patch, int):
        raise ConfigError(f"the patches of {vit.name} are {patch} px; expected square ones")
    arguments: dict[str, Any] = {
        "embed_dim": vit.embed_dim,
        "out_channels": out_channels[0],
        "patch_size": patch,
    }
    built: STAPyramid | SpatialTuningAdapter
    if name == "sta_pyramid":
        is_native = strides == (patch / 2, patch, 2 * patch)
        arguments["strides"] = "native" if is_native else strides
        built = STAPyramid.from_config(arguments | options)
    else:
        arguments["num_layers"] = len(vit.layers)
        built = SpatialTuningAdapter.from_config(arguments | options)
    if built.strides != strides:
        built_strides = ", ".join(f"{stride:g}" for stride in built.strides)
        raise ConfigError(
            f"feat_strides is {list(strides)}, the maps of {name} on {patch} px patches have "
            f"{built_strides}; write these into DINOv3Backbone, HybridEncoder and "
            "DFINETransformer, or take neck: sta_pyramid, which resamples"
        )
    return built


def _check_unit_range(images: Tensor) -> None:
    low, high = (float(bound) for bound in images.aminmax())
    if low < -SLACK or high > 1 + SLACK:
        raise DataError(
            f"images hold values from {low:g} to {high:g}; expected 0 ... 1, as "
            "ConvertPILImage(scale=True) gives. Set normalize: False if the loader normalises"
        )
