"""Adapter: what every library's ViT must tell, and the one loop that runs its blocks.

Each library stores, orders and normalises intermediate tokens in its own way. Here only three questions are
left to a library: how an image becomes the first token sequence, how one block is called, and what the final
norm is. Block numbers, the caller's order, early stop, norm and recomputation are the same for all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinoneck.data.photos import IMAGENET_MEAN, IMAGENET_STD

# of timm; of the official objects
_UNUSED = ("head", "head_drop", "fc_norm", "attn_pool", "local_cls_norm")
LORA_PARTS = ("lora_A", "lora_B")
PosEmbed = Literal["native", "official"]
WeightState = tuple[tuple[int, int], ...]


class WeightHashes(NamedTuple):
    """The hashes of a backbone's weights, and the state of the tensors that they were taken in.

    Attributes:
        state: address and number of writes of every parameter and persistent buffer; None = not known, hash again.
        buffers: names of the persistent buffers.
        weights_sha256: of the weights in their present dtype, without LoRA weights; None on the meta device.
        lora: the record of the LoRA weights; None without any.
        fingerprint: what Tokens carry as ``source``; None if the float32 weights are not known.
        base_fingerprint: the same without the LoRA weights, for tokens made while they are switched off.
    """

    state: WeightState | None
    buffers: tuple[str, ...]
    weights_sha256: str | None
    lora: dict[str, Any] | None
    fingerprint: str | None
    base_fingerprint: str | None


class Adapter(nn.Module):
    """A ViT of some library: geometry, blocks in order, first tokens, final norm.

    Args:
        model: the library's model; used as it is, not copied.
        pos_embed: how absolute position embeddings come to another grid, see
            :func:`dinoneck.load_backbone`.

    Attributes:
        origin: the record of where the weights come from; ``origin_sha256`` their digest at that time, in
            ``origin_dtype``.
        thawed: whether base weights have ever been made trainable here.
        hashes: of the weights, see :mod:`dinoneck.backbones.weight_hashes`; None until they are asked for.
        has_other_recipe: whether positions are resampled by another recipe than the library's.
        cast: the hash of the weights after a cast, and that of the float32 weights before it.
        lora_off: whether LoRA weights are switched off at the moment.
        asked_mode: the mode that ``train()`` last asked for; trainable parts follow it.
        source: the library: ``timm``, ``transformers`` or ``official``.
        name: the model's name; None if the object does not say.
        mean: per-channel mean for photos.
        std: per-channel standard deviation for photos.
        license: of the published weights, if the library says.
        hub_id: where the published weights are, if the library says.
    """

    source = ""
    attention = "attn"
    name: str | None = None
    license: str | None = None
    hub_id: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __init__(self, model: nn.Module, pos_embed: PosEmbed = "native") -> None:
        super().__init__()
        self.model: Any = model
        self.pos_embed: PosEmbed = pos_embed
        self.recomputed = False
        self.lora: dict[str, Any] | None = None
        self.asked_mode = False
        self.thawed = self.lora_off = self.has_other_recipe = False
        self.hashes: WeightHashes | None = None
        self.cast: tuple[str | None, str | None] | None = None
        self.origin: dict[str, Any] = {"kind": "object"}
        self.origin_sha256: str | None = None
        self.origin_dtype: torch.dtype | None = None

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, in order."""

    @property
    @abstractmethod
    def norms(self) -> Sequence[nn.Module]:
        """The modules of the final norm; empty if the model has none."""

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """Channels of a token."""

    @property
    @abstractmethod
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""

    @property
    @abstractmethod
    def num_cls(self) -> int:
        """CLS tokens, 0 or 1."""

    @property
    @abstractmethod
    def num_registers(self) -> int:
        """Register tokens."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The patch embedding's weight: its dtype and device are the model's."""

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return the first token sequence (B, P + N, C), positions included, and what every block needs beside it."""

    @abstractmethod
    def step(self, block: nn.Module, number: int, x: Tensor, beside: Any) -> Tensor:
        """Run one block; ``number`` is its place."""

    @property
    def family(self) -> str | None:
        """``dinov2`` or ``dinov3`` where the model itself says so."""
        return None

    @property
    def in_steps(self) -> bool:
        """Whether blocks run one by one here; else a method of the model runs them."""
        return True

    @property
    def unused(self) -> Sequence[nn.Module]:
        """Modules that take no part when features are read: classifiers, poolers, norms of the training recipe."""
        found = (getattr(self.model, name, None) for name in _UNUSED)
        return [module for module in found if isinstance(module, nn.Module)]

    @property
    def rotary(self) -> nn.Module | None:
        """The module of rotary positions, whose training mode would move them at random."""
        return None

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) if the model takes images of one size only, else None."""
        return None

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """CLS and registers."""
        return self.num_cls + self.num_registers

    @property
    def has_final_norm(self) -> bool:
        """Whether the model ends in a norm of the token sequence."""
        return bool(self.norms)

    def final_norm(self, x: Tensor) -> Tensor:
        """Apply the final norm to a whole sequence."""
        return cast("Tensor", self.norms[0](x))

    def forward(self, images: Tensor, layers: Sequence[int], norm: bool) -> list[Tensor]:
        """Return the sequences (B, P + N, C) of these blocks, in this order; later blocks do not run."""
        x, beside = self.embed(images)
        found: dict[int, Tensor] = {}
        for number, block in enumerate(list(self.blocks)[: max(layers) + 1]):
            if self.recomputed and torch.is_grad_enabled() and is_trainable(block):
                x = checkpoint(self.step, block, number, x, beside, use_reentrant=False)
            else:
                x = self.step(block, number, x, beside)
            if number in layers:
                found[number] = self.final_norm(x) if norm else x
        return [found[number] for number in layers]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """Move or convert, but keep rotary frequencies and LoRA weights exact: in half they would move, or stall."""
        rotary = self.rotary
        before = {} if rotary is None else dict(rotary.named_buffers())
        added = [(p, p.data) for name, p in self.named_parameters() if is_lora(name)]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter, exact in added:
            if parameter.dtype != exact.dtype and not exact.is_meta:
                parameter.data = exact.to(parameter.device)
        for key, old in before.items():
            new = cast("nn.Module", rotary).get_buffer(key)
            if not old.is_meta:
                cast("nn.Module", rotary)._buffers[key] = old.to(new.device)
        return self


def is_lora(name: str) -> bool:
    """Whether a parameter's name is that of a LoRA weight."""
    return any(f".{part}." in name for part in LORA_PARTS)


def is_trainable(module: nn.Module) -> bool:
    """Whether any parameter of a module requires gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())
