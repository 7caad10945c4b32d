"""timm behind one small surface: build a DINO ViT by name, and read whole token sequences from any block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dinoneck.backbones.known import TINY, is_supported, refuse
from dinoneck.data.photos import IMAGENET_MEAN, IMAGENET_STD
from dinoneck.errors import BackboneError

_TINY_SETTING: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 16,
    "num_classes": 0,
    "embed_dim": 64,
    "depth": 6,
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
    """Return the DINOv2/DINOv3 ViT architectures that this timm knows."""
    return [name for name in timm.list_models() if is_supported(name)]


def build(name: str) -> nn.Module:
    """Build an architecture by its timm name, with or without a weights tag, with timm's own random init.

    Raises:
        BackboneError: if the name is unknown or no DINO ViT.
    """
    if name == TINY:
        return Eva(**_TINY_SETTING)
    architecture = name.split(".", 1)[0]
    if architecture not in names():
        raise refuse(name, names())
    if "." in name and name not in timm.list_pretrained(f"{architecture}.*"):
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*"))
        raise BackboneError(f"{architecture} has no weights tag {name.split('.', 1)[1]!r}; known: {tags}")
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    return model


class TimmAdapter(nn.Module):
    """A timm VisionTransformer or Eva, read through its public ``forward_intermediates``.

    Args:
        model: the timm model; used as it is, not copied.

    Raises:
        BackboneError: if the model is of another kind.
    """

    source = "timm"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, VisionTransformer | Eva):
            raise BackboneError(f"{type(model).__name__} is no timm VisionTransformer or Eva (DINOv2, DINOv3)")
        self.model: Any = model
        setting = getattr(model, "pretrained_cfg", None) or {}
        self.mean: tuple[float, ...] = tuple(setting.get("mean") or IMAGENET_MEAN)
        self.std: tuple[float, ...] = tuple(setting.get("std") or IMAGENET_STD)
        self.license: str | None = setting.get("license")
        self.hub_id: str | None = setting.get("hf_hub_id")
        tag = setting.get("tag")
        architecture = setting.get("architecture")
        self.name: str | None = f"{architecture}.{tag}" if architecture and tag else architecture

    @property
    def embed_dim(self) -> int:
        """Channels of a token."""
        return int(self.model.embed_dim)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.model.blocks)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        height, width = self.model.patch_embed.patch_size
        return int(height), int(width)

    @property
    def num_prefix_tokens(self) -> int:
        """CLS and registers."""
        return int(self.model.num_prefix_tokens)

    @property
    def num_cls(self) -> int:
        """CLS tokens, 0 or 1."""
        return int(self.model.cls_token is not None)

    @property
    def has_final_norm(self) -> bool:
        """Whether the model ends in a norm of the token sequence."""
        return not isinstance(self.model.norm, nn.Identity)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) if the model takes images of one size only, else None."""
        if getattr(self.model, "dynamic_img_size", False):
            return None
        height, width = self.model.patch_embed.img_size
        return int(height), int(width)

    def forward(self, images: Tensor, layers: Sequence[int], norm: bool) -> list[Tensor]:
        """Return the sequences (B, P + N, C) of these blocks (sorted, used once); later blocks do not run."""
        pairs = self.model.forward_intermediates(
            images,
            indices=list(layers),
            return_prefix_tokens=True,
            norm=norm,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if not self.num_prefix_tokens:
            return list(pairs)
        return [_rejoined(prefix, patches) for patches, prefix in pairs]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimmAdapter:
        """Move or convert, and keep the RoPE periods: a change of dtype would make timm recompute them."""
        rope = getattr(self.model, "rope", None)
        before = getattr(rope, "periods", None)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if rope is not None and isinstance(before, Tensor) and not before.is_meta:
            rope.register_buffer("periods", before.to(rope.periods.device), persistent=False)
        return self


def _rejoined(prefix: Tensor, patches: Tensor) -> Tensor:
    """Undo timm's split of one sequence: without a copy where both still are views of it."""
    plain = not (torch.compiler.is_compiling() or prefix.requires_grad or prefix.is_meta)
    if plain and prefix.stride() == patches.stride():
        batch, count, width = prefix.shape
        if patches.data_ptr() == prefix.data_ptr() + count * prefix.stride(1) * prefix.element_size():
            shape = (batch, count + patches.shape[1], width)
            return prefix.as_strided(shape, prefix.stride(), prefix.storage_offset())
    return torch.cat((prefix, patches), dim=1)
