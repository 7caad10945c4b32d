"""The adapter of timm: build a DINO ViT by name, or take an existing VisionTransformer or Eva."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, cast

import timm
import torch
from timm.layers.format import Format
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dinoneck.backbones.adapter import (
    Adapter,
    ForwardTokens,
    PosEmbed,
    official_positions,
    tipsv2_positions,
)
from dinoneck.backbones.known import (
    KNOWN,
    NEEDED_TIMM,
    TINY,
    TINY_DEPTH,
    TINY_PATCH,
    TINY_WIDTH,
    family_of,
    is_supported,
    unknown_backbone,
)
from dinoneck.errors import BackboneError
from dinoneck.grid import patch_pair

logger = logging.getLogger(__name__)

# grids whose rotary positions are compared: one of few patches, and one of about 600 x 800 px
_COMPARED_GRIDS = ((2, 3), (37, 50))
_LAST_BITS = 16  # how many times the rounding of a coordinate two devices may differ
_TINY_SETTING: dict[str, Any] = {
    "img_size": 64,
    "patch_size": TINY_PATCH,
    "num_classes": 0,
    "embed_dim": TINY_WIDTH,
    "depth": TINY_DEPTH,
    "num_heads": 4,
    "num_reg_tokens": 2,
    "qkv_bias": False,
    "init_values": 0.1,
    "use_abs_pos_emb": False,
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "rope_rotate_half": True,
    "use_fc_norm": False,
    "dynamic_img_size": True,
}


def names() -> list[str]:
    """Return the architectures of the table's families that this timm knows."""
    return [name for name in timm.list_models() if is_supported(name)]


def build(name: str, **changes: Any) -> nn.Module:
    """Build an architecture by its timm name, with or without a weights tag, with timm's own random init.

    Args:
        name: of the architecture.
        **changes: options of timm's model that differ from the published one.

    Raises:
        BackboneError: as :func:`check_name`.
    """
    check_name(name)
    if name == TINY:
        return Eva(**_TINY_SETTING)
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=0, dynamic_img_size=True, **changes
    )
    return model


def check_name(name: str) -> None:
    """Reject the name of an architecture that is unknown or not in the table, or of unknown weights.

    Raises:
        BackboneError: with the nearest name, or with the version of timm that has the model.
    """
    if name == TINY:
        return
    architecture = name.split(".", 1)[0]
    known_names = names()
    if architecture not in known_names:
        is_published = any(model.name == architecture for model in KNOWN)
        needed = NEEDED_TIMM.get(family_of(architecture))
        if is_published and needed is not None:
            raise BackboneError(
                f"timm {timm.__version__} has no {architecture!r}; install timm {needed} or newer"
            )
        raise unknown_backbone(name, known_names)
    if "." in name:
        tagged = timm.list_pretrained(f"{architecture}.*")
        if name not in tagged:
            raise BackboneError(
                f"backbone {name!r} is unknown; with a tag of weights it is {' or '.join(tagged)}"
            )


def is_timm(model: nn.Module) -> bool:
    """Whether this adapter can take the object."""
    return isinstance(model, VisionTransformer | Eva)


class TimmAdapter(Adapter):
    """A timm VisionTransformer or Eva.

    Args:
        model: the timm model; used as it is, not copied.
        pos_embed: see :class:`dinoneck.backbones.adapter.Adapter`.

    Raises:
        BackboneError: if the model is of another kind.
    """

    source = "timm"
    tokens_method = "forward_features"

    def __init__(self, model: nn.Module, pos_embed: PosEmbed = "native") -> None:
        super().__init__(model, pos_embed)
        if isinstance(self.model.patch_embed, HybridEmbed):
            raise BackboneError(
                f"{type(model).__name__} is a hybrid, whose patches a "
                f"{type(self.model.patch_embed.backbone).__name__} makes; expected a ViT that makes "
                "them of pixels, such as vit_small_patch16_dinov3"
            )
        self.embed_dim = int(self.model.embed_dim)
        self.patch_size = patch_pair(self.model.patch_embed.patch_size)
        self.num_cls = int(self.model.cls_token is not None)
        self.num_registers = int(self.model.num_prefix_tokens) - self.num_cls
        setting = getattr(model, "pretrained_cfg", None) or {}
        self.mean = tuple(setting.get("mean") or self.mean)
        self.std = tuple(setting.get("std") or self.std)
        self.license = setting.get("license")
        self.hub_id = setting.get("hf_hub_id")
        self.name = setting.get("architecture")
        tag = setting.get("tag")
        if self.name and tag:
            self.name = f"{self.name}.{tag}"
        self._is_changed = _is_changed(self.model)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, in order."""
        return cast("Sequence[nn.Module]", self.model.blocks)

    @property
    def norms(self) -> Sequence[nn.Module]:
        """The final norm, unless the model pools first."""
        return () if isinstance(self.model.norm, nn.Identity) else (self.model.norm,)

    @property
    def patch_embedding(self) -> nn.Module:
        """The module that makes patches of images."""
        return cast("nn.Module", self.model.patch_embed)

    @property
    def trained_grid(self) -> tuple[int, int] | None:
        """(rows, cols) of the position embedding; None without one."""
        if self.model.pos_embed is None:
            return None
        rows, cols = self.model.patch_embed.grid_size
        return int(rows), int(cols)

    @property
    def blocks_take_any_tokens(self) -> bool:
        """Whether the blocks take sequences of any length: those of a VisionTransformer do."""
        return not isinstance(self.model, Eva)

    def tokens_in_output(self, output: Any) -> list[ForwardTokens]:
        """Return what ``forward_features`` returns: the last block's sequence, normed if there is a norm."""
        if not isinstance(output, Tensor):
            raise BackboneError(
                f"forward_features of {type(self.model).__name__} returns a "
                f"{type(output).__name__}; expected the tokens (B, N, C), as timm's returns them: "
                "wrap the model without the change"
            )
        return [ForwardTokens(self.depth - 1, normed=bool(self.norms), tokens=output)]

    @property
    def rotary(self) -> nn.Module | None:
        """DINOv3's rotary positions."""
        return cast("nn.Module | None", getattr(self.model, "rope", None))

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) if the model takes images of one size only, else None."""
        if getattr(self.model, "dynamic_img_size", False):
            return None
        height, width = self.model.patch_embed.img_size
        return int(height), int(width)

    def embed_natively(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return the prefix and patch tokens with positions, (B, P + N, C), and the rotary embedding of every block."""
        model = self.model
        x = self._patches(images)
        if not isinstance(model, Eva):
            x = model.patch_drop(model._pos_embed(x))
            return model.norm_pre(x), None
        x, rotary = model._pos_embed(x)
        if rotary is not None and getattr(model, "rope_mixed", False):  # one for each block
            return model.norm_pre(x), list(rotary)
        return model.norm_pre(x), [rotary] * self.depth

    def embed(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return the same, with positions by the recipe asked for, and without a copy from the host."""
        if isinstance(self.model, Eva):
            # timm computes the positions on the host: a GPU would wait for their copy in every
            # forward
            is_on_gpu = images.device.type != "cpu" and not self.model.training
            if (torch.compiler.is_compiling() or is_on_gpu) and self._has_traced_form:
                x, rotary = self._traced(self._patches(images))
                return self.model.norm_pre(x), [rotary] * self.depth
        elif self.pos_embed == "official" and self._is_plain_dinov2:
            return self._embed_officially(images), None
        elif self.pos_embed == "official" and self._is_tipsv2:
            return self._embed_as_tipsv2(images), None
        return self.embed_natively(images)

    @property
    def _is_plain_dinov2(self) -> bool:
        """Whether the position embedding is that of CLS and patches, without registers."""
        model = self.model
        has_registers = model.reg_token is not None or model.no_embed_class
        return model.pos_embed is not None and model.cls_token is not None and not has_registers

    def _embed_officially(self, images: Tensor) -> Tensor:
        """Return the first tokens with positions resampled as in the dinov2 repository."""
        model = self.model
        height, width = images.shape[-2:]
        grid = (height // self.patch_size[0], width // self.patch_size[1])
        patches = self._patches(images).reshape(images.shape[0], grid[0] * grid[1], -1)
        cls_token = model.cls_token.expand(images.shape[0], -1, -1)
        x = torch.cat((cls_token, patches), dim=1)
        x = model.pos_drop(x + official_positions(model.pos_embed, grid, self.trained_grid))
        return cast("Tensor", model.norm_pre(model.patch_drop(x)))

    @property
    def _is_tipsv2(self) -> bool:
        """Whether this is a TIPSv2, whose position embedding is that of patches alone."""
        model = self.model
        has_prefix = model.cls_token is not None and model.reg_token is not None
        is_of_patches = model.pos_embed is not None and model.no_embed_class
        return family_of(self.name or "") == "tipsv2" and has_prefix and is_of_patches

    def _embed_as_tipsv2(self, images: Tensor) -> Tensor:
        """Return the first tokens with positions resampled as by TIPSv2's publisher."""
        model = self.model
        batch, _, height, width = images.shape
        grid = (height // self.patch_size[0], width // self.patch_size[1])
        patches = self._patches(images).reshape(batch, grid[0] * grid[1], -1)
        trained_grid = cast("tuple[int, int]", self.trained_grid)
        patches = patches + tipsv2_positions(model.pos_embed, grid, trained_grid)
        cls_token = model.cls_token.expand(batch, -1, -1)
        registers = model.reg_token.expand(batch, -1, -1)
        x = model.pos_drop(torch.cat((cls_token, registers, patches), dim=1))
        return cast("Tensor", model.norm_pre(model.patch_drop(x)))

    def compare_positions(self) -> None:
        """Use timm's own rotary positions where :func:`rotary_of` gives others.

        It is so for a ``rope`` whose inner methods were replaced. Both are computed on the model's
        device.
        """
        if not isinstance(self.model, Eva) or not self._has_traced_form:
            return
        rope: Any = self.model.rope
        if rope.periods.is_meta:
            return
        # An angle is 2 pi / period times a coordinate in -1 ... 1. Devices divide differently in
        # the last bits of the coordinate.
        rounding = torch.finfo(rope.periods.dtype).eps * 2 * math.pi / float(rope.periods.min())
        for rows, cols in _COMPARED_GRIDS:
            native = rope.get_embed(shape=(rows, cols))
            computed = rotary_of(rope, rows, cols)
            is_same_shape = native.shape == computed.shape
            if not is_same_shape or not (native - computed).abs().max() <= _LAST_BITS * rounding:
                logger.info(
                    "%s computes rotary positions of its own: they are used on every device",
                    type(self.model).__name__,
                )
                self._is_changed = True
                return

    def _patches(self, images: Tensor) -> Tensor:
        """Return patches (B, rows, cols, C), or (B, N, C) if the model takes images of one size.

        timm's error message contains the image size, which would fix a compiled graph at that size.
        """
        embed = self.model.patch_embed
        if torch.compiler.is_compiling() and self._has_plain_patches:
            maps = embed.proj(images)  # (B, C, rows, cols)
            return cast("Tensor", embed.norm(maps.permute(0, 2, 3, 1)))
        return cast("Tensor", embed(images))

    @property
    def _has_plain_patches(self) -> bool:
        """Whether the patch embedding is timm's own, and gives (B, rows, cols, C) without padding."""
        embed = self.model.patch_embed
        if type(embed) is not PatchEmbed or self._is_changed:
            return False
        gives_maps = embed.output_fmt == Format.NHWC and not embed.flatten
        return gives_maps and not embed.dynamic_img_pad

    @property
    def _has_traced_form(self) -> bool:
        """Whether :meth:`_traced` covers all that this model does between patches and blocks."""
        model = self.model
        rope = model.rope
        if type(rope) is not RotaryEmbeddingDinoV3 or not model.dynamic_img_size:
            return False
        if self._is_changed or (not torch.compiler.is_compiling() and _is_changed(model)):
            return False
        by_side = rope.normalize_coords == "separate" and rope.grid_indexing == "ij"
        return by_side and model.pos_embed is None and model.patch_drop is None

    def _traced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute timm's ``_pos_embed`` of DINOv3's patches (B, rows, cols, C) in a form for graphs of any size.

        timm converts the grid's sides to Python floats, which fixes a graph at the size of its
        example.
        """
        model = self.model
        batch, rows, cols, _ = x.shape
        parts = []
        for token in (model.cls_token, model.reg_token):
            if token is not None:
                parts.append(token.expand(batch, -1, -1))
        parts.append(x.flatten(1, 2))
        tokens = model.pos_drop(torch.cat(parts, dim=1))  # (B, P + N, C)
        return tokens, rotary_of(model.rope, rows, cols)

    def step(self, block: nn.Module, number: int, x: Tensor, extra: Any) -> Tensor:
        """Run one block."""
        if extra is None:
            return cast("Tensor", block(x))
        return cast("Tensor", block(x, rope=extra[number]))


def _is_changed(model: Any) -> bool:
    """Whether someone changed how the model makes its first tokens: then only its own methods know how."""
    kind = Eva if isinstance(model, Eva) else VisionTransformer
    if type(model)._pos_embed is not kind._pos_embed or "_pos_embed" in vars(model):
        return True
    for part in (model.patch_embed, getattr(model, "rope", None)):
        if part is None:
            continue
        has_method = "forward" in vars(part) or "get_embed" in vars(part)
        if has_method or part._forward_hooks or part._forward_pre_hooks:
            return True
    return False


def rotary_of(rope: RotaryEmbeddingDinoV3, rows: int, cols: int) -> Tensor:
    """Return timm's rotary embedding of a grid, (rows * cols, 2 D): sines, then cosines; sides may be symbolic.

    Patch centres span -1 ... 1 along each side; every coordinate turns by 2 pi / period per unit.
    """
    periods = cast("Tensor", rope.periods)
    # the coordinates of the patch centres along each side
    sides = []
    for length in (rows, cols):
        numbers = torch.arange(length, device=periods.device, dtype=torch.float32)
        shares = (numbers + 0.5 + rope.grid_offset) / length  # 0 ... 1
        sides.append(2 * shares - 1)
    # of every patch: (rows * cols, 2)
    centres = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)
    centres = centres.flatten(0, 1).to(periods.dtype)
    # (rows * cols, 2, D / 4) -> (rows * cols, D / 2)
    angles = (2 * math.pi * centres[:, :, None] / periods).flatten(1)
    # every angle twice: (rows * cols, D)
    if rope.rotate_half:
        angles = torch.cat((angles, angles), dim=-1)
    else:
        angles = angles.repeat_interleave(2, dim=-1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
