"""Backbone: normalised images in, :class:`dinoneck.Tokens` out, whichever library holds the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones.known import LICENSES, family_of
from dinoneck.backbones.timm import TimmAdapter
from dinoneck.backbones.weights import digest
from dinoneck.data.photos import Preprocessing
from dinoneck.errors import BackboneError, DataError, ShapeError
from dinoneck.grid import PatchSize, TokenGrid
from dinoneck.tokens import Tokens

LARGEST_NORMALISED = 10.0


class Backbone(nn.Module):
    """A DINO ViT that gives Tokens. Made by :func:`dinoneck.load_backbone` or :func:`dinoneck.wrap_backbone`.

    A frozen backbone stays in eval mode through any ``train()``, records no autograd graph and gives ordinary
    tensors that a trainable head may follow. Blocks after the last layer asked for do not run.

    Args:
        adapter: the model behind its library's adapter.
        name: the model's name.
        layers: block indices wanted, in this order; None = the last, an integer n = the n last.
        norm: apply the backbone's final norm to every layer.
        frozen: see above.
        weights: the record of where the weights come from.

    Shape:
        images (B, 3, H, W), normalised floats -> Tokens with one (B, P + N, C) sequence per layer.

    Raises:
        BackboneError: if a layer does not exist, or a norm is asked for that the model lacks.
    """

    def __init__(
        self,
        adapter: TimmAdapter,
        *,
        name: str,
        layers: int | Sequence[int] | None = None,
        norm: bool = True,
        frozen: bool = True,
        weights: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if norm and not adapter.has_final_norm:
            raise BackboneError(f"{name} has no final norm of its token sequence; pass norm=False")
        self.adapter = adapter
        self.name = name
        self.layers = resolve_layers(layers, adapter.depth)
        self.norm = bool(norm)
        self.frozen = bool(frozen)
        self.weights = dict(weights or {"kind": "object"})
        self.preprocess = Preprocessing(patch_size=adapter.patch_size, mean=adapter.mean, std=adapter.std)
        if frozen:
            self.requires_grad_(False)
        self.train(False if frozen else adapter.model.training)

    @property
    def embed_dim(self) -> int:
        """Channels of a token."""
        return self.adapter.embed_dim

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.adapter.depth

    @property
    def patch_size(self) -> PatchSize:
        """Pixels per patch: an integer when square, else (height, width)."""
        return self.preprocess.patch_size

    @property
    def num_prefix_tokens(self) -> int:
        """CLS and register tokens before the patches."""
        return self.adapter.num_prefix_tokens

    @property
    def trainable_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that have trainable parameters."""
        blocks = enumerate(self.adapter.model.blocks)
        return tuple(i for i, block in blocks if any(p.requires_grad for p in block.parameters()))

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; a frozen backbone stays in eval mode."""
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tokens:
        """Run the blocks that are needed.

        Args:
            images: (B, 3, H, W) floats as :attr:`preprocess` gives them; cast to the weights' dtype.

        Raises:
            DataError: for uint8 images, NaN, or values beyond ±10 (not normalised).
            ShapeError: for another shape.
            GridError: if the patch does not divide the image.
        """
        self._check(images)
        wanted = sorted(set(self.layers))
        dtype = self.adapter.model.patch_embed.proj.weight.dtype
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            if len(images):
                found = dict(zip(wanted, self.adapter(images.to(dtype), wanted, self.norm), strict=True))
            else:  # attention cannot run on nothing
                count = self.num_prefix_tokens + TokenGrid(self.patch_size).size(images.shape[-2:]).count
                empty = images.new_zeros((0, count, self.embed_dim), dtype=dtype)
                found = dict.fromkeys(wanted, empty)
        return Tokens.from_sequence(
            [found[layer] for layer in self.layers],
            image_size=(images.shape[-2], images.shape[-1]),
            patch_size=self.patch_size,
            num_prefix_tokens=self.num_prefix_tokens,
            num_cls=self.adapter.num_cls,
            layers=self.layers,
            normed=self.norm,
        )

    def with_layers(self, layers: int | Sequence[int] | None) -> Backbone:
        """Return a backbone over the same weights (shared, not copied) that gives other layers."""
        return Backbone(
            self.adapter,
            name=self.name,
            layers=layers,
            norm=self.norm,
            frozen=self.frozen,
            weights=self.weights,
        )

    def record(self) -> dict[str, Any]:
        """Return the JSON-able record that checkpoints and stores carry.

        It names the model, its geometry, the layers and norm in force, where the weights come from and their
        digest (SHA-256 over all of them, in the present dtype; None on the meta device). The licence is that of
        published weights; seeded random ones have none.
        """
        family = family_of(self.name)
        weight = self.adapter.model.patch_embed.proj.weight
        return {
            "name": self.name,
            "family": family,
            "source": self.adapter.source,
            "patch_size": list(self.adapter.patch_size),
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_cls": self.adapter.num_cls,
            "num_registers": self.num_prefix_tokens - self.adapter.num_cls,
            "layers": list(self.layers),
            "norm": self.norm,
            "pos_embed": "native",
            "dtype": str(weight.dtype).removeprefix("torch."),
            "weights": self.weights,
            "weights_sha256": digest(self.adapter.model),
            "license": None if self.weights["kind"] == "seeded" else self.adapter.license or LICENSES.get(family),
        }

    def extra_repr(self) -> str:
        """Show what a user asks first."""
        return (
            f"{self.name!r}, embed_dim={self.embed_dim}, patch_size={self.patch_size}, layers={self.layers}, "
            f"norm={self.norm}, frozen={self.frozen}"
        )

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise ShapeError(
                f"images are {type(images).__name__}; expected a tensor: use backbone.preprocess(photos) first"
            )
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images have shape {tuple(images.shape)}; expected (batch, 3, height, width)")
        if not images.is_floating_point():
            raise DataError(
                f"images are {images.dtype}; the backbone takes normalised floats: use backbone.preprocess(photos)"
            )
        TokenGrid(self.patch_size).size(images.shape[-2:])
        fixed = self.adapter.fixed_size
        if fixed is not None and tuple(images.shape[-2:]) != fixed:
            raise BackboneError(
                f"this model takes {fixed[0]}x{fixed[1]} px only, the image is {images.shape[-2]}x{images.shape[-1]}; "
                "build it with dynamic_img_size=True"
            )
        if torch.compiler.is_compiling() or images.is_meta:
            return
        # written so that NaN fails too; one reduction, next to nothing beside a ViT
        if images.numel() and not bool(images.abs().amax() <= LARGEST_NORMALISED):
            raise DataError(
                f"images hold values up to {images.abs().amax().item():g}; normalised ones stay within "
                f"±{LARGEST_NORMALISED:g}: use backbone.preprocess(photos)"
            )


def resolve_layers(layers: int | Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return 0-based block indices: None = last, n = n last, a sequence = these (negative from the end).

    Raises:
        BackboneError: if a block does not exist or none is asked for.
    """
    if layers is None:
        return (depth - 1,)
    if isinstance(layers, Integral):
        count = 0 if isinstance(layers, bool) else int(layers)
        if not 1 <= count <= depth:
            raise BackboneError(f"layers is {layers!r}; expected 1 ... {depth} last blocks, or a list of block indices")
        return tuple(range(depth - count, depth))
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise BackboneError(f"layers is {layers!r}; expected None, a number of last blocks, or a list of block indices")
    wanted = list(layers)
    wrong = [i for i in wanted if isinstance(i, bool) or not isinstance(i, Integral) or not -depth <= i < depth]
    if wrong or not wanted:
        raise BackboneError(f"layers is {wanted}; expected block indices {-depth} ... {depth - 1}, at least one")
    return tuple(int(i) % depth for i in wanted)
