"""Backbone: normalised images in, :class:`dinoneck.Tokens` out, for the models of every library."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones import lora, openvino, weight_hashes, weights
from dinoneck.backbones.adapter import Adapter, WeightHashes, is_trainable
from dinoneck.backbones.block_indices import resolve_layers
from dinoneck.backbones.known import (
    LICENSES,
    is_unknown_repository,
    license_of,
    refined_family,
    uses_official_recipe,
)
from dinoneck.backbones.program_costs import expected_gain
from dinoneck.backbones.runtime import Programs, check_runtime
from dinoneck.backbones.token_batch import TokenBatch
from dinoneck.devices import is_capturing
from dinoneck.dtypes import dtype_name
from dinoneck.errors import BackboneError, ConfigError, DataError, ShapeError
from dinoneck.grid import PatchSize, TokenGrid
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.kinds import Runtime
from dinoneck.text import counted
from dinoneck.tokens import Tokens
from dinoneck.torch_wrappers import COMPILED, KEEP_MODEL

logger = logging.getLogger(__name__)

# images in 0 ... 1 become 2.7 at most by ImageNet's mean and std; those in 0 ... 255 reach 255
LARGEST_NORMALISED = 10.0


class Backbone(nn.Module):
    """A DINO ViT that returns Tokens.

    Built by :func:`dinoneck.load_backbone` or :func:`dinoneck.wrap_backbone`.

    Frozen blocks stay in eval mode, even after ``train()``. A backbone that is frozen as a whole
    records no autograd graph; its outputs are ordinary tensors that a trainable head may use.
    :meth:`unfreeze_last` and :meth:`add_lora` make parts trainable. Rotary positions are never
    randomised. Blocks after the last layer asked for do not run.

    Args:
        adapter: the model in its library's adapter.
        name: the model's name.
        layers: block indices, in the order of the output; None = the last, an integer n = the n
            last.
        norm: apply the backbone's final norm to every layer.
        frozen: make nothing trainable; None leaves the model's parameters and modes as they are.
        origin: the record of where the weights come from.

    Attributes:
        embed_dim: channels of a token.
        depth: number of blocks.
        num_prefix_tokens: CLS and register tokens before the patches.
        runtime: what computes the tokens of frozen weights: ``torch``, ``openvino`` or ``auto``, see
            :meth:`with_runtime`.

    Shape:
        images (B, 3, H, W), normalised floats, or with as many channels as the model takes ->
        Tokens with one (B, P + N, C) sequence per layer.

    Raises:
        BackboneError: if a layer does not exist, or ``norm`` is True for a model without a final
            norm.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        name: str,
        layers: int | Sequence[int] | None = None,
        norm: bool = True,
        frozen: bool | None = True,
        origin: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if norm and not adapter.norms:
            raise BackboneError(f"{name} has no final norm of its token sequence; pass norm=False")
        self.adapter = adapter
        self.name = name
        self.embed_dim = adapter.embed_dim
        self.depth = adapter.depth
        self.num_prefix_tokens = adapter.num_prefix_tokens
        self.layers = resolve_layers(layers, adapter.depth)
        self.norm = bool(norm)
        self.runtime: Runtime = "torch"
        self._programs = Programs()
        position_record = {
            "name": name,
            "family": adapter.family,
            "num_registers": adapter.num_registers,
            "pos_embed": adapter.pos_embed,
            "source": adapter.source,
        }
        adapter.uses_official_recipe = uses_official_recipe(position_record)
        self._preprocess: Preprocessing | None = None
        # of a model with other channels than RGB, mean and std may not be known
        if len(adapter.mean) == adapter.in_chans:
            self._preprocess = Preprocessing(
                patch_size=adapter.patch_size, mean=adapter.mean, std=adapter.std
            )
        if frozen is not None:
            if frozen:
                adapter.requires_grad_(False)
            self.train(adapter.model.training and not frozen)
        if origin is not None:
            weight_hashes.note_original(adapter, origin)

    def extra_repr(self) -> str:
        """Show the name, the geometry and what the tokens are."""
        return (
            f"{self.name!r}, embed_dim={self.embed_dim}, patch_size={self.patch_size}, "
            f"layers={self.layers}, norm={self.norm}, frozen={self.frozen}"
        )

    @property
    def patch_size(self) -> PatchSize:
        """Pixels per patch: an integer when square, else (height, width)."""
        height, width = self.adapter.patch_size
        return height if height == width else (height, width)

    @property
    def preprocess(self) -> Preprocessing:
        """How images become this backbone's input; it can be set.

        Raises:
            BackboneError: if the model takes other channels than its mean and std are known for.
        """
        if self._preprocess is None:
            channels = self.adapter.in_chans
            raise BackboneError(
                f"{self.name} takes images of {channels} channels, and mean and std, which its "
                f"record states, are known for {len(self.adapter.mean)}; pass "
                f"wrap_backbone(model, mean=..., std=...) with {counted(channels, 'number')} each, "
                "of values in 0 ... 1"
            )
        return self._preprocess

    @preprocess.setter
    def preprocess(self, value: Preprocessing) -> None:
        """Set it.

        Raises:
            ConfigError: if it is for another number of channels.
        """
        if value.channels != self.adapter.in_chans:
            raise ConfigError(
                f"preprocess has {counted(value.channels, 'channel')} (mean {value.mean}); this "
                f"backbone takes {self.adapter.in_chans}: pass mean= and std= of so many numbers"
            )
        self._preprocess = value

    @property
    def weights(self) -> dict[str, Any]:
        """The record of where the weights come from."""
        return self.adapter.history.origin

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and tokens."""
        return self.adapter.weight.dtype

    @property
    def frozen(self) -> bool:
        """Whether no parameter is trainable."""
        return not is_trainable(self.adapter)

    @property
    def fingerprint(self) -> str | None:
        """A short hash of the float32 weights and of the LoRA weights: the ``source`` of its Tokens.

        While LoRA is switched off it is that of the base. None while anything is trainable, and for
        half-precision weights whose float32 values are not known, as in a model that was wrapped in
        half precision.
        """
        if not self.frozen:
            return None
        return weight_hashes.current_fingerprint(self.adapter, list(self.adapter.parameters()))

    @property
    def trainable_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that have trainable parameters."""
        return tuple(i for i, block in enumerate(self.adapter.blocks) if is_trainable(block))

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of trainable parts; frozen parts and rotary positions stay in eval mode."""
        self.adapter.set_modes(bool(mode))
        self.training = self.adapter.training
        return self

    def freeze(self, *, keep_lora: bool = False) -> Backbone:
        """Make nothing trainable.

        Args:
            keep_lora: leave LoRA weights as they are, trainable or not.
        """
        self.adapter.freeze(keep_lora=keep_lora)
        return self.train(self.adapter.asked_mode)

    def unfreeze_last(self, n: int) -> Backbone:
        """Make exactly the last n blocks that run trainable, with the final norm where it is applied.

        Blocks after the last layer asked for never run and are not counted. LoRA weights stay as
        they are.

        Raises:
            BackboneError: if n is not between 1 and the number of blocks that run.
        """
        self.adapter.unfreeze_last(n, runs=max(self.layers) + 1, norm=self.norm)
        return self.train(self.adapter.asked_mode)

    def unfreeze(self) -> Backbone:
        """Make all parameters trainable that affect the output: blocks that run, embeddings, an applied final norm."""
        self.adapter.unfreeze(runs=max(self.layers) + 1, norm=self.norm)
        return self.train(self.adapter.asked_mode)

    def set_grad_checkpointing(self, enable: bool = True) -> Backbone:
        """Recompute the activations of trainable blocks in the backward pass; frozen blocks store none."""
        self.adapter.recomputed = bool(enable)
        return self

    def add_lora(
        self,
        rank: int,
        alpha: float | None = None,
        targets: lora.Targets = "attention",
        seed: int = 0,
    ) -> Backbone:
        """Add trainable low-rank weights (LoRA, by peft) to the linear layers of the blocks that run.

        Args:
            rank: of the added matrices.
            alpha: their products are scaled by alpha / rank; None = alpha is the rank.
            targets: ``"attention"``: query, key, value and output projections; ``"all"``: the MLP's
                layers too.
            seed: of their initial values; the product starts at zero, so the tokens are unchanged
                at first.

        Raises:
            BackboneError: if the rank is out of range or LoRA weights are there already.
            ImportError: naming the extra, if peft is not installed.

        Reference:
            Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
        """
        lora.add(self.adapter, rank, alpha, targets, seed=seed, runs=max(self.layers) + 1)
        return self.train(self.adapter.asked_mode)

    def merge_lora(self) -> Backbone:
        """Add the LoRA products to the weights and remove the added layers: same tokens, no extra cost.

        Raises:
            BackboneError: if there are none.
        """
        record = lora.record(self.adapter)
        before = weight_hashes.current_hashes(self.adapter)
        origin = self._origin(before)
        lora.merge(self.adapter)
        merged_origin = {
            "kind": "merged",
            "base": origin,
            "lora_sha256": None if record is None else record["sha256"],
        }
        weight_hashes.note_merge(self.adapter, merged_origin, hashes_before=before)
        return self.train(self.adapter.asked_mode)

    def lora_disabled(self) -> contextlib.AbstractContextManager[None]:
        """Run without the LoRA products inside a ``with`` block.

        The switch belongs to the model: it holds for all threads and for siblings made by
        :meth:`with_layers`. Inside, :meth:`record` and files saved with this backbone describe the
        base without LoRA.
        """
        return lora.disabled(self.adapter)

    def forward(self, images: Tensor, source: str | None = None) -> Tokens:
        """Run the blocks that are needed.

        Args:
            images: (B, 3, H, W) floats as :attr:`preprocess` returns them; cast to the weights'
                dtype. A wrapped model with other input channels takes as many.
            source: the fingerprint of the weights, where the caller has just compared them; None =
                it is computed.

        Raises:
            DataError: for uint8 images, NaN, or values beyond ±10 (not normalised).
            ShapeError: for another shape.
            GridError: if the patch does not divide the image.
        """
        self._check(images)
        dtype = self.dtype
        parameters = list(self.adapter.parameters())
        frozen = not any(parameter.requires_grad for parameter in parameters)
        with torch.no_grad() if frozen else contextlib.nullcontext():
            if images.shape[0]:  # len() would fix the batch size in an export
                sequence = self._run(images.to(dtype), is_frozen=frozen)
            else:  # attention cannot run on an empty batch
                grid = TokenGrid(self.patch_size).size(images.shape[-2:])
                num_tokens = self.num_prefix_tokens + grid.count
                empty = images.new_zeros((0, num_tokens, self.embed_dim), dtype=dtype)
                sequence = [empty for _ in self.layers]
        if not frozen:
            source = None
        elif not source:
            source = weight_hashes.current_fingerprint(self.adapter, parameters)
        return Tokens.from_sequence(
            sequence,
            image_size=(images.shape[-2], images.shape[-1]),
            patch_size=self.patch_size,
            num_prefix_tokens=self.num_prefix_tokens,
            num_cls=self.adapter.num_cls,
            layers=self.layers,
            normed=self.norm,
            source=source,
        )

    def _run(self, images: Tensor, *, is_frozen: bool) -> list[Tensor]:
        """Return the sequences (B, P + N, C) of all layers for images in the dtype of the weights.

        Torch computes them while anything is trainable or in training mode, in a graph that is
        traced or compiled, on the meta device and under autocast.
        """
        is_torch = (
            self.runtime == "torch"
            or not is_frozen
            or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            or torch.compiler.is_compiling()
            or images.is_meta
            or torch.is_autocast_enabled(images.device.type)
            or any(module.training for module in self.adapter.modules())
        )
        if is_torch:
            sequence: list[Tensor] = self.adapter(images, self.layers, self.norm)
            return sequence
        batch = self._batch(images)
        if self.runtime == "auto":
            return self._programs.run_fastest(batch)
        return self._programs.run(batch)

    def with_runtime(self, runtime: Runtime) -> Backbone:
        """Return a backbone of the same weights (shared, not copied) whose tokens another runtime computes.

        ``auto`` stays with torch until compiling a program takes less time than it saves. It counts
        the images of a size that :meth:`expect_images` has stated. A program in the cache folder is
        used if loading it saves time. A program that is not faster, gives other tokens or cannot be
        made is dropped; nothing is raised.

        ``openvino`` compiles a program of the frozen blocks for each size of images, at the first
        batch of that size, and compares its tokens with torch's; it is kept in the cache folder
        (``DINONECK_CACHE``). In float32 they agree to 1e-4 of the largest value of a layer and to
        1e-3 of each token's length, in bfloat16 to 1e-1 and 2e-1; ``Tokens.source`` is the same. It
        computes in the dtype of the weights, on the CPU, with as many threads as torch. What
        trains, is traced, compiled or under autocast runs in torch. Changed weights get a program
        of their own; a change of the model's code after the first batch is not noticed. The first
        call of a size raises BackboneError for weights that are not on the CPU, for forward hooks,
        which a program does not call, and where the tokens do not agree.

        Args:
            runtime: ``torch``, ``openvino`` or ``auto``.

        Raises:
            ConfigError: for another runtime.
            ImportError: naming the extra, if ``openvino`` is not installed.
            BackboneError: if ``openvino`` does not compute in the dtype of the weights.
        """
        check_runtime(runtime)
        if runtime == "openvino":
            openvino.check_usable(self.dtype)
        other = self.with_layers(self.layers)
        other.runtime = runtime
        return other

    def preparation_seconds(self, images: Tensor) -> float:
        """Return an estimate of the time in which a program of OpenVINO for images of this size is ready.

        That is of loading it from the cache folder, or of compiling it where it is not there.

        Args:
            images: (B, C, H, W), normalised.

        Returns:
            Seconds; infinite where torch was measured to be faster, in the last week.
        """
        return self._programs.preparation_seconds(self._batch(images))

    def expected_gain(self, images: Tensor) -> float:
        """Return how many times as fast as torch a program of OpenVINO is expected to be for images of this size.

        It is measured with one block, on this processor, and kept in the cache folder for a week.

        Args:
            images: (B, C, H, W), normalised; the first one is used.

        Returns:
            A number above 1.
        """
        return expected_gain(self._batch(images))

    @property
    def seconds_for_programs(self) -> float:
        """The seconds that this process has spent on loading, compiling and comparing programs of these weights."""
        return self._programs.seconds_taken

    def _batch(self, images: Tensor) -> TokenBatch:
        """Return images whose tokens are asked for, in the dtype of the weights."""
        return TokenBatch(self.adapter, images.to(self.dtype), layers=self.layers, norm=self.norm)

    @property
    def has_programs(self) -> bool:
        """Whether programs of OpenVINO are in memory, of the images of this backbone or of one of its weights."""
        return self._programs.are_in_memory

    def expect_images(self, counts: Mapping[tuple[int, int], int]) -> None:
        """State how many images of each size are still to come; the runtime ``auto`` decides by that.

        A statement replaces the one before, and holds for all backbones that share the weights
        (:meth:`with_layers`, :meth:`with_runtime`). The numbers go down as images are computed. The
        other runtimes take no notice.

        Args:
            counts: (height, width) in pixels, as the backbone gets the images -> how many; each
                view of an image counts.

        Raises:
            ConfigError: if a number is negative.
        """
        self._programs.expect(counts)

    def with_layers(self, layers: int | Sequence[int] | None, norm: bool | None = None) -> Backbone:
        """Return a backbone of the same weights (shared, not copied) with other output layers.

        A module that holds both lists the weights twice in its state dict: safetensors, and what
        saves by it, refuses such shared tensors. Keep one of them as a submodule, or save with
        ``safetensors.torch.save_model``.

        Args:
            layers: as for :func:`dinoneck.load_backbone`.
            norm: apply the final norm; None = as here.
        """
        if norm is None:
            norm = self.norm
        other = Backbone(self.adapter, name=self.name, layers=layers, norm=norm, frozen=None)
        other._preprocess = self._preprocess
        other.runtime = self.runtime
        other._programs = self._programs
        other.training = self.training
        return other

    def normalised(self, tokens: Tokens) -> Tokens:
        """Return tokens that were taken before the final norm with the norm applied; others as they are."""
        if tokens.normed:
            return tokens
        sequence = tuple(self.adapter.final_norm(x.to(self.dtype)) for x in tokens.sequence)
        return replace(tokens, sequence=sequence, normed=True)

    def record(self) -> dict[str, Any]:
        """Return the JSON-able record that checkpoints and stores carry.

        It holds the model's name and geometry, the layers and norm in force, and the mean and std
        of the images. It states where the weights come from and their hash: SHA-256 of all of them
        in the present dtype, None on the meta device. LoRA weights are part of it if there are any.
        Weights that have changed since they were loaded are marked as modified. The licence is that
        of published weights; seeded random weights have none, and that of a file which has no name
        of published weights is not known. A DINO model that was wrapped has the licence of its
        family: its weights are most often published ones, or made of them, which their licence
        covers. ``runtime`` is there if it is not torch; records are never compared by it.

        The hashes are cached until a parameter moves or is written to; torch does not count writes
        through ``.data``.

        Raises:
            BackboneError: if the model takes other channels than its mean and std are known for.
        """
        family = refined_family(self.adapter.family, self.name)
        hashes = weight_hashes.current_hashes(self.adapter)
        dtype = dtype_name(self.dtype)
        fingerprint_entry = {}
        if dtype != "float32":  # in float32 the fingerprint follows from the hashes
            fingerprint_entry["fingerprint"] = hashes.fingerprint
        runtime_entry = {}
        if self.runtime != "torch":  # as in the records of 0.3, which have none
            runtime_entry["runtime"] = self.runtime
        return {
            "name": self.name,
            "family": family,
            "source": self.adapter.source,
            "patch_size": list(self.adapter.patch_size),
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_cls": self.adapter.num_cls,
            "num_registers": self.adapter.num_registers,
            "layers": list(self.layers),
            "norm": self.norm,
            "pos_embed": self.adapter.pos_embed,
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
            "dtype": dtype,
            "adapter": None if hashes.lora is None else dict(hashes.lora),
            "weights": self._origin(hashes),
            "weights_sha256": hashes.weights_sha256,
            **fingerprint_entry,
            **runtime_entry,
            "license": self._licence(family),
        }

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write the weights, without LoRA's, to a file that ``load_backbone(name, checkpoint=path)`` reads.

        Load it with the same ``source``, and save heads with the backbone that is loaded from it.
        Head files hold the LoRA weights; :meth:`merge_lora` adds them to this file.

        Raises:
            BackboneError: if the file cannot be written.
        """
        weights.save_state(self.adapter.model, path)
        if lora.state(self.adapter):
            logger.warning(
                "the LoRA weights are not in %s: save_head(backbone=backbone) writes them into the "
                "head's file, and merge_lora() before save_weights adds them to this one",
                path,
            )

    def probe(self) -> list[float]:
        """Return a short functional fingerprint: a few numbers made of the tokens of one fixed small image.

        They differ between weights, norms, layers and position recipes, and hardly between
        libraries and dtypes with the same weights; see
        :func:`dinoneck.backbones.weight_hashes.differs`.
        """
        return weight_hashes.measure(self.adapter, self.layers, self.norm)

    def _licence(self, family: str) -> str | None:
        """The licence of the weights; None of seeded random ones, and where it is not known."""
        if weight_hashes.unchanged_origin(self.weights)["kind"] == "seeded":
            return None
        if not self.adapter.has_published_weights or is_unknown_repository(self.name):
            return self.adapter.license
        return self.adapter.license or license_of(self.name) or LICENSES.get(family)

    def _origin(self, hashes: WeightHashes) -> dict[str, Any]:
        """Return where the weights come from, marked as modified if they have been trained since."""
        origin = self.adapter.history.origin
        if not weight_hashes.is_comparable(self.adapter, hashes):  # on the meta device
            return origin
        if weight_hashes.is_original(self.adapter, hashes):
            return weight_hashes.unchanged_origin(origin)
        if origin["kind"] in weight_hashes.CHANGED:
            return origin
        return {"kind": "modified", "base": origin}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Backbone:
        """Move or convert; the hash of the float32 weights stays known."""
        with weight_hashes.noting_change(self.adapter, fn):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise ShapeError(
                f"images are {type(images).__name__}; expected a tensor: use "
                "backbone.preprocess(images) first"
            )
        channels = self.adapter.in_chans
        if images.ndim != 4 or images.shape[1] != channels:
            raise ShapeError(
                f"images have shape {tuple(images.shape)}; expected (batch, {channels}, height, "
                "width)"
            )
        if not images.is_floating_point():
            raise DataError(
                f"images are {images.dtype}, not normalised floats: use backbone.preprocess(images)"
            )
        TokenGrid(self.patch_size).size(images.shape[-2:])
        fixed = self.adapter.fixed_size
        if fixed is not None and tuple(images.shape[-2:]) != fixed:
            raise BackboneError(
                f"this model takes {fixed} px only, the image is {tuple(images.shape[-2:])}; use "
                "dynamic_img_size=True"
            )
        if torch.compiler.is_compiling() or images.is_meta or is_capturing(images.device):
            return
        # written so that NaN fails too; one reduction, negligible compared with a ViT
        if images.numel() and not bool(images.abs().amax() <= LARGEST_NORMALISED):
            raise DataError(
                f"images hold values up to {images.abs().amax().item():g}; normalised ones stay "
                f"within ±{LARGEST_NORMALISED:g}: use backbone.preprocess(images)"
            )


def checked_backbone(backbone: Backbone) -> Backbone:
    """Return a Backbone, or one that torch.compile wraps; refuse anything else with a ConfigError."""
    if isinstance(backbone, Backbone) or is_compiled(backbone):
        return backbone
    if isinstance(backbone, str):
        actual = repr(backbone)
        remedy = "load_backbone(name)"
    else:
        actual = type(backbone).__name__
        remedy = "wrap_backbone(model)"
    raise ConfigError(f"backbone is {actual}; expected a Backbone: pass {remedy}")


def callable_backbone(backbone: Any) -> Backbone:
    """Return a Backbone, or one that torch.compile wraps; the wrappers of data parallelism are taken off.

    Raises:
        ConfigError: for anything else.
    """
    if is_compiled(backbone):
        return checked_backbone(backbone)
    return checked_backbone(plain_backbone(backbone))


def plain_backbone(backbone: Any) -> Any:
    """Return the Backbone inside the wrappers of torch.compile, DataParallel and DistributedDataParallel.

    Anything else is returned as it is.
    """
    inner = backbone
    while isinstance(inner, nn.Module) and not isinstance(inner, Backbone):
        wrapped = [getattr(inner, name, None) for name in KEEP_MODEL]
        modules = [module for module in wrapped if isinstance(module, nn.Module)]
        if not modules:
            return backbone
        inner = modules[0]
    return inner


def is_compiled(backbone: Any) -> bool:
    """Whether this is a Backbone that torch.compile wraps."""
    return isinstance(getattr(backbone, COMPILED, None), Backbone)
