"""The adapter of the dinov2 and dinov3 repositories' objects (torch.hub).

Their ``get_intermediate_layers`` loses the caller's order, runs every block and (dinov2) never
returns registers; the parts that it is made of give all that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoneck.backbones.adapter import Adapter, ForwardTokens, PosEmbed
from dinoneck.errors import BackboneError
from dinoneck.grid import patch_pair

HOW_TO = "torch.hub.load('facebookresearch/dinov2', 'dinov2_vits14'), then wrap_backbone(model)"
_NEEDED = ("patch_size", "blocks", "norm")
_PARTS_OF_BLOCK = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")  # of dinov3


def is_official(model: nn.Module) -> bool:
    """Whether an object has the repositories' interface."""
    makes_tokens = callable(getattr(model, "prepare_tokens_with_masks", None))
    return makes_tokens and hasattr(model, "embed_dim")


class OfficialAdapter(Adapter):
    """A DinoVisionTransformer of facebookresearch/dinov2 or dinov3, or an object with their interface.

    Args:
        model: the object; used as it is, not copied.
        pos_embed: both recipes are this model's own.

    Raises:
        BackboneError: if the object lacks what is needed, naming it.
    """

    source = "official"

    def __init__(self, model: nn.Module, pos_embed: PosEmbed = "native") -> None:
        super().__init__(model, pos_embed)
        self.family = "dinov2" if self.rotary is None else "dinov3"
        missing = [name for name in _NEEDED if not hasattr(model, name)]
        if missing:
            raise BackboneError(
                f"{type(model).__name__} lacks {', '.join(missing)}: expected an object of the "
                f"dinov2 or dinov3 repository; load one with {HOW_TO}"
            )
        self.embed_dim = int(self.model.embed_dim)
        self.patch_size = patch_pair(self.model.patch_size)
        if callable(getattr(model, "forward_features", None)):
            self.tokens_method = "forward_features"
        self.num_cls = 1
        self.num_registers = 0
        for name in ("n_storage_tokens", "num_register_tokens"):  # of dinov3, of dinov2
            if hasattr(model, name):
                self.num_registers = int(getattr(self.model, name))
                break

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, in order, whether or not they are stored in chunks."""
        blocks: list[nn.Module] = []
        for item in self.model.blocks:
            if isinstance(item, nn.ModuleList):
                # a chunk begins with an Identity for every block of the chunks before it
                blocks.extend(list(item)[len(blocks) :])
            else:
                blocks.append(item)
        return blocks

    @property
    def norms(self) -> Sequence[nn.Module]:
        """The final norm; a second one where CLS and registers have their own."""
        if self._has_cls_norm:
            return (self.model.norm, self.model.cls_norm)
        return (self.model.norm,)

    @property
    def _has_cls_norm(self) -> bool:
        """Whether CLS and registers have a norm of their own."""
        return bool(getattr(self.model, "untie_cls_and_patch_norms", False))

    @property
    def patch_embedding(self) -> nn.Module:
        """The module that makes patches of images."""
        return cast("nn.Module", self.model.patch_embed)

    def tokens_in_output(self, output: Any) -> list[ForwardTokens]:
        """Return the normed tokens in what ``forward_features`` returns; none where that is of another form.

        Raises:
            BackboneError: for a model of the tips repository, which says nothing of its mean and std.
        """
        if isinstance(output, dict) and "x_norm_1st_clstoken" in output:
            raise BackboneError(
                f"{type(self.model).__name__} is of the tips repository, whose images have mean 0 "
                "and std 1; save its state_dict(), and load that by name: "
                "load_backbone('tipsv2_b14', checkpoint=FILE, pos_embed='official')"
            )
        if not isinstance(output, dict) or "x_norm_patchtokens" not in output:
            return []
        parts = [output["x_norm_clstoken"][:, None]]
        for name in ("x_norm_regtokens", "x_storage_tokens"):  # dinov2, dinov3
            if name in output:
                parts.append(output[name])
        parts.append(output["x_norm_patchtokens"])
        return [ForwardTokens(self.depth - 1, normed=True, tokens=torch.cat(parts, dim=1))]

    @property
    def rotary(self) -> nn.Module | None:
        """DINOv3's rotary positions."""
        return cast("nn.Module | None", getattr(self.model, "rope_embed", None))

    def embed_natively(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return the prefix and patch tokens with positions, (B, P + N, C); sine and cosine for DINOv3's blocks."""
        prepared = self.model.prepare_tokens_with_masks(images)
        if self.rotary is None:
            x = prepared[0] if isinstance(prepared, tuple) else prepared
            return x, ()
        x, (rows, cols) = prepared
        return x, (self.rotary(H=rows, W=cols),)

    def step(self, block: nn.Module, number: int, x: Tensor, extra: Any) -> Tensor:
        """Run one block."""
        return cast("Tensor", block(x, *extra))

    def step_for_export(self, block: nn.Module, number: int, x: Tensor, extra: Any) -> Tensor:
        """Run one block; dinov3's computes sizes for its stochastic depth, which fix the batch.

        Its modules are called in the order of evaluation instead. The tokens of a compiled program
        are compared with those of :meth:`step`, so a block of another form is noticed.
        """
        if self.rotary is None or not all(hasattr(block, name) for name in _PARTS_OF_BLOCK):
            return self.step(block, number, x, extra)
        parts: Any = block
        [rope] = extra
        x = x + parts.ls1(parts.attn(parts.norm1(x), rope=rope))
        return cast("Tensor", x + parts.ls2(parts.mlp(parts.norm2(x))))

    def final_norm(self, x: Tensor) -> Tensor:
        """Apply the final norm; CLS and registers may have their own."""
        if not self._has_cls_norm:
            return cast("Tensor", self.model.norm(x))
        count = self.num_prefix_tokens
        prefix = self.model.cls_norm(x[:, :count])
        patches = self.model.norm(x[:, count:])
        return torch.cat((prefix, patches), dim=1)
