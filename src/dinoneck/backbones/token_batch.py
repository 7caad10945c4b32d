"""A batch of images whose tokens are asked for, and what a program that computes them depends on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.adapter import Adapter
from dinoneck.dtypes import dtype_name


class ProgramKey(NamedTuple):
    """What a program depends on: with any other value another one is compiled.

    Attributes:
        weights_sha256: of the weights without LoRA's; None if it is not known.
        lora_sha256: of the LoRA weights that are merged; None without any.
        rotary: name and hash of rotary frequencies, which no record of weights holds.
        pos_embed: how positions are resampled.
        image_size: (height, width) in pixels.
        layers: the blocks whose tokens it returns, in ascending order.
        norm: whether the final norm is applied.
        dtype: of the weights, such as ``"float32"``.
        num_threads: how many threads it uses.
    """

    weights_sha256: str | None
    lora_sha256: str | None
    rotary: tuple[tuple[str, str], ...]
    pos_embed: str
    image_size: tuple[int, int]
    layers: tuple[int, ...]
    norm: bool
    dtype: str
    num_threads: int


@dataclass(frozen=True)
class TokenBatch:
    """Images, and which of their tokens are asked for.

    Attributes:
        adapter: the frozen backbone.
        images: (B, C, H, W), normalised; B is 1 or more.
        layers: block indices, in the order in which their tokens are returned.
        norm: apply the final norm to each.
    """

    adapter: Adapter
    images: Tensor
    layers: Sequence[int]
    norm: bool

    @functools.cached_property
    def key(self) -> ProgramKey:
        """What a program depends on, by the weights as they were when it was asked for first."""
        return self.present_key()

    def present_key(self) -> ProgramKey:
        """Return what a program depends on, by the weights as they are now."""
        hashes = weight_hashes.current_hashes(self.adapter)
        height, width = self.images.shape[-2:]
        return ProgramKey(
            weights_sha256=hashes.weights_sha256,
            lora_sha256=None if hashes.lora is None else hashes.lora["sha256"],
            rotary=tuple(sorted(weight_hashes.rotary_hashes(self.adapter).items())),
            pos_embed=self.adapter.pos_embed,
            image_size=(height, width),
            layers=tuple(sorted(set(self.layers))),
            norm=self.norm,
            dtype=dtype_name(self.images.dtype),
            num_threads=torch.get_num_threads(),
        )

    def run_torch(self) -> list[Tensor]:
        """Return the tokens (B, P + N, C) of each layer, computed by torch."""
        tokens: list[Tensor] = self.adapter(self.images, self.layers, self.norm)
        return tokens

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)
