"""Adapter: the interface of every library's ViT, the one loop that runs its blocks, and what of it is trainable.

Each library stores, orders and normalises intermediate tokens in its own way. An adapter defines
three things: how an image becomes the first token sequence, how one block is called, and what the
final norm is. Block numbers, the caller's order, early stop, norm and recomputation are the same
for all libraries.
"""

from __future__ import annotations

import contextlib
import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinoneck.errors import BackboneError
from dinoneck.images.recipe import IMAGENET_MEAN, IMAGENET_STD

# modules that do not contribute to features, of timm and of the official objects: classifiers,
# poolers, other norms
_UNUSED = ("head", "head_drop", "fc_norm", "attn_pool", "local_cls_norm")
LORA_PARTS = ("lora_A", "lora_B")
PosEmbed = Literal["native", "official"]
_POSITION_OFFSET = 0.1  # patches; of the dinov2 repository
WeightState = tuple[tuple[int, int], ...]


class WeightHashes(NamedTuple):
    """The hashes of a backbone's weights, and the state of the tensors that they were taken in.

    Attributes:
        state: address and number of writes of every parameter and persistent buffer; None = not
            known, hash again.
        buffers: names of the persistent buffers.
        weights_sha256: of the weights in their present dtype, without LoRA weights; None on the
            meta device.
        float32_sha256: of the float32 weights that these are or were cast from; None if they are
            not known.
        lora: the record of the LoRA weights; None without any.
        fingerprint: what Tokens carry as ``source``; None if the float32 weights are not known.
        base_fingerprint: the same without the LoRA weights, for tokens made while they are switched
            off.
    """

    state: WeightState | None
    buffers: tuple[str, ...]
    weights_sha256: str | None
    float32_sha256: str | None
    lora: dict[str, Any] | None
    fingerprint: str | None
    base_fingerprint: str | None


class OriginalWeights(NamedTuple):
    """The weights of a backbone as they were loaded or wrapped, before any of them was trained.

    Attributes:
        dtype: of the weights, such as ``"float32"``.
        weights_sha256: of the weights in this dtype, without LoRA weights; None on the meta device.
        float32_sha256: of the float32 weights that these are or were cast from; None if they are
            not known.
        tensors: name -> hash of a tensor, see :func:`dinoneck.backbones.weight_hashes.tensor_hashes`.
    """

    dtype: str
    weights_sha256: str | None
    float32_sha256: str | None
    tensors: dict[str, str]


class CastTensor(NamedTuple):
    """The hashes of one tensor after and before a cast, of :func:`dinoneck.backbones.weight_hashes.tensor_hashes`."""

    after: str
    before: str


class CastRecord(NamedTuple):
    """The last cast of a backbone's weights to another dtype.

    Attributes:
        weights_sha256: of the weights after it, without LoRA weights; None on the meta device.
        float32_sha256: of the float32 weights that those before it are or were cast from; None if
            they are not known.
        tensors: name -> hashes of a tensor; empty where they are not known, and for float32 weights.
    """

    weights_sha256: str | None
    float32_sha256: str | None
    tensors: dict[str, CastTensor]


class MergeRecord(NamedTuple):
    """The last merge of LoRA weights into a backbone's weights.

    Attributes:
        hashes_before: of the weights and LoRA weights before it.
        weights_sha256: of the weights after it; None on the meta device.
    """

    hashes_before: WeightHashes
    weights_sha256: str | None


@dataclass
class WeightHistory:
    """Where a backbone's weights come from, and what is known to have happened to them since.

    :mod:`dinoneck.backbones.weight_hashes` alone writes it.

    Attributes:
        origin: the record of where the weights come from.
        original: the hashes of the weights as they came from there; None where they are not known.
        cast: None if they were never cast.
        merge: None if no LoRA was merged into them.
    """

    origin: dict[str, Any] = field(default_factory=lambda: {"kind": "object"})
    original: OriginalWeights | None = None
    cast: CastRecord | None = None
    merge: MergeRecord | None = None


class ForwardTokens(NamedTuple):
    """Tokens in what a model's forward returns.

    Attributes:
        layer: the block that they come from.
        normed: whether the final norm was applied.
        tokens: (B, P + N, C), or (B, N, C) with ``patches_only``.
        patches_only: whether CLS and registers are left out.
    """

    layer: int
    normed: bool
    tokens: Tensor
    patches_only: bool = False


class Adapter(nn.Module):
    """A ViT of some library: geometry, blocks in order, first tokens, final norm; frozen and trainable parts.

    The parts are the blocks, the final norm and the rest (patch and position embeddings). A part
    whose parameters are all frozen runs in eval mode, even after ``train()``: no loss would be
    trained against its dropout. Rotary positions are always in eval mode; in training mode they are
    shifted and rescaled at random, a recipe for pretraining.

    Args:
        model: the library's model; used as it is, not copied.
        pos_embed: how absolute position embeddings are resampled to another grid, see
            :func:`dinoneck.load_backbone`.

    Attributes:
        embed_dim: channels of a token.
        patch_size: (height, width) of a patch in pixels.
        num_cls: CLS tokens, 0 or 1.
        num_registers: register tokens.
        family: ``dinov2``, ``dinov3`` or ``tipsv2`` where the class of the model defines it, else None;
            see :func:`dinoneck.backbones.known.refined_family`.
        recomputed: whether trainable blocks are recomputed in backward (activation checkpointing).
        uses_official_recipe: whether positions are resampled by the official recipe in place of the
            library's own.
        asked_mode: the mode of the last call of :meth:`set_modes`, which trainable parts follow.
        lora: the setting of the LoRA weights; None without any.
        lora_off: whether LoRA weights are switched off at the moment.
        history: where the weights come from, and what happened to them since.
        hashes: of the weights as they are now, see :mod:`dinoneck.backbones.weight_hashes`; None =
            to be computed when they are asked for.
        source: the library: ``timm``, ``transformers`` or ``official``.
        tokens_method: the model's method that returns its tokens; None where calling it does.
        name: the model's name; None if the object has none.
        mean: per-channel mean for images.
        std: per-channel standard deviation for images.
        license: of the published weights, if the library records it, or as their owner states it.
        has_published_weights: whether the name stands for the weights; not those of a file whose
            name is not that of published ones.
        hub_id: where the published weights are, if the library records it.
    """

    embed_dim: int
    patch_size: tuple[int, int]
    num_cls: int
    num_registers: int
    family: str | None = None

    source = ""
    tokens_method: str | None = None
    attention = "attn"
    name: str | None = None
    license: str | None = None
    has_published_weights = True
    hub_id: str | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __init__(self, model: nn.Module, pos_embed: PosEmbed = "native") -> None:
        super().__init__()
        self.model: Any = model
        self.pos_embed: PosEmbed = pos_embed
        # set by the Backbone
        self.recomputed = False
        self.uses_official_recipe = False
        self.asked_mode = False
        # set by lora.py
        self.lora: dict[str, Any] | None = None
        self.lora_off = False
        # set by weight_hashes.py
        self.history = WeightHistory()
        self.hashes: WeightHashes | None = None

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
    def patch_embedding(self) -> nn.Module:
        """The module that makes patches of images."""

    @property
    def weight(self) -> Tensor:
        """The patch embedding's first weight: its dtype and device are the model's."""
        return next(self.patch_embedding.parameters())

    @abstractmethod
    def embed_natively(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return what :meth:`embed` returns, with positions computed by the model's own code."""

    def embed(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return the first token sequence (B, P + N, C) with positions, and the blocks' further arguments."""
        return self.embed_natively(images)

    @abstractmethod
    def step(self, block: nn.Module, number: int, x: Tensor, extra: Any) -> Tensor:
        """Run block ``number`` on x (B, P + N, C); ``extra`` comes from :meth:`embed`."""

    def block_input(self, tokens: Tensor, extra: Any) -> Tensor:
        """Return the sequences that block 0 computes with, of what :meth:`embed` returns.

        They are the tokens (B, P + N, C) themselves, unless the model cuts them into windows.
        """
        return tokens

    def step_for_export(self, block: nn.Module, number: int, x: Tensor, extra: Any) -> Tensor:
        """Run a block in evaluation mode as :meth:`step` does, by operations that fix no batch size."""
        return self.step(block, number, x, extra)

    @abstractmethod
    def tokens_in_output(self, output: Any) -> list[ForwardTokens]:
        """Return the tokens in what the model's forward, or its :attr:`tokens_method`, returns.

        Raises:
            BackboneError: if there are none where this kind of model has them.
        """

    def with_named_outputs(self) -> contextlib.AbstractContextManager[None]:
        """Let the model's forward return outputs with named fields in the ``with`` block, not tuples."""
        return contextlib.nullcontext()

    def compare_positions(self) -> None:
        """Use the model's own positions where those that :meth:`embed` computes instead differ from them.

        Nothing to do where :meth:`embed` computes none.
        """

    @property
    def trained_grid(self) -> tuple[int, int] | None:
        """(rows, cols) that absolute position embeddings were made for; None without any."""
        return None

    @property
    def trained_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of :attr:`trained_grid`."""
        grid = self.trained_grid
        if grid is None:
            return None
        return grid[0] * self.patch_size[0], grid[1] * self.patch_size[1]

    @property
    def rotary(self) -> nn.Module | None:
        """The module of rotary positions, whose training mode would move them at random."""
        return None

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) if the model takes images of one size only, else None."""
        return None

    @property
    def blocks_take_any_tokens(self) -> bool:
        """Whether the blocks take sequences of any length, since positions are added before them."""
        return False

    @property
    def in_chans(self) -> int:
        """Channels of the images: those of the patch embedding's first convolution, 3 where it has none."""
        for module in self.patch_embedding.modules():
            if isinstance(module, nn.Conv2d):
                return module.in_channels
        return 3

    def configured_layers(self, norm: bool) -> tuple[int, ...] | None:
        """Return the blocks that the model's own configuration selects; None if it has no such setting.

        Raises:
            BackboneError: if it selects what no block gives, or ``norm`` is not what the model does
                with those blocks.
        """
        return None

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """CLS and registers."""
        return self.num_cls + self.num_registers

    def final_norm(self, x: Tensor) -> Tensor:
        """Apply the final norm to a whole sequence."""
        return cast("Tensor", self.norms[0](x))

    def forward(self, images: Tensor, layers: Sequence[int], norm: bool) -> list[Tensor]:
        """Return the sequences (B, P + N, C) of these blocks, in this order; later blocks do not run."""
        x, extra = self.embed(images)
        outputs: dict[int, Tensor] = {}
        for number, block in enumerate(list(self.blocks)[: max(layers) + 1]):
            if self.recomputed and torch.is_grad_enabled() and is_trainable(block):
                x = checkpoint(self.step, block, number, x, extra, use_reentrant=False)
            else:
                x = self.step(block, number, x, extra)
            if number in layers:
                outputs[number] = self.final_norm(x) if norm else x
        return [outputs[number] for number in layers]

    def set_modes(self, mode: bool) -> None:
        """Put trainable parts into ``mode`` and everything else into eval mode."""
        self.asked_mode = mode
        parts = [*self.blocks, *self.norms]
        in_parts: set[int] = set()
        for part in parts:
            in_parts.update(id(parameter) for parameter in part.parameters())
        is_rest_trainable = False
        for parameter in self.parameters():
            if parameter.requires_grad and id(parameter) not in in_parts:
                is_rest_trainable = True
        self.train(mode and is_rest_trainable)
        for part in parts:
            part.train(mode and is_trainable(part))
        if self.rotary is not None:
            self.rotary.eval()
        self.training = self.model.training = mode and is_trainable(self)

    def freeze(self, *, keep_lora: bool) -> None:
        """Make nothing trainable; with ``keep_lora`` trainable LoRA weights stay trainable."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(keep_lora and is_lora(name) and parameter.requires_grad)
        self.hashes = None

    def unfreeze_last(self, n: int, *, runs: int, norm: bool) -> None:
        """Make the last n of the first ``runs`` blocks trainable, and the final norm if it is applied.

        Raises:
            BackboneError: if n is out of range.
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= runs:
            raise BackboneError(
                f"n is {n!r}; expected 1 ... {runs}, the blocks that run for the layers asked for"
            )
        self.freeze(keep_lora=True)
        parts = list(self.blocks[runs - n : runs])
        if norm:
            parts += self.norms
        for part in parts:
            for name, parameter in part.named_parameters(prefix="block"):
                parameter.requires_grad_(parameter.requires_grad or not is_lora(name))

    def unfreeze(self, *, runs: int, norm: bool) -> None:
        """Make everything trainable that contributes to the output of the first ``runs`` blocks."""
        self.requires_grad_(True)
        self.hashes = None
        unused = list(self.blocks[runs:])
        for name in _UNUSED:
            module = getattr(self.model, name, None)
            if isinstance(module, nn.Module):
                unused.append(module)
        if not norm:
            unused += self.norms
        for module in unused:
            module.requires_grad_(False)
        for name, parameter in self.named_parameters():
            if name.endswith("mask_token"):  # stands in for masked patches, of which there are none
                parameter.requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        """Move or convert, but keep rotary frequencies and LoRA weights in float32."""
        rotary = self.rotary
        frequencies = {} if rotary is None else dict(rotary.named_buffers())
        lora_weights = []
        for name, parameter in self.named_parameters():
            if is_lora(name):
                lora_weights.append((parameter, parameter.data))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for parameter, float32_values in lora_weights:
            if parameter.dtype != float32_values.dtype and not float32_values.is_meta:
                parameter.data = float32_values.to(parameter.device)
        if rotary is not None:
            for name, values in frequencies.items():
                if not values.is_meta:
                    device = rotary.get_buffer(name).device
                    rotary._buffers[name] = values.to(device)
        return self


def official_positions(
    embedding: Tensor, grid: tuple[int, int], trained_grid: tuple[int, int] | None = None
) -> Tensor:
    """Resample plain DINOv2's position embedding to a grid, as the dinov2 repository does at its published settings.

    It is bicubic, without antialiasing, with a scale factor of (n + 0.1) / M rather than an exact
    size. The libraries differ from it by 2 to 6 % of the features at 224 x 224. Models with
    registers are resampled with antialiasing and exact sizes, by the libraries too.

    Args:
        embedding: (1, 1 + M * M, C): CLS first, then the trained square grid.
        grid: (rows, cols) to resample to.
        trained_grid: (rows, cols) of the embedding, if known.

    Returns:
        (1, 1 + rows * cols, C) in the embedding's dtype.

    Raises:
        BackboneError: if the embedding has no square grid.
    """
    if trained_grid is not None and trained_grid[0] != trained_grid[1]:
        raise BackboneError(
            f"the position embedding has {trained_grid[0]} rows x {trained_grid[1]} cols; the "
            "official recipe is that of a square grid: use pos_embed='native'"
        )
    num_patches = embedding.shape[1] - 1
    trained = math.isqrt(num_patches)  # patches per side
    if trained * trained != num_patches:
        raise BackboneError(
            f"the position embedding has {embedding.shape[1]} entries; expected CLS and a square "
            "grid, as in plain DINOv2; use pos_embed='native'"
        )
    if grid == (trained, trained):
        return embedding
    rows, cols = grid
    scale = ((rows + _POSITION_OFFSET) / trained, (cols + _POSITION_OFFSET) / trained)
    patches = embedding[:, 1:].float().reshape(1, trained, trained, -1)
    patches = patches.permute(0, 3, 1, 2)  # (1, C, M, M)
    patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    patches = patches.flatten(2).transpose(1, 2)  # (1, rows * cols, C)
    return torch.cat((embedding[:, :1], patches.to(embedding.dtype)), dim=1)


def tipsv2_positions(
    embedding: Tensor, grid: tuple[int, int], trained_grid: tuple[int, int]
) -> Tensor:
    """Resample TIPSv2's position embedding to a grid, as its publisher and transformers do.

    It is bilinear, with antialiasing and exact sizes; timm's is bicubic.

    Args:
        embedding: (1, rows * cols, C) of the trained grid, without CLS.
        grid: (rows, cols) to resample to.
        trained_grid: (rows, cols) of the embedding.

    Returns:
        (1, rows * cols, C) in the embedding's dtype.
    """
    if grid == trained_grid:
        return embedding
    patches = embedding.float().reshape(1, *trained_grid, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=grid, mode="bilinear", antialias=True)
    return patches.flatten(2).transpose(1, 2).to(embedding.dtype)  # (1, rows * cols, C)


def is_lora(name: str) -> bool:
    """Whether a parameter's name is that of a LoRA weight: below a module ``lora_A`` or ``lora_B``."""
    parents = name.split(".")[1:-1]
    return any(part in parents for part in LORA_PARTS)


def is_trainable(module: nn.Module) -> bool:
    """Whether any parameter of a module requires gradients."""
    return any(parameter.requires_grad for parameter in module.parameters())


class _EvalMode:
    """A module in eval mode: the mode it had before, and how many callers need eval mode at the moment."""

    __slots__ = ("module", "num_callers", "previous_mode")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.previous_mode = module.training
        self.num_callers = 0


# by the module's id; an entry keeps its module alive, so that no id is used twice
_eval_modes: dict[int, _EvalMode] = {}
_lock = threading.Lock()


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Run the ``with`` block with modules in eval mode, then restore the mode of each.

    ``train()`` is not called, so that a backbone keeps the mode it was asked for. Several threads
    may enter at once, with the same modules or with some in common: a module gets its mode back
    when the last thread leaves. The lock is held only while modes are switched. A call of
    ``train()`` or ``eval()`` from another thread meanwhile may be undone.
    """
    all_modules: dict[int, nn.Module] = {}
    for top in modules:
        for module in top.modules():
            all_modules[id(module)] = module
    with _lock:
        for key, module in all_modules.items():
            if key not in _eval_modes:
                _eval_modes[key] = _EvalMode(module)
            _eval_modes[key].num_callers += 1
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for key, module in all_modules.items():
                eval_mode = _eval_modes[key]
                eval_mode.num_callers -= 1
                if eval_mode.num_callers == 0:
                    module.training = eval_mode.previous_mode
                    del _eval_modes[key]
